//! A whole model against its float64 twin, and what a training step promises: determinism, resumption, and a steady state that creates nothing.

mod common;

use common::{Gen, assert_steady, every_tier};
use walsh::kernel::optimizer_step::StepState;
use walsh::nn::{Gpt, GptConfig, KvCache, TrainPass};
use walsh::op::LossOptions;
use walsh::optim::{AdamW, AdamWOptions, Init, ParameterBuilder, Schedule};
use walsh::reference::gpt as reference;
use walsh::train::{BatchShape, GptRun, Model};
use walsh::{Context, DType, Error, Tensor};

fn config(dropout: f64) -> GptConfig {
    GptConfig { layers: 2, heads: 2, embd: 32, block: 16, vocab: 21, dropout, bias: false, quantizer: None }
}

const SHAPE: BatchShape = BatchShape { batch: 3, block: 16, accumulate: 1 };

fn options() -> AdamWOptions {
    AdamWOptions {
        schedule: Schedule { lr: 3e-3, min_lr: 3e-4, warmup: 4, decay: 20 },
        betas: (0.9, 0.99),
        weight_decay: 0.1,
        clip: 1.0,
        ..AdamWOptions::default()
    }
}

fn learning_rate(step: u32) -> f64 {
    let s = options().schedule;
    if step < s.warmup {
        return s.lr * f64::from(step + 1) / f64::from(s.warmup + 1);
    }
    let r = f64::from(step.min(s.decay) - s.warmup) / f64::from(s.decay - s.warmup);
    s.min_lr + 0.5 * (1.0 + (std::f64::consts::PI * r).cos()) * (s.lr - s.min_lr)
}

fn batch(seed: u64, count: usize) -> (Vec<u32>, Vec<u32>) {
    common::text(seed, count, 21)
}

fn precisions(context: &Context) -> Vec<DType> {
    if context.capabilities().f16 { vec![DType::F32, DType::F16] } else { vec![DType::F32] }
}

fn twin(gpt: &Gpt) -> reference::Gpt {
    let values =
        gpt.parameters().iter().map(|(_, t)| t.to_vec().unwrap().into_iter().map(f64::from).collect()).collect();
    reference::Gpt::new(gpt.config().clone(), gpt.logit_columns(), values)
}

#[test]
fn gradients_of_the_reference_agree_with_central_differences() {
    let config =
        GptConfig { layers: 1, heads: 2, embd: 32, block: 4, vocab: 5, dropout: 0.25, bias: false, quantizer: None };
    let context = &every_tier()[0];
    let gpt = Gpt::new(context, config, 3, DType::F32).unwrap();
    let mut model = twin(&gpt);
    // Larger weights than the initial ones, so that every part matters.
    let mut random = Gen::new(1);
    model.parameters.iter_mut().flatten().for_each(|w| *w += 0.3 * random.normal());
    let (tokens, targets) = ([0, 3, 1, 4, 2, 2, 0, 1], [3, 1, 4, 4, 2, 0, 1, u32::MAX]);
    let masks = Some(reference::Masks { seed: 7, step: 2, micro: 0 });
    let (_, grads) = model.loss_and_gradients(&tokens, &targets, 2, masks);
    for (p, parameter) in grads.iter().enumerate() {
        for i in (0..parameter.len()).step_by(61) {
            let mut at = |h: f64| {
                let old = model.parameters[p][i];
                model.parameters[p][i] = old + h;
                let loss = model.loss_and_gradients(&tokens, &targets, 2, masks).0;
                model.parameters[p][i] = old;
                loss
            };
            let h = 1e-5;
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            // Truncation h^2 times a third derivative of order 10, and cancellation 1e-16 / h.
            assert!(
                (numeric - parameter[i]).abs() < 1e-8 + 1e-6 * parameter[i].abs(),
                "parameter {p}[{i}]: {numeric} {}",
                parameter[i]
            );
        }
    }
}

