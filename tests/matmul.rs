//! Matrix products against float64: every kernel, form, type, epilogue and tier, on ragged sizes and hard data.

mod common;

use common::{Gen, U16, U32, assert_within, every_tier};
use half::f16;
use walsh::kernel::Dropout;
use walsh::kernel::matmul::{Activation, Choice, Dims, Epilogue, Form, Matmul, Shape, choose, matmul, matmul_with};
use walsh::reference::matmul as reference;
use walsh::{Context, ContextOptions, DType, Error, Tensor, Tier};

const F32: [DType; 3] = [DType::F32; 3];
const F16_F32: [DType; 3] = [DType::F16, DType::F16, DType::F32];
const F16: [DType; 3] = [DType::F16; 3];

/// Every kernel, K whole.
const KERNELS: [Choice; 7] = [
    Choice::Lanes,
    Choice::VectorLanes,
    Choice::Vector,
    Choice::Tiled { shape: Shape::Wide, splits: 1 },
    Choice::Tiled { shape: Shape::Tall, splits: 1 },
    Choice::Tiled { shape: Shape::Small, splits: 1 },
    Choice::Coop { splits: 1 },
];

/// The kernels to try on a context: each on the lowest tier that has it.
fn kernels(ctx: &Context) -> impl Iterator<Item = Choice> {
    let tier = ctx.tier();
    KERNELS.into_iter().filter(move |choice| {
        tier == match choice {
            Choice::Lanes | Choice::VectorLanes => Tier::Subgroup,
            Choice::Vector | Choice::Tiled { .. } => Tier::Baseline,
            Choice::Coop { .. } => Tier::Coop,
        }
    })
}

fn tile(choice: Choice) -> usize {
    match choice {
        Choice::Lanes => 32,
        Choice::VectorLanes => 16,
        Choice::Vector => 4,
        Choice::Tiled { shape: Shape::Small, .. } => 64,
        Choice::Tiled { .. } | Choice::Coop { .. } => 128,
    }
}

/// A tensor and the values that it really holds.
fn tensor(ctx: &Context, data: &[f32], dtype: DType) -> (Tensor, Vec<f64>) {
    match dtype {
        DType::F16 => {
            let half: Vec<f16> = data.iter().map(|v| f16::from_f32(*v)).collect();
            let held = half.iter().map(|v| v.to_f64()).collect();
            (Tensor::from_f16(ctx, &half, &[data.len()]).unwrap(), held)
        }
        _ => (Tensor::from_f32(ctx, data, &[data.len()]).unwrap(), data.iter().map(|v| f64::from(*v)).collect()),
    }
}

/// Bound on a computed sum of k products with f32 accumulation: k rounding errors of at most u of the running magnitude, and a few more for
/// partial sums, the scaling and the store. Cooperative matrices may cut off where others round, which doubles u, after each product and once
/// per matrix, and work on K rounded up to 32.
fn bounds(choice: Choice, form: Form, dims: [usize; 3], a: &[f64], b: &[f64], out: DType, want: &[f64]) -> Vec<f64> {
    let abs = |v: &[f64]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let magnitude = reference::matmul(form, dims, &abs(a), &abs(b));
    let unit = if out == DType::F16 { U16 } else { U32 };
    let errors = match choice {
        Choice::Coop { .. } => {
            let k = dims[2].next_multiple_of(32);
            2.0 * (k + k / 16 + 6) as f64
        }
        _ => (dims[2] + 6) as f64,
    };
    magnitude
        .iter()
        .zip(want)
        .map(|(m, w)| errors * U32 * m + unit * w.abs() * 1.01 + if out == DType::F16 { 6e-8 } else { 1e-37 })
        .collect()
}

