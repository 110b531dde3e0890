//! CAGE on a quantized GPT: the values that it pulls toward, what it comes to, and that a step of it is one that creates nothing and goes on to the
//! bit.

mod common;

use common::{U32, assert_steady, assert_within, dtypes, every_tier, mean};
use walsh::nn::{Gpt, GptConfig};
use walsh::op::{LinearOptions, linear};
use walsh::optim::{AdamWOptions, Correction, Quantized, Schedule};
use walsh::qat::{Method, Quantizer, Settings};
use walsh::train::{BatchShape, GptRun, Model, PendingStats};
use walsh::{Context, DType, Error, Tensor};

const SHAPE: BatchShape = BatchShape { batch: 4, block: 16, accumulate: 1 };

fn config(layers: usize, method: &str, weights: &str, activations: Option<&str>) -> GptConfig {
    let mut config =
        GptConfig { layers, heads: 2, embd: 32, block: 16, vocab: 16, dropout: 0.0, bias: false, quantizer: None };
    let asked = Settings {
        weights: Some(weights.parse().unwrap()),
        activations: activations.map(|name| name.parse().unwrap()),
        hadamard: None,
        widths: config.widths(),
    };
    config.quantizer = method.parse::<Method>().unwrap().quantizer(&asked).unwrap();
    config
}

fn options(lr: f64, correction: Option<Correction>) -> AdamWOptions {
    AdamWOptions { schedule: Schedule::constant(lr), betas: (0.9, 0.99), clip: 1.0, correction, ..Default::default() }
}

/// Sequences whose next token is 5 times the last one plus that before it.
fn batch(step: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for row in 0..SHAPE.batch {
        let seed = (step * SHAPE.batch + row) as u32;
        let mut sequence = vec![seed % 16, seed / 16 % 16];
        while sequence.len() <= SHAPE.block {
            let [a, b] = [sequence[sequence.len() - 2], sequence[sequence.len() - 1]];
            sequence.push((a + 5 * b) % 16);
        }
        inputs.extend(&sequence[..SHAPE.block]);
        targets.extend(&sequence[1..]);
    }
    (inputs, targets)
}

fn step(run: &mut GptRun, number: usize) {
    let (inputs, targets) = batch(number);
    run.train_step(&inputs, &targets).unwrap();
}

/// The quantized weights' distance to the grid, as a share of their norm.
fn distance(context: &Context, gpt: &Gpt) -> f64 {
    let (mut errors, mut squares) = (0.0, 0.0);
    for index in gpt.quantized() {
        let weight = &gpt.parameters()[index];
        let nearest = Tensor::zeros(context, weight.shape(), DType::F32).unwrap();
        gpt.nearest(index, &nearest).unwrap();
        for (x, q) in weight.to_vec().unwrap().into_iter().zip(nearest.to_vec().unwrap()) {
            errors += f64::from(x - q).powi(2);
            squares += f64::from(x).powi(2);
        }
    }
    (errors / squares).sqrt()
}

#[test]
fn weights_are_pulled_toward_the_very_values_that_products_multiply() {
    for context in every_tier() {
        for (method, weights, hadamard) in [
            ("ste", "int4:g32", None),
            ("clipped", "mxfp4", Some(32)),
            ("quest", "int4", Some(32)),
            ("quest", "binary", None),
        ] {
            let mut config = config(1, method, weights, None);
            let Some(Quantizer { method, weights, .. }) = config.quantizer else { panic!("{config:?}") };
            let quantizer = Quantizer::new(method, weights, None, hadamard).unwrap();
            config.quantizer = Some(quantizer);
            let gpt = Gpt::new(&context, config, 3, DType::F32).unwrap();
            let names: Vec<&str> =
                gpt.parameters().iter().map(|(info, _)| info.name.as_str()).filter(|n| n.contains(".c_")).collect();
            let quantized = gpt.quantized();
            assert_eq!(quantized.len(), names.len());
            for index in quantized {
                let weight = &gpt.parameters()[index];
                let [n, k] = [weight.rows(), weight.columns()];
                let nearest = Tensor::from_f32(&context, &vec![f32::NAN; n * k], &[n, k]).unwrap();
                gpt.nearest(index, &nearest).unwrap();
                let nearest = nearest.to_vec().unwrap();
                // The layer's outputs for the rows of the identity are the columns of what it multiplies by.
                let identity: Vec<f32> = (0..k * k).map(|e| if e / k == e % k { 1.0 } else { 0.0 }).collect();
                let identity = Tensor::from_f32(&context, &identity, &[k, k]).unwrap();
                let options = LinearOptions { quantizer: Some(quantizer), ..LinearOptions::default() };
                let outputs = context.no_grad(|| linear(&identity, weight, options)).unwrap().to_vec().unwrap();
                let want: Vec<f64> = (0..n * k).map(|e| f64::from(outputs[e % k * n + e / k])).collect();
                // Sums of k products and transforms of at most 5 stages, whose factors have unit norm: their magnitudes add up to the row's norm.
                let norm =
                    |row: usize| nearest[row * k..][..k].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                assert_within(&format!("{quantizer}"), &nearest, &want, |e| (k as f64 + 16.0) * U32 * norm(e / k));
            }
            let narrow = Tensor::zeros(&context, &[32, 31], DType::F32).unwrap();
            assert!(matches!(gpt.nearest(gpt.quantized()[0], &narrow), Err(Error::Shape { .. })));
            let embedding = &gpt.parameters()[0];
            let out = Tensor::zeros(&context, embedding.shape(), DType::F32).unwrap();
            assert!(matches!(gpt.nearest(0, &out), Err(Error::Shape { .. })));
        }
        let gpt = Gpt::new(&context, GptConfig { quantizer: None, ..config(1, "ste", "int4", None) }, 3, DType::F32);
        assert!(gpt.unwrap().quantized().is_empty());
    }
}

