//! Cross-entropy and its gradient against their float64 definition.

mod common;

use common::{Gen, U32, assert_gradient, assert_within, dtypes, floats, stored};
use walsh::kernel::cross_entropy::{Gradient, IGNORE, cross_entropy};
use walsh::kernel::scale_by_scalar::scale_by_scalar;
use walsh::reference::cross_entropy::cross_entropy as reference;
use walsh::{Context, DType, Tensor};

const LOSS_SCALE: f32 = 128.0;

/// A step state with this loss scale: the fifth word, see `shaders/common/step_state.wgsl`.
fn step_state(context: &Context) -> Tensor {
    let mut words = [0u32; 16];
    words[4] = LOSS_SCALE.to_bits();
    Tensor::from_u32(context, &words, &[16]).unwrap()
}

/// Where the gradient goes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum To {
    Nowhere,
    Logits,
    Buffer(DType),
}

fn check(context: &Context, [rows, classes]: [usize; 2], to: To, with_state: bool, rng: &mut Gen) {
    let what = format!("{:?} [{rows}, {classes}] {to:?} {with_state}", context.tier());
    let mut data = rng.hard(rows * classes);
    data[..classes].fill(0.0); // equal logits
    let (logits, z) = floats(context, &data, &[rows, classes], DType::F32);
    let targets: Vec<u32> = (0..rows)
        .map(|r| {
            if r % 5 == 3 {
                IGNORE
            } else if r == 0 {
                classes as u32 - 1
            } else {
                rng.below(classes) as u32
            }
        })
        .collect();
    let targets_tensor = Tensor::from_u32(context, &targets, &[rows]).unwrap();
    let losses = Tensor::from_f32(context, &vec![1e30; rows], &[rows]).unwrap();
    let loss = Tensor::from_f32(context, &[1e30], &[1]).unwrap();
    let dtype = if let To::Buffer(dtype) = to { dtype } else { DType::F32 };
    let (out, _) = floats(context, &vec![3e4; rows * classes], &[rows, classes], dtype);
    let state = step_state(context);
    let factor = 0.5;
    let gradient = (to != To::Nowhere).then_some(Gradient {
        out: (to != To::Logits).then_some(out.buffer()),
        factor,
        state: with_state.then_some(state.buffer()),
    });
    let (l, t) = (logits.buffer(), targets_tensor.buffer());
    cross_entropy(context, l, t, losses.buffer(), loss.buffer(), [rows, classes], classes, gradient).unwrap();

    let want = reference(&z, &targets, classes);
    // exp is off by (3 + 2 |x|) ulp, an ulp being 2 u; x <= 0 spans the row's range R. A term of the running sum is rescaled at most once per
    // column seen: by exponentials whose arguments add up to at most R, each with 6 u + 4 u |x| plus the product and the sum. So the
    // relative error of the sum is (9 n + 8 R + 8) u with R from rounded differences. log adds 2^-21 or 3 ulp.
    let rows_errors: Vec<(f64, f64)> = z
        .chunks_exact(classes)
        .map(|row| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let range = largest - row.iter().copied().fold(f64::INFINITY, f64::min);
            (largest, (9.0 * classes as f64 + 8.0 * range + 8.0) * U32)
        })
        .collect();
    let loss_bound = |r: usize| {
        if targets[r] == IGNORE {
            return 0.0;
        }
        let (largest, rho) = rows_errors[r];
        let z_t = z[r * classes + targets[r] as usize];
        let log_sum = want.losses[r] + z_t - largest;
        rho + 2f64.powi(-21) + 8.0 * U32 * (log_sum.abs() + (largest - z_t).abs() + want.losses[r].abs())
    };
    assert_within(&format!("{what} losses"), &losses.to_vec().unwrap(), &want.losses, loss_bound);
    let count = targets.iter().filter(|t| **t != IGNORE).count().max(1) as f64;
    let rounding = (rows as f64 + 8.0) * U32 * want.losses.iter().map(|l| l.abs()).sum::<f64>();
    let mean_bound = ((0..rows).map(loss_bound).sum::<f64>() + rounding) / count;
    assert_within(&format!("{what} mean"), &loss.to_vec().unwrap(), &[want.loss], |_| mean_bound);

    let got = match to {
        To::Nowhere => {
            assert_eq!(logits.to_vec().unwrap(), data, "{what}: the logits must stay");
            return;
        }
        To::Logits => logits.to_vec().unwrap(),
        To::Buffer(_) => out.to_vec().unwrap(),
    };
    let scale = f64::from(factor) * if with_state { f64::from(LOSS_SCALE) } else { 1.0 };
    let scaled: Vec<f64> = want.grad.iter().map(|g| g * scale).collect();
    assert_within(&format!("{what} grad"), &got, &scaled, |i| {
        let (r, c) = (i / classes, i % classes);
        if targets[r] == IGNORE {
            return 0.0;
        }
        let (largest, rho) = rows_errors[r];
        let p = want.grad[i] * count + f64::from(u8::from(targets[r] as usize == c));
        // exp with a rounded argument, one reciprocal, two products, one difference, the factor's division and product; what is below the
        // least normal number may be flushed to 0.
        let d = largest - z[i];
        let error = p * (rho + (16.0 + 6.0 * d) * U32) + 16.0 * U32 * (want.grad[i] * count).abs() + 2f64.powi(-126);
        let error = error * scale / count;
        error + 2f64.powi(-126) + stored(dtype, scaled[i].abs() + error)
    });
}

