//! Diagnostics of quantized layers: their numbers against float64, what fewer bits do to them, and that training does not notice.

mod common;

use common::{every_tier, quantizer};
use std::cell::RefCell;
use std::collections::HashMap;
use walsh::format::{PackedMatrix, Rounding};
use walsh::nn::{Gpt, GptConfig, Probe, ProbedInput, TrainPass};
use walsh::op::LossOptions;
use walsh::optim::{AdamWOptions, Schedule};
use walsh::qat::{Method, Quantizer, Settings};
use walsh::reference::hadamard::hadamard;
use walsh::train::diagnostics::{Masks, diagnose};
use walsh::train::{BatchShape, Diagnostics, GptRun, Model, PendingStats};
use walsh::{Context, DType, Tensor};

const BATCH: usize = 2;
const BLOCK: usize = 8;
const VOCAB: usize = 13;

fn config(quantizer: Option<Quantizer>) -> GptConfig {
    GptConfig { layers: 1, heads: 2, embd: 64, block: BLOCK, vocab: VOCAB, dropout: 0.1, bias: false, quantizer }
}

fn batch(context: &Context) -> [Tensor; 2] {
    let tokens =
        |add: u32| (0..(BATCH * BLOCK) as u32).map(|i| (i * i + 3 * i + add) % VOCAB as u32).collect::<Vec<_>>();
    [0, 1].map(|add| Tensor::from_u32(context, &tokens(add), &[BATCH, BLOCK]).unwrap())
}

fn options() -> LossOptions<'static> {
    LossOptions { classes: Some(VOCAB), ..LossOptions::default() }
}

fn run(gpt: &Gpt, masks: &mut Masks) -> Diagnostics {
    let [tokens, targets] = batch(gpt.parameters().context());
    diagnose(gpt, &tokens, &targets, options(), None, masks).unwrap()
}

/// Gradients by the names of the layers.
fn gradients(gpt: &Gpt) -> HashMap<String, Vec<f64>> {
    let [tokens, targets] = batch(gpt.parameters().context());
    gpt.logits(&tokens, None).unwrap().cross_entropy(&targets, options()).unwrap().backward().unwrap();
    let names = gpt.parameters().iter().enumerate();
    let all = names.map(|(i, (info, _))| {
        let gradient = gpt.parameters().gradient(i).unwrap().to_vec().unwrap();
        (info.name.trim_end_matches(".weight").to_owned(), common::wide(&gradient))
    });
    all.collect()
}

/// `|x - q|^2 / |x|^2` of the values as they are quantized.
fn error(x: &[f64], q: &[f64]) -> f64 {
    x.iter().zip(q).map(|(x, q)| (x - q) * (x - q)).sum::<f64>() / x.iter().map(|x| x * x).sum::<f64>()
}

/// The share of elements beyond `bound` scales, and how far rounding in f32 may move it: elements so near to the bound that the error of a
/// transform of 32 (5 sums) and of a scale decides.
fn beyond(x: &[f64], matrix: &PackedMatrix, bound: f64) -> (f64, f64) {
    let cols = matrix.layout().cols;
    let (mut masked, mut near) = (0, 0);
    for (i, x) in x.iter().enumerate() {
        let limit = bound * matrix.scale(i / cols, 0, false);
        masked += usize::from(x.abs() > limit);
        near += usize::from((x.abs() - limit).abs() < 1e-5 * limit);
    }
    (masked as f64 / x.len() as f64, near as f64 / x.len() as f64)
}

