//! Gradients of weights from those of their signs, against float64.

mod common;

use common::{Gen, U16, U32, assert_within, dtypes, every_tier, floats, stored};
use walsh::kernel::packed::Packed;
use walsh::kernel::quantize::{Options, quantize};
use walsh::kernel::sign_gradient::{Factor, sign_gradient};
use walsh::reference::sign_gradient::sign_gradient as reference;
use walsh::{DType, Error, Tensor};

const FACTORS: [Factor; 3] = [Factor::Clip, Factor::ThroughMean, Factor::Smooth];

#[test]
fn factors_are_those_of_their_definitions() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for [rows, cols] in [[1, 1], [3, 31], [5, 33], [2, 64], [7, 300]] {
                let mut random = Gen::new(cols as u64);
                let mut weights = random.hard(rows * cols);
                // On the bound, and where tanh saturates.
                for (w, special) in weights.iter_mut().zip([1.0, -1.0, 1.001, -100.0, 0.0]) {
                    *w = special;
                }
                let (w, w64) = floats(&context, &weights, &[rows, cols], dtype);
                let (g, g64) = floats(&context, &random.normals(rows * cols), &[rows, cols], dtype);
                let packed = Packed::empty(&context, "binary".parse().unwrap(), rows, cols).unwrap();
                quantize(&context, w.buffer(), &packed, Options::default()).unwrap();
                for factor in FACTORS {
                    let what = format!("{factor:?} [{rows}, {cols}] in {dtype} on {}", context.tier());
                    let out = common::blank(&context, rows * cols, dtype == DType::F16);
                    let run = |accumulate| {
                        let (g, w) = (g.buffer(), w.buffer());
                        sign_gradient(&context, factor, g, w, &packed, out.buffer(), accumulate).unwrap();
                        out.to_vec().unwrap()
                    };
                    let want = reference(factor, &g64, &w64, cols);
                    // The mean of a row rounds once per term; exp(-2 |w|) is off by (3 + 4 |w|) ulp and arrives with less than its own
                    // size; a division has 2.5 ulp; there are four more roundings.
                    let bound = |i: usize| {
                        let (g, w) = (g64[i].abs(), w64[i].abs());
                        let relative = match factor {
                            Factor::Clip => 2.0,
                            Factor::ThroughMean => cols as f64 + 12.0,
                            Factor::Smooth => 2.0 * (3.0 + 4.0 * w) + 16.0,
                        };
                        let slope = 4.0 * (-2.0 * w).exp() + 0.001;
                        let size = if factor == Factor::Smooth { slope * g } else { want[i].abs() };
                        relative * U32 * size + stored(dtype, want[i]) + 1e-30
                    };
                    assert_within(&what, &run(false), &want, bound);
                    let twice: Vec<f64> = want.iter().map(|v| 2.0 * v).collect();
                    let unit = if dtype == DType::F16 { U16 } else { U32 };
                    assert_within(&what, &run(true), &twice, |i| 2.0 * bound(i) + 2.0 * unit * twice[i].abs());
                }
            }
        }
    }
}

#[test]
fn weights_that_are_no_numbers_get_no_gradient() {
    // A NaN has no sign and no magnitude. An infinity is beyond the bound, and acts through the mean, here of 4, as all of its row do.
    for context in every_tier() {
        let w = Tensor::from_f32(&context, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5], &[1, 4]).unwrap();
        let g = Tensor::from_f32(&context, &[1.0; 4], &[1, 4]).unwrap();
        let packed = Packed::empty(&context, "binary".parse().unwrap(), 1, 4).unwrap();
        quantize(&context, g.buffer(), &packed, Options::default()).unwrap();
        for (factor, want) in [(Factor::Clip, [0.0, 0.0, 0.0, 1.0]), (Factor::ThroughMean, [0.0, 0.25, 0.25, 1.25])] {
            let out = common::blank(&context, 4, false);
            sign_gradient(&context, factor, g.buffer(), w.buffer(), &packed, out.buffer(), false).unwrap();
            assert_eq!(out.to_vec().unwrap(), want, "{factor:?} on {}", context.tier());
        }
    }
    assert_eq!(reference(Factor::Clip, &[1.0; 2], &[f64::NAN, 0.5], 2)[0], 0.0);
    assert_eq!(reference(Factor::ThroughMean, &[1.0; 2], &[f64::NAN, 0.5], 2)[0], 0.0);
}

#[test]
fn other_shapes_and_scales_are_refused() {
    let context = &every_tier()[0];
    let [x, short] = [64, 63].map(|n| Tensor::zeros(context, &[n], DType::F32).unwrap());
    let run = |format: &str, g: &Tensor, factor| {
        let packed = Packed::empty(context, format.parse().unwrap(), 2, 32).unwrap();
        sign_gradient(context, factor, g.buffer(), x.buffer(), &packed, x.buffer(), false)
    };
    assert!(matches!(run("binary", &short, Factor::Clip), Err(Error::Shape { .. })));
    let error = run("binary:g32", &x, Factor::ThroughMean).unwrap_err().to_string();
    assert!(error.contains("binary:g32"), "{error}");
}
