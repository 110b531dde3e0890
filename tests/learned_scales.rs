//! Linear layers with learned scales against float64, what the scales start from, and training with them.

mod common;

use common::{
    Gen, U16, U32, assert_steady, assert_within, best_tiers, dtypes, every_tier, floats, mean, quantizer, stored, wide,
};
use walsh::format::{Format, Grid};
use walsh::kernel::matmul::Activation;
use walsh::kernel::packed::Packed;
use walsh::kernel::quantize::{Options as QuantizeOptions, quantize};
use walsh::nn::{Gpt, GptConfig, KvCache};
use walsh::op::{LinearOptions, linear};
use walsh::optim::{AdamWOptions, Init, ParameterBuilder, Schedule};
use walsh::qat::{LearnedScales, Quantizer};
use walsh::reference::hadamard::hadamard;
use walsh::reference::learned_scale_backward::{Learned, learned_scale_backward, lsq_factor, lsq_start};
use walsh::train::{BatchShape, GptRun, Model, PendingStats};
use walsh::{Context, DType, Gradients, Tensor};

/// The lowest and the highest level less the centre, and the centre.
fn grid(format: Format) -> (f64, f64, f64) {
    let half = 2f64.powi(format.bits() as i32 - 1);
    match format.grid() {
        Grid::Int { full, .. } => (if full { -half } else { 1.0 - half }, half - 1.0, 0.0),
        _ => (-half, half - 1.0, 0.5),
    }
}

fn learned(method: &str, format: Format, scale: f32, offset: f32) -> Learned {
    let (low, high, centre) = grid(format);
    let (scale, offset) = (f64::from(scale.abs()), f64::from(offset));
    Learned { scale, offset, low, high, centre, rounded_first: method == "learned" }
}

fn factor(method: &str, format: Format, len: usize) -> f64 {
    if method == "learned" { 1.0 } else { lsq_factor(len, grid(format).1) }
}

/// Values in units of which nothing is near a middle or an end, so that float64 and the device take the same levels.
fn clear(values: &mut [f32], at: Learned) {
    for v in values {
        let from = |v: f32| {
            let place = at.place(f64::from(v));
            let near = |edge: f64| (place - edge).abs() < 4e-3;
            near(place.floor() + 0.5) || near(at.low) || near(at.high)
        };
        while from(*v) {
            *v += (0.013 * at.scale) as f32;
        }
    }
}

struct Layer {
    method: &'static str,
    weights: &'static str,
    activations: &'static str,
    hadamard: Option<u32>,
    /// Of weights and inputs.
    scales: [f32; 2],
    offset: f32,
}

const M: usize = 9;
const N: usize = 34;
const K: usize = 96;

/// The quantized values of `x` on the device by a given scale, less the offset, all rotated first.
fn encoded(context: &Context, x: &Tensor, format: Format, block: Option<u32>, scale: f32, offset: f32) -> Vec<f64> {
    let packed = Packed::empty(context, format, x.rows(), x.columns()).unwrap();
    let [s, o] = [scale, offset].map(|v| Tensor::from_f32(context, &[v], &[1]).unwrap());
    let options = QuantizeOptions {
        hadamard: block.map(|n| n as usize),
        scale: Some(s.buffer()),
        offset: Some(o.buffer()),
        ..Default::default()
    };
    quantize(context, x.buffer(), &packed, options).unwrap();
    packed.to_host(context).unwrap().dequantize()
}