#[test]
fn numbers_are_those_of_float64() {
    let format = "int2:row:f32:centred:mse";
    for context in every_tier() {
        let own = quantizer("quest", format, Some(format), Some(32));
        let gpt = Gpt::new(&context, config(Some(own)), 3, DType::F32).unwrap();
        let mut masks = Masks::default();
        let found = run(&gpt, &mut masks);
        let again = run(&gpt, &mut masks);
        assert_eq!(found.len(), 4);

        let inputs = RefCell::new(HashMap::new());
        let note = |ProbedInput { index, values: x, .. }: ProbedInput<'_>| {
            inputs.borrow_mut().insert(index, (x.to_vec()?, x.columns()));
            Ok(())
        };
        let [tokens, _] = batch(&context);
        gpt.probed_logits(&tokens, None, Probe { input: Some(&note), ..Probe::default() }).unwrap();
        let inputs = inputs.into_inner();
        // The same parameters without quantizers: the seed draws them.
        let dense = Gpt::new(&context, config(None), 3, DType::F32).unwrap();
        let (quantized, full) = (gradients(&gpt), gradients(&dense));
        // What the largest level of 3/2 steps and half a step more is.
        let bound = 2.0;
        for (index, (info, weight)) in gpt.parameters().iter().enumerate() {
            let name = info.name.trim_end_matches(".weight");
            let Some(packed) = gpt.packed_weight(index).unwrap() else {
                assert!(!found.contains_key(name));
                continue;
            };
            let layer = &found[name];
            let close = |what: &str, got: Option<f64>, want: f64, tolerance: f64| {
                let got = got.unwrap_or_else(|| panic!("{name}: no {what}"));
                assert!((got - want).abs() <= tolerance, "{name}, {what}: {got}, in float64 {want}");
            };
            let matrix = packed.to_host(&context).unwrap();
            let rotated = hadamard(&common::wide(&weight.to_vec().unwrap()), 32, false);
            let expected = error(&rotated, &matrix.dequantize());
            // The same codes and values in the same precision, in another order of sums.
            close("weight error", layer.weight_error, expected, 1e-9);
            close("distance", layer.grid_distance, expected.sqrt(), 1e-9);
            let (share, near) = beyond(&rotated, &matrix, bound);
            close("masked weights", layer.masked_weights, share, near);
            assert!(share > 0.005, "{name}: two bits mask something: {share}");

            let (x, cols) = &inputs[&index];
            let rotated = hadamard(&common::wide(x), 32, false);
            let values: Vec<f32> = rotated.iter().map(|v| *v as f32).collect();
            let format = format.parse().unwrap();
            let matrix = PackedMatrix::quantize(format, &values, x.len() / cols, *cols, Rounding::Nearest).unwrap();
            // Scales differ by rounding in f32, and so may a code at a tie, whose error is the same on either side.
            close("input error", layer.input_error, error(&rotated, &matrix.dequantize()), 1e-5);
            let (share, near) = beyond(&rotated, &matrix, bound);
            close("masked inputs", layer.masked_inputs, share, near);

            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (a, b) = (&quantized[name], &full[name]);
            close("cosine", layer.cosine, dot(a, b) / (dot(a, a) * dot(b, b)).sqrt(), 1e-9);
            assert_eq!(layer.still_masked, None, "there was no time before");
            close("still masked", again[name].still_masked, 1.0, 0.0);
            assert_eq!(again[name].cosine, layer.cosine);
        }
    }
}

