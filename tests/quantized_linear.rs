//! Linear layers with quantized operands: values and gradients against float64, computed from the very codes.

mod common;

use common::{Gen, U32, assert_within, dtypes, every_tier, floats, stored};
use walsh::format::Format;
use walsh::kernel::packed::Packed;
use walsh::kernel::quantize::{Options as QuantizeOptions, quantize};
use walsh::op::{LinearOptions, linear};
use walsh::qat::{Method, Quantizer, Ste};
use walsh::{Context, DType, Error, Gradients, Tensor};

fn format(text: &str) -> Format {
    text.parse().unwrap()
}

fn ste(weights: Format, activations: Option<Format>) -> Quantizer {
    Quantizer::new(Method::Ste(Ste), weights, activations, None).unwrap()
}

/// The values that `x` has once it is quantized.
fn quantized(context: &Context, x: &Tensor, [rows, cols]: [usize; 2], format: Format) -> Vec<f64> {
    let packed = Packed::empty(context, format, rows, cols).unwrap();
    quantize(context, x.buffer(), &packed, QuantizeOptions::default()).unwrap();
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
