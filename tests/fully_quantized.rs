//! Methods that quantize the backward pass too: layers against float64 written from the papers, and what training promises with them.

mod common;

use common::{Gen, U16, U32, assert_steady, assert_within, dtypes, every_tier, floats, mean, wide};
use walsh::nn::{GptConfig, TrainPass};
use walsh::op::{LinearOptions, linear};
use walsh::optim::{AdamWOptions, Schedule};
use walsh::qat::{Asked, Method, Noise, Quantizer, Settings};
use walsh::reference::fully_quantized::{Layer, Results, Rounds};
use walsh::train::{BatchShape, GptRun, Model, PendingStats};
use walsh::{Context, DType, Gradients, Tensor, Tier};

fn quantizer(method: &str, widths: &[usize]) -> Quantizer {
    let settings = Settings { widths: widths.to_vec(), ..Settings::default() };
    method.parse::<Method>().unwrap().quantizer(&settings).unwrap().unwrap()
}

fn state(context: &Context, step: u32) -> Tensor {
    let mut words = [0u32; 16];
    words[0] = step;
    Tensor::from_u32(context, &words, &[16]).unwrap()
}

/// Codes are those of float64 but for values within a few ulps of a midpoint between two levels, or of a scale that rounds the other way:
/// one such element in some ten thousand, which shows in one row of a gradient. So nine elements of ten must agree but for the rounding of
/// sums, and all of them together within a fiftieth: a tenth of what the quantization itself is off.
fn assert_near(what: &str, got: &[f32], want: &[f64], unit: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let square = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>();
    let size = square(&mut want.iter().copied());
    let tight = unit * (size / want.len() as f64).sqrt();
    let differences = || got.iter().zip(want).map(|(g, w)| f64::from(*g) - w);
    let far = differences().filter(|d| d.abs() > tight).count();
    assert!(far * 10 <= want.len(), "{what}: {far} of {} elements are off by more than {tight:e}", want.len());
    let all = (square(&mut differences()) / size).sqrt();
    assert!(all <= 0.02, "{what}: off by {all}");
}

#[test]
fn layers_agree_with_float64() {
    for context in every_tier() {
        for (method, [m, n, k]) in [
            ("quartet", [64usize, 96, 32]),
            ("quartet:sr", [32, 64, 64]),
            ("quartet:aligned", [64, 32, 96]),
            ("nvfp4", [48, 36, 52]),
            ("nvfp4:unbiased", [48, 36, 52]),
        ] {
            for dtype in dtypes(&context) {
                let mut random = Gen::new(11);
                let (x, x_values) = floats(&context, &random.normals(m * k), &[m, k], dtype);
                let (w, w_values) = floats(&context, &random.normals(n * k), &[n, k], DType::F32);
                let (g, g_values) = floats(&context, &random.hard(m * n), &[m, n], dtype);
                let state = state(&context, 23);
                let noise = Noise { seed: 99, state: state.buffer().clone(), micro: 2, layer: 7 };
                let options = LinearOptions {
                    quantizer: Some(quantizer(method, &[k])),
                    noise: Some(&noise),
                    ..LinearOptions::default()
                };
                let (x, w) = (x.with_grad(), w.with_grad());
                let y = linear(&x, &w, options).unwrap();
                let forward = y.to_vec().unwrap();
                let mut gradients = Gradients::default();
                y.backward_from(g, &mut gradients).unwrap();
                let layer = Layer {
                    dims: [m, n, k],
                    x: &x_values,
                    weight: &w_values,
                    gradient: &g_values,
                    seed: 99,
                    step: 23,
                    micro: 2,
                    layer: 7,
                };
                let Results { y, dx, dweight } = match method {
                    "quartet" => layer.quartet(Rounds::Nearest),
                    "quartet:sr" => layer.quartet(Rounds::Stochastic),
                    "quartet:aligned" => layer.quartet(Rounds::Aligned),
                    "nvfp4:unbiased" => layer.nvfp4(16.0 / 17.0),
                    _ => layer.nvfp4(1.0),
                }
                .unwrap();
                // Roundings of sums; results of f16, twice with a rotation; cooperative matrices round values to f16.
                let coarse = dtype == DType::F16 || context.tier() == Tier::Coop;
                let unit = if coarse { 8e-3 } else { 2e-5 };
                let what = format!("{method} {dtype} on {} {}", context.capabilities().adapter.name, context.tier());
                assert_near(&format!("{what}: y"), &forward, &y, unit);
                let of = |t: &Tensor| gradients.get(t).unwrap().to_vec().unwrap();
                assert_near(&format!("{what}: dx"), &of(&x), &dx, unit);
                assert_near(&format!("{what}: dw"), &of(&w), &dweight, unit);
            }
        }
    }
}

