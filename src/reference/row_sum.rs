//! Sums over the columns of a matrix.

/// The sum of each row of `cols` columns.
#[must_use]
pub fn row_sum(x: &[f64], cols: usize) -> Vec<f64> {
    x.chunks_exact(cols).map(|row| row.iter().sum()).collect()
}
