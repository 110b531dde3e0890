//! Cross-entropy of logits with integer targets.

/// Loss of each row, their mean over the rows that count, and the gradient of that mean.
#[derive(Debug)]
pub struct CrossEntropy {
    /// `[rows]`.
    pub losses: Vec<f64>,
    /// The mean over the rows whose target is a class; 0 without any, NaN if a target is neither a class nor `u32::MAX`.
    pub loss: f64,
    /// [rows, classes].
    pub grad: Vec<f64>,
}

/// `log(sum exp(logits)) - logits[target]` per row.
#[must_use]
pub fn cross_entropy(logits: &[f64], targets: &[u32], classes: usize) -> CrossEntropy {
    let count = targets.iter().filter(|t| (**t as usize) < classes).count().max(1) as f64;
    let (mut losses, mut grad) = (Vec::new(), Vec::new());
    for (row, target) in logits.chunks_exact(classes).zip(targets) {
        let target = *target as usize;
        if target >= classes {
            losses.push(if target == u32::MAX as usize { 0.0 } else { f64::NAN });
            grad.extend(row.iter().map(|_| 0.0));
            continue;
        }
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|z| (z - largest).exp()).sum();
        losses.push(sum.ln() + largest - row[target]);
        for (c, z) in row.iter().enumerate() {
            grad.push(((z - largest).exp() / sum - f64::from(u8::from(c == target))) / count);
        }
    }
    let loss = losses.iter().sum::<f64>() / count;
    CrossEntropy { losses, loss, grad }
}
