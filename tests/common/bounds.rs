//! Bounds that several tests share.

use super::U32;
use walsh::kernel::unary::Unary;
use walsh::reference::unary::{normal_cdf, unary as reference};

/// Flush of subnormals, with room for what it is multiplied by.
pub const TINY: f64 = 1e-30;

/// Error of 1 / (1 + exp(-x)): exp is good to 3 + 2 |x| ulp (2 u each), of which the share 1 - s arrives; a division is good to 2.5 ulp.
fn sigmoid_error(x: f64) -> f64 {
    let s = 1.0 / (1.0 + (-x).exp());
    s * ((3.0 + 2.0 * x.abs()) * 2.0 * U32 * (1.0 - s) + 8.0 * U32) + TINY
}

/// Bounds on the f32 errors of f(x) and f'(x) from WGSL's accuracy rules, first order.
pub fn errors(function: Unary, x: f64) -> (f64, f64) {
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

/// Bounds on the errors of a layer norm or RMS norm of one row.
pub struct RowError {
    pub mean: f64,
    pub rstd: f64,
    /// Relative error of rstd.
    pub rho: f64,
    /// Absolute error of the mean as the forward pass uses it.
    pub delta: f64,
}

/// n terms summed in any order, twice: with e1 = (n + 3) u mean|x| for the first mean, the correction leaves delta = (n + 5) u mean|d| for
/// differences d with mean|d| <= sd + e1; the squares' sum is off by (n + 8) u (var + 2 e1^2) + 2 e1 delta; inverseSqrt has 2 ulp.
pub fn row_error(row: &[f64], centered: bool, eps: f64) -> RowError {
    let n = row.len() as f64;
    let mean = if centered { row.iter().sum::<f64>() / n } else { 0.0 };
    let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let e1 = if centered { (n + 3.0) * U32 * row.iter().map(|v| v.abs()).sum::<f64>() / n } else { 0.0 };
    let delta = if centered { (n + 5.0) * U32 * (var.sqrt() + e1) } else { 0.0 };
    let rho = 0.5 * ((n + 8.0) * U32 * (var + 2.0 * e1 * e1) + 2.0 * e1 * delta) / (var + eps) + 6.0 * U32;
    RowError { mean, rstd: 1.0 / (var + eps).sqrt(), rho, delta }
}

impl RowError {
    /// Of `(x - mean) rstd weight + bias`, which is `want`.
    pub fn of_normed(&self, x: f64, weight: f64, bias: f64, want: f64) -> f64 {
        let d = (x - self.mean).abs();
        let normed = d * self.rstd;
        let error = weight.abs() * (self.rstd * (self.delta + 2.0 * U32 * d) + normed * (self.rho + 3.0 * U32));
        error + 2.0 * U32 * (bias.abs() + want.abs())
    }
}
