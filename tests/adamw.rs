//! AdamW, CAGE's correction, the global norm and the loss scale against float64: parameters, moments and state after each step.

mod common;

use common::{Gen, U32, assert_within, every_tier, quantizer};
use std::cell::RefCell;
use walsh::nn::{Gpt, GptConfig};
use walsh::optim::{
    AdamW, AdamWOptions, Correction, Init, ParameterBuilder, Parameters, Quantized, Schedule, StepState,
};
use walsh::reference::adamw as reference;
use walsh::{Context, DType, Error, Tensor};

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

/// A grid with a distance of a quarter, and the values on it that were handed out last.
struct Quarters<'a> {
    parameters: &'a Parameters,
    quantized: &'a [usize],
    given: RefCell<Vec<Vec<f32>>>,
}

impl<'a> Quarters<'a> {
    fn new(parameters: &'a Parameters, quantized: &'a [usize]) -> Self {
        Self { parameters, quantized, given: RefCell::new(vec![Vec::new(); parameters.len()]) }
    }
}

impl Quantized for Quarters<'_> {
    fn quantized(&self) -> Vec<usize> {
        self.quantized.to_vec()
    }

    fn nearest(&self, index: usize, out: &Tensor) -> walsh::Result<()> {
        let values: Vec<f32> = self.parameters[index].to_vec()?.iter().map(|x| (4.0 * x).round() / 4.0).collect();
        out.write(bytemuck::cast_slice(&values))?;
        self.given.borrow_mut()[index] = values;
        Ok(())
    }
}