#[test]
fn learned_scales_are_those_of_the_layer() {
    let format = "int3:tensor:f32:full";
    for context in every_tier() {
        for method in ["lsq", "lsq:plus", "learned"] {
            let gpt =
                Gpt::new(&context, config(Some(quantizer(method, format, Some(format), None))), 3, DType::F32).unwrap();
            let [tokens, _] = batch(&context);
            gpt.initialize_scales(&tokens).unwrap();
            let inputs = RefCell::new(HashMap::new());
            let note = |ProbedInput { index, values: x, .. }: ProbedInput<'_>| {
                inputs.borrow_mut().insert(index, x.to_vec()?);
                Ok(())
            };
            gpt.probed_logits(&tokens, None, Probe { input: Some(&note), ..Probe::default() }).unwrap();
            let found = run(&gpt, &mut Masks::default());
            let parameter = |name: &str| {
                let (_, tensor) = gpt.parameters().iter().find(|(info, _)| info.name == name)?;
                Some(f64::from(tensor.item().unwrap()))
            };
            for (index, (info, weight)) in gpt.parameters().iter().enumerate().filter(|(i, _)| gpt.is_quantized(*i)) {
                let name = info.name.trim_end_matches(".weight");
                let layer = &found[name];
                // Levels are -4 to 3; the tutorial's range ends half a step further.
                let margin = if method == "learned" { 0.5 } else { 0.0 };
                let expected = |x: &[f32], scale: &str| {
                    let offset = parameter(&format!("{name}.{scale}_offset")).unwrap_or(0.0);
                    let scale = parameter(&format!("{name}.{scale}_scale")).unwrap().abs();
                    let x = common::wide(x);
                    let level = |x: f64| (x - offset) / scale;
                    let q: Vec<f64> =
                        x.iter().map(|x| level(*x).clamp(-4.0, 3.0).round_ties_even() * scale + offset).collect();
                    let inside = |x: &&f64| level(**x) > -4.0 - margin && level(**x) < 3.0 + margin;
                    let near =
                        |x: &&f64| (level(**x) + 4.0 + margin).abs().min((level(**x) - 3.0 - margin).abs()) < 1e-5;
                    let share = |count: usize| count as f64 / x.len() as f64;
                    (error(&x, &q), 1.0 - share(x.iter().filter(inside).count()), share(x.iter().filter(near).count()))
                };
                for (x, scale, got_error, got_masked) in [
                    (&weight.to_vec().unwrap(), "weight", layer.weight_error, layer.masked_weights),
                    (&inputs.borrow()[&index], "input", layer.input_error, layer.masked_inputs),
                ] {
                    let (error, masked, near) = expected(x, scale);
                    let what = format!("{method}, {name}, {scale}");
                    // A value at a tie may go to either side, which changes no error.
                    assert!((got_error.unwrap() - error).abs() < 1e-5 * error, "{what}: {got_error:?}, {error}");
                    assert!((got_masked.unwrap() - masked).abs() <= near + 1e-12, "{what}: {got_masked:?}, {masked}");
                }
                assert!((0.0..1.0).contains(&layer.cosine.unwrap()), "{method}: {layer:?}");
            }
        }
    }
}

#[test]
fn inputs_are_those_after_a_norm_of_the_layer_itself() {
    for context in every_tier() {
        let own = quantizer("bitnet", "ternary", Some("int8:row:f32"), None);
        let gpt = Gpt::new(&context, config(Some(own)), 3, DType::F32).unwrap();
        let inputs = RefCell::new(HashMap::new());
        let note = |ProbedInput { index, values: x, .. }: ProbedInput<'_>| {
            inputs.borrow_mut().insert(index, (common::wide(&x.to_vec()?), x.columns()));
            Ok(())
        };
        let [tokens, _] = batch(&context);
        gpt.probed_logits(&tokens, None, Probe { input: Some(&note), ..Probe::default() }).unwrap();
        let inputs = inputs.into_inner();
        let found = run(&gpt, &mut Masks::default());
        let projections = ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"];
        for (index, (info, _)) in gpt.parameters().iter().enumerate() {
            let name = info.name.trim_end_matches(".weight");
            if !projections.contains(&name) {
                continue;
            }
            let (x, cols) = &inputs[&index];
            for row in x.chunks_exact(*cols) {
                // One but for the norm's epsilon, some tenth of a percent of such inputs.
                let square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
                assert!((square - 1.0).abs() < 0.05, "{name}: a row after the norm has the mean square {square}");
            }
            let values: Vec<f32> = x.iter().map(|v| *v as f32).collect();
            let format = "int8:row:f32".parse().unwrap();
            let matrix = PackedMatrix::quantize(format, &values, x.len() / cols, *cols, Rounding::Nearest).unwrap();
            let (got, want) = (found[name].input_error.unwrap(), error(x, &matrix.dequantize()));
            assert!(want > 0.0 && (got - want).abs() < 1e-3 * want, "{name}: {got}, in float64 {want}");
        }
        // A norm that leaves one channel: its element is the largest of its row, which INT8 has but for rounding.
        for name in projections {
            let name = format!("{name}.norm.weight");
            let (_, norm) = gpt.parameters().iter().find(|(info, _)| info.name == name).unwrap();
            let mut one = vec![0f32; norm.len()];
            one[5] = 1.0;
            norm.write(bytemuck::cast_slice(&one)).unwrap();
        }
        let found = run(&gpt, &mut Masks::default());
        for name in projections {
            let error = found[name].input_error.unwrap();
            assert!(error < 1e-12, "{name}: the input error is {error}");
        }
    }
}

