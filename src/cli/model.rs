//! Where the command line meets the model: the only file of it that knows which model is trained.

use std::sync::Arc;
use walsh::nn::{Gpt, GptConfig};
use walsh::optim::{AdamWOptions, Schedule};
use walsh::train::export::Exported;
use walsh::train::{BatchShape, GptDecoder, GptRun, Precision, TensorData, TrainConfig, gpt_from_tensors};
use walsh::{Context, DType, Error, Result};

fn dtype(precision: Precision) -> DType {
    if precision == Precision::F16 { DType::F16 } else { DType::F32 }
}

/// Refuses a model whose activations no buffer of the device holds, naming the flags to change.
fn check_limits(context: &Context, config: &TrainConfig, gpt: &GptConfig, dtype: DType) -> Result<()> {
    let max = context.capabilities().limits.max_storage_buffer_binding_size;
    let tokens = config.batch as u64 * config.block as u64;
    let elem = dtype.size() as u64;
    // The MLP's inner activation and the logits are the largest tensors of a pass; row statistics and masks are smaller.
    let widest = [
        ("the MLP's activations (--batch x --block x 4 --embd)", 4 * gpt.embd as u64, elem),
        ("the logits (--batch x --block x vocabulary)", gpt.vocab as u64, 4),
    ];
    for (what, columns, size) in widest {
        let needed = tokens.saturating_mul(columns).saturating_mul(size);
        if needed > max {
            let limit = "max_storage_buffer_binding_size";
            return Err(Error::Limit { what: what.to_owned(), limit, max, needed });
        }
    }
    Ok(())
}

/// A model for training, with random weights by the seed of `config`. `precision` is f32 or f16.
pub fn build_model(context: &Context, config: &TrainConfig, gpt: &GptConfig, precision: Precision) -> Result<GptRun> {
    check_limits(context, config, gpt, dtype(precision))?;
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

/// The same of an exported model.
pub fn load_decoder(context: &Context, exported: &Exported<'_>, precision: Precision) -> Result<GptDecoder> {
    GptDecoder::new(Arc::new(exported.load(context, dtype(precision))?))
}

/// A model whose parameters are looked at, with the `model.*` tensors of a checkpoint.
pub fn build_gpt(context: &Context, gpt: &GptConfig, tensors: &[(String, TensorData)]) -> Result<Gpt> {
    gpt_from_tensors(context, gpt.clone(), DType::F32, tensors)
}