fn agrees(context: &Context, dtype: DType, case: &Layer) {
    let Layer { method, weights, activations, hadamard: block, scales, offset } = *case;
    let quantizer = quantizer(method, weights, Some(activations).filter(|a| !a.is_empty()), block);
    let what = format!("{quantizer} in {dtype} on {}", context.tier());
    let mut random = Gen::new(16);
    let quantized = quantizer.activations.is_some();
    let (format_w, format_x) = (quantizer.weights, quantizer.activations.unwrap_or(quantizer.weights));
    let (at_w, at_x) = (learned(method, format_w, scales[0], 0.0), learned(method, format_x, scales[1], offset));
    let (mut x, mut w) = (random.normals(M * K), random.normals(N * K));
    if block.is_none() {
        if dtype == DType::F16 {
            x = x.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
        }
        clear(&mut w, at_w);
        if dtype == DType::F32 {
            clear(&mut x, at_x);
        }
    }
    let (x, x_values) = floats(context, &x, &[M, K], dtype);
    let weight = Tensor::from_f32(context, &w, &[N, K]).unwrap();
    let bias_values = random.normals(N);
    let bias = Tensor::from_f32(context, &bias_values, &[N]).unwrap();
    let (dy, g) = floats(context, &random.normals(M * N), &[M, N], dtype);
    let rotated = |v: &[f64], transpose: bool| block.map_or(v.to_vec(), |n| hadamard(v, n as usize, transpose));
    let (x_rotated, w_rotated) = (rotated(&x_values, false), rotated(&wide(&w), false));
    let w_hat = encoded(context, &weight, format_w, block, scales[0], 0.0);
    let x_codes = if quantized { encoded(context, &x, format_x, block, scales[1], offset) } else { x_rotated.clone() };
    let shift = if quantized { f64::from(offset) } else { 0.0 };

    let scalar = |v: f32| Tensor::from_f32(context, &[v], &[1]).unwrap().with_grad();
    let (ws, xs, xo) = (scalar(scales[0]), scalar(scales[1]), scalar(offset));
    let (x, weight, bias) = (x.with_grad(), weight.with_grad(), bias.with_grad());
    let shifts = method == "lsq:plus" && quantized;
    let scales_of = LearnedScales {
        weight: &ws,
        input: quantized.then_some(&xs),
        offset: shifts.then_some(&xo),
        initialize: false,
    };
    let options =
        LinearOptions { quantizer: Some(quantizer), bias: Some(&bias), learned: Some(scales_of), ..Default::default() };
    let y = linear(&x, &weight, options).unwrap();
    let got = y.to_vec().unwrap();
    let mut gradients = Gradients::default();
    y.backward_from(dy, &mut gradients).unwrap();

    // Sums of f32 products; f16 operands and results on the way are rounded once more each.
    let unit = if dtype == DType::F16 { 4.0 * U16 } else { 0.0 };
    let bound = |size: f64, terms: usize| (2.0 * (terms as f64 + 16.0) * U32 + unit) * size + 1e-30;
    let dot = |len: usize, a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| {
        (0..len).fold((0.0, 0.0), |(sum, size), i| (sum + a(i) * b(i), size + (a(i) * b(i)).abs()))
    };
    let (want, size): (Vec<f64>, Vec<f64>) = (0..M * N)
        .map(|e| {
            let (codes, size) = dot(K, &|t| x_codes[e / N * K + t], &|t| w_hat[e % N * K + t]);
            let (shifted, more) = dot(K, &|_| shift, &|t| w_hat[e % N * K + t]);
            let b = f64::from(bias_values[e % N]);
            (codes + shifted + b, size + more + b.abs())
        })
        .unzip();
    assert_within(&format!("{what}: y"), &got, &want, |i| bound(size[i], K) + stored(dtype, want[i]));

    // One operand: the gradient of its quantized values with the error of each, and what comes of it.
    let check = |name: &str,
                 sums: Vec<(f64, f64)>,
                 terms: usize,
                 values: &[f64],
                 at: Learned,
                 factor: f64,
                 [of, scale, offset]: [Option<&Tensor>; 3],
                 of_type: DType| {
        let (dq, size): (Vec<f64>, Vec<f64>) = sums.into_iter().unzip();
        let errors: Vec<f64> = (0..dq.len()).map(|i| bound(size[i], terms) + stored(of_type, dq[i].abs())).collect();
        let (dx, ds, doffset) = learned_scale_backward(values, &dq, at, factor);
        let (mut slack_s, mut slack_offset, mut slack_x) = (0.0, 0.0, errors.clone());
        for (i, v) in values.iter().enumerate() {
            let place = at.place(*v);
            // A rotation adds log2(block) roundings of a block's sums; f16 rounds the result.
            let spread = if block.is_some() { 8.0 } else { 1.0 };
            let f16 =
                if of_type == DType::F16 && block.is_some() { 2.0 * U16 * (v.abs() + 1.0) / at.scale } else { 0.0 };
            let error = 16.0 * spread * U32 * (place.abs() + 1.0) + f16;
            let [_, by_scale, by_offset] = at.derivatives(*v);
            let margin = if at.rounded_first { 0.5 } else { 0.0 };
            let near = |edge: f64| (place - edge).abs() <= error;
            let at_end = near(at.low - margin) || near(at.high + margin);
            let jump = if at_end {
                at.high - at.low + 1.0
            } else if near(place.floor() + 0.5) {
                1.0
            } else {
                0.0
            };
            let magnitude = dq[i].abs() + errors[i];
            slack_s += errors[i] * by_scale.abs() + magnitude * (error + jump);
            slack_offset += errors[i] * by_offset + if at_end { magnitude } else { 0.0 };
            slack_x[i] += if at_end { magnitude } else { 0.0 };
        }
        // The sums themselves: at most 64 + 16 + 3 additions and the factor, see the kernel's test.
        let sums_of = |size: f64| 100.0 * U32 * size;
        let total: f64 = values.iter().zip(&dq).map(|(v, d)| (d * at.derivatives(*v)[1]).abs()).sum();
        // The scale is the magnitude of what the layer was given.
        let sign = if name == "x" { scales[1].signum() } else { scales[0].signum() };
        for (tensor, want, slack, size, scalar) in [
            (scale, ds * f64::from(sign), slack_s, total, "ds"),
            (offset, doffset, slack_offset, dq.iter().map(|d| d.abs()).sum(), "d_offset"),
        ] {
            let Some(tensor) = tensor else { continue };
            let got = f64::from(gradients.get(tensor).unwrap().to_vec().unwrap()[0]);
            let bound = factor * (slack + sums_of(size)) + 2.0 * U32 * want.abs();
            assert!((got - want).abs() <= bound, "{what}: {name} {scalar} {got}, want {want} +- {bound:e}");
            // The bound says something.
            assert!(
                dtype == DType::F16 || block.is_some() || bound < 1e-2 * factor * size,
                "{what}: {name} {scalar} +- {bound:e}"
            );
        }
        let n = block.map_or(1, |n| n as usize);
        let spread = |i: usize| slack_x[i / n * n..][..n].iter().sum::<f64>() / (n as f64).sqrt() * 1.01;
        let want = rotated(&dx, true);
        let got = gradients.get(of.unwrap()).unwrap().to_vec().unwrap();
        assert_within(&format!("{what}: {name}"), &got, &want, |i| {
            spread(i) + 16.0 * U32 * want[i].abs() + 2.0 * stored(of_type, want[i].abs() + spread(i))
        });
    };
    let sums = (0..M * K).map(|e| dot(N, &|t| g[e / K * N + t], &|t| w_hat[t * K + e % K])).collect();
    if quantized {
        let own = factor(method, format_x, M * K);
        check("x", sums, N, &x_rotated, at_x, own, [Some(&x), Some(&xs), shifts.then_some(&xo)], dtype);
    }
    let sums = (0..N * K).map(|e| {
        let (codes, size) = dot(M, &|t| g[t * N + e / K], &|t| x_codes[t * K + e % K]);
        let (shifted, more) = dot(M, &|t| g[t * N + e / K], &|_| shift);
        (codes + shifted, size + more)
    });
    let own = factor(method, format_w, N * K);
    check("w", sums.collect(), M, &w_rotated, at_w, own, [Some(&weight), Some(&ws), None], DType::F32);
    let sums: Vec<(f64, f64)> = (0..N).map(|n| dot(M, &|t| g[t * N + n], &|_| 1.0)).collect();
    let want: Vec<f64> = sums.iter().map(|s| s.0).collect();
    let got = gradients.get(&bias).unwrap().to_vec().unwrap();
    assert_within(&format!("{what}: bias"), &got, &want, |i| bound(sums[i].1, M));
}

