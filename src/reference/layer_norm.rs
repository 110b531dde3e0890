//! Layer normalisation.

/// Output, means and reciprocal standard deviations.
#[derive(Debug)]
pub struct Forward {
    /// [rows, cols].
    pub out: Vec<f64>,
    /// `[rows]`.
    pub mean: Vec<f64>,
    /// `[rows]`.
    pub rstd: Vec<f64>,
}

/// Gradients of input, weight and bias.
#[derive(Debug)]
pub struct Backward {
    /// [rows, cols].
    pub dx: Vec<f64>,
    /// `[cols]`.
    pub dweight: Vec<f64>,
    /// `[cols]`.
    pub dbias: Vec<f64>,
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias` for each row.
#[must_use]
pub fn forward(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Forward {
    let cols = weight.len();
    let mut result = Forward { out: Vec::new(), mean: Vec::new(), rstd: Vec::new() };
    for row in x.chunks_exact(cols) {
        let mean = row.iter().sum::<f64>() / cols as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
        let rstd = 1.0 / (variance + eps).sqrt();
        for c in 0..cols {
            result.out.push((row[c] - mean) * rstd * weight[c] + bias[c]);
        }
        result.mean.push(mean);
        result.rstd.push(rstd);
    }
    result
}

/// Gradients from those of the output.
#[must_use]
pub fn backward(dy: &[f64], x: &[f64], weight: &[f64], eps: f64) -> Backward {
    let cols = weight.len();
    let saved = forward(x, weight, &vec![0.0; cols], eps);
    let mut result = Backward { dx: Vec::new(), dweight: vec![0.0; cols], dbias: vec![0.0; cols] };
    for (r, (dy, x)) in dy.chunks_exact(cols).zip(x.chunks_exact(cols)).enumerate() {
        let normed: Vec<f64> = x.iter().map(|v| (v - saved.mean[r]) * saved.rstd[r]).collect();
        let mut mean_g = 0.0;
        let mut mean_gx = 0.0;
        for c in 0..cols {
            mean_g += dy[c] * weight[c] / cols as f64;
            mean_gx += dy[c] * weight[c] * normed[c] / cols as f64;
            result.dweight[c] += dy[c] * normed[c];
            result.dbias[c] += dy[c];
        }
        for c in 0..cols {
            result.dx.push(saved.rstd[r] * (dy[c] * weight[c] - mean_g - normed[c] * mean_gx));
        }
    }
    result
}
