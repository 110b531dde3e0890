//! Broadcasting.

use crate::kernel::binary::Binary;

/// Row-major index into a tensor of `shape` for the element with index `at` of a tensor of `target`.
pub fn broadcast_index(mut at: usize, target: &[usize], shape: &[usize]) -> usize {
    let lead = target.len() - shape.len();
    let (mut index, mut stride) = (0, 1);
    for i in (0..target.len()).rev() {
        let here = at % target[i];
        at /= target[i];
        if i >= lead {
            index += stride * if shape[i - lead] == 1 { 0 } else { here };
            stride *= shape[i - lead];
        }
    }
    index
}

/// Sums `x` of `x_shape` to `shape`.
pub fn sum_to(x: &[f64], x_shape: &[usize], shape: &[usize]) -> Vec<f64> {
    let mut out = vec![0.0; shape.iter().product()];
    for (i, v) in x.iter().enumerate() {
        out[broadcast_index(i, x_shape, shape)] += v;
    }
    out
}

/// `a op b` with broadcasting to `shape`.
pub fn binary(op: Binary, a: (&[f64], &[usize]), b: (&[f64], &[usize]), shape: &[usize]) -> Vec<f64> {
    (0..shape.iter().product())
        .map(|i| {
            let (x, y) = (a.0[broadcast_index(i, shape, a.1)], b.0[broadcast_index(i, shape, b.1)]);
            match op {
                Binary::Add => x + y,
                Binary::Sub => x - y,
                Binary::Mul => x * y,
                Binary::Div => x / y,
            }
        })
        .collect()
}

/// The gradients of a and b from that of the result.
pub fn binary_backward(
    op: Binary,
    a: (&[f64], &[usize]),
    b: (&[f64], &[usize]),
    shape: &[usize],
    dy: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let (mut da, mut db) = (vec![0.0; a.0.len()], vec![0.0; b.0.len()]);
    for (n, d) in dy.iter().enumerate() {
        let (i, j) = (broadcast_index(n, shape, a.1), broadcast_index(n, shape, b.1));
        let (x, y) = (a.0[i], b.0[j]);
        let (u, v) = match op {
            Binary::Add => (1.0, 1.0),
            Binary::Sub => (1.0, -1.0),
            Binary::Mul => (y, x),
            Binary::Div => (1.0 / y, -x / (y * y)),
        };
        da[i] += d * u;
        db[j] += d * v;
    }
    (da, db)
}
