//! RMS normalisation.

/// Output and reciprocal root mean squares: `out = x / sqrt(mean(x^2) + eps) * weight` for each row.
#[must_use]
pub fn forward(x: &[f64], weight: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let cols = weight.len();
    let (mut out, mut rstds) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(cols) {
        let rstd = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / cols as f64 + eps).sqrt();
        out.extend(row.iter().zip(weight).map(|(v, w)| v * rstd * w));
        rstds.push(rstd);
    }
    (out, rstds)
}

/// Gradients of input and weight from those of the output.
#[must_use]
pub fn backward(dy: &[f64], x: &[f64], weight: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let cols = weight.len();
    let (_, rstds) = forward(x, weight, eps);
    let (mut dx, mut dweight) = (Vec::new(), vec![0.0; cols]);
    for ((dy, x), rstd) in dy.chunks_exact(cols).zip(x.chunks_exact(cols)).zip(rstds) {
        let mean: f64 = (0..cols).map(|c| dy[c] * weight[c] * x[c] * rstd).sum::<f64>() / cols as f64;
        for c in 0..cols {
            dx.push(rstd * (dy[c] * weight[c] - x[c] * rstd * mean));
            dweight[c] += dy[c] * x[c] * rstd;
        }
    }
    (dx, dweight)
}