#[test]
fn headroom_takes_the_bias_out_of_an_input_gradient() {
    for context in every_tier() {
        let (m, n, k) = (32, 32, 16);
        // A scale of 1.062 is rounded to 1 in E4M3: without headroom all of its group saturates. The group before it sets the matrix' norm.
        let (largest, element) = (1.0, 1.062 * 128.0 / 448.0);
        let g: Vec<f32> = (0..m * n).map(|i| if i % n < 16 { largest } else { element }).collect();
        let w: Vec<f32> = (0..n * k).map(|i| if i / k < 16 { 0.0 } else { 1.0 }).collect();
        let (g, w) =
            (Tensor::from_f32(&context, &g, &[m, n]).unwrap(), Tensor::from_f32(&context, &w, &[n, k]).unwrap());
        let x = Tensor::zeros(&context, &[m, k], DType::F32).unwrap().with_grad();
        let ratio = |method: &str| {
            let steps = 1..=8u32;
            let sums = steps.clone().map(|step| {
                let noise = Noise { seed: 7, state: state(&context, step).buffer().clone(), micro: 0, layer: 1 };
                let quantizer = Some(quantizer(method, &[k]));
                let options = LinearOptions { quantizer, noise: Some(&noise), ..LinearOptions::default() };
                let mut gradients = Gradients::default();
                linear(&x, &w.clone().with_grad(), options).unwrap().backward_from(g.clone(), &mut gradients).unwrap();
                gradients.get(&x).unwrap().to_vec().unwrap().into_iter().map(f64::from).sum::<f64>()
            });
            sums.sum::<f64>() / (f64::from(steps.end() - steps.start() + 1) * (m * k * 16) as f64 * f64::from(element))
        };
        // In units of the rounded scale: between levels 4 and 6, once for each of m * 16 elements and a step.
        let value: f64 = 16.0 / 17.0 * 6.0 * 1.062;
        let deviation = ((6.0 - value) * (value - 4.0)).sqrt() / value / (8.0 * (m * 16) as f64).sqrt();
        // Cooperative matrices round values to f16.
        let rounding = if context.tier() == Tier::Coop { 2f64.powi(-11) } else { 1e-5 };
        let unbiased = ratio("nvfp4:unbiased");
        assert!((unbiased - 1.0).abs() < 6.0 * deviation + rounding, "{unbiased}, deviation {deviation}");
        let published = ratio("nvfp4");
        assert!((published - 1.0 / 1.062).abs() < rounding, "{published}");
    }
}

#[test]
fn gradients_pass_activations_and_add_up() {
    // A layer after an activation gets its gradient through the same products.
    for context in every_tier() {
        for method in ["quartet", "nvfp4"] {
            let mut random = Gen::new(3);
            let (x, _) = floats(&context, &random.normals(32 * 32), &[32, 32], DType::F32);
            let (w1, _) = floats(&context, &random.normals(64 * 32), &[64, 32], DType::F32);
            let (w2, _) = floats(&context, &random.normals(32 * 64), &[32, 64], DType::F32);
            let (g, _) = floats(&context, &random.normals(32 * 32), &[32, 32], DType::F32);
            let state = state(&context, 1);
            let noise = Noise { seed: 5, state: state.buffer().clone(), micro: 0, layer: 1 };
            let quantizer = Some(quantizer(method, &[32, 64]));
            let (w1, w2) = (w1.with_grad(), w2.with_grad());
            let gradient = |fused: bool| {
                let activation = Some(walsh::kernel::matmul::Activation::Gelu);
                let plain = LinearOptions { quantizer, noise: Some(&noise), ..LinearOptions::default() };
                let hidden = if fused {
                    linear(&x, &w1, LinearOptions { activation, ..plain }).unwrap()
                } else {
                    linear(&x, &w1, plain).unwrap().gelu().unwrap()
                };
                let y = linear(&hidden, &w2, plain).unwrap();
                let mut gradients = Gradients::default();
                y.backward_from(g.clone(), &mut gradients).unwrap();
                [&w1, &w2].map(|w| gradients.get(w).unwrap().to_vec().unwrap())
            };
            let (fused, apart) = (gradient(true), gradient(false));
            for (a, b) in fused.iter().zip(&apart) {
                let want: Vec<f64> = b.iter().map(|v| f64::from(*v)).collect();
                let unit = if context.tier() == Tier::Coop { 8e-3 } else { 1e-4 };
                assert_near(method, a, &want, unit);
            }
        }
    }
}