#[test]
fn corrected_updates_agree_with_float64() {
    // A ramp that starts between two steps; each set of quantized parameters leaves others before, between or behind them.
    let (steps, lambda, silence) = (6, 12.0, 0.25);
    for context in every_tier() {
        for (coupled, constant, clip, quantized) in [
            (false, false, 0.0, &[1, 0][..]),
            (true, false, 0.0, &[1]),
            (false, true, 0.5, &[2]),
            (true, true, 0.5, &[0, 2]),
        ] {
            let mut random = Gen::new(4);
            let p = parameters(&context, &mut random);
            let correction = Correction { lambda, silence, steps, coupled, constant };
            let (lr, weight_decay) = (0.02, 0.3);
            let o = AdamWOptions {
                schedule: Schedule::constant(lr),
                betas: (0.9, 0.99),
                weight_decay,
                clip,
                correction: Some(correction),
                ..AdamWOptions::default()
            };
            let mut optimizer = AdamW::new(&p, o).unwrap();
            let mut w: Vec<Vec<f64>> = p.iter().map(|(_, t)| common::wide(&t.to_vec().unwrap())).collect();
            let mut moments: Vec<[Vec<f64>; 2]> = w.iter().map(|w| [vec![0.0; w.len()], vec![0.0; w.len()]]).collect();
            // How far the device may be from w, m and v by now.
            let mut off: Vec<Vec<[f64; 3]>> = w.iter().map(|w| vec![[0.0; 3]; w.len()]).collect();
            let grid = Quarters::new(&p, quantized);
            for step in 0..steps + 1 {
                let grads: Vec<Vec<f32>> = SHAPES.iter().map(|s| random.normals(s.iter().product())).collect();
                give(&context, &p, &grads);
                optimizer.step_toward(&p, &grid).unwrap();
                // The correction is no part of the norm.
                let norm = grads.iter().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                let n = grads.iter().map(Vec::len).sum::<usize>() as f64;
                let got = f64::from(state(&optimizer).grad_norm);
                assert!((got - norm).abs() <= n * U32 * norm, "norm {got} {norm}");
                let factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
                let factor_off = if clip > 0.0 { (n + 4.0) * U32 } else { 0.0 };
                let strength = reference::lambda(step, steps, lambda, silence, constant);
                for i in 0..SHAPES.len() {
                    let is_quantized = quantized.contains(&i);
                    let targets = common::wide(&grid.given.borrow()[i]);
                    let pull = is_quantized.then_some(reference::Pull { targets: &targets, lambda: strength, coupled });
                    let clipped: Vec<f64> = grads[i].iter().map(|g| f64::from(*g) * factor).collect();
                    let decay = if SHAPES[i].len() == 2 { weight_decay } else { 0.0 };
                    let update = reference::Update { lr, betas: o.betas, eps: o.eps, weight_decay: decay };
                    let before = w[i].clone();
                    reference::adamw(&mut w[i], &mut moments[i], &clipped, step as i32 + 1, update, pull);
                    let [m, v] = &moments[i];
                    let [m_got, v_got] = optimizer.moments(&p, i).unwrap();
                    let v_hat = |j: usize| (v[j] / (1.0 - 0.99f64.powi(step as i32 + 1))).sqrt();
                    for (j, [w_off, m_off, v_off]) in off[i].iter_mut().enumerate() {
                        // The strength has four roundings and the slope's offset one of up to a step of the ramp; the error has one, and what x is
                        // off by.
                        let error = if is_quantized { before[j] - targets[j] } else { 0.0 };
                        let pull_off = if is_quantized {
                            strength * *w_off + (8.0 * strength + lambda) * U32 * error.abs()
                        } else {
                            0.0
                        };
                        let (g, g_off) = if coupled {
                            (clipped[j].abs() + strength * error.abs(), pull_off + factor_off * clipped[j].abs())
                        } else {
                            (clipped[j].abs(), factor_off * clipped[j].abs())
                        };
                        // A handful of roundings each, with those of the corrections 1 - beta^t, which gather one a step.
                        let rounding = (8.0 + f64::from(step)) * U32;
                        *m_off = 0.9 * *m_off + 0.1 * (g_off + 4.0 * U32 * g) + 4.0 * U32 * m[j].abs();
                        *v_off = 0.99 * *v_off
                            + 0.01 * (2.0 * g * g_off + g_off * g_off + 4.0 * U32 * g * g)
                            + 4.0 * U32 * v[j];
                        let root = v_hat(j);
                        // d(m / r) = dm / r + (m / r) dr / r, dr / r = dv / 2v.
                        let ratio = (m[j] / (1.0 - 0.9f64.powi(step as i32 + 1))).abs() / root;
                        let m_hat_off = *m_off / (1.0 - 0.9f64.powi(step as i32 + 1));
                        let adam_off = m_hat_off / root + ratio * (*v_off / v[j] + rounding);
                        let pulled_off = if coupled { 0.0 } else { pull_off };
                        *w_off +=
                            lr * (adam_off + pulled_off) + 8.0 * U32 * (before[j].abs() + lr * strength * error.abs());
                    }
                    assert_within("m", &m_got.to_vec().unwrap(), m, |j| off[i][j][1] + 1e-38);
                    assert_within("v", &v_got.to_vec().unwrap(), v, |j| off[i][j][2] + 1e-38);
                    assert_within("w", &p[i].to_vec().unwrap(), &w[i], |j| off[i][j][0]);
                }
            }
            // The bounds would tell: what lambda adds is far above them.
            let largest = off.iter().flatten().map(|o| o[0]).fold(0.0, f64::max);
            assert!(clip > 0.0 || largest < 1e-3, "{largest}");
        }
    }
}

#[test]
fn the_strength_is_none_through_the_silence_and_all_of_lambda_at_the_end() {
    for context in every_tier() {
        for (steps, lambda, silence, constant) in [
            (10, 10.0, 0.8, false),
            (7, 2.5, 0.3, false),
            (5, 0.7, 0.0, false),
            (100, 3.0, 0.95, false),
            (10, 10.0, 0.8, true),
            (4, 1.0, 0.0, true),
        ] {
            let mut builder = ParameterBuilder::new();
            builder.add("p", &[3], Init::Ones);
            let p = builder.build(&context, 1, false).unwrap();
            let correction = Correction { lambda, silence, steps, coupled: false, constant };
            let options = AdamWOptions { correction: Some(correction), ..AdamWOptions::default() };
            let mut optimizer = AdamW::new(&p, options).unwrap();
            // Where it starts does not matter: the strength is a function of the step's number.
            let first = steps.saturating_sub(8);
            optimizer.write_state(&StepState { step: first, ..state(&optimizer) }).unwrap();
            for t in first..steps + 3 {
                optimizer.step_toward(&p, &Quarters::new(&p, &[0])).unwrap();
                let s = state(&optimizer);
                assert_eq!(s.step, t + 1);
                let (got, want) = (s.lambda, reference::lambda(t, steps, lambda, silence, constant));
                if want == 0.0 || t + 1 >= steps || constant {
                    assert_eq!(got.to_bits(), (want as f32).to_bits(), "step {t} of {steps}: {got} {want}");
                } else {
                    // Slope, offset, sum and product are rounded; an offset of a step at most is that much of the slope.
                    let slope = lambda / (f64::from(steps) * (1.0 - silence));
                    let bound = U32 * (4.0 * want + slope);
                    assert!((f64::from(got) - want).abs() <= bound, "step {t} of {steps}: {got} {want}");
                    assert!(got > 0.0 && f64::from(got) < lambda);
                }
            }
        }
    }
}

