//! Every differentiable operation, forward and backward with a random upstream gradient, against the float64 references; and the references
//! against central differences where no kernel's own test does that.
//!
//! References checked elsewhere: unary functions and SwiGLU in `unary.rs`, softmax in `softmax.rs`, norms in `layer_norm.rs`, attention in
//! `attention.rs`, embeddings in `embedding.rs`, cross-entropy in `cross_entropy.rs`.

mod common;

use common::bounds::{TINY, errors};
use common::{Gen, U16, U32, assert_gradient, assert_within, dtypes, every_tier, floats, stored, wide};
use walsh::kernel::binary::{Binary, broadcast_shape};
use walsh::kernel::matmul::{Activation, Form};
use walsh::kernel::rope::{RopePairs, frequencies};
use walsh::kernel::unary::Unary;
use walsh::nn::Dropout;
use walsh::op::{LinearOptions, LossOptions, linear};
use walsh::reference::binary::{binary, binary_backward, broadcast_index};
use walsh::reference::linear::Linear;
use walsh::{Context, DType, Gradients, IGNORE, Result, Tensor, reference};

/// A leaf: its values, shape and type.
type Input<'a> = (Vec<f32>, &'a [usize], DType);
/// Values with a bound on the error of each, apart from the rounding of what is stored.
type Bounded = (Vec<f64>, Vec<f64>);

/// Runs an operation on leaves and its backward pass from a random gradient, and compares with what `want` makes of the values of the leaves
/// and of the gradient: the result, and the gradients of the first leaves (all that there are, usually).
fn check(
    context: &Context,
    what: &str,
    inputs: &[Input<'_>],
    run: impl Fn(&[Tensor]) -> Result<Tensor>,
    want: impl Fn(&[Vec<f64>], &[f64]) -> (Bounded, Vec<Bounded>),
) {
    let what = format!("{what} on {} {}", context.capabilities().adapter.name, context.tier());
    let made: Vec<_> = inputs.iter().map(|(data, shape, dtype)| floats(context, data, shape, *dtype)).collect();
    let leaves: Vec<Tensor> = made.iter().map(|(t, _)| t.with_grad()).collect();
    let values: Vec<Vec<f64>> = made.into_iter().map(|(_, v)| v).collect();
    let out = run(&leaves).unwrap();
    let random = Gen::new(99).normals(out.len());
    let (upstream, dy) = floats(context, &random, out.shape(), out.dtype());
    let mut gradients = Gradients::default();
    out.backward_from(upstream.clone(), &mut gradients).unwrap();
    let ((want_out, error), grads) = want(&values, &dy);
    let bound = |v: f64, error: f64, dtype| error + stored(dtype, v.abs() + error) + TINY;
    assert_within(&what, &out.to_vec().unwrap(), &want_out, |i| bound(want_out[i], error[i], out.dtype()));
    assert_eq!(grads.len(), leaves.len(), "{what}: every leaf has a gradient");
    for (n, (leaf, (want, error))) in leaves.iter().zip(&grads).enumerate() {
        let got = gradients.get(leaf).unwrap_or_else(|| panic!("{what}: no gradient of input {n}"));
        assert_eq!(got.shape(), leaf.shape(), "{what}: shape of gradient {n}");
        let loss = what.starts_with("cross_entropy");
        assert!(loss || got.dtype() == leaf.dtype(), "{what}: type of gradient {n}");
        assert_within(&format!("{what}: gradient {n}"), &got.to_vec().unwrap(), want, |i| {
            bound(want[i], error[i], got.dtype())
        });
    }
    assert_eq!(wide(&upstream.to_vec().unwrap()), dy, "{what}: the upstream gradient is the caller's");
}

/// Relative and absolute error of an intermediate value stored as `dtype`.
fn half(dtype: DType) -> (f64, f64) {
    if dtype == DType::F16 { (1.01 * U16, 2f64.powi(-25)) } else { (0.0, 0.0) }
}

fn scaled(x: &[f64], by: f64) -> Vec<f64> {
    x.iter().map(|v| v.abs() * by).collect()
}

fn absolute(x: &[f64]) -> Vec<f64> {
    scaled(x, 1.0)
}

/// A step state at step 3, and a dropout that uses it.
fn dropout(context: &Context) -> Dropout {
    let mut words = [0u32; 16];
    words[0] = 3;
    let state = Tensor::from_u32(context, &words, &[16]).unwrap().buffer().clone();
    Dropout { p: 0.25, seed: 77, op: 5, micro: 1, state }
}

fn factors(len: usize) -> Vec<f64> {
    reference::dropout::factors(len, 0.25, 77, 5, 3, 1)
}

type BinaryMethod = fn(&Tensor, &Tensor) -> Result<Tensor>;
type Method = fn(&Tensor) -> Result<Tensor>;

const BINARIES: [(Binary, BinaryMethod); 4] =
    [(Binary::Add, Tensor::add), (Binary::Sub, Tensor::sub), (Binary::Mul, Tensor::mul), (Binary::Div, Tensor::div)];

#[test]
fn binary_operations() {
    let shapes: &[(&[usize], &[usize])] =
        &[(&[3, 5], &[3, 5]), (&[7, 9], &[9]), (&[2, 1, 4], &[3, 1]), (&[], &[5]), (&[1, 3], &[3]), (&[0, 3], &[1, 3])];
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (a_shape, b_shape) in shapes {
                let shape = broadcast_shape(a_shape, b_shape).unwrap();
                let mut g = Gen::new(1);
                let a = g.normals(a_shape.iter().product());
                // Divisors away from 0.
                let b: Vec<f32> = g.normals(b_shape.iter().product()).iter().map(|v| v + v.signum() * 0.25).collect();
                for (op, method) in BINARIES {
                    check(
                        &context,
                        &format!("{op:?} {a_shape:?} {b_shape:?} {dtype}"),
                        &[(a.clone(), a_shape, dtype), (b.clone(), b_shape, dtype)],
                        |x| method(&x[0], &x[1]),
                        |x, dy| {
                            let (a, b) = ((&x[0][..], *a_shape), (&x[1][..], *b_shape));
                            let out = binary(op, a, b, &shape);
                            let (da, db) = binary_backward(op, a, b, &shape, dy);
                            // Sums of the terms' magnitudes.
                            let (xa, xb, d) = (absolute(a.0), absolute(b.0), absolute(dy));
                            let (ma, mb) = binary_backward(op, (&xa, a_shape), (&xb, b_shape), &shape, &d);
                            // A division is good to 2.5 ulp; b's gradient has two, a product and a stored quotient.
                            let own = if op == Binary::Div { 5.0 * U32 } else { U32 };
                            let (relative, least) = half(dtype);
                            let count = |len: usize| (shape.iter().product::<usize>() / len.max(1)) as f64;
                            let grad = |want: Vec<f64>, magnitude: Vec<f64>| {
                                let n = count(want.len());
                                // What is lost to f16's least number is multiplied by at most 1 / 0.25 or a quotient of 20.
                                let bound =
                                    |m: &f64| ((n + 2.0) * U32 + 3.0 * (own + relative)) * m.abs() + n * 25.0 * least;
                                let bounds = magnitude.iter().map(bound).collect();
                                (want, bounds)
                            };
                            let error = scaled(&out, own);
                            ((out, error), vec![grad(da, ma), grad(db, mb)])
                        },
                    );
                }
            }
        }
    }
}