#[test]
fn matches_the_reference() {
    for context in common::every_tier() {
        let mut rng = Gen::new(1);
        let half = *dtypes(&context).last().unwrap();
        check(&context, [37, 65], To::Logits, true, &mut rng);
        check(&context, [37, 65], To::Buffer(half), true, &mut rng);
        check(&context, [4, 1], To::Logits, true, &mut rng);
        check(&context, [9, 31], To::Nowhere, false, &mut rng);
        check(&context, [1, 7], To::Logits, false, &mut rng);
        check(&context, [19, 64], To::Buffer(DType::F32), true, &mut rng);
        check(&context, [6, 516], To::Buffer(half), false, &mut rng);
        check(&context, [3, 1025], To::Buffer(DType::F32), false, &mut rng);
        check(&context, [2, 50257], To::Logits, true, &mut rng);
        check(&context, [2, 50304], To::Nowhere, false, &mut rng);
    }
}

#[test]
fn bad_targets_show_and_large_logits_do_not_overflow() {
    for context in common::every_tier() {
        let run = |logits: &[f32], targets: &[u32]| {
            let rows = targets.len();
            let shape = [rows, logits.len() / rows];
            let z = Tensor::from_f32(&context, logits, &shape).unwrap();
            let t = Tensor::from_u32(&context, targets, &[rows]).unwrap();
            let losses = Tensor::zeros(&context, &[rows], DType::F32).unwrap();
            let loss = Tensor::zeros(&context, &[1], DType::F32).unwrap();
            let state = step_state(&context);
            let gradient = Gradient { out: None, factor: 1.0, state: Some(state.buffer()) };
            let (a, b) = (losses.buffer(), loss.buffer());
            cross_entropy(&context, z.buffer(), t.buffer(), a, b, shape, shape[1], Some(gradient)).unwrap();
            (losses.to_vec().unwrap(), loss.item().unwrap(), z.to_vec().unwrap())
        };
        let (losses, loss, grad) = run(&[0.0; 15], &[1, 5, IGNORE]);
        assert!(losses[0].is_finite() && losses[1].is_nan() && losses[2] == 0.0 && loss.is_nan());
        assert!(grad[5..].iter().all(|g| *g == 0.0) && grad[0] > 0.0);
        let (losses, loss, grad) = run(&[1.0; 10], &[IGNORE; 2]);
        assert!(losses == [0.0; 2] && loss == 0.0 && grad == [0.0; 10]);
        let (losses, loss, grad) = run(&[3e4, -3e4, 0.0, 1e30, -1e30], &[3]);
        assert!(losses == [0.0] && loss == 0.0 && grad == [0.0; 5], "{losses:?} {loss} {grad:?}");
        let (_, loss, _) = run(&[3e4, -3e4, 0.0, 3e4, 1.0], &[2]);
        assert!((loss - 3e4 - 2f32.ln()).abs() < 0.01, "{loss}");
        let (_, loss, _) = run(&[0.0, f32::NAN, 0.0, 0.0, 1.0], &[2]);
        assert!(!loss.is_finite(), "{loss}");
    }
}

#[test]
fn scaling_multiplies_every_element_once() {
    for context in common::every_tier() {
        let mut rng = Gen::new(2);
        for dtype in dtypes(&context) {
            for len in [1, 3, 4, 1025] {
                let (x, values) = floats(&context, &rng.normals(len), &[len], dtype);
                let s = Tensor::from_f32(&context, &[0.3], &[1]).unwrap();
                scale_by_scalar(&context, x.buffer(), s.buffer()).unwrap();
                let want: Vec<f64> = values.iter().map(|v| v * f64::from(0.3f32)).collect();
                assert_within("scaled", &x.to_vec().unwrap(), &want, |i| {
                    1.01 * U32 * want[i].abs() + stored(dtype, want[i])
                });
            }
        }
    }
}

#[test]
fn reference_gradient_matches_differences() {
    let mut rng = Gen::new(3);
    let z: Vec<f64> = rng.normals(15).into_iter().map(f64::from).collect();
    let targets = [2, IGNORE, 4];
    assert_gradient("logits", &z, &reference(&z, &targets, 5).grad, |z| reference(z, &targets, 5).loss);
}

#[test]
fn a_short_step_state_is_refused() {
    let context = &common::every_tier()[0];
    let [z, one, short] = [4, 1, 15].map(|len| Tensor::zeros(context, &[len], DType::F32).unwrap());
    let targets = Tensor::from_u32(context, &[2], &[1]).unwrap();
    let losses = Tensor::zeros(context, &[1], DType::F32).unwrap();
    let gradient = Gradient { out: None, factor: 1.0, state: Some(short.buffer()) };
    let (a, b) = (losses.buffer(), one.buffer());
    let result = cross_entropy(context, z.buffer(), targets.buffer(), a, b, [1, 4], 4, Some(gradient));
    assert!(matches!(result, Err(walsh::Error::Shape { .. })), "{result:?}");
}