#[test]
fn gradients_of_the_whole_model_agree_with_float64() {
    for context in every_tier() {
        for dtype in precisions(&context) {
            for dropout in [0.0, 0.2] {
                let gpt = Gpt::new(&context, config(dropout), 11, dtype).unwrap();
                let optimizer = AdamW::new(gpt.parameters(), options()).unwrap();
                let (inputs, targets) = batch(5, 48);
                let tokens = Tensor::from_u32(&context, &inputs, &[3, 16]).unwrap();
                let wanted = Tensor::from_u32(&context, &targets, &[3, 16]).unwrap();
                let pass = TrainPass { state: optimizer.state(), seed: 9, micro: 0 };
                let loss = gpt
                    .logits(&tokens, Some(pass))
                    .unwrap()
                    .cross_entropy(&wanted, LossOptions { classes: Some(21), grad: dtype, ..LossOptions::default() })
                    .unwrap();
                loss.backward().unwrap();
                let masks = Some(reference::Masks { seed: 9, step: 0, micro: 0 });
                let (want_loss, want) = twin(&gpt).loss_and_gradients(&inputs, &targets, 3, masks);
                // A gradient is a sum over products of rounded values: its error, as a share of its norm, is a modest multiple of the unit
                // roundoff of what is stored (2^-24 or 2^-11), growing with the depth of the chain, here about 20 products.
                let unit = if dtype == DType::F16 { common::U16 } else { common::U32 };
                let bound = 20.0 * unit;
                let got_loss = f64::from(loss.item().unwrap());
                assert!((got_loss - want_loss).abs() <= bound * want_loss, "{dtype} loss {got_loss} {want_loss}");
                for (i, (info, _)) in gpt.parameters().iter().enumerate() {
                    let got = gpt.parameters().gradient(i).unwrap().to_vec().unwrap();
                    let norm = want[i].iter().map(|v| v * v).sum::<f64>().sqrt();
                    let error = got.iter().zip(&want[i]).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
                    assert!(
                        error <= bound * norm,
                        "{} {dtype} dropout {dropout} {}: {error:.2e} of {norm:.2e}",
                        context.tier(),
                        info.name
                    );
                }
            }
        }
    }
}

#[test]
fn training_follows_the_float64_loss_curve_for_20_steps() {
    for context in every_tier() {
        for dtype in precisions(&context) {
            let mut run = GptRun::new(&context, config(0.1), SHAPE, options(), 21, dtype).unwrap();
            let mut model = twin(run.gpt());
            let decays: Vec<bool> = run.gpt().parameters().iter().map(|(info, _)| info.decay).collect();
            let mut first = 0.0;
            let mut last = 0.0;
            for step in 0..20 {
                let (inputs, targets) = batch(u64::from(step), 48);
                run.train_step(&inputs, &targets).unwrap();
                let stats = walsh::train::PendingStats::wait(run.stats().unwrap()).unwrap();
                let masks = Some(reference::Masks { seed: 21, step, micro: 0 });
                let (want, grads) = model.loss_and_gradients(&inputs, &targets, 3, masks);
                let o = options();
                let update = reference::Update {
                    lr: learning_rate(step),
                    betas: o.betas,
                    eps: o.eps,
                    weight_decay: o.weight_decay,
                    clip: o.clip,
                    pull: None,
                };
                let norm = model.update(&grads, update, |i| decays[i]);
                // Adam divides by the root of the second moment, so for parameters whose gradient is near zero a relative error of the gradient
                // is a relative error of a whole step: after n steps the loss may be off by n lr times the share of such parameters.
                let bound = if dtype == DType::F16 { 1e-2 } else { 2e-4 };
                assert!((stats.loss - want).abs() <= bound * want, "{dtype} step {step}: {} {want}", stats.loss);
                assert!(
                    (stats.grad_norm - norm).abs() <= 5.0 * bound * norm,
                    "{dtype} step {step}: norm {} {norm}",
                    stats.grad_norm
                );
                assert!(
                    (stats.lr - learning_rate(step)).abs() <= 1e-6 * stats.lr,
                    "lr {} {}",
                    stats.lr,
                    learning_rate(step)
                );
                assert_eq!((stats.step, stats.skipped, stats.finite), (u64::from(step) + 1, 0, true));
                if step == 0 {
                    first = want;
                }
                last = want;
            }
            assert!(last < 0.95 * first, "nothing was learned: {first} -> {last}");
        }
    }
}

#[test]
fn the_steady_state_creates_nothing_and_submits_once() {
    for (context, dtype) in
        every_tier().into_iter().flat_map(|c| precisions(&c).into_iter().map(move |d| (c.clone(), d)))
    {
        let shape = BatchShape { accumulate: 2, ..SHAPE };
        let mut run = GptRun::new(&context, config(0.1), shape, options(), 1, dtype).unwrap();
        let (inputs, targets) = batch(1, 96);
        for _ in 0..2 {
            run.train_step(&inputs, &targets).unwrap();
        }
        context.synchronize().unwrap();
        assert_steady("training", &context, 5, |_| run.train_step(&inputs, &targets).unwrap());
        // A logging step adds its readback buffers once, then reuses them.
        let _ = walsh::train::PendingStats::wait(run.stats().unwrap()).unwrap();
        let logged = context.counts();
        run.train_step(&inputs, &targets).unwrap();
        let _ = walsh::train::PendingStats::wait(run.stats().unwrap()).unwrap();
        assert_eq!(context.counts().buffers, logged.buffers);
    }
}

