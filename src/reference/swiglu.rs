//! `silu(gate) * up`.

use super::unary::unary;
use crate::kernel::unary::Unary::Silu;

/// `x [rows, 2 * width]`.
pub fn swiglu(x: &[f64], width: usize) -> Vec<f64> {
    x.chunks_exact(2 * width).flat_map(|row| (0..width).map(|i| unary(Silu, row[i]).0 * row[width + i])).collect()
}

/// The gradient of x.
pub fn swiglu_backward(x: &[f64], dy: &[f64], width: usize) -> Vec<f64> {
    let mut dx = Vec::with_capacity(x.len());
    for (row, dy) in x.chunks_exact(2 * width).zip(dy.chunks_exact(width)) {
        dx.extend((0..width).map(|i| dy[i] * row[width + i] * unary(Silu, row[i]).1));
        dx.extend((0..width).map(|i| dy[i] * unary(Silu, row[i]).0));
    }
    dx
}
