//! Matrix products in float64.

use crate::kernel::matmul::{Activation, Form};

/// `a b` in the given form, one matrix.
#[must_use]
pub fn matmul(form: Form, [m, n, k]: [usize; 3], a: &[f64], b: &[f64]) -> Vec<f64> {
    let a_at = |i: usize, p: usize| if form == Form::Tn { a[p * m + i] } else { a[i * k + p] };
    let b_at = |p: usize, j: usize| if form == Form::Nt { b[j * k + p] } else { b[p * n + j] };
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            out[i * n + j] = (0..k).map(|p| a_at(i, p) * b_at(p, j)).sum();
        }
    }
    out
}

/// The error function by its Taylor series for |x| < 3 and the continued fraction of its complement beyond, to about 1e-15.
#[must_use]
pub fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 3.0 {
        let (mut term, mut sum, mut n) = (z, z, 0.0);
        while term.abs() > 1e-17 * sum.abs() && n < 200.0 {
            n += 1.0;
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        // erfc(z) = exp(-z^2) / sqrt(pi) / (z + (1/2) / (z + 1 / (z + (3/2) / (z + ...)))), evaluated from the inside.
        let fraction = (1..60).rev().fold(z, |acc, i| z + f64::from(i) * 0.5 / acc);
        1.0 - (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    value.copysign(x)
}

/// The activation.
#[must_use]
pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// Its derivative.
#[must_use]
pub fn activate_grad(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => {
            0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
                + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
        }
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let t = (c * (x + 0.044715 * x.powi(3))).tanh();
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x)
        }
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            s * (1.0 + x * (1.0 - s))
        }
    }
}
