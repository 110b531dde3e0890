//! AdamW, the global norm and the loss scale against float64: parameters, moments and state after each step.

mod common;

use common::{Gen, U32, assert_within, every_tier};
use walsh::optim::{AdamW, AdamWOptions, Init, ParameterBuilder, Parameters, Schedule, StepState};
use walsh::{Context, Tensor};

/// Two decayed parameters and one that is not, of lengths that fill neither a vec4 nor a chunk.
const SHAPES: [&[usize]; 3] = [&[7, 3], &[65, 129], &[5]];

fn parameters(context: &Context, random: &mut Gen) -> Parameters {
    let mut builder = ParameterBuilder::new();
    for (i, shape) in SHAPES.iter().enumerate() {
        builder.add(format!("p{i}"), shape, Init::Values(random.normals(shape.iter().product())));
    }
    builder.build(context, 1, false).unwrap()
}

/// Gives every parameter this gradient: that of the sum of its products with it.
fn give(context: &Context, parameters: &Parameters, grads: &[Vec<f32>]) {
    for (i, grad) in grads.iter().enumerate() {
        let weight = Tensor::from_f32(context, grad, SHAPES[i]).unwrap();
        parameters[i].mul(&weight).unwrap().sum().unwrap().backward().unwrap();
    }
}

fn state(optimizer: &AdamW) -> StepState {
    bytemuck::pod_read_unaligned(&optimizer.read_state().unwrap().wait().unwrap())
}

#[test]
fn updates_agree_with_float64() {
    for context in every_tier() {
        for clip in [0.0, 0.5] {
            let mut random = Gen::new(3);
            let p = parameters(&context, &mut random);
            let o = AdamWOptions {
                schedule: Schedule { lr: 0.02, min_lr: 0.002, warmup: 2, decay: 5 },
                betas: (0.9, 0.99),
                weight_decay: 0.3,
                clip,
                ..AdamWOptions::default()
            };
            let mut optimizer = AdamW::new(&p, o).unwrap();
            let mut w: Vec<Vec<f64>> =
                p.iter().map(|(_, t)| t.to_vec().unwrap().into_iter().map(f64::from).collect()).collect();
            let mut m: Vec<Vec<f64>> = w.iter().map(|w| vec![0.0; w.len()]).collect();
            let mut v = m.clone();
            for step in 0..6i32 {
                let grads: Vec<Vec<f32>> = SHAPES.iter().map(|s| random.normals(s.iter().product())).collect();
                give(&context, &p, &grads);
                optimizer.step(&p).unwrap();
                let lr = match step {
                    0..2 => 0.02 * f64::from(step + 1) / 3.0,
                    2..5 => 0.002 + 0.009 * (1.0 + (std::f64::consts::PI * f64::from(step - 2) / 3.0).cos()),
                    _ => 0.002,
                };
                let norm = grads.iter().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                let factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
                let (c1, c2) = (1.0 - 0.9f64.powi(step + 1), 1.0 - 0.99f64.powi(step + 1));
                let s = state(&optimizer);
                // A sum of n squares, each rounded, added in some order: n u at most; the root halves it.
                let n = grads.iter().map(Vec::len).sum::<usize>() as f64;
                assert!((f64::from(s.grad_norm) - norm).abs() <= n * U32 * norm, "norm {} {norm}", s.grad_norm);
                assert!((f64::from(s.lr) - lr).abs() <= 16.0 * U32 * 0.02, "lr {} {lr}", s.lr);
                assert_eq!((s.step, s.updates, s.skipped, s.finite), (step as u32 + 1, step as u32 + 1, 0, 1));
                for i in 0..SHAPES.len() {
                    for j in 0..w[i].len() {
                        let g = f64::from(grads[i][j]) * factor;
                        if SHAPES[i].len() == 2 {
                            w[i][j] *= 1.0 - lr * 0.3;
                        }
                        m[i][j] = 0.9 * m[i][j] + 0.1 * g;
                        v[i][j] = 0.99 * v[i][j] + 0.01 * g * g;
                        w[i][j] -= lr * (m[i][j] / c1) / ((v[i][j] / c2).sqrt() + 1e-8);
                    }
                    let [m_got, v_got] = optimizer.moments(&p, i).unwrap();
                    // A step adds half a dozen roundings to each; the clipping factor brings the norm's error into all of them, and an update
                    // is at most lr / sqrt(1 - beta2) = 10 lr large.
                    let steps = f64::from(step + 1);
                    let relative = (8.0 + n) * U32 * steps;
                    let largest = grads[i].iter().fold(0.0f64, |a, g| a.max(f64::from(*g).abs()));
                    assert_within("m", &m_got.to_vec().unwrap(), &m[i], |_| relative * largest);
                    assert_within("v", &v_got.to_vec().unwrap(), &v[i], |j| 2.0 * relative * v[i][j] + 1e-30);
                    assert_within("w", &p[i].to_vec().unwrap(), &w[i], |j| {
                        8.0 * steps * U32 * w[i][j].abs() + relative * 10.0 * 0.02
                    });
                }
            }
        }
    }
}

