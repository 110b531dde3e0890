//! Losses against a teacher, and their gradients, against float64.

mod common;

use common::{Gen, U32, assert_gradient, assert_within, dtypes, every_tier, floats, stored, wide};
use walsh::kernel::hidden_distance::{hidden_distance, hidden_distance_backward};
use walsh::kernel::soft_cross_entropy::{Factors, soft_cross_entropy};
use walsh::op::LossOptions;
use walsh::reference::hidden_distance::hidden_distance as distance_reference;
use walsh::reference::soft_cross_entropy::{soft_cross_entropy as reference, softmax};
use walsh::{Context, DType, Error, Gradients, Tensor};

const LOSS_SCALE: f32 = 128.0;

/// A step state with this loss scale: the fifth word, see `shaders/common/step_state.wgsl`.
fn step_state(context: &Context) -> Tensor {
    let mut words = [0u32; 16];
    words[4] = LOSS_SCALE.to_bits();
    Tensor::from_u32(context, &words, &[16]).unwrap()
}

/// Relative error of a sum of exponentials, as tests/cross_entropy.rs derives it.
fn sum_error(row: &[f64]) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = largest - row.iter().copied().fold(f64::INFINITY, f64::min);
    (9.0 * row.len() as f64 + 8.0 * range + 8.0) * U32
}

fn check(context: &Context, [rows, columns, classes]: [usize; 3], dtype: DType, with_state: bool) {
    let what = format!("[{rows}, {columns}] of {classes}, {dtype}, {with_state} on {}", context.tier());
    let mut random = Gen::new(columns as u64);
    let mut teacher = random.hard(rows * columns);
    let mut student = random.hard(rows * columns);
    // Equal distributions in the first row; padding that must not count.
    teacher[..columns].copy_from_slice(&student[..columns]);
    for row in 0..rows {
        student[row * columns + classes..(row + 1) * columns].fill(f32::NAN);
        teacher[row * columns + classes..(row + 1) * columns].fill(1e30);
    }
    let [z, y] = [&student, &teacher].map(|data| Tensor::from_f32(context, data, &[rows, columns]).unwrap());
    let losses = common::blank(context, rows, false);
    let loss = common::blank(context, 1, false);
    let grad = common::blank(context, rows * columns, dtype == DType::F16);
    let state = step_state(context);
    let factor = 0.5;
    let factors = Factors { factor, state: with_state.then(|| state.buffer()) };
    let (shape, [a, b, c]) = ([rows, columns], [&losses, &loss, &grad].map(Tensor::buffer));
    soft_cross_entropy(context, z.buffer(), y.buffer(), a, b, c, shape, classes, factors).unwrap();

    let inner =
        |data: &[f32]| -> Vec<f64> { data.chunks_exact(columns).flat_map(|row| wide(&row[..classes])).collect() };
    let (z, y) = (inner(&student), inner(&teacher));
    let want = reference(&z, &y, classes);
    let of = |values: &[f64], r: usize| values[r * classes..(r + 1) * classes].to_vec();
    let loss_bound = |r: usize| {
        let (z, y) = (of(&z, r), of(&y, r));
        let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean: f64 = softmax(&y).iter().zip(&z).map(|(p, z)| p * z.abs()).sum();
        let log_sum = z.iter().map(|v| (v - largest).exp()).sum::<f64>().ln();
        let rounding = 8.0 * U32 * (log_sum.abs() + largest.abs() + mean + want.losses[r].abs());
        sum_error(&z) + 2f64.powi(-21) + rounding + 2.0 * sum_error(&y) * mean
    };
    assert_within(&format!("{what} losses"), &losses.to_vec().unwrap(), &want.losses, loss_bound);
    let mean = want.losses.iter().sum::<f64>() / rows as f64 * f64::from(factor);
    let size = want.losses.iter().map(|l| l.abs()).sum::<f64>();
    let bound = ((0..rows).map(loss_bound).sum::<f64>() + (rows as f64 + 8.0) * U32 * size) / rows as f64;
    assert_within(&format!("{what} loss"), &loss.to_vec().unwrap(), &[mean], |_| bound);

    let scale = f64::from(factor) * if with_state { f64::from(LOSS_SCALE) } else { 1.0 };
    let got = grad.to_vec().unwrap();
    let mut got_inner = Vec::new();
    for row in got.chunks_exact(columns) {
        got_inner.extend_from_slice(&row[..classes]);
        assert!(row[classes..].iter().all(|g| *g == 0.0), "{what}: padding {:?}", &row[classes..]);
    }
    let scaled: Vec<f64> = want.grad.iter().map(|g| g * scale).collect();
    assert_within(&format!("{what} grad"), &got_inner, &scaled, |i| {
        let r = i / classes;
        let part = |row: &[f64]| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let p = softmax(row)[i % classes];
            p * (sum_error(row) + (16.0 + 6.0 * (largest - row[i % classes])) * U32) + 2f64.powi(-126)
        };
        let error = part(&of(&z, r)) + part(&of(&y, r)) + 16.0 * U32 * (want.grad[i] * rows as f64).abs();
        let error = error * scale / rows as f64 + 2f64.powi(-126);
        error + stored(dtype, scaled[i].abs() + error)
    });
}