const UNARIES: [(Unary, Method); 12] = [
    (Unary::GeluErf, Tensor::gelu),
    (Unary::GeluTanh, Tensor::gelu_tanh),
    (Unary::Silu, Tensor::silu),
    (Unary::Relu, Tensor::relu),
    (Unary::Exp, Tensor::exp),
    (Unary::Log, Tensor::ln),
    (Unary::Tanh, Tensor::tanh),
    (Unary::Neg, Tensor::neg),
    (Unary::Square, Tensor::square),
    (Unary::Sqrt, Tensor::sqrt),
    (Unary::Reciprocal, Tensor::reciprocal),
    (Unary::Scale(0.3), |x| x.scale(0.3)),
];

#[test]
fn unary_operations() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (function, method) in UNARIES {
                let positive = matches!(function, Unary::Log | Unary::Sqrt | Unary::Reciprocal);
                let x = Gen::new(2).normals(35);
                let x = x.iter().map(|v| if positive { v.abs() + 0.05 } else { 2.0 * v }).collect();
                check(
                    &context,
                    &format!("{function:?} {dtype}"),
                    &[(x, &[5, 7], dtype)],
                    |x| method(&x[0]),
                    |x, dy| {
                        let f = |v: &f64| reference::unary::unary(function, *v);
                        let out = x[0].iter().map(|v| f(v).0).collect();
                        let grad: Vec<f64> = x[0].iter().zip(dy).map(|(v, d)| d * f(v).1).collect();
                        let error = x[0].iter().map(|v| 1.01 * errors(function, *v).0).collect();
                        let grad_error =
                            |i: usize| 1.01 * dy[i].abs() * errors(function, x[0][i]).1 + 2.0 * U32 * grad[i].abs();
                        let grad_errors = (0..grad.len()).map(grad_error).collect();
                        ((out, error), vec![(grad, grad_errors)])
                    },
                );
            }
        }
    }
}

#[test]
fn swiglu() {
    const W: usize = 8;
    for context in every_tier() {
        for dtype in dtypes(&context) {
            check(
                &context,
                &format!("swiglu {dtype}"),
                &[(Gen::new(3).normals(3 * 2 * W), &[1, 3, 2 * W], dtype)],
                |x| x[0].swiglu(),
                |x, dy| {
                    let x = &x[0];
                    let out = reference::swiglu::swiglu(x, W);
                    let dx = reference::swiglu::swiglu_backward(x, dy, W);
                    let gate = |i: usize| i / W * 2 * W + i % W;
                    let silu = |i: usize| errors(Unary::Silu, x[gate(i)]);
                    let error = (0..out.len())
                        .map(|i| 1.01 * silu(i).0 * x[gate(i) + W].abs() + 2.0 * U32 * out[i].abs())
                        .collect();
                    let grad_error = (0..dx.len())
                        .map(|i| {
                            let at = i / (2 * W) * W + i % W;
                            let own = if i % (2 * W) < W { x[gate(at) + W].abs() * silu(at).1 } else { silu(at).0 };
                            1.01 * own * dy[at].abs() + 4.0 * U32 * dx[i].abs()
                        })
                        .collect();
                    ((out, error), vec![(dx, grad_error)])
                },
            );
        }
    }
}