#[test]
fn layers_agree_with_float64() {
    let four = "int4:tensor:f32:full";
    let layer = |method, weights, activations, hadamard, scales, offset| Layer {
        method,
        weights,
        activations,
        hadamard,
        scales,
        offset,
    };
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for case in [
                layer("lsq", four, four, None, [0.31, 0.27], 0.0),
                layer("lsq", "int3:tensor:f32:centred", "int8:tensor:f32", None, [0.5, 0.013], 0.0),
                layer("lsq", "binary:tensor", "ternary", None, [-1.6, 1.1], 0.0),
                layer("lsq", four, "", None, [0.31, 1.0], 0.0),
                layer("lsq", four, four, Some(32), [0.31, 0.27], 0.0),
                layer("lsq:plus", four, "int3:tensor:f32:full", None, [0.28, 0.6], 0.4),
                layer("lsq:plus", "int2:tensor:f32:full", "int4:tensor:f32:centred", Some(16), [0.8, -0.3], -0.25),
                layer("learned", "int8:tensor:f32:full", "int8:tensor:f32:full", None, [0.011, 0.013], 0.0),
                layer("learned", "int4:tensor:f32:centred", "", None, [0.31, 1.0], 0.0),
            ] {
                agrees(&context, dtype, &case);
            }
        }
    }
}