#[test]
fn soft_targets_match_the_reference() {
    for context in every_tier() {
        let half = *dtypes(&context).last().unwrap();
        check(&context, [37, 80, 65], DType::F32, true);
        check(&context, [37, 65, 65], half, true);
        check(&context, [4, 1, 1], DType::F32, false);
        check(&context, [1, 7, 5], half, false);
        check(&context, [19, 64, 64], DType::F32, true);
        check(&context, [6, 516, 513], half, false);
        check(&context, [3, 1025, 1025], DType::F32, true);
    }
}

#[test]
fn soft_targets_do_not_overflow_and_failures_show() {
    for context in every_tier() {
        let run = |z: &[f32], y: &[f32]| {
            let shape = [1, z.len()];
            let [z, y] = [z, y].map(|data| Tensor::from_f32(&context, data, &shape).unwrap());
            z.with_grad().soft_cross_entropy(&y, LossOptions::default()).unwrap().item().unwrap()
        };
        assert!((run(&[3e4, -3e4, 0.0, 3e4], &[0.0, 0.0, 1e4, 0.0]) - 3e4 - 2f32.ln()).abs() < 0.01);
        assert_eq!(run(&[1e4, 0.0], &[1e4, 0.0]), 0.0);
        assert!(!run(&[f32::NAN, 0.0], &[1.0, 0.0]).is_finite());
        assert!(!run(&[1.0, 0.0], &[f32::NAN, 0.0]).is_finite());
    }
}

#[test]
fn hidden_distances_match_the_reference() {
    for context in every_tier() {
        for ([rows, cols], with_state, accumulate) in [
            ([1, 1], false, false),
            ([5, 31], true, false),
            ([18, 64], false, true),
            ([37, 132], true, true),
            ([3, 1027], false, false),
        ] {
            let what = format!("[{rows}, {cols}] {with_state} {accumulate} on {}", context.tier());
            let mut random = Gen::new(cols as u64);
            let mut theirs = random.hard(rows * cols);
            let mut own = random.hard(rows * cols);
            if rows > 2 {
                // Near directions of different lengths, and no direction at all.
                (0..cols).for_each(|c| own[c] = 3.0 * theirs[c] + 1e-3);
                own[cols..2 * cols].fill(0.0);
                theirs[2 * cols..3 * cols].fill(0.0);
            }
            let (a, a64) = floats(&context, &own, &[rows, cols], DType::F32);
            let (b, b64) = floats(&context, &theirs, &[rows, cols], DType::F32);
            let losses = common::blank(&context, rows, false);
            let loss = common::blank(&context, 1, false);
            let factor = 0.25f32;
            let shape = [rows, cols];
            let (x, y) = (a.buffer(), b.buffer());
            hidden_distance(&context, x, y, losses.buffer(), loss.buffer(), shape, factor).unwrap();
            let (want, want_grad) = distance_reference(&a64, &b64, cols);
            // A norm's square rounds n + 3 times, half of which arrives; root, division and product follow.
            let n = cols as f64;
            let eta = (n / 2.0 + 16.0) * U32;
            let norms = |v: &[f64]| -> Vec<f64> {
                v.chunks_exact(cols).map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12)).collect()
            };
            let (a_norms, b_norms) = (norms(&a64), norms(&b64));
            let own = |i: usize| (a64[i] / a_norms[i / cols]).abs();
            let theirs = |i: usize| (b64[i] / b_norms[i / cols]).abs();
            let row = |r: usize| r * cols..(r + 1) * cols;
            let d = |i: usize| (a64[i] / a_norms[i / cols] - b64[i] / b_norms[i / cols]).abs();
            let d_error = |i: usize| eta * (own(i) + theirs(i)) + 2.0 * U32 * d(i);
            let along: Vec<f64> = (0..rows).map(|r| row(r).map(|i| d(i) * own(i)).sum()).collect();
            let along_error: Vec<f64> = (0..rows)
                .map(|r| {
                    let carried: f64 = row(r).map(|i| d_error(i) * own(i) + d(i) * eta * own(i)).sum();
                    carried + (n + 4.0) * U32 * along[r]
                })
                .collect();
            let loss_error = |r: usize| {
                row(r).map(|i| 2.0 * d(i) * d_error(i) + d_error(i).powi(2)).sum::<f64>()
                    + (n + 4.0) * U32 * want[r]
                    + 1e-30
            };
            assert_within(&format!("{what} losses"), &losses.to_vec().unwrap(), &want, loss_error);
            let mean = want.iter().sum::<f64>() / rows as f64 * f64::from(factor);
            let bound = (0..rows).map(loss_error).sum::<f64>() / rows as f64 + (rows as f64 + 8.0) * U32 * mean;
            assert_within(&format!("{what} loss"), &loss.to_vec().unwrap(), &[mean], |_| bound);

            let (grad, old) = floats(&context, &random.normals(rows * cols), &shape, DType::F32);
            let state = step_state(&context);
            let factors = Factors { factor, state: with_state.then(|| state.buffer()) };
            hidden_distance_backward(&context, x, y, grad.buffer(), shape, factors, accumulate).unwrap();
            let scale = f64::from(factor) * if with_state { f64::from(LOSS_SCALE) } else { 1.0 };
            let old = |i: usize| if accumulate { old[i] } else { 0.0 };
            let want: Vec<f64> = want_grad.iter().enumerate().map(|(i, g)| g * scale + old(i)).collect();
            assert_within(&format!("{what} grad"), &grad.to_vec().unwrap(), &want, |i| {
                let r = i / cols;
                if a_norms[r] <= 1e-12 {
                    return 2.0 * U32 * old(i).abs();
                }
                let size = d(i) + own(i) * along[r];
                let inner = d_error(i) + own(i) * (eta * along[r] + along_error[r]) + 4.0 * U32 * size;
                let outer = 2.0 * scale / rows as f64 / a_norms[r];
                outer * (inner + (eta + 8.0 * U32) * size) + 2.0 * U32 * old(i).abs() + 1e-30
            });
        }
    }
}