/// One product, stored and then added to itself, compared with float64; nothing may be written beyond it.
fn compare(ctx: &Context, choice: Choice, form: Form, types: [DType; 3], [m, n, k]: [usize; 3]) -> bool {
    let mut random = Gen::new((m * 131 + n * 17 + k) as u64);
    let (a, av) = tensor(ctx, &random.hard(m * k), types[0]);
    let (b, bv) = tensor(ctx, &random.normals(k * n), types[1]);
    let sentinel = vec![77.0; m * n + 5];
    let (out, before) = tensor(ctx, &sentinel, types[2]);
    let scaled: Vec<f64> = av.iter().map(|v| v * 0.5).collect();
    let product = reference::matmul(form, [m, n, k], &scaled, &bv);
    let first = bounds(choice, form, [m, n, k], &scaled, &bv, types[2], &product);
    for accumulate in [false, true] {
        let spec = Matmul {
            form,
            dims: Dims::new(m, n, k),
            a: a.buffer(),
            b: b.buffer(),
            out: out.buffer(),
            alpha: 0.5,
            bias: None,
            epilogue: Epilogue::None,
            accumulate,
        };
        if choice.supports(ctx, &spec).is_err() {
            return false;
        }
        matmul_with(ctx, &spec, choice).unwrap();
        let got = out.to_vec().unwrap();
        let (mut want, mut bound) = (product.clone(), first.clone());
        if accumulate {
            // The second product is added to the first, which was rounded when it was stored.
            want.iter_mut().for_each(|w| *w *= 2.0);
            let unit = if types[2] == DType::F16 { U16 } else { U32 };
            bound.iter_mut().zip(&want).for_each(|(b, w)| *b = 2.0 * *b + unit * w.abs() * 1.01);
        }
        let name = &ctx.capabilities().adapter.name;
        let what = format!("{name} {choice:?} {form:?} {types:?} {m}x{n}x{k} accumulate {accumulate}");
        assert_within(&what, &got[..m * n], &want, |i| bound[i]);
        let kept = got[m * n..].iter().zip(&before[m * n..]).all(|(g, b)| f64::from(*g) == *b);
        assert!(kept, "{what}: wrote past the end");
    }
    true
}

#[test]
fn every_kernel_form_and_type_agrees_with_float64() {
    for ctx in every_tier() {
        let mut ran = 0usize;
        for choice in kernels(&ctx) {
            let t = tile(choice);
            let sizes = if choice == Choice::VectorLanes {
                vec![[1, 4, 4], [1, 16, 64], [1, 20, 260], [1, 36, 12], [1, 68, 1028]]
            } else if choice == Choice::Vector {
                vec![[1, 1, 1], [1, 5, 64], [3, 7, 0], [8, 9, 63], [5, 4, 65], [1, 8, 260], [8, 12, 64], [2, 4, 0]]
            } else {
                vec![
                    [t + 1, t - 1, 33],
                    [t - 1, t + 1, 31],
                    [1, 1, 1],
                    [3, 5, 7],
                    [2, 9, 8],
                    [5, 3, 9],
                    [3, 2, 0],
                    [t, t, 64],
                    [t + 4, t - 4, 36],
                    [4, t + 4, 8],
                    [8, 4, 4],
                    [12, 8, 12],
                    [16, 4, 0],
                ]
            };
            for form in Form::ALL {
                for types in [F32, F16_F32, F16] {
                    // A software adapter takes half a second to compile a variant: types and shapes of tiles do not multiply there.
                    let cpu = ctx.capabilities().is_cpu();
                    let narrow = types != F32;
                    let lanes = matches!(choice, Choice::Lanes | Choice::VectorLanes);
                    let skip = cpu && !lanes && narrow && (types != F16 || form == Form::Nn);
                    if skip || (narrow && !ctx.capabilities().f16) {
                        continue;
                    }
                    for size in &sizes {
                        // Scalar loads of f16 are tried on one form there.
                        if cpu && narrow && form != Form::Nt && size.iter().any(|d| d % 4 != 0) {
                            continue;
                        }
                        ran += usize::from(compare(&ctx, choice, form, types, *size));
                    }
                }
            }
        }
        // A GPU has no kernel of its own for the subgroup tier.
        assert!(ran >= 30 || ctx.tier() == Tier::Subgroup, "only {ran} products were tried in tier {}", ctx.tier());
    }
}

