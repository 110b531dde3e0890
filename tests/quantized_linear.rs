//! Linear layers with quantized operands: values and gradients against float64, computed from the very codes.

mod common;

use common::{Gen, U32, assert_within, dtypes, every_tier, floats, stored, wide};
use walsh::format::Format;
use walsh::kernel::packed::Packed;
use walsh::kernel::quantize::{self, Options as QuantizeOptions};
use walsh::op::{LayerNorm, LinearOptions, linear, normed_linear};
use walsh::qat::{Method, Quantizer, Ste};
use walsh::reference::{hadamard::hadamard, layer_norm};
use walsh::{Context, DType, Error, Gradients, Tensor, checkpoint};

fn format(text: &str) -> Format {
    text.parse().unwrap()
}

fn ste(weights: Format, activations: Option<Format>) -> Quantizer {
    Quantizer::new(Method::Ste(Ste), weights, activations, None).unwrap()
}

/// The values that `x` has once it is quantized.
fn quantized(context: &Context, x: &Tensor, [rows, cols]: [usize; 2], format: Format) -> Vec<f64> {
    let packed = Packed::empty(context, format, rows, cols).unwrap();
    quantize::quantize(context, x.buffer(), &packed, QuantizeOptions::default()).unwrap();
    packed.to_host(context).unwrap().dequantize()
}

/// `sum_k a(i, k) b(k, j)`, and the sum of magnitudes, which error bounds grow with.
fn product(
    [m, n, k]: [usize; 3],
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> (Vec<f64>, Vec<f64>) {
    let terms = |i: usize, j: usize| (0..k).map(|t| a(i, t) * b(t, j)).collect::<Vec<f64>>();
    let all: Vec<Vec<f64>> = (0..m * n).map(|e| terms(e / n, e % n)).collect();
    (all.iter().map(|t| t.iter().sum()).collect(), all.iter().map(|t| t.iter().map(|v| v.abs()).sum()).collect())
}

#[test]
fn values_and_gradients_are_those_of_the_quantized_operands() {
    let [m, n, k] = [7, 35, 67];
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (weights, activations) in [
                ("int4:g32", None),
                ("nf4", None),
                ("binary", None),
                ("int4:centred:row:f32:mse", Some("int4:centred:row:f32:mse")),
                ("mxfp4", Some("mxfp8_e4m3")),
                ("ternary", Some("int8:row:f32")),
                ("nvfp4", Some("nvfp4")),
                ("int3:asym", Some("int5:asym")),
            ] {
                let quantizer = ste(format(weights), activations.map(format));
                let mut random = Gen::new(5);
                let (x, x_values) = floats(&context, &random.normals(m * k), &[m, k], dtype);
                let weight = Tensor::from_f32(&context, &random.normals(n * k), &[n, k]).unwrap();
                let bias_values = random.normals(n);
                let bias = Tensor::from_f32(&context, &bias_values, &[n]).unwrap();
                let (dy, dy_values) = floats(&context, &random.normals(m * n), &[m, n], dtype);
                let w = quantized(&context, &weight, [n, k], quantizer.weights);
                let x_hat = quantizer.activations.map_or(x_values, |f| quantized(&context, &x, [m, k], f));

                let (x, weight, bias) = (x.with_grad(), weight.with_grad(), bias.with_grad());
                let options = LinearOptions { bias: Some(&bias), quantizer: Some(quantizer), ..Default::default() };
                let y = linear(&x, &weight, options).unwrap();
                let got = y.to_vec().unwrap();
                let mut gradients = Gradients::default();
                y.backward_from(dy, &mut gradients).unwrap();

                let what = format!("{quantizer} in {dtype} on {}", context.tier());
                // Operands are rounded to f16 at most once on their way into a product, sums are f32.
                let unit = if dtype == DType::F16 { 2.0 * common::U16 } else { 0.0 };
                let bound = |size: f64, terms: usize, value: f64| {
                    2.0 * (terms as f64 + 8.0) * U32 * size + unit * size + stored(dtype, value) + 1e-30
                };
                let (want, size) = product([m, n, k], |i, t| x_hat[i * k + t], |t, j| w[j * k + t]);
                let want: Vec<f64> = want.iter().enumerate().map(|(i, v)| v + f64::from(bias_values[i % n])).collect();
                assert_within(&format!("{what}: y"), &got, &want, |i| bound(size[i] + want[i].abs(), k, want[i]));
                let (want, size) = product([m, k, n], |i, t| dy_values[i * n + t], |t, j| w[t * k + j]);
                let dx = gradients.get(&x).unwrap().to_vec().unwrap();
                assert_within(&format!("{what}: dx"), &dx, &want, |i| bound(size[i], n, want[i]));
                let (want, size) = product([n, k, m], |i, t| dy_values[t * n + i], |t, j| x_hat[t * k + j]);
                let dw = gradients.get(&weight).unwrap().to_vec().unwrap();
                assert_within(&format!("{what}: dw"), &dw, &want, |i| bound(size[i], m, want[i]));
                let want: Vec<f64> = (0..n).map(|j| (0..m).map(|i| dy_values[i * n + j]).sum()).collect();
                let db = gradients.get(&bias).unwrap().to_vec().unwrap();
                let sizes: Vec<f64> = (0..n).map(|j| (0..m).map(|i| dy_values[i * n + j].abs()).sum()).collect();
                assert_within(&format!("{what}: db"), &db, &want, |i| bound(sizes[i], m, want[i]));
            }
        }
    }
}