fn parameters(run: &mut GptRun) -> Vec<(String, Vec<u8>)> {
    run.export().unwrap().into_iter().map(|(name, data)| (name, data.bytes)).collect()
}

#[test]
fn one_seed_gives_the_same_bits_resumed_or_not() {
    for context in every_tier() {
        for dtype in precisions(&context) {
            let fresh = || GptRun::new(&context, config(0.2), SHAPE, options(), 5, dtype).unwrap();
            let step = |run: &mut GptRun, i: u64| {
                let (inputs, targets) = batch(i, 48);
                run.train_step(&inputs, &targets).unwrap();
            };
            let mut straight = fresh();
            let mut first_half = fresh();
            for i in 0..3 {
                step(&mut straight, i);
                step(&mut first_half, i);
            }
            let saved = first_half.export().unwrap();
            drop(first_half);
            let mut resumed = GptRun::new(&context, config(0.2), SHAPE, options(), 5, dtype).unwrap();
            // Something else in between must leave no trace.
            step(&mut resumed, 77);
            resumed.import(&saved).unwrap();
            for i in 3..6 {
                step(&mut straight, i);
                step(&mut resumed, i);
            }
            let (a, b) = (parameters(&mut straight), parameters(&mut resumed));
            assert_eq!(a.len(), b.len());
            for (a, b) in a.iter().zip(&b) {
                assert_eq!(a.0, b.0);
                assert!(a.1 == b.1, "{dtype} {}: bits differ after resuming", a.0);
            }
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_whole_batch() {
    for context in every_tier() {
        let (inputs, targets) = batch(3, 96);
        let mut curves = Vec::new();
        for shape in
            [BatchShape { batch: 6, block: 16, accumulate: 1 }, BatchShape { batch: 3, block: 16, accumulate: 2 }]
        {
            let mut run = GptRun::new(&context, config(0.0), shape, options(), 5, DType::F32).unwrap();
            let mut losses = Vec::new();
            for _ in 0..3 {
                run.train_step(&inputs, &targets).unwrap();
                losses.push(walsh::train::PendingStats::wait(run.stats().unwrap()).unwrap());
            }
            curves.push(losses);
        }
        for (a, b) in curves[0].iter().zip(&curves[1]) {
            assert!((a.loss - b.loss).abs() < 1e-5 * a.loss, "{} {}", a.loss, b.loss);
            assert!((a.grad_norm - b.grad_norm).abs() < 1e-4 * a.grad_norm, "{} {}", a.grad_norm, b.grad_norm);
        }
    }
}

#[test]
fn a_step_with_a_gradient_that_is_not_finite_changes_nothing_and_names_it() {
    for context in every_tier() {
        let mut run = GptRun::new(&context, config(0.0), SHAPE, options(), 5, DType::F32).unwrap();
        let (inputs, targets) = batch(3, 48);
        run.train_step(&inputs, &targets).unwrap();
        let mut saved = run.export().unwrap();
        // An infinity among the weights of the second block makes the loss NaN.
        let poisoned = saved.iter_mut().find(|(n, _)| n == "model.transformer.h.1.mlp.c_fc.weight").unwrap();
        poisoned.1.bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
        run.import(&saved).unwrap();
        let before = parameters(&mut run);
        run.train_step(&inputs, &targets).unwrap();
        let stats = walsh::train::PendingStats::wait(run.stats().unwrap()).unwrap();
        assert!(!stats.finite && stats.skipped == 1, "{stats:?}");
        let name = run.first_non_finite().unwrap();
        assert!(name.contains("transformer."), "{name}");
        for (a, b) in before.iter().zip(&parameters(&mut run)) {
            assert!(a.0.starts_with("state") || a.1 == b.1, "{} changed", a.0);
        }
    }
}

#[test]
fn a_model_that_no_kernel_or_device_can_run_is_refused_before_anything_is_made() {
    let context = &every_tier()[0];
    let invalid = |config: GptConfig| match Gpt::new(context, config, 1, DType::F32) {
        Err(Error::Invalid { what, expected, got }) => format!("{what}: {expected}: {got}"),
        other => panic!("{other:?}"),
    };
    let message = invalid(GptConfig { embd: 40, ..config(0.0) });
    for part in ["--heads", "--embd", "40 / 2 = 20", "16, 32"] {
        assert!(message.contains(part), "{message}");
    }
    // A terabyte of embedding: filling it on the host first would take minutes and all memory.
    let huge = GptConfig { heads: 128, embd: 1 << 14, vocab: 1 << 24, ..config(0.0) };
    assert!(matches!(Gpt::new(context, huge, 1, DType::F32), Err(Error::Limit { .. })));
}

#[test]
fn a_token_or_a_cache_that_is_not_the_models_is_refused() {
    for context in every_tier() {
        let gpt = Gpt::new(&context, config(0.0), 1, DType::F32).unwrap();
        let mut cache = KvCache::new(&gpt).unwrap();
        for token in [21, u32::MAX] {
            assert!(matches!(gpt.decode(token, &mut cache), Err(Error::Invalid { .. })));
        }
        assert!(cache.is_empty());
        gpt.decode(20, &mut cache).unwrap();
        assert_eq!(cache.len(), 1);
        let others = [
            GptConfig { layers: 1, ..config(0.0) },
            GptConfig { layers: 3, ..config(0.0) },
            GptConfig { heads: 1, ..config(0.0) },
            GptConfig { embd: 64, ..config(0.0) },
            // As many elements as this model's.
            GptConfig { embd: 64, block: 8, ..config(0.0) },
        ];
        for other in others {
            let mut cache = KvCache::new(&Gpt::new(&context, other, 1, DType::F32).unwrap()).unwrap();
            assert!(matches!(gpt.decode(0, &mut cache), Err(Error::Shape { .. })));
            assert!(cache.is_empty());
        }
        let mut cache = KvCache::new(&Gpt::new(&every_tier()[0], config(0.0), 1, DType::F32).unwrap()).unwrap();
        assert!(matches!(gpt.decode(0, &mut cache), Err(Error::ContextMismatch { .. })));
    }
}

#[test]
fn an_optimizer_refuses_options_out_of_range_and_parameters_that_are_not_its_own() {
    let contexts = [every_tier().remove(0), every_tier().remove(0)];
    let parameters = |context: &Context, len: usize| {
        let mut builder = ParameterBuilder::new();
        builder.add("w", &[len], Init::Ones);
        builder.build(context, 1, false).unwrap()
    };
    let own = parameters(&contexts[0], 100);
    let schedule = Schedule::constant(1e-3);
    let base = AdamWOptions::default();
    let mut wrong = vec![
        AdamWOptions { betas: (1.0, 0.9), ..base },
        // Below 1, but not in f32.
        AdamWOptions { betas: (0.9, 1.0 - 1e-12), ..base },
        AdamWOptions { betas: (-1e-60, 0.9), ..base },
        AdamWOptions { schedule: Schedule { warmup: u32::MAX, ..schedule }, ..base },
    ];
    for value in [f64::NAN, f64::INFINITY, -1.0, 1e39] {
        wrong.extend([
            AdamWOptions { schedule: Schedule { lr: value, ..schedule }, ..base },
            AdamWOptions { schedule: Schedule { min_lr: value, ..schedule }, ..base },
            AdamWOptions { eps: value, ..base },
            AdamWOptions { weight_decay: value, ..base },
            AdamWOptions { clip: value, ..base },
        ]);
    }
    for loss_scale in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MAX, 1e-40] {
        wrong.push(AdamWOptions { loss_scale, ..base });
    }
    for options in wrong {
        assert!(matches!(AdamW::new(&own, options), Err(Error::Invalid { .. })), "{options:?}");
    }
    let longest = AdamWOptions { schedule: Schedule { warmup: u32::MAX - 1, ..schedule }, ..base };
    let mut optimizer = AdamW::new(&own, longest).unwrap();
    assert!(matches!(optimizer.moments(&own, 1), Err(Error::Shape { .. })));
    optimizer.moments(&own, 0).unwrap();
    optimizer.step(&own).unwrap();
    let longer = parameters(&contexts[0], 1000);
    assert!(matches!(optimizer.step(&longer), Err(Error::Shape { .. })));
    assert!(matches!(optimizer.moments(&longer, 0), Err(Error::Shape { .. })));
    let empty = ParameterBuilder::new().build(&contexts[0], 1, false).unwrap();
    assert!(matches!(optimizer.step(&empty), Err(Error::Shape { .. })));
    let elsewhere = parameters(&contexts[1], 100);
    assert!(matches!(optimizer.step(&elsewhere), Err(Error::ContextMismatch { .. })));
    assert!(matches!(optimizer.moments(&elsewhere, 0), Err(Error::ContextMismatch { .. })));
}

#[test]
fn the_memory_estimate_is_near_what_is_held() {
    let context = &every_tier()[0];
    let config =
        GptConfig { layers: 3, heads: 4, embd: 128, block: 64, vocab: 65, dropout: 0.0, bias: false, quantizer: None };
    let shape = BatchShape { batch: 8, block: 64, accumulate: 1 };
    let mut run = GptRun::new(context, config, shape, options(), 1, DType::F32).unwrap();
    let (inputs, targets) = batch(1, 512);
    run.train_step(&inputs, &targets).unwrap();
    run.export().unwrap();
    let (estimated, held) = (run.estimated_bytes() as f64, run.peak_bytes() as f64);
    // It leaves out workspaces and counts the widest point of the backward pass by the largest tensors alone.
    assert!((0.8..1.25).contains(&(estimated / held)), "estimated {estimated}, held {held}");
}

#[test]
fn padding_of_small_parameters_stays_out_of_the_norm() {
    for context in every_tier() {
        let mut builder = ParameterBuilder::new();
        builder.add("p", &[3], Init::Values(vec![1.0, -2.0, 3.0]));
        builder.add("q", &[5], Init::Values(vec![1.0; 5]));
        let parameters = builder.build(&context, 1, false).unwrap();
        let mut optimizer = AdamW::new(&parameters, options()).unwrap();
        for micro_batches in [1, 2] {
            // Memory that earlier results left behind, which the gradients' intermediate results will get.
            let leftovers: Vec<_> =
                (0..40).map(|_| Tensor::from_f32(&context, &[f32::NAN; 64], &[64]).unwrap()).collect();
            context.synchronize().unwrap();
            drop(leftovers);
            parameters.zero_grad();
            let (p, q) = (parameters[0].to_vec().unwrap(), parameters[1].to_vec().unwrap());
            let mut gradients = walsh::Gradients::default();
            for _ in 0..micro_batches {
                let squares = parameters[0].square().unwrap().sum().unwrap();
                let products = parameters[1].mul(&parameters[1].detach()).unwrap().sum().unwrap();
                squares.add(&products).unwrap().backward_into(&mut gradients).unwrap();
            }
            optimizer.step(&parameters).unwrap();
            let bytes = optimizer.read_state().unwrap().wait().unwrap();
            let state: StepState = bytemuck::pod_read_unaligned(&bytes);
            let sum = p.iter().map(|v| 4.0 * v * v).chain(q.iter().map(|v| v * v)).sum::<f32>();
            let want = micro_batches as f32 * sum.sqrt();
            assert_eq!(state.finite, 1, "{state:?}");
            assert!((state.grad_norm - want).abs() < 1e-5 * want, "{} {want}", state.grad_norm);
        }
    }
}

#[test]
fn buffers_that_do_not_fit_are_typed_errors() {
    use walsh::kernel::accumulate::accumulate;
    use walsh::kernel::adamw::{AdamwParams, Chunk, adamw};
    use walsh::kernel::optimizer_step::{StepParams, grad_norm, optimizer_step};
    let context = &every_tier()[0];
    let of = |len: usize, dtype| Tensor::zeros(context, &[len], dtype).unwrap();
    let [four, eight, integers] = [of(4, DType::F32), of(8, DType::F32), of(4, DType::U32)];
    let (state, short) = (of(16, DType::U32), of(15, DType::U32));
    let [four, eight, integers, state, short] = [&four, &eight, &integers, &state, &short].map(Tensor::buffer);
    let step = |partials, state| {
        let params = StepParams { partials: 4, ..bytemuck::Zeroable::zeroed() };
        optimizer_step(context, &params, partials, state)
    };
    let update = |len, grads, halves, state| {
        let params = AdamwParams { len, ..bytemuck::Zeroable::zeroed() };
        adamw(
            context,
            &params,
            Chunk { weights: four, grads, moments1: eight, moments2: four, halves, targets: None },
            state,
        )
    };
    let results = [
        accumulate(context, four, eight, false),
        accumulate(context, integers, four, false),
        grad_norm(context, eight, four, 4),
        grad_norm(context, integers, four, 0),
        step(eight, state),
        step(four, short),
        update(8, four, None, state),
        update(4, four, None, state),
        update(4, four, Some(four), state),
        update(4, four, None, short),
    ];
    for (i, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(walsh::Error::Shape { .. })), "{i}: {result:?}");
    }
}
