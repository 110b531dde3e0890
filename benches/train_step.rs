//! A whole training step: the preset `cpu`, on GPUs also `baby`, in f32 and f16, in tokens per second (shown as elements):
//! `cargo bench --bench train_step`. Ids are train_step/precision/preset.
//!
//! Wall clock from the first of a number of steps to the device's being done with the last, as training runs them.

mod common;

use criterion::{BenchmarkId, Throughput};
use std::time::{Duration, Instant};
use walsh::optim::{AdamWOptions, Schedule};
use walsh::train::{BatchShape, GptRun, Model, PendingStats, Preset};
use walsh::{DType, Error, Result};

const VOCAB: usize = 65;

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let mut criterion = common::criterion().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    let contexts = common::contexts()?;
    common::header(&contexts);
    // The best tier is the one that training uses.
    let Some(context) = contexts.last() else { return Ok(()) };
    let presets = if context.capabilities().is_cpu() { &[Preset::Cpu][..] } else { &[Preset::Cpu, Preset::Baby] };
    let mut group = criterion.benchmark_group("train_step");
    for preset in presets {
        let config = preset.config();
        for dtype in [DType::F32, DType::F16] {
            if dtype == DType::F16 && !context.capabilities().f16 {
                println!("skipped: f16: no SHADER_F16");
                continue;
            }
            let shape = BatchShape { batch: config.batch, block: config.block, accumulate: 1 };
            let options = AdamWOptions { schedule: Schedule::constant(config.lr), clip: config.clip, ..AdamWOptions::default() };
            let mut model = GptRun::new(context, config.gpt(VOCAB), shape, options, 1, dtype)?;
            let tokens: Vec<u32> = (0..config.tokens_per_step() as u32 + 1).map(|i| i * i % VOCAB as u32).collect();
            let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
            // Pipelines, buffers and bind groups are there after two steps.
            for _ in 0..2 {
                model.train_step(inputs, targets)?;
            }
            let stats = model.stats()?.wait()?;
            if !stats.loss.is_finite() {
                return Err(Error::NonFinite { step: stats.step, tensor: "the loss".into() });
            }
            group.throughput(Throughput::Elements(inputs.len() as u64));
            group.bench_function(BenchmarkId::new(dtype.to_string(), preset.name()), |bencher| {
                bencher.iter_custom(|times| {
                    let start = Instant::now();
                    for _ in 0..times {
                        model.train_step(inputs, targets).expect("it ran before");
                    }
                    context.synchronize().expect("it ran before");
                    start.elapsed()
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