#[test]
fn parts_of_k_are_summed() {
    for ctx in every_tier() {
        for choice in [
            Choice::Tiled { shape: Shape::Wide, splits: 3 },
            Choice::Tiled { shape: Shape::Tall, splits: 3 },
            Choice::Tiled { shape: Shape::Small, splits: 3 },
            Choice::Coop { splits: 3 },
        ] {
            if matches!(choice, Choice::Coop { .. }) != (ctx.tier() == Tier::Coop) || ctx.tier() == Tier::Subgroup {
                continue;
            }
            for (form, types) in [(Form::Nt, F32), (Form::Tn, F32), (Form::Tn, F16), (Form::Nt, F16_F32)] {
                if types != F32 && (ctx.capabilities().is_cpu() || !ctx.capabilities().f16) {
                    continue;
                }
                // The last of the parts is short, shorter than a step of any loop, or the sizes are whole tiles.
                for size in [[68, 132, 200], [65, 67, 131], [128, 256, 192]] {
                    compare(&ctx, choice, form, types, size);
                }
            }
        }
    }
}

#[test]
fn batches_use_their_strides() {
    for ctx in every_tier() {
        for (choice, types, [m, n, k]) in [
            (None, F32, [5, 9, 12]),
            (Some(Choice::Tiled { shape: Shape::Wide, splits: 1 }), F32, [5, 12, 12]),
            (Some(Choice::Coop { splits: 1 }), F16_F32, [132, 36, 44]),
        ] {
            let batch = 3;
            if ctx.tier() != Tier::Coop && types != F32 {
                continue;
            }
            let mut random = Gen::new(5);
            let (a, av) = tensor(&ctx, &random.normals(batch * m * k), types[0]);
            let (b, bv) = tensor(&ctx, &random.normals(k * n), types[1]);
            let out = Tensor::zeros(&ctx, &[batch * m * n], types[2]).unwrap();
            let dims = Dims { m, n, k, batch, stride: (m * k, 0) };
            let spec = Matmul {
                form: Form::Nn,
                dims,
                a: a.buffer(),
                b: b.buffer(),
                out: out.buffer(),
                alpha: 1.0,
                bias: None,
                epilogue: Epilogue::None,
                accumulate: false,
            };
            let choice = choice.unwrap_or_else(|| choose(&ctx, &spec));
            matmul_with(&ctx, &spec, choice).unwrap();
            let got = out.to_vec().unwrap();
            for i in 0..batch {
                let part = &av[i * m * k..(i + 1) * m * k];
                let want = reference::matmul(Form::Nn, [m, n, k], part, &bv);
                let bound = bounds(choice, Form::Nn, [m, n, k], part, &bv, types[2], &want);
                assert_within("batch", &got[i * m * n..(i + 1) * m * n], &want, |j| bound[j]);
            }
        }
    }
}