#[test]
fn weights_end_nearer_to_the_grid_and_what_was_learned_stays() {
    const STEPS: usize = 100;
    // The best tier of each adapter: what differs by tier has tests of its own.
    let mut best: Vec<Context> = Vec::new();
    for context in every_tier() {
        best.retain(|c| c.capabilities().adapter != context.capabilities().adapter);
        best.push(context);
    }
    for context in best {
        let quantizers = [("quest", "int4", Some("int4")), ("clipped", "mxfp4", None)];
        for (dtype, (method, weights, activations)) in dtypes(&context).into_iter().zip(quantizers) {
            let train = |correction: Option<Correction>| {
                let config = config(1, method, weights, activations);
                let mut run = GptRun::new(&context, config, SHAPE, options(5e-3, correction), 7, dtype).unwrap();
                let mut losses = Vec::new();
                for number in 0..STEPS {
                    step(&mut run, number);
                    losses.push(run.stats().unwrap().wait().unwrap().loss);
                }
                (distance(&context, run.gpt()), mean(&losses[..10]), mean(&losses[STEPS - 10..]))
            };
            let plain = train(None);
            // An update of Adam's is about 1 in units of the learning rate, and a distance to the grid of the initial weights 0.004: only so strong
            // a pull decides within so few steps.
            let cage = train(Some(Correction { lambda: 100.0, ..Correction::cage(STEPS as u32) }));
            assert!(cage.0 < 0.5 * plain.0, "{method} {weights} {dtype}: {cage:?}, without: {plain:?}");
            assert!(cage.1 - cage.2 > 0.8 * (plain.1 - plain.2), "{method} {weights} {dtype}: {cage:?} {plain:?}");
        }
    }
}

#[test]
fn a_step_creates_nothing_and_takes_no_arena_more() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            let mut held = Vec::new();
            // All steps from the third on: silent ones, those of the ramp, and beyond.
            for correction in [None, Some(Correction { silence: 0.5, ..Correction::cage(6) })] {
                // Of equal contexts, so that one run's memory is not the other's.
                let context = Context::with_options(
                    &walsh::ContextOptions::default()
                        .adapter(context.capabilities().adapter.name.clone())
                        .max_tier(context.tier()),
                )
                .unwrap();
                let config = config(3, "quest", "int4", Some("int4"));
                let mut run = GptRun::new(&context, config, SHAPE, options(1e-3, correction), 7, dtype).unwrap();
                for number in 0..2 {
                    step(&mut run, number);
                }
                context.synchronize().unwrap();
                assert_steady("cage", &context, 6, |number| step(&mut run, 2 + number as usize));
                let weights: Vec<u64> =
                    run.gpt().quantized().into_iter().map(|i| run.gpt().parameters()[i].len() as u64 * 4).collect();
                held.push((context.held_bytes(), weights));
            }
            let (plain, _) = held[0];
            let (cage, weights) = &held[1];
            let (largest, all) = (weights.iter().max().unwrap(), weights.iter().sum::<u64>());
            // The values of the largest weight in a size class of its own, and its codes where the forward pass holds none of that size.
            assert!(cage - plain <= 2 * largest && 2 * largest < all / 4, "{plain} {cage} {largest} {all}");
        }
    }
}

#[test]
fn a_run_goes_on_from_the_middle_of_the_ramp_to_the_bit() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for coupled in [false, true] {
                let correction = Correction { silence: 0.3, coupled, ..Correction::cage(8) };
                let fresh = || {
                    let config = config(1, "quest", "int4", Some("int4"));
                    GptRun::new(&context, config, SHAPE, options(2e-3, Some(correction)), 7, dtype).unwrap()
                };
                let (mut straight, mut first) = (fresh(), fresh());
                for number in 0..5 {
                    step(&mut straight, number);
                    step(&mut first, number);
                }
                let saved = first.export().unwrap();
                drop(first);
                let mut resumed = fresh();
                step(&mut resumed, 77);
                resumed.import(&saved).unwrap();
                for number in 5..8 {
                    step(&mut straight, number);
                    step(&mut resumed, number);
                }
                for ((name, a), (_, b)) in straight.export().unwrap().iter().zip(&resumed.export().unwrap()) {
                    assert!(a.bytes == b.bytes, "{dtype} coupled {coupled} {name}: bits differ after resuming");
                }
            }
        }
    }
}