#[test]
fn the_loss_scale_halves_on_overflow_and_doubles_after_a_thousand_finite_steps() {
    let context = &every_tier()[0];
    let p = parameters(context, &mut Gen::new(5));
    let mut optimizer = AdamW::new(&p, AdamWOptions { loss_scale: 1024.0, ..AdamWOptions::default() }).unwrap();
    let ones: Vec<Vec<f32>> = SHAPES.iter().map(|s| vec![1.0; s.iter().product()]).collect();
    let before = p[1].to_vec().unwrap();
    let mut bad = ones.clone();
    bad[1][77] = f32::INFINITY;
    give(context, &p, &bad);
    optimizer.step(&p).unwrap();
    let s = state(&optimizer);
    assert_eq!((s.loss_scale, s.skipped, s.updates, s.step, s.finite, s.bad_step), (512.0, 1, 0, 1, 0, 0));
    assert_eq!(p[1].to_vec().unwrap(), before, "a skipped step changes nothing");
    // One step short of the interval nothing happens; then the scale doubles and the count starts again.
    let almost = StepState { good_steps: 998, ..s };
    optimizer.write_state(&almost).unwrap();
    for want in [(512.0, 999), (1024.0, 0), (1024.0, 1)] {
        give(context, &p, &ones);
        optimizer.step(&p).unwrap();
        let s = state(&optimizer);
        assert_eq!((s.loss_scale, s.good_steps), want);
        // The norm is that of the gradient of the loss itself: what arrived is divided by the scale it was made with.
        let scale = if want.1 == 1 { 1024.0 } else { 512.0 };
        let norm = (ones.iter().map(Vec::len).sum::<usize>() as f64).sqrt() / scale;
        assert!((f64::from(s.grad_norm) - norm).abs() <= 1e-4 * norm, "{} {norm}", s.grad_norm);
    }
    // At a scale of 1 there is nothing left to halve: the step is named as bad.
    optimizer.write_state(&StepState { loss_scale: 1.0, ..state(&optimizer) }).unwrap();
    bad[1][77] = f32::NAN;
    give(context, &p, &bad);
    optimizer.step(&p).unwrap();
    let s = state(&optimizer);
    assert_eq!((s.loss_scale, s.bad_step, s.finite), (1.0, s.step, 0));
}

#[test]
fn a_parameter_without_a_gradient_only_decays() {
    let context = &every_tier()[0];
    let p = parameters(context, &mut Gen::new(6));
    let mut optimizer = AdamW::new(&p, AdamWOptions::default()).unwrap();
    let grads: Vec<Vec<f32>> = SHAPES.iter().map(|s| vec![1.0; s.iter().product()]).collect();
    give(context, &p, &grads);
    optimizer.step(&p).unwrap();
    let before = p[2].to_vec().unwrap();
    let [m, _] = optimizer.moments(&p, 2).unwrap();
    let m_before = m.to_vec().unwrap();
    // Only the first parameter gets a gradient now; the last one's old gradient must not be used again.
    give(context, &p, &grads[..1]);
    optimizer.step(&p).unwrap();
    let m_after = m.to_vec().unwrap();
    assert!(
        m_before.iter().zip(&m_after).all(|(b, a)| (f64::from(*a) - 0.9 * f64::from(*b)).abs() < 2.0 * U32),
        "{m_after:?}"
    );
    assert!(p[2].to_vec().unwrap() != before, "the momentum of the step before still moves it");
}