#[test]
fn scales_start_where_the_papers_say() {
    for context in every_tier() {
        for (method, weights, activations) in [
            ("lsq", "int4:tensor:f32:full", "int8:tensor:f32:full"),
            ("lsq", "binary:tensor", "int2:tensor:f32:full"),
            ("lsq:plus", "int3:tensor:f32:full", "int4:tensor:f32:full"),
            ("lsq:plus", "binary:tensor", "int3:tensor:f32:centred"),
            ("lsq:plus", "int2:tensor:f32:full", "ternary"),
            ("lsq:plus", "ternary", "int2:tensor:f32:full"),
            ("learned", "int8:tensor:f32:full", "int8:tensor:f32:full"),
        ] {
            let quantizer = quantizer(method, weights, Some(activations).filter(|a| !a.is_empty()), None);
            let mut random = Gen::new(3);
            let x_values: Vec<f32> = random.normals(70 * 64).iter().map(|v| 3.0 + v).collect();
            let w_values = random.normals(33 * 64);
            let x = Tensor::from_f32(&context, &x_values, &[70, 64]).unwrap();
            let weight = Tensor::from_f32(&context, &w_values, &[33, 64]).unwrap();
            let [ws, xs, xo] = [0; 3].map(|_| Tensor::from_f32(&context, &[7.0], &[1]).unwrap());
            let plus = method == "lsq:plus";
            let (input, offset) = (Some(&xs), plus.then_some(&xo));
            let learned = |initialize| Some(LearnedScales { weight: &ws, input, offset, initialize });
            let with = |initialize| LinearOptions {
                quantizer: Some(quantizer),
                learned: learned(initialize),
                ..Default::default()
            };
            let first = linear(&x, &weight, with(true)).unwrap().to_vec().unwrap();
            let [got_w, got_x, got_o] = [&ws, &xs, &xo].map(|t| f64::from(t.to_vec().unwrap()[0]));
            let (want_w, want_x, want_o) = match method {
                "lsq" => (
                    lsq_start(&wide(&w_values), grid(quantizer.weights).1),
                    lsq_start(&wide(&x_values), grid(quantizer.activations.unwrap()).1),
                    7.0,
                ),
                "learned" => (f64::from(0.01f32), f64::from(0.01f32), 7.0),
                _ => {
                    let rms = (wide(&w_values).iter().map(|v| v * v).sum::<f64>() / w_values.len() as f64).sqrt();
                    // The largest level in standard deviations, and steps between the outermost levels.
                    let (clip, steps) = match weights {
                        "binary:tensor" => (0.797_884_558_714_091_3, 1.0),
                        "ternary" => (1.224_008_951_903_085_5, 2.0),
                        "int2:tensor:f32:full" => (1.493_534_620_001_591_3, 3.0),
                        _ => (2.051_068_354_131_873, 7.0),
                    };
                    let (least, most) = (
                        f64::from(x_values.iter().copied().fold(f32::INFINITY, f32::min)),
                        f64::from(x_values.iter().copied().fold(f32::NEG_INFINITY, f32::max)),
                    );
                    let (low, high, centre) = grid(quantizer.activations.unwrap());
                    let s = (most - least) / (high - low);
                    (2.0 * (clip * rms + 1e-8) / steps, s, least - s * (low + centre))
                }
            };
            for (name, got, want) in [("weight", got_w, want_w), ("input", got_x, want_x), ("offset", got_o, want_o)] {
                // As a tensor's statistics: fewer than 2^13 elements in a sum.
                let bound = 8192.0 * U32 * want.abs();
                assert!((got - want).abs() <= bound, "{quantizer}: {name} {got}, want {want}");
            }
            // They are kept, and are what the layer took.
            assert_eq!(linear(&x, &weight, with(false)).unwrap().to_vec().unwrap(), first, "{quantizer}");
        }
    }
}