#[test]
fn gradients_of_two_passes_add_up() {
    for context in every_tier() {
        for (method, dtype) in
            ["quartet", "nvfp4"].into_iter().flat_map(|m| dtypes(&context).into_iter().map(move |d| (m, d)))
        {
            let mut random = Gen::new(6);
            let (x, _) = floats(&context, &random.normals(64 * 32), &[64, 32], dtype);
            let (w, _) = floats(&context, &random.normals(96 * 32), &[96, 32], DType::F32);
            let gs = [0; 2].map(|_| floats(&context, &random.normals(64 * 96), &[64, 96], dtype).0);
            let (x, w) = (x.with_grad(), w.with_grad());
            let state = state(&context, 1);
            let noise = Noise { seed: 5, state: state.buffer().clone(), micro: 0, layer: 1 };
            let options = LinearOptions {
                quantizer: Some(quantizer(method, &[32])),
                noise: Some(&noise),
                ..LinearOptions::default()
            };
            // The same noise: each pass rounds as it does alone.
            let backward = |g: &Tensor, gradients: &mut Gradients| {
                linear(&x, &w, options).unwrap().backward_from(g.clone(), gradients).unwrap();
            };
            let of = |gradients: &Gradients| [&x, &w].map(|t| gradients.get(t).unwrap().to_vec().unwrap());
            let alone = gs.each_ref().map(|g| {
                let mut gradients = Gradients::default();
                backward(g, &mut gradients);
                of(&gradients)
            });
            let mut gradients = Gradients::default();
            for g in &gs {
                backward(g, &mut gradients);
            }
            for (i, (name, both)) in ["dx", "dw"].into_iter().zip(of(&gradients)).enumerate() {
                let [a, b] = alone.each_ref().map(|alone| wide(&alone[i]));
                let want: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
                // One more rounding; a product's factor may be fused with its addition, what is f16 alone is not rounded before it is
                // added, and a device may add the terms of a sum in another order.
                let of = if name == "dx" { dtype } else { DType::F32 };
                let unit = if of == DType::F16 { U16 } else { U32 };
                let what = format!("{method} {dtype} on {}: {name}", context.tier());
                let order = 1e-6 * mean(&a.iter().map(|v| v * v).collect::<Vec<_>>()).sqrt();
                assert_within(&what, &both, &want, |e| 4.0 * unit * (a[e].abs() + b[e].abs()) + order);
            }
        }
    }
}

#[test]
fn the_same_step_draws_the_same_and_another_does_not() {
    let context = &every_tier()[0];
    let mut random = Gen::new(4);
    let (x, _) = floats(context, &random.normals(32 * 32), &[32, 32], DType::F32);
    let (w, _) = floats(context, &random.normals(32 * 32), &[32, 32], DType::F32);
    let (g, _) = floats(context, &random.normals(32 * 32), &[32, 32], DType::F32);
    let (x, w) = (x.with_grad(), w.with_grad());
    for method in ["quartet", "quartet:sr", "nvfp4"] {
        let run = |step: u32, micro: u32, layer: u32, seed: u64| {
            let state = state(context, step);
            let noise = Noise { seed, state: state.buffer().clone(), micro, layer };
            let options = LinearOptions {
                quantizer: Some(quantizer(method, &[32])),
                noise: Some(&noise),
                ..LinearOptions::default()
            };
            let y = linear(&x, &w, options).unwrap();
            let mut gradients = Gradients::default();
            y.backward_from(g.clone(), &mut gradients).unwrap();
            [&x, &w].map(|t| gradients.get(t).unwrap().to_vec().unwrap())
        };
        let first = run(3, 0, 1, 8);
        assert_eq!(run(3, 0, 1, 8), first, "{method}");
        for other in [run(4, 0, 1, 8), run(3, 1, 1, 8), run(3, 0, 2, 8), run(3, 0, 1, 9)] {
            assert_ne!(other[0], first[0], "{method}");
            assert_ne!(other[1], first[1], "{method}");
        }
    }
}