/// Batched products in float64: (result, gradient of a, gradient of b), for values or for magnitudes.
fn products(x: &[Vec<f64>], dy: &[f64], shared: bool, transposed: bool) -> [Vec<f64>; 3] {
    let mut all = [const { Vec::new() }; 3];
    let mut db = vec![0.0; K * N];
    for i in 0..BATCH {
        let a = &x[0][i * M * K..][..M * K];
        let b = &x[1][if shared { 0 } else { i * K * N }..][..K * N];
        let dy = &dy[i * M * N..][..M * N];
        let product = |form, dims, a, b| reference::matmul::matmul(form, dims, a, b);
        if transposed {
            all[0].extend(product(Form::Nt, [M, N, K], a, b));
            all[1].extend(product(Form::Nn, [M, K, N], dy, b));
            db = product(Form::Tn, [N, K, M], dy, a);
        } else {
            all[0].extend(product(Form::Nn, [M, N, K], a, b));
            all[1].extend(product(Form::Nt, [M, K, N], dy, b));
            db = product(Form::Tn, [K, N, M], a, dy);
        }
        if shared && i > 0 {
            all[2].iter_mut().zip(&db).for_each(|(sum, d)| *sum += d);
        } else {
            all[2].extend(db);
        }
    }
    all
}

const BATCH: usize = 3;
const M: usize = 5;
const K: usize = 12;
const N: usize = 8;

#[test]
fn matrix_products() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (shared, transposed) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut g = Gen::new(4);
                let (rows, columns) = if transposed { (N, K) } else { (K, N) };
                let (one, many) = ([rows, columns], [BATCH, rows, columns]);
                let b_shape: &[usize] = if shared { &one } else { &many };
                check(
                    &context,
                    &format!("matmul shared {shared} transposed {transposed} {dtype}"),
                    &[
                        (g.normals(BATCH * M * K), &[BATCH, M, K], dtype),
                        (g.normals(b_shape.iter().product()), b_shape, dtype),
                    ],
                    |x| if transposed { x[0].matmul_transposed(&x[1]) } else { x[0].matmul(&x[1]) },
                    |x, dy| {
                        let [out, da, db] = products(x, dy, shared, transposed);
                        let sizes: Vec<Vec<f64>> = x.iter().map(|x| absolute(x)).collect();
                        let [mo, ma, mb] = products(&sizes, &absolute(dy), shared, transposed);
                        // A sum of k products in any order is off by at most k u times the sum of magnitudes.
                        let bound = |m: &[f64], terms: usize| scaled(m, (terms as f64 + 2.0) * U32);
                        let rows = if shared { BATCH * M } else { M };
                        ((out, bound(&mo, K)), vec![(da, bound(&ma, N)), (db, bound(&mb, rows))])
                    },
                );
            }
        }
    }
}

/// Which parts of a linear layer a case has.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    bias: bool,
    activation: Option<Activation>,
    residual: bool,
    dropout: bool,
    out_f32: bool,
}

/// Every option at least once; each combination is a shader to compile.
fn parts(dtype: DType) -> Vec<Parts> {
    let none = Parts::default();
    let act = |activation| Parts { bias: true, activation: Some(activation), ..none };
    let mut all = vec![
        none,
        Parts { bias: true, out_f32: true, ..none },
        act(Activation::Gelu),
        Parts { bias: true, residual: true, dropout: true, ..none },
    ];
    if dtype == DType::F32 {
        all.extend([act(Activation::GeluTanh), act(Activation::Silu), Parts { residual: true, ..none }]);
    }
    all
}

#[test]
fn linear_layers() {
    let [m, n, k] = [6, N, K];
    for context in every_tier() {
        let mask = dropout(&context);
        for dtype in dtypes(&context) {
            for parts in parts(dtype) {
                let mut g = Gen::new(5);
                let mut inputs: Vec<Input<'_>> =
                    vec![(g.normals(m * k), &[2, 3, K], dtype), (g.normals(n * k), &[N, K], DType::F32)];
                if parts.bias {
                    inputs.push((g.normals(n), &[N], DType::F32));
                }
                if parts.residual {
                    inputs.push((g.normals(m * n), &[2, 3, N], DType::F32));
                }
                let (bias_at, residual_at) = (2, inputs.len() - 1);
                let keep = factors(m * n);
                check(
                    &context,
                    &format!("linear {parts:?} {dtype}"),
                    &inputs,
                    |x| {
                        let options = LinearOptions {
                            bias: parts.bias.then(|| &x[bias_at]),
                            activation: parts.activation,
                            dropout: parts.dropout.then_some(&mask),
                            residual: parts.residual.then(|| &x[residual_at]),
                            out_f32: parts.out_f32,
                            ..LinearOptions::default()
                        };
                        linear(&x[0], &x[1], options)
                    },
                    |x, dy| {
                        let spec = Linear {
                            dims: [m, n, k],
                            x: &x[0],
                            weight: &x[1],
                            bias: parts.bias.then(|| &x[bias_at][..]),
                            activation: parts.activation,
                            factors: parts.dropout.then_some(&keep[..]),
                            residual: parts.residual.then(|| &x[residual_at][..]),
                        };
                        let ((pre, out), back) = (spec.forward(), spec.backward(dy));
                        // Magnitudes: the same layer without activation on absolute values.
                        let (ax, aw) = (absolute(&x[0]), absolute(&x[1]));
                        let ab = spec.bias.map(absolute);
                        let sizes = Linear {
                            x: &ax,
                            weight: &aw,
                            bias: ab.as_deref(),
                            activation: None,
                            residual: None,
                            ..spec
                        };
                        let (size, _) = sizes.forward();
                        let (relative, least) = half(dtype);
                        // Weights are rounded to the type of x.
                        let pre_error: Vec<f64> =
                            size.iter().map(|s| ((k as f64 + 4.0) * U32 + relative) * s).collect();
                        let store =
                            |v: f64| if parts.out_f32 || parts.residual { 0.0 } else { relative * v.abs() + least };
                        let mut error = pre_error.clone();
                        let mut dpre_error: Vec<f64> =
                            back.dpre.iter().map(|d| (4.0 * U32 + relative) * d.abs() + least).collect();
                        for i in 0..m * n {
                            if let Some(activation) = parts.activation {
                                // Slopes are at most 1.13, second derivatives 0.8; the derivative sees the sum as it was stored.
                                let own = errors(activation.into(), pre[i]);
                                error[i] = 1.13 * pre_error[i] + 1.01 * own.0;
                                let seen = pre_error[i] + store(pre[i]);
                                dpre_error[i] += dy[i].abs() * (0.8 * seen + 1.01 * own.1);
                            }
                            // The scale of dropout is rounded.
                            error[i] = error[i] * 4.0 / 3.0 + 4.0 * U32 * (out[i].abs() + size[i]);
                        }
                        // Products of dpre with rounded weights, or with x.
                        let through = |terms: usize| -> Vec<f64> {
                            let share = (terms as f64 + 2.0) * U32 + relative;
                            back.dpre
                                .iter()
                                .zip(&dpre_error)
                                .map(|(d, e)| share * d.abs() + e * (1.0 + relative))
                                .collect()
                        };
                        let product = |form, dims, a: &[f64], b: &[f64]| reference::matmul::matmul(form, dims, a, b);
                        let dx_error = product(Form::Nn, [m, k, n], &through(n), &aw);
                        let dw_error = product(Form::Tn, [n, k, m], &through(m), &ax);
                        let mut grads = vec![(back.dx, dx_error), (back.dweight, dw_error)];
                        if parts.bias {
                            grads.push((back.dbias, reference::column_sum::column_sum(&through(m), n)));
                        }
                        if parts.residual {
                            grads.push((dy.to_vec(), vec![0.0; m * n]));
                        }
                        ((out, error), grads)
                    },
                );
            }
        }
    }
}