#[test]
fn what_follows_an_activation_hands_its_gradient_on() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            let quantizer = quantizer("lsq", "int4:tensor:f32:full", Some("int4:tensor:f32:full"), None);
            let mut random = Gen::new(2);
            let (x, _) = floats(&context, &random.normals(5 * 32), &[5, 32], dtype);
            let first = Tensor::from_f32(&context, &random.normals(64 * 32), &[64, 32]).unwrap().with_grad();
            let second = Tensor::from_f32(&context, &random.normals(16 * 64), &[16, 64]).unwrap().with_grad();
            let [ws, xs] = [0.3f32, 0.7].map(|v| Tensor::from_f32(&context, &[v], &[1]).unwrap().with_grad());
            let learned = LearnedScales { weight: &ws, input: Some(&xs), offset: None, initialize: false };
            let gelu = LinearOptions { activation: Some(Activation::Gelu), ..Default::default() };
            let quantized = LinearOptions { quantizer: Some(quantizer), learned: Some(learned), ..Default::default() };
            let (dy, _) = floats(&context, &random.normals(5 * 16), &[5, 16], dtype);
            let hidden = linear(&x, &first, gelu).unwrap();
            let mut whole = Gradients::default();
            linear(&hidden, &second, quantized).unwrap().backward_from(dy.clone(), &mut whole).unwrap();
            // In two parts.
            let hidden = linear(&x, &first, gelu).unwrap();
            let leaf = hidden.detach().with_grad();
            let mut parts = Gradients::default();
            linear(&leaf, &second, quantized).unwrap().backward_from(dy, &mut parts).unwrap();
            let handed = parts.get(&leaf).unwrap().clone();
            hidden.backward_from(handed, &mut parts).unwrap();
            for tensor in [&first, &second, &ws, &xs] {
                let [a, b] = [&whole, &parts].map(|g| g.get(tensor).unwrap().to_vec().unwrap());
                assert_eq!(a, b);
            }
        }
    }
}

#[test]
fn a_frozen_offset_counts_in_the_gradient_of_the_weight() {
    let four = "int4:tensor:f32:full";
    let quantizer = quantizer("lsq:plus", four, Some(four), None);
    for context in every_tier() {
        let mut random = Gen::new(8);
        let (x, w, dy) = (random.normals(7 * 36), random.normals(20 * 36), random.normals(7 * 20));
        let gradients = |frozen: bool| {
            let leaf = |v: &[f32], shape: &[usize]| Tensor::from_f32(&context, v, shape).unwrap();
            let (x, weight) = (leaf(&x, &[7, 36]), leaf(&w, &[20, 36]).with_grad());
            let ws = leaf(&[0.3], &[1]).with_grad();
            let [xs, xo] = [0.4f32, -0.2].map(|v| if frozen { leaf(&[v], &[1]) } else { leaf(&[v], &[1]).with_grad() });
            let learned = LearnedScales { weight: &ws, input: Some(&xs), offset: Some(&xo), initialize: false };
            let options = LinearOptions { quantizer: Some(quantizer), learned: Some(learned), ..Default::default() };
            let mut gradients = Gradients::default();
            let y = linear(&x, &weight, options).unwrap();
            y.backward_from(leaf(&dy, &[7, 20]), &mut gradients).unwrap();
            assert_eq!(gradients.get(&xo).is_none(), frozen);
            [&weight, &ws].map(|t| gradients.get(t).unwrap().to_vec().unwrap())
        };
        assert_eq!(gradients(true), gradients(false), "on {}", context.tier());
    }
}

#[test]
fn an_empty_batch_moves_no_scale() {
    let four = "int4:tensor:f32:full";
    for context in every_tier() {
        for method in ["lsq", "lsq:plus"] {
            let quantizer = quantizer(method, four, Some(four), None);
            let mut random = Gen::new(6);
            let x = Tensor::zeros(&context, &[0, 32], DType::F32).unwrap().with_grad();
            let weight = Tensor::from_f32(&context, &random.normals(20 * 32), &[20, 32]).unwrap().with_grad();
            let [ws, xs, xo] = [0.3f32, 0.4, -0.2].map(|v| Tensor::from_f32(&context, &[v], &[1]).unwrap().with_grad());
            let offset = (method == "lsq:plus").then_some(&xo);
            let learned = LearnedScales { weight: &ws, input: Some(&xs), offset, initialize: false };
            let options = LinearOptions { quantizer: Some(quantizer), learned: Some(learned), ..Default::default() };
            let mut gradients = Gradients::default();
            let y = linear(&x, &weight, options).unwrap();
            assert_eq!(y.shape(), [0, 20]);
            let dy = Tensor::zeros(&context, &[0, 20], DType::F32).unwrap();
            y.backward_from(dy, &mut gradients).unwrap();
            for tensor in [Some(&ws), Some(&xs), offset, Some(&weight)].into_iter().flatten() {
                let got = gradients.get(tensor).unwrap().to_vec().unwrap();
                assert!(got.iter().all(|g| *g == 0.0), "{method} on {}: {:?}", context.tier(), &got[..1]);
            }
        }
    }
    assert_eq!(lsq_factor(0, 7.0), lsq_factor(1, 7.0));
}

