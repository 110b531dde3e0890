//! Values kept within bounds.

/// Each value, or the nearer of `-limit` and `limit` where it is beyond.
#[must_use]
pub fn clamp(x: &[f64], limit: f64) -> Vec<f64> {
    let one = |v: &f64| match *v {
        v if v > limit => limit,
        v if v < -limit => -limit,
        v => v,
    };
    x.iter().map(one).collect()
}
