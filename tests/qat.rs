//! Quantization-aware training against float64 written from the papers: the constants of the grids, what is masked, and the gradients of
//! linear layers through rotation and masks.

mod common;

use common::{Gen, U16, U32, assert_within, dtypes, encoded, every_tier, floats, quantizer, stored, wide};
use walsh::format::{Format, Grid, Minifloat, Rule};
use walsh::op::{LinearOptions, linear};
use walsh::qat::{Coding, Method};
use walsh::reference::hadamard::hadamard;
use walsh::reference::quantized_linear::CLIP;
use walsh::{DType, Gradients, Tensor};

/// Rotated by blocks, row by row.
fn rotated(x: &[f64], block: Option<u32>, transpose: bool) -> Vec<f64> {
    block.map_or(x.to_vec(), |n| hadamard(x, n as usize, transpose))
}

/// The mean squared error and the share of masked elements of N(0, 1) are those of QuEST's table (methods of arXiv 2502.05003 and its code;
/// the errors are checked by numeric integration there).
#[test]
fn constants_are_those_of_normal_data() {
    const ROWS: usize = 256;
    const COLS: usize = 4096;
    let table = [
        ("binary:mse", 0.36338, None),
        ("int2:row:f32:centred:mse", 0.118_846, Some(0.04644)),
        ("int3:row:f32:centred:mse", 0.037_439_7, Some(0.01907)),
        ("int4:row:f32:centred:mse", 0.011_542_9, Some(0.007_329)),
        ("int5:row:f32:centred:mse", 0.003_495_2, Some(0.002_611)),
        ("int6:row:f32:centred:mse", 0.001_040_05, Some(8.728e-4)),
        ("int7:row:f32:centred:mse", 3.043_66e-4, Some(2.841e-4)),
        ("int8:row:f32:centred:mse", 8.7821e-5, Some(9.612e-5)),
        // Half of its largest step, that from 4 to 6, beyond the largest level: erfc(7 * 0.487079483934662 / sqrt(2)).
        ("e2m1:mse", 0.012_684_9, Some(6.507e-04)),
    ];
    let values = Gen::new(77).normals(ROWS * COLS);
    let context = &every_tier()[0];
    let x = Tensor::from_f32(context, &values, &[ROWS, COLS]).unwrap();
    let count = (ROWS * COLS) as f64;
    for (format, error, masked) in table {
        let coding = quantizer("quest", format, None, None).weight_coding();
        let (got, _, passes) = encoded(context, &x, [ROWS, COLS], &coding);
        let mse = got.iter().zip(&values).map(|(q, x)| (q - f64::from(*x)).powi(2)).sum::<f64>() / count;
        assert!((mse / error - 1.0).abs() < 0.01, "{format}: mean squared error {mse}, expected {error}");
        let share = passes.iter().filter(|passes| !**passes).count() as f64 / count;
        // Inputs of normal rows are scaled by their own root mean square, so the count is binomial but for that.
        if let Some(masked) = masked {
            let five_sigma = 5.0 * (masked / count).sqrt();
            assert!((share - masked).abs() < 0.01 * masked + five_sigma, "{format}: {share} masked, expected {masked}");
        }
    }
    // The clip bounds of one bit: P(|z| > 1.25 sqrt(2 / pi)) and, rotated, P(|z| > 1.30 sqrt(2 / pi)).
    for (hadamard, expected) in [(None, 0.318_57), (Some(128), 0.299_6)] {
        let coding = quantizer("quest", "binary:mse", None, hadamard).weight_coding();
        let (.., passes) = encoded(context, &x, [ROWS, COLS], &coding);
        let share = passes.iter().filter(|passes| !**passes).count() as f64 / count;
        assert!((share - expected).abs() < 0.005, "{share} masked with rotation {hadamard:?}, expected {expected}");
    }
}

