//! Squared distances of directions.

/// `|a / |a| - b / |b||^2` per row of `cols`, and the gradient of the mean over rows with respect to `a`; 0 for a row of zeros.
#[must_use]
pub fn hidden_distance(a: &[f64], b: &[f64], cols: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = (a.len() / cols) as f64;
    let (mut losses, mut grad) = (Vec::new(), Vec::new());
    for (a, b) in a.chunks_exact(cols).zip(b.chunks_exact(cols)) {
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (a_norm, b_norm) = (norm(a).max(1e-12), norm(b).max(1e-12));
        let direction: Vec<f64> = a.iter().map(|x| x / a_norm).collect();
        let d: Vec<f64> = direction.iter().zip(b).map(|(x, y)| x - y / b_norm).collect();
        losses.push(d.iter().map(|x| x * x).sum());
        let along: f64 = d.iter().zip(&direction).map(|(d, x)| d * x).sum();
        let factor = if norm(a) < 1e-12 { 0.0 } else { 2.0 / a_norm / rows };
        grad.extend(d.iter().zip(&direction).map(|(d, x)| factor * (d - x * along)));
    }
    (losses, grad)
}
