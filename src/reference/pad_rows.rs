//! Zeros around a matrix, in float64.

/// `[height, width]` with `x` `[rows, cols]` in its upper left corner.
#[must_use]
pub fn pad_rows(x: &[f64], [rows, cols]: [usize; 2], [height, width]: [usize; 2]) -> Vec<f64> {
    let mut out = vec![0.0; height * width];
    for row in 0..rows {
        out[row * width..row * width + cols].copy_from_slice(&x[row * cols..(row + 1) * cols]);
    }
    out
}