/// Values that are the parameters themselves, or no numbers.
struct Itself<'a>(&'a Parameters, bool);

impl Quantized for Itself<'_> {
    fn quantized(&self) -> Vec<usize> {
        vec![0, 1]
    }

    fn nearest(&self, index: usize, out: &Tensor) -> walsh::Result<()> {
        let own = self.0[index].to_vec()?;
        let values = if self.1 { vec![f32::NAN; own.len()] } else { own };
        out.write(bytemuck::cast_slice(&values))
    }
}

#[test]
fn on_the_grid_and_before_the_ramp_bits_are_those_of_adamw() {
    for context in every_tier() {
        let run = |correction: Option<Correction>, missing: bool| {
            let mut random = Gen::new(8);
            let p = parameters(&context, &mut random);
            let options = AdamWOptions { correction, clip: 1.0, weight_decay: 0.1, ..AdamWOptions::default() };
            let mut optimizer = AdamW::new(&p, options).unwrap();
            for _ in 0..3 {
                let grads: Vec<Vec<f32>> = SHAPES.iter().map(|s| random.normals(s.iter().product())).collect();
                give(&context, &p, &grads);
                optimizer.step_toward(&p, &Itself(&p, missing)).unwrap();
            }
            let values = |t: &Tensor| t.to_vec().unwrap().into_iter().map(f32::to_bits).collect::<Vec<u32>>();
            let all = (0..p.len()).map(|i| {
                [values(&p[i])].into_iter().chain(optimizer.moments(&p, i).unwrap().map(|m| values(&m))).collect()
            });
            all.collect::<Vec<Vec<Vec<u32>>>>()
        };
        let plain = run(None, false);
        for coupled in [false, true] {
            let all_along = Correction { coupled, ..Correction::feedback(10.0) };
            assert!(run(Some(all_along), false) == plain, "on the grid, coupled {coupled}");
            assert!(
                run(Some(Correction { coupled, ..Correction::cage(100) }), true) == plain,
                "silent, coupled {coupled}"
            );
            assert!(run(Some(all_along), true) != plain, "what is no number shows where there is a pull");
        }
    }
}

