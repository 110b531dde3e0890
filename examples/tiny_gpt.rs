//! Trains a small GPT on the built-in corpus with the library alone, then lets it write.
//!
//! The corpus comes from a grammar, so the least possible loss is known: the distance to that floor is an absolute measure.

use std::sync::Arc;
use walsh::nn::{Gpt, GptConfig, TrainPass};
use walsh::op::LossOptions;
use walsh::optim::{AdamW, AdamWOptions, Schedule};
use walsh::train::{Dataset, GptDecoder, Sampling, generate};
use walsh::{Context, DType, Result, Tensor};

const BATCH: usize = 16;
const BLOCK: usize = 64;

fn main() -> Result<()> {
    let steps = 300;
    let outcome = run(&Context::new()?, steps)?;
    println!("\nafter {steps} steps {:.3} nats above the floor; it writes:\n{}", outcome.above_floor, outcome.sample);
    Ok(())
}

/// What came of it.
pub struct Outcome {
    /// Validation loss minus the entropy floor, in nats per character, before training.
    pub above_floor_before: f64,
    /// The same after training.
    pub above_floor: f64,
    /// A text that the trained model wrote.
    pub sample: String,
}

/// Trains for `steps` steps and samples.
pub fn run(context: &Context, steps: u32) -> Result<Outcome> {
    let data = Dataset::built_in(BLOCK, 1)?;
    let vocab = data.vocab().len();
    let config =
        GptConfig { layers: 2, heads: 2, embd: 64, block: BLOCK, vocab, dropout: 0.0, bias: false, quantizer: None };
    let gpt = Gpt::new(context, config, 1, DType::F32)?;
    let schedule = Schedule { lr: 3e-3, min_lr: 3e-4, warmup: steps / 10, decay: steps };
    let options =
        AdamWOptions { schedule, betas: (0.9, 0.99), weight_decay: 0.1, clip: 1.0, ..AdamWOptions::default() };
    let mut optimizer = AdamW::new(gpt.parameters(), options)?;

    let above_floor_before = above_floor(&gpt, &data)?;
    for step in 0..steps {
        let (inputs, targets) = data.train_batch(step.into(), 0, BATCH, BLOCK);
        let inputs = Tensor::from_u32(context, &inputs, &[BATCH, BLOCK])?;
        let targets = Tensor::from_u32(context, &targets, &[BATCH, BLOCK])?;
        let pass = TrainPass { state: optimizer.state(), seed: 1, micro: 0 };
        let loss = gpt
            .logits(&inputs, Some(pass))?
            .cross_entropy(&targets, LossOptions { classes: Some(vocab), ..LossOptions::default() })?;
        loss.backward()?;
        optimizer.step(gpt.parameters())?;
        context.submit()?;
        if step % 50 == 0 || step + 1 == steps {
            // Reading the loss waits for the device, so not at every step.
            println!(
                "step {step:>4}: loss {:.4}, validation {:.4} above the floor",
                loss.item()?,
                above_floor(&gpt, &data)?
            );
        }
    }
    let above_floor = above_floor(&gpt, &data)?;

    let mut sample = String::new();
    let newline = data.vocab().encode("the prompt", "\n")?;
    let sampling = Sampling { temperature: 0.8, top_k: Some(20), seed: 1 };
    // A token at a time, with keys and values of those before it kept on the device.
    generate(&mut GptDecoder::new(Arc::new(gpt))?, &newline, 300, &sampling, &mut |token| {
        sample += &data.vocab().decode(&[token]);
        true
    })?;
    Ok(Outcome { above_floor_before, above_floor, sample })
}

/// Mean validation loss over a part of the validation split, minus the entropy of just those documents.
fn above_floor(gpt: &Gpt, data: &Dataset) -> Result<f64> {
    let context = gpt.parameters().context();
    let windows = data.eval_windows(BLOCK, Some(64));
    let inputs = Tensor::from_u32(context, &windows.inputs, &[windows.rows, BLOCK])?;
    let targets = Tensor::from_u32(context, &windows.targets, &[windows.rows, BLOCK])?;
    let losses = context.no_grad(|| gpt.logits(&inputs, None)?.token_losses(&targets, Some(gpt.config().vocab)))?;
    let sum: f64 = losses.to_vec()?.into_iter().map(f64::from).sum();
    let count = windows.targets.iter().filter(|t| **t != walsh::IGNORE).count();
    Ok(sum / count as f64 - windows.entropy_floor.unwrap_or(0.0))
}