#[test]
fn what_is_kept_of_inputs_is_their_codes() {
    let [m, n, k] = [256, 64, 128];
    for context in every_tier() {
        let mut random = Gen::new(6);
        let x = Tensor::from_f32(&context, &random.normals(m * k), &[m, k]).unwrap().with_grad();
        let weight = Tensor::from_f32(&context, &random.normals(n * k), &[n, k]).unwrap().with_grad();
        let before = context.kept_bytes();
        let dense = linear(&x, &weight, LinearOptions::default()).unwrap();
        assert_eq!(context.kept_bytes() - before, (m * k * 4) as u64);
        drop(dense);
        assert_eq!(context.kept_bytes(), before, "kept after the graph is gone");
        let four = format("int4:centred:row:f32:mse");
        let quantizer = Some(ste(four, Some(four)));
        let packed = linear(&x, &weight, LinearOptions { quantizer, ..Default::default() }).unwrap();
        let kept = context.kept_bytes() - before;
        assert!(kept * 6 <= (m * k * 4) as u64, "{kept} bytes of codes and scales for {} of f32", m * k * 4);
        drop(packed);
    }
}

#[test]
fn an_input_dies_with_its_last_owner_where_only_codes_are_kept() {
    let [m, n, k] = [64, 32, 1 << 14];
    for context in every_tier() {
        let weight = Tensor::from_f32(&context, &vec![0.5; n * k], &[n, k]).unwrap().with_grad();
        let four = format("int4:row:f32");
        let quantizer = Some(ste(four, Some(four)));
        let mut outputs = Vec::new();
        let mut held = Vec::new();
        for _ in 0..4 {
            let x = Tensor::from_f32(&context, &vec![1.0; m * k], &[m, k]).unwrap();
            outputs.push(linear(&x, &weight, LinearOptions { quantizer, ..Default::default() }).unwrap());
            context.synchronize().unwrap();
            held.push(context.held_bytes());
        }
        // The second and later inputs take the memory of the first.
        assert!(held[3] - held[1] < (m * k * 4) as u64, "{held:?}");
    }
}

#[test]
fn operands_that_do_not_go_together_are_typed_errors() {
    let contexts = every_tier();
    let context = &contexts[0];
    let x = Tensor::from_f32(context, &[1.0; 64], &[2, 32]).unwrap();
    let weight = Tensor::from_f32(context, &[1.0; 96], &[3, 32]).unwrap();
    let quantizer = ste(format("int4:g32"), None);
    let other = Packed::empty(context, format("nf4"), 3, 32).unwrap();
    let with = |quantizer, packed_weight| LinearOptions { quantizer, packed_weight, ..Default::default() };
    let error = linear(&x, &weight, with(Some(quantizer), Some(&other))).unwrap_err().to_string();
    assert!(error.contains("int4:g32") && error.contains("nf4"), "{error}");
    let error = linear(&x, &weight, with(None, Some(&other))).unwrap_err().to_string();
    assert!(error.contains("quantizer"), "{error}");
    if let Some(other) = contexts.get(1) {
        let elsewhere = Tensor::from_f32(other, &[1.0; 96], &[3, 32]).unwrap();
        let foreign = quantizer.weight(&elsewhere).unwrap();
        let options = LinearOptions { quantizer: Some(quantizer), packed_weight: Some(&foreign), ..Default::default() };
        let result = linear(&x, &weight, options);
        assert!(matches!(result, Err(Error::ContextMismatch { .. })), "{result:?}");
    }
    let given = quantizer.weight(&weight).unwrap();
    let before = linear(&x, &weight, with(Some(quantizer), Some(&given))).unwrap().to_vec().unwrap();
    assert_eq!(linear(&x, &weight, with(Some(quantizer), None)).unwrap().to_vec().unwrap(), before);
}