/// The fraction of the row's scale, in multiples of the root mean square, beyond which QuEST and the clipped quantizer let no gradient pass:
/// written from the papers, not from [`Coding`].
fn limit(method: Method, format: Format, hadamard: bool) -> Option<f64> {
    if format.rule() != Rule::Gaussian {
        return None;
    }
    let clip = match format.grid() {
        Grid::Centred { bits } => CLIP[bits as usize - 1],
        Grid::Float(Minifloat::E2M1) => 6.0 * 0.487_079_483_934_662,
        _ => return None,
    };
    let half = match format.grid() {
        Grid::Centred { bits } => clip / (f64::from(1u32 << bits) - 1.0),
        _ => 0.487_079_483_934_662,
    };
    match method {
        Method::Clipped(_) => Some(clip),
        Method::Quest(quest) => Some(match (quest.trust, format.bits()) {
            (Some(trust), _) => f64::from(trust) * clip,
            (None, 1) if hadamard => 1.30 * clip,
            (None, 1) => 1.25 * clip,
            _ => clip + half,
        }),
        _ => None,
    }
}

#[test]
fn layers_agree_with_float64() {
    let [m, n, k] = [9, 34, 96];
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (method, weights, activations, block) in [
                ("ste", "int4:g32", "int8:row", Some(32)),
                ("ste", "int4:row:f32:centred:mse", "", Some(16)),
                ("clipped", "int3:row:f32:centred:mse", "int4:row:f32:centred:mse", None),
                ("clipped", "mxfp4", "mxfp4", Some(32)),
                ("quest", "int4:row:f32:centred:mse", "int4:row:f32:centred:mse", Some(32)),
                ("quest", "int2:row:f32:centred:mse", "int3:row:f32:centred:mse", None),
                ("quest", "binary:mse", "binary:mse", Some(16)),
                ("quest:trust=1.1", "e2m1:mse", "e2m1:mse", None),
                ("quest", "e2m1:mse", "e2m1:mse", Some(32)),
                ("quest", "int4:row:f32:centred:mse", "", Some(32)),
            ] {
                let quantizer = quantizer(method, weights, Some(activations).filter(|a| !a.is_empty()), block);
                let what = format!("{quantizer} in {dtype} on {}", context.tier());
                let mut random = Gen::new(6);
                let (x, x_values) = floats(&context, &random.normals(m * k), &[m, k], dtype);
                let w_values = random.normals(n * k);
                let weight = Tensor::from_f32(&context, &w_values, &[n, k]).unwrap();
                let (dy, g) = floats(&context, &random.normals(m * n), &[m, n], dtype);

                // What the gradient may pass: of the definition, and of the device near the bound.
                let operand = |values: &[f64], tensor: &Tensor, rows: usize, coding: Option<Coding>| {
                    let values = rotated(values, block, false);
                    let Some(coding) = coding else { return (values, vec![1.0; rows * k]) };
                    let (got, scales, passes) = encoded(&context, tensor, [rows, k], &coding);
                    // In units of a stored scale no level is farther from its value than half the largest step, but beyond the largest level.
                    let max = coding.format.grid().max();
                    let step = if matches!(coding.format.grid(), Grid::Float(_)) { 2.0 } else { 1.0 };
                    let mut mask = vec![1.0; rows * k];
                    for (i, x) in values.iter().enumerate() {
                        let error = (got[i] - x).abs();
                        let beyond = (x.abs() - max * scales[i]).max(0.0);
                        assert!(
                            error <= beyond + step / 2.0 * scales[i] * 1.00001 + 1e-6,
                            "{what}: {x} became {}",
                            got[i]
                        );
                        let row = &values[i / k * k..][..k];
                        let rms = (row.iter().map(|v| v * v).sum::<f64>() / k as f64).sqrt();
                        let bound = match limit(quantizer.method, coding.format, block.is_some()) {
                            Some(limit) => limit * rms,
                            // mxfp4: the largest level by the block's power of two.
                            None if method == "clipped" => 6.0 * scales[i],
                            None => f64::INFINITY,
                        };
                        mask[i] = if x.abs() <= bound { 1.0 } else { 0.0 };
                        if (x.abs() / bound - 1.0).abs() > 1e-5 {
                            assert_eq!(passes[i], mask[i] == 1.0, "{what}: the mask of {x} with bound {bound}");
                        } else {
                            mask[i] = f64::from(u8::from(passes[i]));
                        }
                    }
                    (got, mask)
                };
                let (x_hat, x_mask) = operand(&x_values, &x, m, quantizer.activation_coding());
                let (w_hat, w_mask) = operand(&wide(&w_values), &weight, n, Some(quantizer.weight_coding()));

                let (x, weight) = (x.with_grad(), weight.with_grad());
                let options = LinearOptions { quantizer: Some(quantizer), ..Default::default() };
                let y = linear(&x, &weight, options).unwrap();
                let got = y.to_vec().unwrap();
                let mut gradients = Gradients::default();
                y.backward_from(dy, &mut gradients).unwrap();

                // Sums of f32 products; f16 operands and, through a rotation, f16 results are rounded once more each.
                let unit = if dtype == DType::F16 { 4.0 * U16 } else { 0.0 };
                let bound = |size: f64, terms: usize| (2.0 * (terms as f64 + 16.0) * U32 + unit) * size + 1e-30;
                let dot = |len: usize, a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| {
                    (0..len).fold((0.0, 0.0), |(sum, size), i| (sum + a(i) * b(i), size + (a(i) * b(i)).abs()))
                };
                let (want, size): (Vec<f64>, Vec<f64>) =
                    (0..m * n).map(|e| dot(k, &|t| x_hat[e / n * k + t], &|t| w_hat[e % n * k + t])).unzip();
                assert_within(&format!("{what}: y"), &got, &want, |i| bound(size[i], k) + stored(dtype, want[i]));

                // dX = (M_x . (G W_hat)) H^T; an error of a product spreads over its block.
                let back = |sums: Vec<(f64, f64)>, mask: &[f64]| {
                    let (sums, sizes): (Vec<f64>, Vec<f64>) = sums.into_iter().unzip();
                    let masked: Vec<f64> = sums.iter().zip(mask).map(|(v, m)| v * m).collect();
                    let n = block.map_or(1, |n| n as usize);
                    let spread = |i: usize| sizes[i / n * n..][..n].iter().sum::<f64>() / (n as f64).sqrt();
                    let spreads: Vec<f64> = (0..sizes.len()).map(spread).collect();
                    (rotated(&masked, block, true), spreads)
                };
                let sums = (0..m * k).map(|e| dot(n, &|t| g[e / k * n + t], &|t| w_hat[t * k + e % k])).collect();
                let (want, size) = back(sums, &x_mask);
                let dx = gradients.get(&x).unwrap().to_vec().unwrap();
                assert_within(&format!("{what}: dx"), &dx, &want, |i| bound(size[i], n + 64) + stored(dtype, want[i]));
                let sums = (0..n * k).map(|e| dot(m, &|t| g[t * n + e / k], &|t| x_hat[t * k + e % k])).collect();
                let (want, size) = back(sums, &w_mask);
                let dw = gradients.get(&weight).unwrap().to_vec().unwrap();
                assert_within(&format!("{what}: dw"), &dw, &want, |i| bound(size[i], m + 64));
            }
        }
    }
}

#[test]
fn quantized_weights_that_were_made_before_give_the_same_values() {
    for context in every_tier() {
        let mut random = Gen::new(8);
        let x = Tensor::from_f32(&context, &random.normals(5 * 64), &[5, 64]).unwrap();
        let weight = Tensor::from_f32(&context, &random.normals(7 * 64), &[7, 64]).unwrap();
        let four = "int4:row:f32:centred:mse";
        let quantizer = quantizer("quest", four, Some(four), Some(64));
        let options = LinearOptions { quantizer: Some(quantizer), ..Default::default() };
        let want = linear(&x, &weight, options).unwrap().to_vec().unwrap();
        let packed = quantizer.weight(&weight).unwrap();
        let given = LinearOptions { packed_weight: Some(&packed), ..options };
        assert_eq!(linear(&x, &weight, given).unwrap().to_vec().unwrap(), want);
        // There is no mask for its gradient.
        let error = linear(&x, &weight.with_grad(), given).unwrap_err().to_string();
        assert!(error.contains("quest"), "{error}");
    }
}
