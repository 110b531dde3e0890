//! Elementwise functions and SwiGLU, forward and backward, against the float64 reference.

mod common;

use common::{Gen, U16, U32, assert_within, blank, every_tier, precisions, tensor, wide};
use walsh::Error;
use walsh::kernel::swiglu::{swiglu, swiglu_backward};
use walsh::kernel::unary::{Unary, unary, unary_backward};
use walsh::reference::swiglu as swiglu_reference;
use walsh::reference::unary::{normal_cdf, unary as reference};

const ALL: [Unary; 12] = [
    Unary::GeluErf,
    Unary::GeluTanh,
    Unary::Silu,
    Unary::Exp,
    Unary::Neg,
    Unary::Relu,
    Unary::Square,
    Unary::Sqrt,
    Unary::Reciprocal,
    Unary::Log,
    Unary::Tanh,
    Unary::Scale(0.3),
];

/// Flush of subnormals, with room for what it is multiplied by.
const TINY: f64 = 1e-30;

/// Error of 1 / (1 + exp(-x)): exp is good to 3 + 2 |x| ulp (2 u each), of which the share 1 - s arrives; a division is good to 2.5 ulp.
fn sigmoid_error(x: f64) -> f64 {
    let s = 1.0 / (1.0 + (-x).exp());
    s * ((3.0 + 2.0 * x.abs()) * 2.0 * U32 * (1.0 - s) + 8.0 * U32) + TINY
}

/// Bounds on the f32 errors of f(x) and f'(x) from WGSL's accuracy rules, first order.
fn errors(function: Unary, x: f64) -> (f64, f64) {
    let (y, dy) = reference(function, x);
    let a = x.abs();
    match function {
        Unary::GeluErf => {
            // Its header: 4.1e-8 for the polynomial; twelve roundings; exp(-x^2 / 2), whose argument carries 2 u.
            let exponential = ((3.0 + a * a) * 2.0 + a * a) * U32;
            let cdf = normal_cdf(-a) * (4.1e-8 + 12.0 * 2.0 * U32 + exponential) + 2.0 * U32 * normal_cdf(x) + TINY;
            let density = a * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
            (a * cdf + 2.0 * U32 * y.abs(), cdf + density * (exponential + 6.0 * U32) + 4.0 * U32 * dy.abs() + TINY)
        }
        Unary::GeluTanh => {
            let k = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let argument = k * (x + 0.044715 * x * x * x);
            let s = 1.0 / (1.0 + (-argument).exp());
            let error = sigmoid_error(argument) + s * (1.0 - s) * argument.abs() * 8.0 * U32;
            let slope = a * k * (1.0 + 3.0 * 0.044715 * x * x);
            let grad =
                error + slope * (2.0 * error + U32 * s + 12.0 * U32 * s * (1.0 - s)) + 4.0 * U32 * (s + dy.abs());
            (a * error + 2.0 * U32 * y.abs(), grad)
        }
        Unary::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            let error = sigmoid_error(x);
            (a * error + 2.0 * U32 * y.abs(), error * (1.0 + 2.0 * a) + 6.0 * U32 * s * (1.0 + a) + U32 * a * s)
        }
        Unary::Exp => (2.0 * (3.0 + 2.0 * a) * U32 * y + TINY, 2.0 * (3.0 + 2.0 * a) * U32 * y + TINY),
        Unary::Neg | Unary::Relu => (0.0, 0.0),
        Unary::Square | Unary::Scale(_) => (2.0 * U32 * y.abs(), 2.0 * U32 * dy.abs()),
        // sqrt is 1 / inverseSqrt: 2 and 2.5 ulp.
        Unary::Sqrt => (10.0 * U32 * y, 16.0 * U32 * dy),
        Unary::Reciprocal => (6.0 * U32 * y.abs(), 8.0 * U32 * dy.abs()),
        // 2^-21 between 0.5 and 2, else 3 ulp.
        Unary::Log => (8.0 * U32 + 6.0 * U32 * y.abs(), 6.0 * U32 * dy.abs()),
        // A quotient of sums of exponentials.
        Unary::Tanh => {
            let error = 4.0 * (3.0 + 2.0 * a.min(15.0)) * 2.0 * U32 + 6.0 * U32;
            (error, 2.0 * error + 4.0 * U32)
        }
    }
}

fn domain(function: Unary, x: &mut [f32]) {
    for v in x {
        *v = match function {
            // Inputs whose results neither overflow f16 nor vanish in f32.
            Unary::Exp | Unary::Tanh => v.clamp(-10.0, 10.0),
            Unary::Sqrt | Unary::Log | Unary::Reciprocal => v.abs().clamp(0.01, 100.0),
            Unary::Square => v.clamp(-100.0, 100.0),
            _ => *v,
        };
    }
}

