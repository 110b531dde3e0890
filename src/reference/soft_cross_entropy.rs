//! Cross-entropy with a teacher's distribution.

/// Losses of rows, and the gradient of their mean.
#[derive(Debug)]
pub struct SoftCrossEntropy {
    /// `[rows]`.
    pub losses: Vec<f64>,
    /// `[rows, classes]`.
    pub grad: Vec<f64>,
}

/// The softmax of a row.
#[must_use]
pub fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
    row.iter().map(|v| (v - largest).exp() / sum).collect()
}

/// `-sum_c softmax(teacher)_c log softmax(logits)_c` per row.
#[must_use]
pub fn soft_cross_entropy(logits: &[f64], teacher: &[f64], classes: usize) -> SoftCrossEntropy {
    let rows = (logits.len() / classes) as f64;
    let (mut losses, mut grad) = (Vec::new(), Vec::new());
    for (z, y) in logits.chunks_exact(classes).zip(teacher.chunks_exact(classes)) {
        let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = z.iter().map(|v| (v - largest).exp()).sum::<f64>().ln() + largest;
        let (own, wanted) = (softmax(z), softmax(y));
        losses.push((0..classes).map(|c| wanted[c] * (log_sum - z[c])).sum());
        grad.extend((0..classes).map(|c| (own[c] - wanted[c]) / rows));
    }
    SoftCrossEntropy { losses, grad }
}