#[test]
fn a_norm_before_the_codes_has_its_gradients() {
    const EPS: f32 = 1e-5;
    let [m, n, k] = [9, 34, 96];
    let mut fused = 0;
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (method, text, block, biased) in [
                ("quest", "int4:row:f32:centred:mse", Some(32), false),
                ("ste", "int8:row", None, true),
                ("ste", "mxfp4", None, true),
            ] {
                let format = format(text);
                let quantizer = Quantizer::new(method.parse().unwrap(), format, Some(format), block).unwrap();
                let coding = quantizer.activation_coding().unwrap();
                let what = format!("{quantizer} in {dtype} on {}", context.tier());
                let mut random = Gen::new(10);
                let x = Tensor::from_f32(&context, &random.normals(m * k), &[m, k]).unwrap().with_grad();
                let [scale, shift] =
                    [(); 2].map(|()| Tensor::from_f32(&context, &random.normals(k), &[k]).unwrap().with_grad());
                let bias = biased.then_some(&shift);
                let weight = Tensor::from_f32(&context, &random.normals(n * k), &[n, k]).unwrap().with_grad();
                let (dy, g) = floats(&context, &random.normals(m * n), &[m, n], dtype);
                let options = LinearOptions { quantizer: Some(quantizer), ..Default::default() };
                let norm = LayerNorm { weight: &scale, bias, eps: EPS, out: dtype };
                let y = normed_linear(&x, norm, &weight, options).unwrap();
                let got = y.to_vec().unwrap();
                let mut gradients = Gradients::default();
                y.backward_from(dy, &mut gradients).unwrap();

                // The codes and the mask, by the same kernel or of the norm that was written.
                let hadamard_block = block.map(|block| block as usize);
                let mask = Tensor::zeros(&context, &[m, k / 32], DType::U32).unwrap();
                let mut own = QuantizeOptions {
                    hadamard: hadamard_block,
                    mask: coding.bound.map(|bound| (mask.buffer(), bound)),
                    ..Default::default()
                };
                let statistics =
                    Tensor::zeros(&context, &[2 * quantize::FusedLayerNorm::second(m)], DType::F32).unwrap();
                let packed = Packed::empty(&context, format, m, k).unwrap();
                let written;
                let mut source = &x;
                if quantize::normalizes(&context, &format, k, hadamard_block) {
                    fused += 1;
                    own.layer_norm = Some(quantize::FusedLayerNorm {
                        weight: scale.buffer(),
                        bias: bias.map(Tensor::buffer),
                        eps: EPS,
                        statistics: statistics.buffer(),
                    });
                } else {
                    written = context.no_grad(|| x.layer_norm(&scale, bias, EPS, dtype)).unwrap();
                    source = &written;
                }
                quantize::quantize(&context, source.buffer(), &packed, own).unwrap();
                let x_hat = packed.to_host(&context).unwrap().dequantize();
                let bits = mask.to_vec_u32().unwrap();
                let open = |i: usize| coding.bound.is_none() || bits[i / 32] >> (i % 32) & 1 == 1;
                let own = QuantizeOptions { hadamard: hadamard_block, ..Default::default() };
                let packed = Packed::empty(&context, format, n, k).unwrap();
                quantize::quantize(&context, weight.buffer(), &packed, own).unwrap();
                let w_hat = packed.to_host(&context).unwrap().dequantize();

                let unit = if dtype == DType::F16 { 4.0 * common::U16 } else { 0.0 };
                let bound = |size: f64, terms: usize| (2.0 * (terms as f64 + 16.0) * U32 + unit) * size + 1e-30;
                let (want, size) = product([m, n, k], |i, t| x_hat[i * k + t], |t, j| w_hat[j * k + t]);
                assert_within(&format!("{what}: y"), &got, &want, |i| bound(size[i], k) + stored(dtype, want[i]));
                let (mut sums, sizes) = product([m, k, n], |i, t| g[i * n + t], |t, j| w_hat[t * k + j]);
                (0..m * k).filter(|i| !open(*i)).for_each(|i| sums[i] = 0.0);
                // The gradient of the norm, whose error spreads over its block, and that through the norm.
                let b = hadamard_block.unwrap_or(1);
                let dnorm = hadamard(&sums, b, true);
                let error: Vec<f64> = (0..m * k)
                    .map(|i| {
                        let spread = sizes[i / b * b..][..b].iter().sum::<f64>() / (b as f64).sqrt();
                        bound(spread, n + 64) + stored(dtype, dnorm[i])
                    })
                    .collect();
                let [x_values, scale_values] = [&x, &scale].map(|t| wide(&t.to_vec().unwrap()));
                let want = layer_norm::backward(&dnorm, &x_values, &scale_values, f64::from(EPS));
                let saved = layer_norm::forward(&x_values, &scale_values, &vec![0.0; k], f64::from(EPS));
                let normed = |i: usize| ((x_values[i] - saved.mean[i / k]) * saved.rstd[i / k]).abs();
                // Of normal rows: rstd is off by rho <= (k + 20) u / 2 twice, in the normed value and as the factor, x - mean by at most as much of
                // its size, and each mean of k products by (k + 6) u: at most 3 (k + 20) u of the terms in all.
                let own = 3.0 * (k as f64 + 20.0) * U32;
                let dx = gradients.get(&x).unwrap().to_vec().unwrap();
                assert_within(&format!("{what}: dx"), &dx, &want.dx, |i| {
                    let row = i / k * k..i / k * k + k;
                    let e = |j: usize| (error[j] + own * dnorm[j].abs()) * scale_values[j % k].abs();
                    let mean = row.clone().map(e).sum::<f64>() / k as f64;
                    let along = row.map(|j| e(j) * normed(j)).sum::<f64>() / k as f64;
                    saved.rstd[i / k] * (e(i) + mean + normed(i) * along)
                });
                let columns = |f: &dyn Fn(usize) -> f64| -> Vec<f64> {
                    (0..k).map(|c| (0..m).map(|r| f(r * k + c)).sum()).collect()
                };
                let size = columns(&|i| normed(i) * (error[i] + own * dnorm[i].abs()));
                let dscale = gradients.get(&scale).unwrap().to_vec().unwrap();
                assert_within(&format!("{what}: dweight of the norm"), &dscale, &want.dweight, |c| size[c]);
                if biased {
                    let size = columns(&|i| error[i] + own * dnorm[i].abs());
                    let dshift = gradients.get(&shift).unwrap().to_vec().unwrap();
                    assert_within(&format!("{what}: dbias of the norm"), &dshift, &want.dbias, |c| size[c]);
                }
            }
        }
    }
    if fused == 0 {
        common::skip("a layer norm fused into a linear layer: no subgroups of a fixed size");
    }
}