#[test]
fn reference_gradients_match_differences() {
    let mut random = Gen::new(4);
    let mut data = || random.normals(15).into_iter().map(f64::from).collect::<Vec<f64>>();
    let (a, b) = (data(), data());
    let mean = |losses: Vec<f64>| losses.iter().sum::<f64>() / 3.0;
    assert_gradient("logits", &a, &reference(&a, &b, 5).grad, |a| mean(reference(a, &b, 5).losses));
    assert_gradient("hidden", &a, &distance_reference(&a, &b, 5).1, |a| mean(distance_reference(a, &b, 5).0));
}

#[test]
fn losses_add_up_and_so_do_their_gradients() {
    for context in every_tier() {
        let mut random = Gen::new(9);
        let (a, a64) = floats(&context, &random.normals(12), &[3, 4], DType::F32);
        let (b, b64) = floats(&context, &random.normals(12), &[3, 4], DType::F32);
        let a = a.with_grad();
        let options = LossOptions { weight: 0.5, ..LossOptions::default() };
        let loss = a.soft_cross_entropy(&b, options).unwrap().add(&a.hidden_distance(&b, options).unwrap()).unwrap();
        let soft = reference(&a64, &b64, 4);
        let (distances, slopes) = distance_reference(&a64, &b64, 4);
        let want = (soft.losses.iter().sum::<f64>() + distances.iter().sum::<f64>()) / 6.0;
        assert!((f64::from(loss.item().unwrap()) - want).abs() < 1e-6);
        let slope: Vec<f64> = soft.grad.iter().zip(&slopes).map(|(p, q)| 0.5 * (p + q)).collect();
        // Terms below 1, a dozen roundings each.
        let twice = loss.mul(&Tensor::from_f32(&context, &[2.0], &[]).unwrap()).unwrap();
        let mut gradients = Gradients::default();
        twice.backward_into(&mut gradients).unwrap();
        let doubled: Vec<f64> = slope.iter().map(|g| 2.0 * g).collect();
        assert_within("twice", &gradients.get(&a).unwrap().to_vec().unwrap(), &doubled, |_| 64.0 * U32);
    }
}

#[test]
fn other_shapes_are_refused() {
    let context = &every_tier()[0];
    let [x, y] = [[2, 3], [3, 2]].map(|shape| Tensor::zeros(context, &shape, DType::F32).unwrap());
    assert!(matches!(x.soft_cross_entropy(&y, LossOptions::default()), Err(Error::Shape { .. })));
    assert!(matches!(x.hidden_distance(&y, LossOptions::default()), Err(Error::Shape { .. })));
    let options = LossOptions { classes: Some(4), ..LossOptions::default() };
    assert!(matches!(x.soft_cross_entropy(&x, options), Err(Error::Shape { .. })));
}