fn plain<'a>(dims: [usize; 3], x: &'a [f64], weight: &'a [f64]) -> Linear<'a> {
    Linear { dims, x, weight, bias: None, activation: None, factors: None, residual: None }
}

/// The gradient of an activation's input comes out of the products that consume the activation, and there may be several.
#[test]
fn linear_layers_on_an_activation_that_is_used_twice() {
    let (m, n, k) = (6, N, K);
    for context in every_tier() {
        let mut g = Gen::new(6);
        check(
            &context,
            "linear on gelu",
            &[
                (g.normals(m * k), &[6, K], DType::F32),
                (g.normals(n * k), &[N, K], DType::F32),
                (g.normals(4 * n), &[4, N], DType::F32),
                (g.normals(4 * n), &[4, N], DType::F32),
            ],
            |x| {
                let options = LinearOptions { activation: Some(Activation::Gelu), ..LinearOptions::default() };
                let hidden = linear(&x[0], &x[1], options)?;
                hidden.linear(&x[2], None)?.add(&hidden.linear(&x[3], None)?)
            },
            |x, dy| {
                let run = |x: &[Vec<f64>], dy: &[f64], activation| {
                    let first = Linear { activation, ..plain([m, n, k], &x[0], &x[1]) };
                    let hidden = first.forward().1;
                    let (left, right) = (plain([m, 4, n], &hidden, &x[2]), plain([m, 4, n], &hidden, &x[3]));
                    let out: Vec<f64> = left.forward().1.iter().zip(right.forward().1).map(|(a, b)| a + b).collect();
                    let (l, r) = (left.backward(dy), right.backward(dy));
                    let dhidden: Vec<f64> = l.dx.iter().zip(&r.dx).map(|(a, b)| a + b).collect();
                    let back = first.backward(&dhidden);
                    [out, back.dx, back.dweight, l.dweight, r.dweight]
                };
                let [out, grads @ ..] = run(x, dy, Some(Activation::Gelu));
                let sizes: Vec<Vec<f64>> = x.iter().map(|x| absolute(x)).collect();
                let [size, size_grads @ ..] = run(&sizes, &absolute(dy), None);
                // Three products of at most k terms each; gelu and its derivative are off by at most 1e-6 and multiply by at most 1.13; the second
                // derivative, at most 0.8, multiplies the error of the sum, at most (k + 4) u times its magnitude of at most 60.
                let share = 1.3 * (3.0 * (k as f64 + 4.0) * U32 + 1e-6 + 0.8 * 60.0 * (k as f64 + 4.0) * U32);
                let bounded =
                    |(want, size): (Vec<f64>, Vec<f64>)| (want, size.iter().map(|s| share * (s + 1.0)).collect());
                (bounded((out, size)), grads.into_iter().zip(size_grads).map(bounded).collect())
            },
        );
    }
}

#[test]
fn sums() {
    const ROWS: usize = 5;
    const COLUMNS: usize = 12;
    // Per case: the result's elements, and to which of them element i is added.
    type Sum = (&'static str, Method, usize, fn(usize) -> usize, f64);
    let cases: [Sum; 4] = [
        ("sum", Tensor::sum, 1, |_| 0, 1.0),
        ("mean", Tensor::mean, 1, |_| 0, 1.0 / (ROWS * COLUMNS) as f64),
        ("sum_last", Tensor::sum_last, ROWS, |i| i / COLUMNS, 1.0),
        ("sum_first", Tensor::sum_first, COLUMNS, |i| i % COLUMNS, 1.0),
    ];
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (name, method, len, place, factor) in cases {
                let shape: &[usize] = if len == COLUMNS { &[ROWS, 3, 4] } else { &[1, ROWS, COLUMNS] };
                check(
                    &context,
                    &format!("{name} {dtype}"),
                    &[(Gen::new(7).normals(ROWS * COLUMNS), shape, dtype)],
                    |x| method(&x[0]),
                    |x, dy| {
                        let (mut out, mut size) = (vec![0.0; len], vec![0.0; len]);
                        for (i, v) in x[0].iter().enumerate() {
                            out[place(i)] += factor * v;
                            size[place(i)] += factor * v.abs();
                        }
                        let grad: Vec<f64> = (0..x[0].len()).map(|i| factor * dy[place(i)]).collect();
                        let grad_error = scaled(&grad, 3.0 * U32);
                        ((out, scaled(&size, (62.0 + 3.0) * U32)), vec![(grad, grad_error)])
                    },
                );
            }
            let (x, values) = floats(&context, &Gen::new(8).normals(60), &[5, 12], dtype);
            let max = x.with_grad().max().unwrap();
            assert!(!max.requires_grad() && f64::from(max.item().unwrap()) == reference::reduce::max(&values));
        }
    }
}