#[test]
fn a_norm_before_the_codes_is_the_same_recomputed_and_for_its_parameters_alone() {
    let [m, n, k] = [5, 12, 64];
    for context in every_tier() {
        let quantizer = ste(format("int8:row"), Some(format("int8:row")));
        let mut random = Gen::new(11);
        let mut tensor = |shape: &[usize]| {
            Tensor::from_f32(&context, &random.normals(shape.iter().product()), shape).unwrap().with_grad()
        };
        let [x, scale, weight, dy] = [&[m, k][..], &[k], &[n, k], &[m, n]].map(&mut tensor);
        let layer = |x: &Tensor, scale: &Tensor, weight: &Tensor| {
            let norm = LayerNorm { weight: scale, bias: None, eps: 1e-5, out: DType::F32 };
            normed_linear(x, norm, weight, LinearOptions { quantizer: Some(quantizer), ..Default::default() })
        };
        let gradients = |y: Tensor| {
            let mut gradients = Gradients::default();
            y.backward_from(dy.clone(), &mut gradients).unwrap();
            gradients
        };
        let y = layer(&x, &scale, &weight).unwrap();
        let value = y.to_vec().unwrap();
        let whole = gradients(y);
        let of = |gradients: &Gradients, t: &Tensor| gradients.get(t).unwrap().to_vec().unwrap();

        assert_eq!(context.no_grad(|| layer(&x, &scale, &weight)).unwrap().to_vec().unwrap(), value);
        let (scale_too, weight_too) = (scale.clone(), weight.clone());
        let again = checkpoint(&[&x], move |inputs| {
            let norm = LayerNorm { weight: &scale_too, bias: None, eps: 1e-5, out: DType::F32 };
            let options = LinearOptions { quantizer: Some(quantizer), ..Default::default() };
            normed_linear(&inputs[0], norm, &weight_too, options)
        });
        let again = again.unwrap();
        assert_eq!(again.to_vec().unwrap(), value);
        let again = gradients(again);
        for t in [&x, &scale, &weight] {
            assert_eq!(of(&again, t), of(&whole, t), "recomputed, on {}", context.tier());
        }
        let alone = gradients(layer(&x.detach(), &scale, &weight.detach()).unwrap());
        assert_eq!(of(&alone, &scale), of(&whole, &scale), "alone, on {}", context.tier());
        assert!(alone.get(&x).is_none() && alone.get(&weight).is_none());
    }
}