const SHAPE: BatchShape = BatchShape { batch: 2, block: 16, accumulate: 2 };

fn config(method: &str) -> GptConfig {
    GptConfig {
        layers: 2,
        heads: 2,
        embd: 32,
        block: 16,
        vocab: 21,
        dropout: 0.1,
        bias: false,
        quantizer: Some(quantizer(method, &[32, 128])),
    }
}

fn run(context: &Context, method: &str, dtype: DType) -> GptRun {
    let schedule = Schedule { lr: 3e-3, min_lr: 3e-4, warmup: 4, decay: 100 };
    let loss_scale = if dtype == DType::F16 { 1024.0 } else { 1.0 };
    let options = AdamWOptions { schedule, loss_scale, ..AdamWOptions::default() };
    GptRun::new(context, config(method), SHAPE, options, 1, dtype).unwrap()
}

/// Text in which each token depends on the one before it.
fn batch(seed: u64) -> (Vec<u32>, Vec<u32>) {
    let count = SHAPE.batch * SHAPE.block * SHAPE.accumulate;
    let mut random = Gen::new(seed);
    let mut token = 0u32;
    let mut next = || {
        token = (token * 3 + 1 + random.below(3) as u32) % 21;
        token
    };
    let all: Vec<u32> = (0..=count).map(|_| next()).collect();
    (all[..count].to_vec(), all[1..].to_vec())
}

/// The best tier of the first adapter: kernels are tested on all of them.
fn best() -> Context {
    let all = every_tier();
    let same = |c: &&Context| c.capabilities().adapter == all[0].capabilities().adapter;
    all.iter().rfind(same).cloned().unwrap()
}

#[test]
fn the_loss_falls_and_the_steady_state_creates_nothing() {
    let context = best();
    for method in ["quartet", "quartet:sr", "quartet:aligned", "nvfp4:dense=0", "nvfp4"] {
        for dtype in dtypes(&context).into_iter().take(if method == "quartet:sr" { 2 } else { 1 }) {
            let mut run = run(&context, method, dtype);
            let step = |run: &mut GptRun, i: u64| {
                let (inputs, targets) = batch(i);
                run.train_step(&inputs, &targets).unwrap();
            };
            let loss = |run: &mut GptRun| PendingStats::wait(run.stats().unwrap()).unwrap().loss;
            step(&mut run, 0);
            let first = loss(&mut run);
            for i in 1..60 {
                step(&mut run, i);
            }
            assert_steady(&format!("{method} {dtype}"), &context, 4, |i| step(&mut run, 60 + u64::from(i)));
            let last = loss(&mut run);
            assert!(last < 0.85 * first, "{method} {dtype}: the loss went from {first} to {last}");
        }
    }
}

#[test]
fn a_resumed_run_goes_on_to_the_bit() {
    let context = best();
    for method in ["quartet:sr", "nvfp4:dense=1"] {
        let step = |run: &mut GptRun, i: u64| {
            let (inputs, targets) = batch(i);
            run.train_step(&inputs, &targets).unwrap();
        };
        let mut straight = run(&context, method, DType::F32);
        let mut half = run(&context, method, DType::F32);
        for i in 0..3 {
            step(&mut straight, i);
            step(&mut half, i);
        }
        let saved = half.export().unwrap();
        let mut resumed = run(&context, method, DType::F32);
        step(&mut resumed, 77);
        resumed.import(&saved).unwrap();
        for i in 3..6 {
            step(&mut straight, i);
            step(&mut resumed, i);
        }
        let bytes = |run: &mut GptRun| -> Vec<(String, Vec<u8>)> {
            run.export().unwrap().into_iter().map(|(name, data)| (name, data.bytes)).collect()
        };
        assert!(bytes(&mut straight) == bytes(&mut resumed), "{method}: bits differ after resuming");
    }
}

