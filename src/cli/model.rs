//! Where the command line meets the model: the only file of it that knows which model is trained.

use walsh::train::{Decoder, GptConfig, Model, PendingStats, Precision, StepStats, TensorData, TrainConfig};
use walsh::{Context, Result};

/// A GPT with its optimizer.
pub enum Trained {}

/// A readback under way.
pub enum Pending {}

/// A model for training, with random weights by the seed of `config`. `precision` is f32 or f16.
pub fn build_model(context: &Context, config: &TrainConfig, gpt: &GptConfig, precision: Precision) -> Result<Trained> {
    let _ = (context, config, gpt, precision);
    todo!()
}

/// A model for sampling, with the `model.*` tensors of a checkpoint.
pub fn build_decoder(
    context: &Context,
    gpt: &GptConfig,
    precision: Precision,
    tensors: &[(String, TensorData)],
) -> Result<Trained> {
    let _ = (context, gpt, precision, tensors);
    todo!()
}

impl PendingStats for Pending {
    fn poll(&mut self) -> Result<Option<StepStats>> {
        match *self {}
    }

    fn wait(self) -> Result<StepStats> {
        match self {}
    }
}

impl Model for Trained {
    type Pending = Pending;

    fn train_step(&mut self, _: &[u32], _: &[u32]) -> Result<()> {
        match *self {}
    }

    fn stats(&mut self) -> Result<Pending> {
        match *self {}
    }

    fn eval(&mut self, _: &[u32], _: &[u32]) -> Result<(f64, u64)> {
        match *self {}
    }

    fn export(&mut self) -> Result<Vec<(String, TensorData)>> {
        match *self {}
    }

    fn import(&mut self, _: &[(String, TensorData)]) -> Result<()> {
        match *self {}
    }

    fn estimated_bytes(&self) -> u64 {
        match *self {}
    }

    fn peak_bytes(&self) -> u64 {
        match *self {}
    }
}

impl Decoder for Trained {
    fn capacity(&self) -> usize {
        match *self {}
    }

    fn start(&mut self, _: &[u32]) -> Result<Vec<f32>> {
        match *self {}
    }

    fn push(&mut self, _: u32) -> Result<Vec<f32>> {
        match *self {}
    }
}