#[test]
fn scales_at_the_end_of_their_storage_are_counted() {
    let context = every_tier().pop().unwrap();
    let find = |gpt: &Gpt, name: &str| {
        gpt.parameters().iter().find(|(info, _)| info.name == name).map(|(_, tensor)| tensor.clone()).unwrap()
    };
    let of = |weights: &str, inputs: &str| {
        let gpt =
            Gpt::new(&context, config(Some(quantizer("ste", weights, Some(inputs), None))), 3, DType::F32).unwrap();
        // Of 128 rows one whose scale, 1e6 / 7, is beyond f16; the inputs of another layer are about 1e8, and 1e8 / 127 is so too.
        let weight = find(&gpt, "transformer.h.0.mlp.c_fc.weight");
        let mut values = weight.to_vec().unwrap();
        values[5] = 1e6;
        weight.write(bytemuck::cast_slice(&values)).unwrap();
        let norm = find(&gpt, "transformer.h.0.ln_1.weight");
        norm.write(bytemuck::cast_slice(&vec![1e8f32; norm.len()])).unwrap();
        let rows = weight.shape()[0] as f64;
        let found = run(&gpt, &mut Masks::default());
        let layer = |name: &str| found[&format!("transformer.h.0.{name}")];
        (layer("mlp.c_fc").saturated_weights, layer("attn.c_attn"), rows)
    };
    let (weights, attention, rows) = of("int4:row:f16", "int8:row:f16");
    assert_eq!(weights, Some(1.0 / rows));
    assert_eq!((attention.saturated_weights, attention.saturated_inputs), (Some(0.0), Some(1.0)));
    let (weights, attention, _) = of("int4:row:f32", "int8:row:f32");
    assert_eq!((weights, attention.saturated_weights, attention.saturated_inputs), (None, None, None));
}

#[test]
fn weights_beyond_the_clip_of_a_sign_are_counted() {
    for context in every_tier() {
        let of = |method: &str, format: &str| {
            let gpt = Gpt::new(&context, config(Some(quantizer(method, format, None, None))), 3, DType::F32).unwrap();
            let name = "transformer.h.0.mlp.c_fc.weight";
            let (_, weight) = gpt.parameters().iter().find(|(info, _)| info.name == name).unwrap();
            let mut values = weight.to_vec().unwrap();
            // Beyond 1 are five, over words and rows of 64 to the last one; 1 itself is not.
            for (at, value) in [(0, 1.5), (31, -2.0), (32, 1.0), (33, -1.0), (63, 1.0f32.next_up()), (64, -1.25)] {
                values[at] = value;
            }
            *values.last_mut().unwrap() = 7.0;
            weight.write(bytemuck::cast_slice(&values)).unwrap();
            let mut masks = Masks::default();
            run(&gpt, &mut masks);
            let found = run(&gpt, &mut masks);
            let index = gpt.parameters().iter().position(|(info, _)| info.name == name).unwrap();
            // What the gradient really leaves out: with random weights no other element is exactly 0.
            let [tokens, targets] = batch(&context);
            gpt.logits(&tokens, None).unwrap().cross_entropy(&targets, options()).unwrap().backward().unwrap();
            let gradient = gpt.parameters().gradient(index).unwrap().to_vec().unwrap();
            let zeros = gradient.iter().filter(|g| **g == 0.0).count();
            gpt.parameters().zero_grad();
            (found, zeros, values.len() as f64)
        };
        for (method, format) in [("bwn", "binary"), ("binaryconnect", "binary:tensor")] {
            let (found, zeros, len) = of(method, format);
            let layer = found["transformer.h.0.mlp.c_fc"];
            assert_eq!((layer.masked_weights, layer.still_masked, zeros), (Some(5.0 / len), Some(1.0), 5), "{method}");
            assert_eq!(found["transformer.h.0.attn.c_proj"].masked_weights, Some(0.0), "{method}");
            let approximates = method == "bwn";
            assert_eq!([layer.weight_error.is_some(), layer.grid_distance.is_some()], [approximates; 2], "{method}");
        }
        for (method, format) in [("bwn:exact", "binary"), ("onebit", "binary:tensor")] {
            let (found, zeros, _) = of(method, format);
            assert_eq!((found["transformer.h.0.mlp.c_fc"].masked_weights, zeros), (None, 0), "{method}");
        }
    }
}