#[test]
fn gradients_in_an_arena_are_those_of_leaves_and_add_up() {
    let four = "int4:tensor:f32:full";
    let quantizer = quantizer("lsq:plus", four, Some(four), None);
    for context in every_tier() {
        let mut random = Gen::new(12);
        let w = random.normals(20 * 36);
        let scalars = [0.3f32, 0.4, -0.2];
        let mut builder = ParameterBuilder::new();
        let weight = builder.add("weight", &[20, 36], Init::Values(w.clone()));
        let [ws, xs, xo] = scalars.map(|v| builder.add("scalar", &[1], Init::Values(vec![v])));
        let parameters = builder.build(&context, 1, false).unwrap();
        let inputs = [0; 2].map(|_| Tensor::from_f32(&context, &random.normals(7 * 36), &[7, 36]).unwrap());
        let dys = [0; 2].map(|_| Tensor::from_f32(&context, &random.normals(7 * 20), &[7, 20]).unwrap());
        let backward = |n: usize, [weight, ws, xs, xo]: [&Tensor; 4]| {
            let learned = LearnedScales { weight: ws, input: Some(xs), offset: Some(xo), initialize: false };
            let options = LinearOptions { quantizer: Some(quantizer), learned: Some(learned), ..Default::default() };
            let mut gradients = Gradients::default();
            // The input has no gradient, its scale and offset do.
            let y = linear(&inputs[n], weight, options).unwrap();
            y.backward_from(dys[n].clone(), &mut gradients).unwrap();
            gradients
        };
        let own = [weight, ws, xs, xo];
        let in_arena = || own.map(|i| parameters.gradient(i).unwrap().to_vec().unwrap());
        let mut alone = Vec::new();
        for n in 0..2 {
            let leaf = |v: &[f32], shape: &[usize]| Tensor::from_f32(&context, v, shape).unwrap().with_grad();
            let [a, b, c] = scalars.map(|v| leaf(&[v], &[1]));
            let leaves = [&leaf(&w, &[20, 36]), &a, &b, &c];
            let gradients = backward(n, leaves);
            alone.push(leaves.map(|t| gradients.get(t).unwrap().to_vec().unwrap()));
            parameters.zero_grad();
            backward(n, own.map(|i| &parameters[i]));
            assert_eq!(in_arena(), alone[n]);
        }
        // The second pass is still there.
        backward(0, own.map(|i| &parameters[i]));
        let both = in_arena();
        for (i, both) in both.iter().enumerate() {
            let want: Vec<f64> =
                alone[0][i].iter().zip(&alone[1][i]).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
            // One more rounding; a scalar's factor may be fused with its addition.
            assert_within("both", both, &want, |e| {
                4.0 * U32 * (f64::from(alone[0][i][e].abs()) + f64::from(alone[1][i][e].abs()))
            });
        }
    }
}

const VOCAB: usize = 16;
const BLOCK: usize = 16;
const BATCH: usize = 4;

fn config(quantizer: Quantizer) -> GptConfig {
    let (layers, heads, embd, bias) = (1, 2, 32, false);
    GptConfig { layers, heads, embd, block: BLOCK, vocab: VOCAB, dropout: 0.0, bias, quantizer: Some(quantizer) }
}

fn run(context: &Context, quantizer: Quantizer, dtype: DType, steps: u32) -> GptRun {
    let options = AdamWOptions {
        schedule: Schedule { lr: 3e-3, min_lr: 3e-4, warmup: 4, decay: steps },
        betas: (0.9, 0.99),
        weight_decay: 0.1,
        clip: 1.0,
        ..AdamWOptions::default()
    };
    let shape = BatchShape { batch: BATCH, block: BLOCK, accumulate: 1 };
    GptRun::new(context, config(quantizer), shape, options, 3, dtype).unwrap()
}

