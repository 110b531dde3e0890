//! Gradients of weights that are represented by their signs.

use crate::kernel::sign_gradient::Factor;

/// `f(w) g` for each element of rows of `cols` weights.
#[must_use]
pub fn sign_gradient(factor: Factor, gradient: &[f64], weight: &[f64], cols: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (g, w) in gradient.chunks_exact(cols).zip(weight.chunks_exact(cols)) {
        let n = cols as f64;
        let alpha = w.iter().map(|w| w.abs()).sum::<f64>() / n;
        for (g, w) in g.iter().zip(w) {
            let within = if w.abs() <= 1.0 { 1.0 } else { 0.0 };
            out.push(match factor {
                // It has neither a sign nor a magnitude.
                Factor::Clip | Factor::ThroughMean if w.is_nan() => 0.0,
                Factor::Clip => within * g,
                Factor::ThroughMean => (1.0 / n + alpha * within) * g,
                Factor::Smooth => (1.001 - w.tanh().powi(2)) * g,
            });
        }
    }
    out
}
