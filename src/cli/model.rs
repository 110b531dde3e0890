//! Where the command line meets the model: the only file of it that knows which model is trained.

use walsh::nn::GptConfig;
use walsh::optim::{AdamWOptions, Schedule};
use walsh::train::{BatchShape, GptDecoder, GptRun, Precision, TensorData, TrainConfig};
use walsh::{Context, DType, Result};

fn dtype(precision: Precision) -> DType {
    if precision == Precision::F16 { DType::F16 } else { DType::F32 }
}

/// A model for training, with random weights by the seed of `config`. `precision` is f32 or f16.
pub fn build_model(context: &Context, config: &TrainConfig, gpt: &GptConfig, precision: Precision) -> Result<GptRun> {
    // Beyond 2^32 steps the learning rate is at its minimum in any case.
    let steps = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let options = AdamWOptions {
        schedule: Schedule {
            lr: config.lr,
            min_lr: config.min_lr,
            warmup: steps(config.warmup),
            decay: steps(config.steps),
        },
        betas: (config.beta1, config.beta2),
        eps: config.epsilon,
        weight_decay: config.weight_decay,
        clip: config.clip,
        ..AdamWOptions::default()
    };
    let shape = BatchShape { batch: config.batch, block: config.block, accumulate: config.accumulate };
    GptRun::new(context, gpt.clone(), shape, options, config.seed, dtype(precision))
}

/// A model for sampling, with the `model.*` tensors of a checkpoint.
pub fn build_decoder(
    context: &Context,
    gpt: &GptConfig,
    precision: Precision,
    tensors: &[(String, TensorData)],
) -> Result<GptDecoder> {
    GptDecoder::from_tensors(context, gpt.clone(), dtype(precision), tensors)
}