/// Sequences whose next token is the one two back plus 5 times the last.
fn tokens(step: u32) -> (Vec<u32>, Vec<u32>) {
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for row in 0..BATCH as u32 {
        let seed = step * BATCH as u32 + row;
        let mut sequence = vec![seed % 16, seed / 16 % 16];
        while sequence.len() <= BLOCK {
            let [a, b] = [sequence[sequence.len() - 2], sequence[sequence.len() - 1]];
            sequence.push((a + 5 * b) % 16);
        }
        inputs.extend(&sequence[..BLOCK]);
        targets.extend(&sequence[1..]);
    }
    (inputs, targets)
}

fn step(run: &mut GptRun, number: u32) {
    let (inputs, targets) = tokens(number);
    run.train_step(&inputs, &targets).unwrap();
}

fn methods() -> [Quantizer; 5] {
    let four = "int4:tensor:f32:full";
    [
        quantizer("lsq", four, Some(four), None),
        quantizer("lsq", "binary:tensor", None, None),
        quantizer("lsq:plus", four, Some(four), None),
        quantizer("lsq", "int3:tensor:f32:full", Some("int3:tensor:f32:full"), Some(32)),
        quantizer("learned", "int8:tensor:f32:full", Some("int8:tensor:f32:full"), None),
    ]
}

#[test]
fn the_loss_falls_and_the_scales_move() {
    const STEPS: u32 = 200;
    for context in best_tiers() {
        for quantizer in methods() {
            for dtype in dtypes(&context) {
                let mut run = run(&context, quantizer, dtype, STEPS);
                let mut losses = Vec::new();
                let mut initial = Vec::new();
                for number in 0..STEPS {
                    step(&mut run, number);
                    if !(10..STEPS - 10).contains(&number) {
                        losses.push(run.stats().unwrap());
                    }
                    if number == 0 {
                        let parameters = run.gpt().parameters();
                        let scales = parameters.iter().filter(|(info, _)| info.shape == [1]);
                        initial = scales.map(|(info, t)| (info.name.clone(), t.to_vec().unwrap()[0])).collect();
                    }
                }
                let losses: Vec<f64> = losses.into_iter().map(|l| l.wait().unwrap().loss).collect();
                let (first, last) = (mean(&losses[..10]), mean(&losses[10..]));
                println!("{quantizer} {dtype}: {first:.3} -> {last:.3}");
                // Chance is ln 16 = 2.77.
                assert!(last < first - 0.25 && last.is_finite(), "{quantizer} {dtype}: {first} to {last}");
                let per_layer =
                    1 + quantizer.activations.map_or(0, |_| 1 + usize::from(quantizer.to_string().contains("plus")));
                assert_eq!(initial.len(), 4 * per_layer, "{initial:?}");
                for (name, before) in initial {
                    let (_, tensor) = run.gpt().parameters().iter().find(|(info, _)| info.name == name).unwrap();
                    let after = tensor.to_vec().unwrap()[0];
                    assert!(after.is_finite() && after != before, "{quantizer}: {name} stays {before}");
                }
            }
        }
    }
}

#[test]
fn the_steady_state_creates_nothing() {
    for context in best_tiers() {
        for quantizer in methods() {
            let mut run = run(&context, quantizer, DType::F32, 20);
            (0..3).for_each(|number| step(&mut run, number));
            context.synchronize().unwrap();
            assert_steady(&quantizer.to_string(), &context, 5, |number| step(&mut run, 3 + number));
        }
    }
}

#[test]
fn a_resumed_run_goes_on_to_the_bit() {
    for context in best_tiers() {
        for quantizer in methods() {
            for dtype in dtypes(&context) {
                let fresh = || run(&context, quantizer, dtype, 20);
                let (mut straight, mut half) = (fresh(), fresh());
                (0..3).for_each(|number| step(&mut straight, number));
                (0..3).for_each(|number| step(&mut half, number));
                let saved = half.export().unwrap();
                drop(half);
                assert!(saved.iter().any(|(name, _)| name == "model.transformer.h.0.mlp.c_fc.weight_scale"));
                let mut resumed = fresh();
                resumed.import(&saved).unwrap();
                (3..6).for_each(|number| step(&mut straight, number));
                (3..6).for_each(|number| step(&mut resumed, number));
                for (a, b) in straight.export().unwrap().iter().zip(&resumed.export().unwrap()) {
                    assert!(a == b, "{quantizer} {dtype}: {} differs after resuming", a.0);
                }
            }
        }
    }
}