#[test]
fn the_last_blocks_stay_in_full_precision() {
    for (method, blocks, dense) in [
        ("nvfp4", 1, 1),
        ("nvfp4", 6, 1),
        ("nvfp4", 12, 2),
        ("nvfp4", 62, 9),
        ("nvfp4:dense=0", 12, 0),
        ("nvfp4:dense=8", 6, 6),
        ("quartet", 12, 0),
    ] {
        assert_eq!(quantizer(method, &[32]).dense_blocks(blocks), dense, "{method} of {blocks}");
    }
    // One of two blocks in full precision is neither all of them nor none.
    let context = best();
    let logits = |quantizer: Option<Quantizer>| {
        let config = GptConfig { quantizer, dropout: 0.0, ..config("nvfp4") };
        let gpt = walsh::nn::Gpt::new(&context, config, 4, DType::F32).unwrap();
        let tokens = Tensor::from_u32(&context, &(0..32).map(|i| i % 21).collect::<Vec<u32>>(), &[2, 16]).unwrap();
        let state = state(&context, 0);
        let pass = TrainPass { state: state.buffer(), seed: 1, micro: 0 };
        let trained = gpt.logits(&tokens, Some(pass)).unwrap().to_vec().unwrap();
        assert_eq!(context.no_grad(|| gpt.logits(&tokens, None)).unwrap().to_vec().unwrap(), trained);
        trained
    };
    let none = logits(None);
    let one = logits(Some(quantizer("nvfp4:dense=1", &[32])));
    assert_ne!(one, none);
    assert_ne!(logits(Some(quantizer("nvfp4:dense=0", &[32]))), one);
}

