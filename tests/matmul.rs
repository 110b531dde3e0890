//! Matrix products against float64: every form, type, epilogue and tier, on ragged sizes and hard data.

mod common;

use common::{Gen, U16, U32, assert_within, every_tier};
use half::f16;
use walsh::kernel::matmul::{Activation, Dims, Epilogue, Form, Matmul, matmul};
use walsh::reference::matmul as reference;
use walsh::{Context, DType, Tensor};

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

/// Bound on a computed sum of k products with f32 accumulation: k rounding errors of at most u of the running magnitude, one more
/// for the scaling and one for the store.
fn bounds(form: Form, dims: [usize; 3], a: &[f64], b: &[f64], out: DType, want: &[f64]) -> Vec<f64> {
    let abs = |v: &[f64]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let magnitude = reference::matmul(form, dims, &abs(a), &abs(b));
    let unit = if out == DType::F16 { U16 } else { U32 };
    magnitude
        .iter()
        .zip(want)
        .map(|(m, w)| {
            (dims[2] as f64 + 2.0) * U32 * m + unit * w.abs() * 1.01 + if out == DType::F16 { 6e-8 } else { 1e-37 }
        })
        .collect()
}

const SIZES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [3, 5, 7],
    [64, 64, 16],
    [65, 63, 17],
    [128, 32, 64],
    [4, 132, 36],
    [31, 65, 128],
    [96, 192, 100],
    [17, 4, 0],
];

#[test]
fn every_form_and_type_agrees_with_float64() {
    for ctx in every_tier() {
        for form in Form::ALL {
            for types in [
                [DType::F32, DType::F32, DType::F32],
                [DType::F16, DType::F16, DType::F32],
                [DType::F16, DType::F16, DType::F16],
            ] {
                if types.contains(&DType::F16) && !ctx.capabilities().f16 {
                    continue;
                }
                for (i, [m, n, k]) in SIZES.into_iter().enumerate() {
                    let mut random = Gen::new(i as u64);
                    let (a, av) = tensor(&ctx, &random.hard(m * k), types[0]);
                    let (b, bv) = tensor(&ctx, &random.normals(k * n), types[1]);
                    // One element beyond the result shows that nothing is written there.
                    let sentinel = vec![77.0; m * n + 5];
                    let (out, before) = tensor(&ctx, &sentinel, types[2]);
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
                        matmul(&ctx, &spec).unwrap();
                        let scaled: Vec<f64> = av.iter().map(|v| v * 0.5).collect();
                        let product = reference::matmul(form, [m, n, k], &scaled, &bv);
                        let mut bound = bounds(form, [m, n, k], &scaled, &bv, types[2], &product);
                        let mut want = product.clone();
                        let got = out.to_vec().unwrap();
                        if accumulate {
                            // The second product is added to the first, which was rounded when it was stored.
                            want.iter_mut().for_each(|w| *w *= 2.0);
                            let unit = if types[2] == DType::F16 { U16 } else { U32 };
                            bound.iter_mut().zip(&want).for_each(|(b, w)| *b = 2.0 * *b + unit * w.abs() * 1.01);
                        }
                        let what = format!(
                            "{} {form:?} {types:?} {m}x{n}x{k} {}",
                            ctx.capabilities().adapter.name,
                            ctx.tier()
                        );
                        assert_within(&what, &got[..m * n], &want, |i| bound[i]);
                        assert!(
                            got[m * n..].iter().zip(&before[m * n..]).all(|(g, b)| f64::from(*g) == *b),
                            "{what}: wrote past the end"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn batches_use_their_strides() {
    for ctx in every_tier() {
        let (m, n, k, batch) = (5, 9, 12, 3);
        let mut random = Gen::new(5);
        let (a, av) = tensor(&ctx, &random.normals(batch * m * k), DType::F32);
        let (b, bv) = tensor(&ctx, &random.normals(k * n), DType::F32);
        let out = Tensor::zeros(&ctx, &[batch * m * n], DType::F32).unwrap();
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
        matmul(&ctx, &spec).unwrap();
        let got = out.to_vec().unwrap();
        for i in 0..batch {
            let part = &av[i * m * k..(i + 1) * m * k];
            let want = reference::matmul(Form::Nn, [m, n, k], part, &bv);
            let bound = bounds(Form::Nn, [m, n, k], part, &bv, DType::F32, &want);
            assert_within("batch", &got[i * m * n..(i + 1) * m * n], &want, |j| bound[j]);
        }
    }
}

#[test]
fn epilogues_agree_with_float64() {
    for ctx in every_tier() {
        for (m, n, k) in [(33, 20, 24), (7, 13, 9)] {
            let mut random = Gen::new(9);
            let (a, av) = tensor(&ctx, &random.normals(m * k), DType::F32);
            let (b, bv) = tensor(&ctx, &random.normals(n * k), DType::F32);
            let (b2, b2v) = tensor(&ctx, &random.normals(n * k), DType::F32);
            let (bias, biasv) = tensor(&ctx, &random.normals(n), DType::F32);
            let (extra, extrav) = tensor(&ctx, &random.normals(m * n), DType::F32);
            let out = Tensor::zeros(&ctx, &[m * n], DType::F32).unwrap();
            let pre = Tensor::zeros(&ctx, &[m * n], DType::F32).unwrap();
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
            let plain = reference::matmul(Form::Nt, [m, n, k], &av, &bv);
            let base = bounds(Form::Nt, [m, n, k], &av, &bv, DType::F32, &plain);
            let biased: Vec<f64> = plain.iter().enumerate().map(|(i, v)| v + biasv[i % n]).collect();
            for activation in Activation::ALL {
                matmul(
                    &ctx,
                    &spec(Form::Nt, b.buffer(), Some(bias.buffer()), Epilogue::Activation(activation, pre.buffer())),
                )
                .unwrap();
                let want: Vec<f64> = biased.iter().map(|v| reference::activate(activation, *v)).collect();
                // The slopes of all three activations are below 1.2, and they are computed to 1e-6 of (1 + |v|).
                assert_within("pre", &pre.to_vec().unwrap(), &biased, |i| {
                    base[i] + 2.0 * U32 * biased[i].abs() + 2.0 * U32 * biasv[i % n].abs()
                });
                assert_within("activation", &out.to_vec().unwrap(), &want, |i| {
                    1.2 * (base[i] + 4.0 * U32 * (biased[i].abs() + biasv[i % n].abs()))
                        + 1e-6 * (1.0 + biased[i].abs())
                });

                matmul(&ctx, &spec(Form::Nn, b2.buffer(), None, Epilogue::ActivationGrad(activation, extra.buffer())))
                    .unwrap();
                let product = reference::matmul(Form::Nn, [m, n, k], &av, &b2v);
                let bound = bounds(Form::Nn, [m, n, k], &av, &b2v, DType::F32, &product);
                let want: Vec<f64> =
                    product.iter().zip(&extrav).map(|(v, p)| v * reference::activate_grad(activation, *p)).collect();
                assert_within("activation gradient", &out.to_vec().unwrap(), &want, |i| {
                    1.2 * bound[i] + 2e-6 * product[i].abs()
                });
            }
            matmul(&ctx, &spec(Form::Nt, b.buffer(), None, Epilogue::Residual(extra.buffer(), None))).unwrap();
            let want: Vec<f64> = plain.iter().zip(&extrav).map(|(v, r)| v + r).collect();
            assert_within("residual", &out.to_vec().unwrap(), &want, |i| {
                base[i] + 2.0 * U32 * (plain[i].abs() + extrav[i].abs())
            });
        }
    }
}