#[test]
fn a_cache_has_the_logits_of_the_whole() {
    for context in best_tiers() {
        for quantizer in methods() {
            let gpt = Gpt::new(&context, config(quantizer), 3, DType::F32).unwrap();
            assert_eq!(gpt.parameters().elements() as u64 - gpt.config().parameters(), 0, "no padded vocabulary");
            let (inputs, _) = tokens(5);
            let all = Tensor::from_u32(&context, &inputs, &[BATCH, BLOCK]).unwrap();
            gpt.initialize_scales(&all).unwrap();
            let row = Tensor::from_u32(&context, &inputs[..BLOCK], &[1, BLOCK]).unwrap();
            let whole = gpt.logits(&row, None).unwrap().to_vec().unwrap();
            let mut cache = KvCache::new(&gpt).unwrap();
            let mut worst = 0.0f32;
            for (at, token) in inputs[..BLOCK].iter().enumerate() {
                let one = gpt.decode(*token, &mut cache).unwrap().to_vec().unwrap();
                for (a, b) in one.iter().zip(&whole[at * VOCAB..]) {
                    worst = worst.max((a - b).abs());
                }
            }
            // Attention and products in other orders may move an input across a middle: one step of an input times a weight.
            assert!(worst < 0.02, "{quantizer}: {worst}");
        }
    }
}

#[test]
fn scales_and_methods_go_together() {
    let context = &every_tier()[0];
    let x = Tensor::from_f32(context, &[1.0; 64], &[2, 32]).unwrap();
    let weight = Tensor::from_f32(context, &[1.0; 96], &[3, 32]).unwrap();
    let one = Tensor::from_f32(context, &[1.0], &[1]).unwrap();
    let zero = Tensor::from_f32(context, &[0.0], &[1]).unwrap();
    let two = Tensor::from_f32(context, &[1.0; 2], &[2]).unwrap();
    let four = "int4:tensor:f32:full";
    let run = |quantizer: Quantizer, learned: Option<LearnedScales<'_>>| {
        let options = LinearOptions { quantizer: Some(quantizer), learned, ..Default::default() };
        linear(&x, &weight, options).map(drop).map_err(|e| e.to_string())
    };
    fn scales<'a>(
        weight: &'a Tensor,
        input: Option<&'a Tensor>,
        offset: Option<&'a Tensor>,
    ) -> Option<LearnedScales<'a>> {
        Some(LearnedScales { weight, input, offset, initialize: false })
    }
    let lsq = quantizer("lsq", four, Some(four), None);
    let plus = quantizer("lsq:plus", four, Some(four), None);
    let alone = quantizer("lsq:plus", four, None, None);
    run(lsq, scales(&one, Some(&one), None)).unwrap();
    run(plus, scales(&one, Some(&one), Some(&zero))).unwrap();
    run(alone, scales(&one, None, None)).unwrap();
    for (quantizer, learned, message) in [
        (lsq, None, "learned scales beside --method lsq"),
        (lsq, scales(&two, Some(&one), None), "of one f32"),
        (lsq, scales(&one, None, None), "where these are quantized"),
        (lsq, scales(&one, Some(&one), Some(&one)), "an offset beside --method lsq:plus"),
        (plus, scales(&one, Some(&one), None), "an offset beside --method lsq:plus"),
        (alone, scales(&one, Some(&one), None), "where these are quantized"),
        (quantizer("ste", four, None, None), scales(&one, None, None), "a method that learns them"),
        (plus, scales(&one, Some(&one), Some(&one)), "an offset that is another tensor than the input's scale"),
    ] {
        let error = run(quantizer, learned).unwrap_err();
        assert!(error.contains(message), "{quantizer}: {error}");
    }
    // The weight's codes alone are not enough for its gradient.
    let packed = lsq.weight_by(&weight, Some(&one)).unwrap();
    let learned = scales(&one, Some(&one), None);
    let given = LinearOptions { quantizer: Some(lsq), learned, packed_weight: Some(&packed), ..Default::default() };
    linear(&x, &weight, given).unwrap();
    assert!(linear(&x, &weight.with_grad(), given).unwrap_err().to_string().contains("more than codes"));
    assert!(lsq.weight(&weight).unwrap_err().to_string().contains("learned scales beside"));
    let ste = quantizer("ste", four, None, None);
    assert!(ste.weight_by(&weight, Some(&one)).unwrap_err().to_string().contains("no learned scale"));
}