/// Bias, activations with what they keep, their derivatives, residuals, dropout.
fn epilogues(ctx: &Context, choice: Choice, types: [DType; 3], [m, n, k]: [usize; 3], activations: &[Activation]) {
    let mut random = Gen::new(9);
    let (a, av) = tensor(ctx, &random.normals(m * k), types[0]);
    let (b, bv) = tensor(ctx, &random.normals(n * k), types[1]);
    let (b2, b2v) = tensor(ctx, &random.normals(n * k), types[1]);
    let (bias, biasv) = tensor(ctx, &random.normals(n), DType::F32);
    let (extra, extrav) = tensor(ctx, &random.normals(m * n), types[2]);
    let (residual, residualv) = tensor(ctx, &random.normals(m * n), DType::F32);
    let out = Tensor::zeros(ctx, &[m * n], types[2]).unwrap();
    let pre = Tensor::zeros(ctx, &[m * n], types[2]).unwrap();
    let spec = |form, b, bias, epilogue| Matmul {
        form,
        dims: Dims::new(m, n, k),
        a: a.buffer(),
        b,
        out: out.buffer(),
        alpha: 1.0,
        bias,
        epilogue,
        accumulate: false,
    };
    let run = |spec: &Matmul<'_>| {
        let able = choice.supports(ctx, spec).is_ok();
        if able {
            matmul_with(ctx, spec, choice).unwrap();
        }
        able
    };
    // What a store adds.
    let unit = if types[2] == DType::F16 { U16 } else { U32 };
    let stored = |v: f64| 1.01 * unit * v.abs() + if types[2] == DType::F16 { 6e-8 } else { 0.0 };
    let what = |part: &str| format!("{} {choice:?} {types:?} {m}x{n}x{k} {part}", ctx.capabilities().adapter.name);
    let plain = reference::matmul(Form::Nt, [m, n, k], &av, &bv);
    let base = bounds(choice, Form::Nt, [m, n, k], &av, &bv, DType::F32, &plain);
    let biased: Vec<f64> = plain.iter().enumerate().map(|(i, v)| v + biasv[i % n]).collect();
    for activation in activations {
        let activation = *activation;
        if run(&spec(Form::Nt, b.buffer(), Some(bias.buffer()), Epilogue::Activation(activation, pre.buffer()))) {
            let want: Vec<f64> = biased.iter().map(|v| reference::activate(activation, *v)).collect();
            // The slopes of all three activations are below 1.2, and they are computed to 1e-6 of (1 + |v|).
            assert_within(&what("pre"), &pre.to_vec().unwrap(), &biased, |i| {
                base[i] + 2.0 * U32 * biased[i].abs() + 2.0 * U32 * biasv[i % n].abs() + stored(biased[i])
            });
            assert_within(&what("activation"), &out.to_vec().unwrap(), &want, |i| {
                1.2 * (base[i] + 4.0 * U32 * (biased[i].abs() + biasv[i % n].abs()))
                    + 1e-6 * (1.0 + biased[i].abs())
                    + stored(want[i])
            });
        }
        if run(&spec(Form::Nn, b2.buffer(), None, Epilogue::ActivationGrad(activation, extra.buffer()))) {
            let product = reference::matmul(Form::Nn, [m, n, k], &av, &b2v);
            let bound = bounds(choice, Form::Nn, [m, n, k], &av, &b2v, DType::F32, &product);
            let want: Vec<f64> =
                product.iter().zip(&extrav).map(|(v, p)| v * reference::activate_grad(activation, *p)).collect();
            assert_within(&what("activation gradient"), &out.to_vec().unwrap(), &want, |i| {
                1.2 * bound[i] + 2e-6 * product[i].abs() + stored(want[i])
            });
        }
    }
    if types[2] != DType::F32 {
        return;
    }
    if run(&spec(Form::Nt, b.buffer(), None, Epilogue::Residual(residual.buffer(), None))) {
        let want: Vec<f64> = plain.iter().zip(&residualv).map(|(v, r)| v + r).collect();
        assert_within(&what("residual"), &out.to_vec().unwrap(), &want, |i| {
            base[i] + 2.0 * U32 * (plain[i].abs() + residualv[i].abs())
        });
    }
    // The mask of the same dropout on ones.
    let state = Tensor::zeros(ctx, &[16], DType::F32).unwrap();
    let dropout = Dropout { p: 0.25, seed: 77, op: 3, micro: 1, state: state.buffer() };
    if run(&spec(Form::Nt, b.buffer(), Some(bias.buffer()), Epilogue::Residual(residual.buffer(), Some(dropout)))) {
        let (ones, mask) = (vec![1.0; m * n], Tensor::zeros(ctx, &[m * n], DType::F32).unwrap());
        let ones = tensor(ctx, &ones, DType::F32).0;
        walsh::kernel::dropout::dropout(ctx, ones.buffer(), None, mask.buffer(), dropout).unwrap();
        let mask = mask.to_vec().unwrap();
        assert!(mask.contains(&0.0) && mask.iter().any(|v| *v > 1.0));
        let want: Vec<f64> = (0..m * n).map(|i| residualv[i] + f64::from(mask[i]) * biased[i]).collect();
        assert_within(&what("dropout"), &out.to_vec().unwrap(), &want, |i| {
            f64::from(mask[i]) * (base[i] + 4.0 * U32 * (plain[i].abs() + biasv[i % n].abs()))
                + 2.0 * U32 * (want[i].abs() + residualv[i].abs())
        });
    }
}