#[test]
fn a_model_without_a_quantized_block_is_refused_by_name() {
    let context = best();
    for (method, layers) in [("nvfp4", 1), ("nvfp4:dense=1", 1), ("nvfp4:dense=2", 2), ("nvfp4:dense=9", 2)] {
        let config = GptConfig { layers, quantizer: Some(quantizer(method, &[32])), ..config("nvfp4") };
        let expected = format!(
            "--method {method}: expected nvfp4:dense=N with N below --layers ({layers}), as in nvfp4:dense=0, \
             found every block in full precision"
        );
        assert_eq!(config.validate().unwrap_err().to_string(), expected);
        let error = walsh::nn::Gpt::new(&context, config, 4, DType::F32).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    for (method, layers) in [("nvfp4", 2), ("nvfp4:dense=0", 1), ("nvfp4:dense=1", 2), ("quartet", 1)] {
        let quantizer = Some(quantizer(method, &[32]));
        GptConfig { layers, quantizer, ..config("nvfp4") }.validate().unwrap();
    }
}

#[test]
fn bits_per_weight_count_the_blocks_in_full_precision() {
    let bits = |method: &str, layers: usize, dense: f64| {
        GptConfig { layers, quantizer: Some(quantizer(method, &[32])), ..config("nvfp4") }.bits_per_weight(dense)
    };
    // Codes of 4 bits, and 8 bits of a scale to 16 of them.
    assert_eq!(bits("nvfp4:dense=0", 1, 32.0), 4.5);
    assert_eq!(bits("nvfp4:dense=0", 2, 16.0), 4.5);
    assert_eq!(bits("nvfp4", 2, 32.0), 18.25);
    assert_eq!(bits("nvfp4", 2, 16.0), 10.25);
    assert_eq!(bits("nvfp4:dense=3", 4, 32.0), (4.5 + 3.0 * 32.0) / 4.0);
    // One that is refused is dense altogether.
    assert_eq!(bits("nvfp4", 1, 32.0), 32.0);
    assert_eq!(GptConfig { quantizer: None, ..config("nvfp4") }.bits_per_weight(16.0), 16.0);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let ask = |method: &str, weights: &str, activations: &str, hadamard: &str, width: usize| {
        let settings = Settings {
            weights: (!weights.is_empty()).then(|| weights.parse::<Asked>().unwrap()),
            activations: (!activations.is_empty()).then(|| activations.parse::<Asked>().unwrap()),
            hadamard: (!hadamard.is_empty()).then(|| hadamard.parse().unwrap()),
            widths: vec![width, 4 * width],
        };
        method.parse::<Method>().unwrap().quantizer(&settings)
    };
    for (method, weights, activations, hadamard, width, message) in [
        ("quartet", "int4", "", "", 32, "--weights: expected mxfp4"),
        ("quartet", "", "nvfp4", "", 32, "--activations: expected mxfp4"),
        ("quartet", "dense", "", "", 32, "--weights: expected mxfp4"),
        ("quartet", "", "dense", "", 32, "--activations: expected mxfp4"),
        ("quartet", "", "", "off", 32, "--hadamard: expected 32 beside --method quartet, found off"),
        ("quartet", "", "", "64", 64, "--hadamard: expected 32 beside --method quartet, found 64"),
        ("quartet", "", "", "", 48, "--method quartet: expected widths that 32 divides"),
        ("nvfp4", "mxfp4", "", "", 32, "--weights: expected nvfp4"),
        ("nvfp4", "", "nvfp4:half-up", "", 32, "--activations: expected nvfp4"),
        ("nvfp4", "", "dense", "", 32, "--activations: expected nvfp4"),
        ("nvfp4", "", "", "16", 32, "--hadamard: expected off beside --method nvfp4"),
    ] {
        let error = ask(method, weights, activations, hadamard, width).unwrap_err().to_string();
        assert!(error.starts_with(message), "{method} {weights} {activations} {hadamard}: {error}");
    }
    for name in [
        "quartet:fast",
        "quartet:sr:aligned",
        "nvfp4:dense",
        "nvfp4:dense=-1",
        "nvfp4:1",
        "nvfp4:dense=1:dense=2",
        "nvfp4:unbiased:unbiased",
    ] {
        let error = name.parse::<Method>().unwrap_err().to_string();
        assert!(error.contains("quartet[:sr|:aligned], nvfp4[:dense=N][:unbiased]"), "{name}: {error}");
    }
    for (name, spelled) in [("nvfp4:unbiased:dense=2", "nvfp4:dense=2:unbiased"), ("nvfp4:unbiased", "nvfp4:unbiased")]
    {
        assert_eq!(name.parse::<Method>().unwrap().to_string(), spelled);
        assert_eq!(spelled.parse::<Method>().unwrap(), name.parse().unwrap());
    }
    let spelled = ask("quartet:sr", "mxfp4:roundup", "mxfp4", "32", 32).unwrap().unwrap();
    assert_eq!(spelled.to_string(), "quartet:sr, weights mxfp4:roundup, activations mxfp4:mse, rotated by 32");
    let default = ask("nvfp4:dense=3", "", "", "", 32).unwrap().unwrap();
    assert_eq!(default.to_string(), "nvfp4:dense=3, weights nvfp4, activations nvfp4");
    let again: Quantizer = serde_json::from_str(&serde_json::to_string(&spelled).unwrap()).unwrap();
    assert_eq!(again, spelled);
    // Tokens.
    assert!(spelled.validate_tokens(64).is_ok() && default.validate_tokens(48).is_ok());
    let error = spelled.validate_tokens(48).unwrap_err().to_string();
    assert!(error.contains("a multiple of 32 tokens beside --method quartet:sr"), "{error}");
    assert!(default.validate_tokens(40).unwrap_err().to_string().contains("a multiple of 16 tokens"));
    // Layers say the same.
    let context = &every_tier()[0];
    let state = state(context, 0);
    let noise = Noise { seed: 5, state: state.buffer().clone(), micro: 0, layer: 1 };
    let layer = |m: usize, n: usize, noise: Option<&Noise>| {
        let x = Tensor::from_f32(context, &vec![1.0; m * 32], &[m, 32]).unwrap().with_grad();
        let w = Tensor::from_f32(context, &vec![1.0; n * 32], &[n, 32]).unwrap().with_grad();
        linear(&x, &w, LinearOptions { quantizer: Some(spelled), noise, ..LinearOptions::default() })
    };
    assert!(layer(32, 64, Some(&noise)).is_ok());
    for (result, message) in [
        (layer(48, 64, Some(&noise)), "a number of tokens that 32 divides beside method quartet:sr"),
        (layer(32, 48, Some(&noise)), "a width that 32 divides beside method quartet:sr"),
        (layer(32, 64, None), "random numbers for gradients beside method quartet:sr"),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    // Without gradients nothing of that matters.
    assert!(context.no_grad(|| layer(5, 48, None)).is_ok());
}