#[test]
fn softmax() {
    const COLUMNS: usize = 7;
    for context in every_tier() {
        check(
            &context,
            "softmax",
            &[(Gen::new(9).normals(3 * COLUMNS), &[3, COLUMNS], DType::F32)],
            |x| x[0].softmax(),
            |x, dy| {
                let n = COLUMNS as f64;
                let y = reference::softmax::softmax(&x[0], COLUMNS);
                let dx = reference::softmax::softmax_backward(&y, dy, COLUMNS);
                let row = |i: usize| i / COLUMNS * COLUMNS..i / COLUMNS * COLUMNS + COLUMNS;
                let top = |i: usize| row(i).map(|j| x[0][j]).fold(f64::NEG_INFINITY, f64::max);
                // As in the kernel's test: exponentials are good to 3 + 2 |x| ulp and their arguments are rounded.
                let exponential = |i: usize| (6.0 + 5.0 * (top(i) - x[0][i])) * U32;
                let relative = |i: usize| {
                    let sum: f64 = row(i).map(|j| y[j] * exponential(j)).sum();
                    1.01 * (exponential(i) + sum + (n + 6.0) * U32)
                };
                let error = (0..y.len()).map(|i| relative(i) * y[i]).collect();
                let grad_error = (0..y.len())
                    .map(|i| {
                        let size: f64 = row(i).map(|j| (y[j] * dy[j]).abs()).sum();
                        let seen: f64 = row(i).map(|j| (y[j] * dy[j]).abs() * relative(j)).sum();
                        y[i] * (relative(i) * (dy[i].abs() + size) + seen + (n + 6.0) * U32 * (size + dy[i].abs()))
                    })
                    .collect();
                ((y, error), vec![(dx, grad_error)])
            },
        );
    }
}

#[test]
fn rope() {
    const HEADS: usize = 2;
    const D: usize = 8;
    let (batch, seq) = (2, 9);
    let f = frequencies(10000.0, D);
    for context in every_tier() {
        let f_t = Tensor::from_f32(&context, &f, &[D / 2]).unwrap();
        for dtype in dtypes(&context) {
            for pairs in [RopePairs::HalfSplit, RopePairs::Interleaved] {
                let turn = |x: &[f64], sign: f64| -> Bounded {
                    let (c, interleaved) = (HEADS * D, pairs == RopePairs::Interleaved);
                    let (mut out, mut error) = (x.to_vec(), vec![0.0; x.len()]);
                    for (token, row) in out.chunks_exact_mut(3 * c).enumerate() {
                        // Queries and keys of one token at a time: its position is an offset then.
                        let at = token % seq;
                        let turned =
                            reference::rope::rope(&row[..2 * c], 1, 2 * HEADS, &wide(&f), interleaved, at, sign);
                        for i in 0..2 * c {
                            let pair = if interleaved { i ^ 1 } else { i / D * D + (i + D / 2) % D };
                            let length = row[i].hypot(row[pair]);
                            // Bound of the kernel's test; frequencies are at most 1.
                            error[token * 3 * c + i] = (2.0 * at as f64 + 12.0) * U32 * length;
                        }
                        row[..2 * c].copy_from_slice(&turned);
                    }
                    (out, error)
                };
                check(
                    &context,
                    &format!("rope {pairs:?} {dtype}"),
                    &[(Gen::new(10).normals(batch * seq * 3 * HEADS * D), &[2, 9, 3 * HEADS * D], dtype)],
                    |x| x[0].rope(HEADS, &f_t, pairs),
                    |x, dy| (turn(&x[0], 1.0), vec![turn(dy, -1.0)]),
                );
            }
        }
    }
}

#[test]
fn dropouts_views_and_conversions() {
    for context in every_tier() {
        let mask = dropout(&context);
        for dtype in dtypes(&context) {
            let x = Gen::new(11).normals(42);
            check(
                &context,
                &format!("dropout {dtype}"),
                &[(x.clone(), &[6, 7], dtype)],
                |x| x[0].dropout(&mask),
                |x, dy| {
                    let apply = |x: &[f64]| -> Bounded {
                        let out: Vec<f64> = x.iter().zip(factors(42)).map(|(v, f)| v * f).collect();
                        let error = scaled(&out, 3.0 * U32);
                        (out, error)
                    };
                    (apply(&x[0]), vec![apply(dy)])
                },
            );
            let exact = |x: &[f64]| (x.to_vec(), vec![0.0; x.len()]);
            check(
                &context,
                &format!("reshape {dtype}"),
                &[(x.clone(), &[6, 7], dtype)],
                |x| x[0].reshape(&[3, 1, 14]),
                |x, dy| (exact(&x[0]), vec![exact(dy)]),
            );
            for to in dtypes(&context) {
                check(
                    &context,
                    &format!("{dtype} to {to}"),
                    &[(x.clone(), &[42], dtype)],
                    |x| x[0].to_dtype(to)?.reshape(&[42]),
                    |x, dy| (exact(&x[0]), vec![exact(dy)]),
                );
            }
        }
    }
}