#[test]
fn signs_of_one_size_have_no_distance_to_weights() {
    let context = every_tier().pop().unwrap();
    for method in ["onebit", "binaryconnect", "binaryconnect:unit"] {
        let own = quantizer(method, "binary:tensor", None, None);
        let gpt = Gpt::new(&context, config(Some(own)), 3, DType::F32).unwrap();
        let found = run(&gpt, &mut Masks::default());
        assert_eq!(found.len(), 4);
        for (name, layer) in found {
            assert_eq!((layer.weight_error, layer.grid_distance), (None, None), "{method} {name}");
            assert!(layer.cosine.is_some_and(|cosine| cosine > 0.0), "{method} {name}: {layer:?}");
        }
    }
}

#[test]
fn fewer_bits_lose_more() {
    let context = every_tier().pop().unwrap();
    let of = |method: &str, weights: &str| {
        let gpt = Gpt::new(&context, config(Some(quantizer(method, weights, None, None))), 3, DType::F32).unwrap();
        run(&gpt, &mut Masks::default())
    };
    let (eight, four, two) = (of("ste", "int8:row:f32"), of("ste", "int4:row:f32"), of("ste", "int2:row:f32"));
    for (name, eight) in &eight {
        let (four, two) = (&four[name], &two[name]);
        assert_eq!((eight.input_error, eight.masked_inputs, eight.masked_weights), (None, None, None));
        let cosine = [eight, four, two].map(|layer| layer.cosine.unwrap());
        assert!(cosine[0] > 0.999 && cosine[0] <= 1.0 + 1e-9, "{name}: {cosine:?}");
        assert!(cosine[0] > cosine[1] && cosine[1] > cosine[2] && cosine[2] > 0.0, "{name}: {cosine:?}");
        let distance = [eight, four, two].map(|layer| layer.grid_distance.unwrap());
        assert!(distance[0] < 0.01 && distance[0] < distance[1] && distance[1] < distance[2], "{name}: {distance:?}");
    }
    // PTQ trains in full precision; what is diagnosed is what evaluation sees.
    assert_eq!(of("ptq", "int4:row:f32"), four);
    let dense = Gpt::new(&context, config(None), 3, DType::F32).unwrap();
    assert!(run(&dense, &mut Masks::default()).is_empty());
}

