//! Columns times a number each.

/// `x[r, c] values[c]`.
#[must_use]
pub fn scale_columns(x: &[f64], values: &[f64]) -> Vec<f64> {
    x.iter().enumerate().map(|(i, v)| v * values[i % values.len()]).collect()
}

/// `sum_r x[r, c] d[r, c]` for each of `cols` columns.
#[must_use]
pub fn column_dot(x: &[f64], d: &[f64], cols: usize) -> Vec<f64> {
    let mut sums = vec![0.0; cols];
    for (i, (x, d)) in x.iter().zip(d).enumerate() {
        sums[i % cols] += x * d;
    }
    sums
}