/// With m = mean |x| and every centred value replaced by |x| + m, each mean, deviation and normalised value is off by at most C times its
/// magnitude, C = 4 (n + 8) u (1 + mean (|x| + m)^2 / variance): sums of n terms twice, a root and a division. A result or gradient is a sum of
/// products of at most three of these, whence another factor of 3; gradients of parameters sum over the rows.
#[test]
fn norms() {
    const ROWS: usize = 6;
    const C: usize = 36;
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (centered, bias) in [(true, true), (true, false), (false, false)] {
                let mut g = Gen::new(12);
                let mut inputs: Vec<Input<'_>> =
                    vec![(g.normals(ROWS * C), &[2, 3, C], DType::F32), (g.normals(C), &[C], DType::F32)];
                if bias {
                    inputs.push((g.normals(C), &[C], DType::F32));
                }
                check(
                    &context,
                    &format!("norm centered {centered} bias {bias} {dtype}"),
                    &inputs,
                    |x| {
                        if centered {
                            x[0].layer_norm(&x[1], bias.then(|| &x[2]), 1e-5, dtype)
                        } else {
                            x[0].rms_norm(&x[1], 1e-5, dtype)
                        }
                    },
                    |x, dy| {
                        let (x, w) = (&x[0], (&x[1], x.get(2)));
                        let zeros = vec![0.0; C];
                        let b = w.1.unwrap_or(&zeros);
                        let w = w.0;
                        let (out, dx, dw, db) = if centered {
                            let out = reference::layer_norm::forward(x, w, b, 1e-5).out;
                            let back = reference::layer_norm::backward(dy, x, w, 1e-5);
                            (out, back.dx, back.dweight, back.dbias)
                        } else {
                            let back = reference::rms_norm::backward(dy, x, w, 1e-5);
                            (reference::rms_norm::forward(x, w, 1e-5).0, back.0, back.1, Vec::new())
                        };
                        let n = C as f64;
                        let (mut error, mut dx_error) = (Vec::new(), Vec::new());
                        let (mut dw_error, mut db_error) = (vec![0.0; C], vec![0.0; C]);
                        for (row, dy) in x.chunks_exact(C).zip(dy.chunks_exact(C)) {
                            let mean = if centered { row.iter().sum::<f64>() / n } else { 0.0 };
                            let shift = if centered { row.iter().map(|v| v.abs()).sum::<f64>() / n } else { 0.0 };
                            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                            let ratio = row.iter().map(|v| (v.abs() + shift).powi(2)).sum::<f64>() / n / variance;
                            let share = 3.0 * 4.0 * (n + 8.0) * U32 * (1.0 + ratio);
                            let rstd = 1.0 / variance.sqrt();
                            let normed: Vec<f64> = row.iter().map(|v| (v.abs() + shift) * rstd).collect();
                            let g: Vec<f64> = dy.iter().zip(w).map(|(d, w)| (d * w).abs()).collect();
                            let mean_g = g.iter().sum::<f64>() / n;
                            let mean_gx = g.iter().zip(&normed).map(|(g, x)| g * x).sum::<f64>() / n;
                            for c in 0..C {
                                error.push(share * (normed[c] * w[c].abs() + b[c].abs()));
                                dx_error.push(share * rstd * (g[c] + mean_g + normed[c] * mean_gx));
                                dw_error[c] += (share + ROWS as f64 * U32) * dy[c].abs() * normed[c];
                                db_error[c] += (ROWS as f64 + 4.0) * U32 * dy[c].abs();
                            }
                        }
                        let mut grads = vec![(dx, dx_error), (dw, dw_error)];
                        if bias {
                            grads.push((db, db_error));
                        }
                        ((out, error), grads)
                    },
                );
            }
        }
    }
}

#[test]
fn attention() {
    const HEADS: usize = 2;
    const D: usize = 16;
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (causal, drop) in [(true, false), (false, true)] {
                let (batch, seq) = (2, 9);
                let dims = reference::attention::Dims { batch, seq, heads: HEADS, head_dim: D, causal };
                let mask = drop.then(|| dropout(&context));
                let keep = drop.then(|| factors(batch * HEADS * seq * seq.next_multiple_of(4)));
                check(
                    &context,
                    &format!("attention causal {causal} dropout {drop} {dtype}"),
                    &[(Gen::new(13).normals(batch * seq * 3 * HEADS * D), &[2, 9, 3 * HEADS * D], dtype)],
                    |x| x[0].attention(HEADS, causal, mask.as_ref()),
                    |x, dy| attention_bounds(&x[0], dy, dims, keep.as_deref(), dtype),
                );
            }
        }
    }
}

