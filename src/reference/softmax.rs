//! Softmax over rows.

/// exp(x) / sum exp(x) for each row of `cols`.
pub fn softmax(x: &[f64], cols: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(cols) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - top).exp()).sum();
        y.extend(row.iter().map(|v| (v - top).exp() / sum));
    }
    y
}

/// The gradient of x from the result y.
pub fn softmax_backward(y: &[f64], dy: &[f64], cols: usize) -> Vec<f64> {
    let mut dx = Vec::with_capacity(y.len());
    for (y, dy) in y.chunks_exact(cols).zip(dy.chunks_exact(cols)) {
        let sum: f64 = y.iter().zip(dy).map(|(y, d)| y * d).sum();
        dx.extend(y.iter().zip(dy).map(|(y, d)| y * (d - sum)));
    }
    dx
}