#[test]
fn training_does_not_notice() {
    // As many tokens in a batch as Quartet's products ask for.
    const BATCH: usize = 4;
    let shape = BatchShape { batch: BATCH, block: BLOCK, accumulate: 2 };
    let settings = Settings { widths: config(None).widths(), ..Settings::default() };
    let methods = ["quest", "quartet:sr", "nvfp4:dense=0"].map(|name| match name {
        "quest" => quantizer(name, "int4:row:f32:centred:mse", Some("int4:row:f32:centred:mse"), Some(32)),
        _ => name.parse::<Method>().unwrap().quantizer(&settings).unwrap().unwrap(),
    });
    let options = AdamWOptions { schedule: Schedule::constant(1e-2), clip: 1.0, ..Default::default() };
    for context in every_tier() {
        for (dtype, own) in common::dtypes(&context).into_iter().flat_map(|dtype| methods.map(|own| (dtype, own))) {
            let what = format!("{own} in {dtype} on {}", context.tier());
            let train = |every: Option<usize>| {
                let mut run = GptRun::new(&context, config(Some(own)), shape, options, 5, dtype).unwrap();
                let mut losses = Vec::new();
                let mut created = Vec::new();
                let mut found = Vec::new();
                for step in 1..=8 {
                    let tokens = |add: usize| -> Vec<u32> {
                        (0..2 * BATCH * BLOCK).map(|i| ((i * i + step + add) % VOCAB) as u32).collect()
                    };
                    let made = || {
                        let counts = context.counts();
                        counts.buffers + counts.bind_groups + counts.pipelines + counts.shader_modules
                    };
                    let before = made();
                    run.train_step(&tokens(0), &tokens(1)).unwrap();
                    losses.push(run.stats().unwrap().wait().unwrap());
                    created.push(made() - before);
                    if every.is_some_and(|every| step % every == 0) {
                        let half = BATCH * BLOCK;
                        found.push(run.diagnose(&tokens(0)[..half], &tokens(1)[..half]).unwrap());
                    }
                }
                (losses, run.export().unwrap(), created, found)
            };
            let (losses, tensors, ..) = train(None);
            let (same, again, created, found) = train(Some(3));
            assert_eq!(losses, same, "{what}");
            assert!(tensors == again, "{what}: the last checkpoint differs");
            assert_eq!(found.len(), 2, "{what}");
            for layer in found.iter().flat_map(|layers| layers.values()) {
                let cosine = layer.cosine.expect("a gradient that is finite");
                assert!((0.5..1.0).contains(&cosine), "{what}: {layer:?}");
            }
            // After the second step, and in the step after diagnostics, nothing is made.
            for (step, created) in (1..).zip(created).skip(2) {
                assert_eq!(created, 0, "{what}, step {step}");
            }
        }
    }
}

#[test]
fn passes_that_are_none_of_training_round_without_dropout() {
    let settings = Settings { widths: config(None).widths(), ..Settings::default() };
    for context in every_tier() {
        let own = "nvfp4:dense=0".parse::<Method>().unwrap().quantizer(&settings).unwrap();
        let gpt = Gpt::new(&context, config(own), 3, DType::F32).unwrap();
        let [tokens, targets] = batch(&context);
        let state = Tensor::zeros(&context, &[16], DType::U32).unwrap();
        let of = |seed: u64| Some(TrainPass { state: state.buffer(), seed, micro: 0 });
        let probe = |rounding| Probe { rounding, ..Probe::default() };
        let plain = context.no_grad(|| gpt.logits(&tokens, None)).unwrap().to_vec().unwrap();
        // What is multiplied forward is rounded to the nearest, and no element is dropped.
        assert_eq!(gpt.probed_logits(&tokens, None, probe(of(1))).unwrap().to_vec().unwrap(), plain);
        assert_ne!(gpt.logits(&tokens, of(1)).unwrap().to_vec().unwrap(), plain);
        let find = |rounding| diagnose(&gpt, &tokens, &targets, options(), rounding, &mut Masks::default());
        let cosines = |seed: u64| -> Vec<_> { find(of(seed)).unwrap().values().map(|layer| layer.cosine).collect() };
        assert_eq!(cosines(1), cosines(1));
        assert_ne!(cosines(1), cosines(2));
        let error = find(None).unwrap_err().to_string();
        assert!(error.contains("random numbers for gradients beside method nvfp4"), "{error}");
    }
}

#[test]
fn gradients_in_waiting_are_not_touched() {
    let context = every_tier().remove(0);
    let gpt = Gpt::new(&context, config(Some(quantizer("ste", "int8:row:f32", None, None))), 3, DType::F32).unwrap();
    gradients(&gpt);
    let [tokens, targets] = batch(&context);
    let error = diagnose(&gpt, &tokens, &targets, options(), None, &mut Masks::default()).unwrap_err().to_string();
    assert!(error.contains("no gradients that wait for an optimizer step"), "{error}");
    gpt.parameters().zero_grad();
    run(&gpt, &mut Masks::default());
    assert!(gpt.parameters().gradient(0).is_none());
}
