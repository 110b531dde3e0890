//! Sums over the rows of a matrix.

/// The sum of each of `cols` columns.
#[must_use]
pub fn column_sum(x: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).map(|c| x.iter().skip(c).step_by(cols).sum()).collect()
}