/// First order: a probability is off by E times its value, where E gathers the score, (d + 8) u of its magnitude, the exponentials of arguments
/// of at most twice the largest score, and the sums over n keys. Everything else is a sum of products of probabilities and inputs.
fn attention_bounds(
    qkv: &[f64],
    dy: &[f64],
    dims: reference::attention::Dims,
    keep: Option<&[f64]>,
    dtype: DType,
) -> (Bounded, Vec<Bounded>) {
    let reference::attention::Dims { batch, seq, heads, head_dim: d, .. } = dims;
    let (out, _) = reference::attention::attention(qkv, dims, keep);
    let grad = reference::attention::attention_backward(qkv, dy, dims, keep);
    let (n, scale) = (seq as f64, 1.0 / (d as f64).sqrt());
    let (mut error, mut grad_error) = (vec![0.0; out.len()], vec![0.0; grad.len()]);
    let dot = |x: &[f64], i: usize, y: &[f64], j: usize| (0..d).map(|c| (x[i + c] * y[j + c]).abs()).sum::<f64>();
    for b in 0..batch {
        for (h, t) in (0..heads).flat_map(|h| (0..seq).map(move |t| (h, t))) {
            let at = |t: usize, part: usize| (((b * seq + t) * 3 + part) * heads + h) * d;
            let (p, lse) = dims.probabilities(qkv, b, t, h);
            let (q, o) = (at(t, 0), ((b * seq + t) * heads + h) * d);
            let top = (0..p.len()).map(|k| scale * dot(qkv, q, qkv, at(k, 1))).fold(0.0, f64::max);
            let e = ((d as f64 + 8.0) * top + 8.0 + 24.0 * top + 10.0 * n) * U32;
            let e = 4.0 * e + (2.0 * n + 32.0 + 8.0 * lse.abs() + 8.0 * top) * U32;
            let factor = |k: usize| keep.map_or(1.0, |f| f[((b * heads + h) * seq + t) * seq.next_multiple_of(4) + k]);
            for c in 0..d {
                error[o + c] = e * (0..p.len()).map(|k| p[k] * factor(k) * qkv[at(k, 2) + c].abs()).sum::<f64>();
            }
            // The backward pass starts from the stored result.
            let delta = dot(dy, o, &out, o);
            let delta_error = (d as f64 + 4.0) * U32 * delta
                + (0..d).map(|c| dy[o + c].abs() * (error[o + c] + stored(dtype, out[o + c]))).sum::<f64>();
            for k in 0..p.len() {
                let dp = factor(k) * dot(dy, o, qkv, at(k, 2));
                let size = p[k] * scale * (dp + delta);
                let ds = p[k] * scale * (e * (dp + delta) + (d as f64 + 4.0) * U32 * dp + delta_error);
                for c in 0..d {
                    let (query, key) = (qkv[q + c].abs(), qkv[at(k, 1) + c].abs());
                    let sums = (2.0 * n + 8.0) * U32;
                    grad_error[q + c] += (ds + sums * size) * key;
                    grad_error[at(k, 1) + c] += (ds + sums * size) * query;
                    grad_error[at(k, 2) + c] += (e + sums) * p[k] * factor(k) * dy[o + c].abs();
                }
            }
        }
    }
    ((out, error), vec![(grad, grad_error)])
}

#[test]
fn embeddings() {
    const C: usize = 8;
    let (batch, seq, vocab, block) = (3, 4, 5, 6);
    let tokens: Vec<u32> = (0..batch * seq).map(|i| (i * i % 5) as u32).collect();
    for context in every_tier() {
        let tokens_t = Tensor::from_u32(&context, &tokens, &[batch, seq]).unwrap();
        for (positions, drop) in [(false, false), (true, true)] {
            let mask = drop.then(|| dropout(&context));
            let keep = if drop { factors(batch * seq * C) } else { vec![1.0; batch * seq * C] };
            let mut g = Gen::new(14);
            let mut inputs: Vec<Input<'_>> = vec![(g.normals(vocab * C), &[5, C], DType::F32)];
            if positions {
                inputs.push((g.normals(block * C), &[6, C], DType::F32));
            }
            check(
                &context,
                &format!("embedding positions {positions} dropout {drop}"),
                &inputs,
                |x| tokens_t.embedding(&x[0], x.get(1), mask.as_ref()),
                |x, dy| {
                    let places = x.get(1).map_or(&[][..], |p| p);
                    let out = reference::embedding::forward(&tokens, &x[0], places, C, seq, 0, &keep);
                    let block = if positions { block } else { 0 };
                    let back = |dy: &[f64]| reference::embedding::backward(dy, &tokens, &keep, C, vocab, block, seq);
                    let ((table, place), (table_size, place_size)) = (back(dy), back(&absolute(dy)));
                    let share = ((batch * seq) as f64 + 4.0) * U32;
                    let mut grads = vec![(table, scaled(&table_size, share))];
                    if positions {
                        grads.push((place, scaled(&place_size, share)));
                    }
                    let error = scaled(&out, 3.0 * U32);
                    ((out, error), grads)
                },
            );
        }
    }
}