#[test]
fn f16_copies_follow_corrected_updates_and_a_skipped_step_changes_nothing() {
    for context in every_tier().into_iter().filter(|context| context.capabilities().f16) {
        let mut builder = ParameterBuilder::new();
        let mut random = Gen::new(9);
        for (i, shape) in SHAPES.iter().enumerate() {
            builder.add(format!("p{i}"), shape, Init::Values(random.normals(shape.iter().product())));
        }
        let p = builder.build(&context, 1, true).unwrap();
        let options = AdamWOptions {
            schedule: Schedule::constant(0.05),
            loss_scale: 256.0,
            correction: Some(Correction::feedback(10.0)),
            ..AdamWOptions::default()
        };
        let mut optimizer = AdamW::new(&p, options).unwrap();
        let grid = Quarters::new(&p, &[0, 1]);
        let before: Vec<Vec<f32>> = p.iter().map(|(_, t)| t.to_vec().unwrap()).collect();
        let mut grads: Vec<Vec<f32>> = SHAPES.iter().map(|s| random.normals(s.iter().product())).collect();
        let good = grads.clone();
        grads[0][3] = f32::NEG_INFINITY;
        for (grads, changes) in [(&grads, false), (&good, true)] {
            give(&context, &p, grads);
            optimizer.step_toward(&p, &grid).unwrap();
            let s = state(&optimizer);
            assert_eq!((s.finite == 1, s.lambda), (changes, 10.0));
            for i in 0..2 {
                let own = p[i].to_vec().unwrap();
                assert_eq!(own != before[i], changes, "parameter {i}");
                // The product of the f16 copy and the identity is the copy, transposed.
                let [n, k] = [SHAPES[i][0], SHAPES[i][1]];
                let identity: Vec<half::f16> =
                    (0..k * k).map(|e| half::f16::from_f32(if e / k == e % k { 1.0 } else { 0.0 })).collect();
                let copy = Tensor::from_f16(&context, &identity, &[k, k]).unwrap().linear(&p[i], None).unwrap();
                for (e, got) in copy.to_vec().unwrap().into_iter().enumerate() {
                    let want = half::f16::from_f32(own[e % n * k + e / n]).to_f32();
                    assert_eq!(got.to_bits(), want.to_bits(), "parameter {i}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn a_correction_out_of_range_and_parameters_that_are_not_there_are_refused() {
    let context = &every_tier()[0];
    let p = parameters(context, &mut Gen::new(5));
    let cage = Correction::cage(100);
    let of = |correction: Correction, lr: f64| {
        let options =
            AdamWOptions { schedule: Schedule::constant(lr), correction: Some(correction), ..AdamWOptions::default() };
        AdamW::new(&p, options)
    };
    let wrong = [0.0, -1.0, f64::NAN, f64::INFINITY, 1e39, 1e-60].map(|lambda| Correction { lambda, ..cage });
    let silences = [-0.1, 1.0, f64::NAN].map(|silence| Correction { silence, ..cage });
    for correction in wrong.into_iter().chain(silences).chain([Correction { steps: 0, ..cage }]) {
        assert!(matches!(of(correction, 1e-3), Err(Error::Invalid { .. })), "{correction:?}");
    }
    // A step may go all the way to the grid and not beyond it; coupled, Adam bounds it.
    assert!(matches!(of(cage, 0.1), Err(Error::Invalid { .. })));
    assert!(of(cage, 0.0999).is_ok() && of(Correction { coupled: true, ..cage }, 0.1).is_ok());

    let mut optimizer = of(cage, 1e-3).unwrap();
    assert!(matches!(optimizer.step(&p), Err(Error::Invalid { .. })));
    for quantized in [&[3][..], &[0, 1, 0]] {
        let result = optimizer.step_toward(&p, &Quarters::new(&p, quantized));
        assert!(matches!(result, Err(Error::Shape { .. })), "{quantized:?}: {result:?}");
    }
    assert_eq!(state(&optimizer).step, 0, "nothing was recorded");
    optimizer.step_toward(&p, &Quarters::new(&p, &[])).unwrap();
}

#[test]
fn weights_that_are_only_codes_have_no_moments() {
    let context = &every_tier()[0];
    let quantizer = Some(quantizer("ste", "int4:row:f32", None, None));
    let config = GptConfig { layers: 1, heads: 2, embd: 32, block: 8, vocab: 13, dropout: 0.0, bias: false, quantizer };
    let gpt = Gpt::new(context, config.clone(), 3, DType::F32).unwrap();
    let all = gpt.parameters().iter().enumerate();
    let codes = all.filter_map(|(i, (info, _))| Some((info.name.clone(), gpt.packed_weight(i).unwrap()?))).collect();
    let given = Gpt::from_quantized(context, config, 3, DType::F32, codes).unwrap();
    let parameters = given.parameters();
    let optimizer = AdamW::new(parameters, AdamWOptions::default()).unwrap();
    let mut refused = 0;
    for (index, (info, tensor)) in parameters.iter().enumerate() {
        let moments = optimizer.moments(parameters, index);
        if given.is_quantized(index) {
            let error = moments.unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{}: {error}", info.name);
            assert!(error.to_string().contains("only codes"), "{}: {error}", info.name);
            refused += 1;
        } else {
            assert!(moments.unwrap().iter().all(|moment| moment.shape() == tensor.shape()), "{}", info.name);
        }
    }
    assert_eq!(refused, 4);
}