#[test]
fn functions_match_the_reference() {
    for context in every_tier() {
        for &f16 in precisions(&context) {
            for (n, function) in ALL.into_iter().enumerate() {
                for len in [1, 4, 1023, 2050] {
                    let what = format!("{function:?} f16 {f16} len {len}");
                    let elem = |v: f64| if f16 { U16 * v.abs() + 2f64.powi(-25) } else { 0.0 };
                    let mut g = Gen::new(n as u64 * 10 + len as u64);
                    let mut x: Vec<f32> = g.hard(len).iter().map(|v| v * 2.0).collect();
                    x[len / 2] = 0.0;
                    domain(function, &mut x);
                    let (mut dy, mut old) = (g.normals(len), g.normals(len));
                    let (x_t, dy_t) = (tensor(&context, &mut x, f16), tensor(&context, &mut dy, f16));
                    let out = blank(&context, len, f16);
                    unary(&context, function, x_t.buffer(), out.buffer()).unwrap();
                    let (x, dy) = (wide(&x), wide(&dy));
                    let want: Vec<f64> = x.iter().map(|v| reference(function, *v).0).collect();
                    assert_within(&what, &out.to_vec().unwrap(), &want, |i| {
                        errors(function, x[i]).0 * 1.01 + elem(want[i])
                    });
                    for accumulate in [false, true] {
                        let dx = tensor(&context, &mut old, f16);
                        unary_backward(&context, function, x_t.buffer(), dy_t.buffer(), dx.buffer(), accumulate)
                            .unwrap();
                        let product = |i: usize| dy[i] * reference(function, x[i]).1;
                        let base = |i: usize| if accumulate { f64::from(old[i]) } else { 0.0 };
                        let want: Vec<f64> = (0..len).map(|i| product(i) + base(i)).collect();
                        assert_within(&format!("d {what} {accumulate}"), &dx.to_vec().unwrap(), &want, |i| {
                            let own = dy[i].abs() * errors(function, x[i]).1 * 1.01;
                            own + 2.0 * U32 * (product(i).abs() + want[i].abs()) + elem(want[i])
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn derivatives_match_central_differences() {
    let h = 1e-5;
    for function in ALL {
        for x in [0.3, 1.7, 2.9, -1.3, -4.0] {
            if x < 0.0 && matches!(function, Unary::Sqrt | Unary::Log) {
                continue;
            }
            let difference = (reference(function, x + h).0 - reference(function, x - h).0) / (2.0 * h);
            let want = reference(function, x).1;
            // Third derivatives up to 1e3 times h^2 / 6; rounding of 1e-15 (25 for squares) / h.
            assert!(
                (difference - want).abs() < 2e-7 * (1.0 + want.abs()),
                "{function:?} at {x}: {difference} and {want}"
            );
        }
    }
}

#[test]
fn swiglu_matches_the_reference() {
    for context in every_tier() {
        for &f16 in precisions(&context) {
            for (rows, width) in [(1, 1), (3, 5), (7, 64), (5, 172)] {
                let what = format!("swiglu {rows} x {width} f16 {f16}");
                let elem = |v: f64| if f16 { U16 * v.abs() + 2f64.powi(-25) } else { TINY };
                let mut g = Gen::new(width as u64);
                let (mut x, mut dy) = (g.hard(2 * rows * width), g.normals(rows * width));
                let (x_t, dy_t) = (tensor(&context, &mut x, f16), tensor(&context, &mut dy, f16));
                let (out, dx) = (blank(&context, rows * width, f16), blank(&context, 2 * rows * width, f16));
                swiglu(&context, x_t.buffer(), out.buffer(), rows, width).unwrap();
                swiglu_backward(&context, x_t.buffer(), dy_t.buffer(), dx.buffer(), rows, width).unwrap();
                let (x, dy) = (wide(&x), wide(&dy));
                let want = swiglu_reference::swiglu(&x, width);
                let place = |i: usize| (i / width * 2 * width + i % width, i / width * 2 * width + width + i % width);
                assert_within(&what, &out.to_vec().unwrap(), &want, |i| {
                    let (gate, up) = place(i);
                    errors(Unary::Silu, x[gate]).0 * 1.01 * x[up].abs() + 2.0 * U32 * want[i].abs() + elem(want[i])
                });
                let want = swiglu_reference::swiglu_backward(&x, &dy, width);
                assert_within(&format!("d {what}"), &dx.to_vec().unwrap(), &want, |i| {
                    let at = i / (2 * width) * width + i % width;
                    let (gate, up) = place(at);
                    let (silu, grad) = errors(Unary::Silu, x[gate]);
                    let own = if i % (2 * width) < width { x[up].abs() * grad } else { silu };
                    own * dy[at].abs() * 1.01 + 4.0 * U32 * want[i].abs() + elem(want[i])
                });
            }
        }
    }
}

#[test]
fn swiglu_reference_matches_central_differences() {
    let mut g = Gen::new(3);
    let (x, dy) = (wide(&g.normals(2 * 2 * 3)), wide(&g.normals(2 * 3)));
    let loss = |x: &[f64]| swiglu_reference::swiglu(x, 3).iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>();
    let grad = swiglu_reference::swiglu_backward(&x, &dy, 3);
    for i in 0..x.len() {
        let (mut up, mut down) = (x.clone(), x.clone());
        (up[i], down[i]) = (x[i] + 1e-5, x[i] - 1e-5);
        let difference = (loss(&up) - loss(&down)) / 2e-5;
        assert!((difference - grad[i]).abs() < 1e-8, "{i}: {difference} and {}", grad[i]);
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let context = &every_tier()[0];
    let (x, y) = (blank(context, 8, false), blank(context, 7, false));
    assert!(matches!(unary(context, Unary::Exp, x.buffer(), y.buffer()), Err(Error::Shape { .. })));
    assert!(matches!(swiglu(context, x.buffer(), y.buffer(), 1, 4), Err(Error::Shape { .. })));
}
