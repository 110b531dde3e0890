//! Sum and maximum of all elements.

/// The sum of all elements.
#[must_use]
pub fn sum(x: &[f64]) -> f64 {
    x.iter().sum()
}

/// The largest element.
#[must_use]
pub fn max(x: &[f64]) -> f64 {
    x.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}