#[test]
fn epilogues_agree_with_float64() {
    for ctx in every_tier() {
        let cpu = ctx.capabilities().is_cpu();
        for choice in kernels(&ctx) {
            // The tiles differ in how often the same code stands in the shader, which a software adapter takes its time to compile.
            if cpu && matches!(choice, Choice::Tiled { shape: Shape::Wide | Shape::Tall, .. }) {
                continue;
            }
            let m = match choice {
                Choice::VectorLanes => 1,
                Choice::Vector => 7,
                _ => 33,
            };
            epilogues(&ctx, choice, F32, [m, 20, 24], &Activation::ALL);
            epilogues(&ctx, choice, F32, [7, 13, 9], if cpu { &[Activation::Gelu] } else { &Activation::ALL });
            if !cpu && ctx.capabilities().f16 {
                // Results from 130 rows on reach the second tile.
                for types in [F16_F32, F16] {
                    let m = if choice == Choice::Vector { 5 } else { 140 };
                    epilogues(&ctx, choice, types, [m, 136, 72], &Activation::ALL);
                    epilogues(&ctx, choice, types, [128.min(m), 256, 64], &Activation::ALL);
                }
            }
        }
    }
}

#[test]
fn the_chosen_kernel_fits_the_device() {
    for ctx in every_tier() {
        let (m, n, k) = (256, 256, 64);
        for types in [F32, F16_F32] {
            if types != F32 && !ctx.capabilities().f16 {
                continue;
            }
            let zeros = |len: usize, dtype| Tensor::zeros(&ctx, &[len], dtype).unwrap();
            let (a, b, out) = (zeros(m * k, types[0]), zeros(n * k, types[1]), zeros(m * n, types[2]));
            let spec = |dims| Matmul {
                form: Form::Nt,
                dims,
                a: a.buffer(),
                b: b.buffer(),
                out: out.buffer(),
                alpha: 1.0,
                bias: None,
                epilogue: Epilogue::None,
                accumulate: false,
            };
            let large = choose(&ctx, &spec(Dims::new(m, n, k)));
            let ragged = choose(&ctx, &spec(Dims::new(m, n, k - 1)));
            if ctx.capabilities().is_cpu() && ctx.tier() >= Tier::Subgroup {
                assert_eq!((large, ragged), (Choice::Lanes, Choice::Lanes));
            } else {
                let small = Choice::Tiled { shape: Shape::Small, splits: 1 };
                let coop = ctx.tier() == Tier::Coop && types != F32;
                assert_eq!(large, if coop { Choice::Coop { splits: 1 } } else { small });
                assert_eq!(ragged, small);
                assert_eq!(choose(&ctx, &spec(Dims::new(3, n, k))), Choice::Vector);
            }
            matmul(&ctx, &spec(Dims::new(m, n, k))).unwrap();
        }
    }
}

#[test]
fn few_rows_may_have_more_columns_than_a_grid_is_wide() {
    let n = 4 * 65535 + 5;
    for ctx in every_tier().into_iter().filter(|c| c.tier() == Tier::Baseline) {
        assert!(compare(&ctx, Choice::Vector, Form::Nt, F32, [1, n, 1]));
    }
}