#[test]
fn cross_entropy() {
    const COLUMNS: usize = 12;
    let (rows, classes, weight) = (5, 9, 0.5f32);
    let targets = [2, 0, IGNORE, 8, 3];
    for context in every_tier() {
        let targets_t = Tensor::from_u32(&context, &targets, &[5]).unwrap();
        for dtype in dtypes(&context) {
            check(
                &context,
                &format!("cross_entropy {dtype}"),
                &[(Gen::new(15).normals(rows * COLUMNS), &[5, COLUMNS], DType::F32)],
                |x| {
                    let options = LossOptions { classes: Some(classes), weight, state: None, grad: dtype };
                    x[0].cross_entropy(&targets_t, options)
                },
                |x, dy| {
                    let z: Vec<f64> = x[0].chunks_exact(COLUMNS).flat_map(|row| row[..classes].to_vec()).collect();
                    let want = reference::cross_entropy::cross_entropy(&z, &targets, classes);
                    let (count, factor) = (4.0, f64::from(weight));
                    // As in the kernel's test, with the largest range for all rows.
                    let range = z.iter().fold(0.0, |m: f64, v| m.max(v.abs())) * 2.0;
                    let rho = (9.0 * classes as f64 + 8.0 * range + 8.0) * U32;
                    let each = |l: &f64| rho + 2f64.powi(-21) + 8.0 * U32 * (l.abs() + 2.0 * range);
                    let error = want.losses.iter().map(each).sum::<f64>() / count
                        + (rows as f64 + 8.0) * U32 * want.losses.iter().sum::<f64>() / count;
                    let mut grads = (vec![0.0; x[0].len()], vec![0.0; x[0].len()]);
                    for (i, g) in want.grad.iter().enumerate() {
                        let (r, c) = (i / classes, i % classes);
                        let at = r * COLUMNS + c;
                        grads.0[at] = g * factor * dy[0];
                        let p = g * count + f64::from(u8::from(targets[r] == c as u32));
                        let own = p * (rho + (16.0 + 6.0 * range) * U32) / count + 20.0 * U32 * g.abs();
                        // It is stored once as it is computed and once more when it has met the upstream gradient.
                        grads.1[at] = (own * factor + stored(dtype, g * factor)) * dy[0].abs();
                    }
                    ((vec![want.loss * factor], vec![error * factor + U32 * want.loss]), vec![grads])
                },
            );
        }
    }
}

#[test]
fn references_match_central_differences() {
    let mut g = Gen::new(16);
    let mut data = |n: usize| wide(&g.normals(n));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();

    let (a_shape, b_shape, shape): ([usize; 3], [usize; 2], [usize; 3]) = ([2, 1, 2], [3, 1], [2, 3, 2]);
    let (a, dy) = (data(4), data(12));
    let b: Vec<f64> = data(3).iter().map(|v| v + v.signum()).collect();
    for (op, _) in BINARIES {
        let (da, db) = binary_backward(op, (&a, &a_shape), (&b, &b_shape), &shape, &dy);
        let loss = |a: &[f64], b: &[f64]| dot(&binary(op, (a, &a_shape), (b, &b_shape), &shape), &dy);
        assert_gradient(&format!("{op:?} a"), &a, &da, |a| loss(a, &b));
        assert_gradient(&format!("{op:?} b"), &b, &db, |b| loss(&a, b));
    }
    // The index that broadcasting rests on.
    assert_eq!([0, 3, 7, 11].map(|i| broadcast_index(i, &shape, &a_shape)), [0, 1, 3, 3]);

    for (shared, transposed) in [(false, false), (true, false), (false, true), (true, true)] {
        let x = vec![data(BATCH * M * K), data(if shared { K * N } else { BATCH * K * N })];
        let dy = data(BATCH * M * N);
        let [_, da, db] = products(&x, &dy, shared, transposed);
        let loss = |a: &[f64], b: &[f64]| dot(&products(&[a.to_vec(), b.to_vec()], &dy, shared, transposed)[0], &dy);
        assert_gradient("matmul a", &x[0], &da, |a| loss(a, &x[1]));
        assert_gradient("matmul b", &x[1], &db, |b| loss(&x[0], b));
    }

    let [m, n, k] = [3, 4, 5];
    let (x, weight, bias, residual, dy) = (data(m * k), data(n * k), data(n), data(m * n), data(m * n));
    let keep = factors(m * n);
    for parts in parts(DType::F32) {
        let spec = Linear {
            dims: [m, n, k],
            x: &x,
            weight: &weight,
            bias: parts.bias.then_some(&bias[..]),
            activation: parts.activation,
            factors: parts.dropout.then_some(&keep[..]),
            residual: parts.residual.then_some(&residual[..]),
        };
        let back = spec.backward(&dy);
        let loss = |spec: Linear<'_>| dot(&spec.forward().1, &dy);
        assert_gradient(&format!("{parts:?} x"), &x, &back.dx, |x| loss(Linear { x, ..spec }));
        assert_gradient(&format!("{parts:?} weight"), &weight, &back.dweight, |weight| loss(Linear { weight, ..spec }));
        if parts.bias {
            assert_gradient(&format!("{parts:?} bias"), &bias, &back.dbias, |b| loss(Linear { bias: Some(b), ..spec }));
        }
        if parts.residual {
            assert_gradient(&format!("{parts:?} residual"), &residual, &dy, |r| {
                loss(Linear { residual: Some(r), ..spec })
            });
        }
    }

    let (x, dy, f) = (data(3 * 2 * 8), data(3 * 2 * 8), wide(&frequencies(10000.0, 8)));
    for interleaved in [false, true] {
        let turn = |x: &[f64], sign| reference::rope::rope(x, 3, 2, &f, interleaved, 4, sign);
        assert_gradient("rope", &x, &turn(&dy, -1.0), |x| dot(&turn(x, 1.0), &dy));
    }

    let (x, dy) = (data(12), data(12));
    let masked = |x: &[f64]| x.iter().zip(factors(12)).map(|(v, f)| v * f).collect::<Vec<_>>();
    assert_gradient("dropout", &x, &masked(&dy), |x| dot(&masked(x), &dy));
    assert_gradient("sum", &x, &[dy[0]; 12], |x| reference::reduce::sum(x) * dy[0]);
    let rows: Vec<f64> = (0..12).map(|i| dy[i / 4]).collect();
    assert_gradient("sum_last", &x, &rows, |x| dot(&reference::row_sum::row_sum(x, 4), &dy));
    let columns: Vec<f64> = (0..12).map(|i| dy[i % 4]).collect();
    assert_gradient("sum_first", &x, &columns, |x| dot(&reference::column_sum::column_sum(x, 4), &dy));
}
