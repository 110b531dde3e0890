//! A layer norm without parameters of columns times a number each.

use super::layer_norm;
use super::scale_columns::{column_dot, scale_columns};

/// `(v - mean) / sqrt(variance + eps) + bias` over each row of `v = u values`.
#[must_use]
pub fn forward(u: &[f64], values: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    layer_norm::forward(&scale_columns(u, values), &vec![1.0; values.len()], bias, eps).out
}

/// Gradients of `u` and of `values`.
#[must_use]
pub fn backward(dz: &[f64], u: &[f64], values: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let dv = layer_norm::backward(dz, &scale_columns(u, values), &vec![1.0; values.len()], eps).dx;
    (scale_columns(&dv, values), column_dot(&dv, u, values.len()))
}