#[test]
fn a_dropout_that_cannot_be_is_refused() {
    let ctx = &every_tier()[0];
    let of = |len: usize| Tensor::zeros(ctx, &[len], DType::F32).unwrap();
    let (x, state, short) = (of(16), of(16), of(15));
    let mut refused = 0;
    for (p, state) in [(1.0, &state), (f32::NAN, &state), (-0.5, &state), (0.5, &short), (0.5, &state)] {
        let dropout = Dropout { p, seed: 1, op: 0, micro: 0, state: state.buffer() };
        let spec = Matmul {
            form: Form::Nt,
            dims: Dims::new(4, 4, 4),
            a: x.buffer(),
            b: x.buffer(),
            out: state.buffer(),
            alpha: 1.0,
            bias: None,
            epilogue: Epilogue::Residual(x.buffer(), Some(dropout)),
            accumulate: false,
        };
        let out = of(16);
        refused += usize::from(matmul(ctx, &Matmul { out: out.buffer(), ..spec }).is_err());
    }
    assert_eq!(refused, 4);
}

#[test]
fn a_residual_in_the_buffer_of_the_result_is_refused_by_every_kernel() {
    for ctx in every_tier() {
        for choice in kernels(&ctx) {
            let types = if matches!(choice, Choice::Coop { .. }) { F16_F32 } else { F32 };
            let (m, n, k) = (if choice == Choice::VectorLanes { 1 } else { 4 }, 8, 8);
            let operand = |len: usize| tensor(&ctx, &vec![1.0; len], types[0]).0;
            let (a, b) = (operand(m * k), operand(n * k));
            let out = tensor(&ctx, &vec![2.0; m * n], DType::F32).0;
            let spec = Matmul {
                form: Form::Nt,
                dims: Dims::new(m, n, k),
                a: a.buffer(),
                b: b.buffer(),
                out: out.buffer(),
                alpha: 1.0,
                bias: None,
                epilogue: Epilogue::Residual(out.buffer(), None),
                accumulate: false,
            };
            let plain = Matmul { epilogue: Epilogue::None, ..spec };
            if choice.supports(&ctx, &plain).is_err() {
                continue;
            }
            for result in [matmul_with(&ctx, &spec, choice), matmul(&ctx, &spec)] {
                assert!(matches!(&result, Err(Error::Invalid { .. })), "{choice:?}: {result:?}");
            }
            // The context is as good as before, and nothing was written.
            assert_eq!(out.to_vec().unwrap(), vec![2.0; m * n], "{choice:?}");
            matmul_with(&ctx, &plain, choice).unwrap();
            assert_eq!(out.to_vec().unwrap(), vec![k as f32; m * n], "{choice:?}");
        }
    }
}

#[test]
fn empty_sums_are_zero_in_every_matrix_of_a_batch() {
    for ctx in every_tier() {
        let of = |len: usize| Tensor::from_f32(&ctx, &vec![5.0; len], &[len]).unwrap();
        // The third matrix of the operands would start at their end.
        let (x, out) = (of(8), of(3 * 8 * 12));
        let spec = Matmul {
            form: Form::Nn,
            dims: Dims { batch: 3, stride: (4, 4), ..Dims::new(8, 12, 0) },
            a: x.buffer(),
            b: x.buffer(),
            out: out.buffer(),
            alpha: 1.0,
            bias: None,
            epilogue: Epilogue::None,
            accumulate: false,
        };
        matmul(&ctx, &spec).unwrap();
        assert_eq!(out.to_vec().unwrap(), [0.0; 3 * 8 * 12]);
    }
}

#[test]
fn the_self_test_runs_and_is_kept() {
    for ctx in every_tier() {
        let kept = ctx.self_test_report();
        assert_eq!(kept.is_some(), ctx.tier() == Tier::Coop);
        let report = ctx.self_test().unwrap();
        eprintln!("{}: {report}", ctx.capabilities().adapter.name);
        assert!(report.passed());
        assert_eq!(report.cases.is_empty(), ctx.tier() < Tier::Coop);
        assert!(ctx.self_test_report().is_some());
    }
    let quick = Context::with_options(&ContextOptions::default().self_test(false)).unwrap();
    assert!(quick.self_test_report().is_none());
}
