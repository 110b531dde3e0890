//! Elementwise functions with their derivatives.

use super::matmul::erf;
use crate::kernel::unary::Unary;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The normal distribution function, accurate relative to its value also in the tail.
pub fn normal_cdf(x: f64) -> f64 {
    if x < -5.0 {
        // The asymptotic continued fraction of the Mills ratio.
        let mut fraction = 0.0;
        for k in (1..=60).rev() {
            fraction = f64::from(k) / (-x + fraction);
        }
        (-0.5 * x * x).exp() / (std::f64::consts::TAU.sqrt() * (-x + fraction))
    } else {
        0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
    }
}

/// Returns (f(x), f'(x)).
pub fn unary(function: Unary, x: f64) -> (f64, f64) {
    match function {
        Unary::GeluErf => {
            let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
            (x * normal_cdf(x), normal_cdf(x) + x * density)
        }
        Unary::GeluTanh => {
            let a = (2.0 / std::f64::consts::PI).sqrt();
            let s = sigmoid(2.0 * a * (x + 0.044715 * x * x * x));
            (x * s, s + x * s * (1.0 - s) * 2.0 * a * (1.0 + 3.0 * 0.044715 * x * x))
        }
        Unary::Silu => {
            let s = sigmoid(x);
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Unary::Exp => (x.exp(), x.exp()),
        Unary::Neg => (-x, -1.0),
        Unary::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        Unary::Square => (x * x, 2.0 * x),
        Unary::Sqrt => (x.sqrt(), 0.5 / x.sqrt()),
        Unary::Reciprocal => (1.0 / x, -1.0 / (x * x)),
        Unary::Log => (x.ln(), 1.0 / x),
        Unary::Tanh => (x.tanh(), 1.0 - x.tanh() * x.tanh()),
        Unary::Scale(factor) => (f64::from(factor) * x, factor.into()),
    }
}
