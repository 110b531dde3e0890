//! Softmax attention on packed QKV.

/// Sizes of a problem; dropout factors are per element of `[batch, heads, seq, keys]` with keys padded to a multiple of 4.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    /// Sequences.
    pub batch: usize,
    /// Tokens.
    pub seq: usize,
    /// Heads.
    pub heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Whether later keys are hidden.
    pub causal: bool,
}

impl Dims {
    fn at(&self, b: usize, t: usize, part: usize, h: usize) -> usize {
        (((b * self.seq + t) * 3 + part) * self.heads + h) * self.head_dim
    }

    fn out_at(&self, b: usize, t: usize, h: usize) -> usize {
        ((b * self.seq + t) * self.heads + h) * self.head_dim
    }

    fn factor(&self, factors: Option<&[f64]>, bh: usize, t: usize, k: usize) -> f64 {
        factors.map_or(1.0, |f| f[(bh * self.seq + t) * self.seq.next_multiple_of(4) + k])
    }

    /// Probabilities of query `t` over the keys it sees, and the log of the sum of exponentials.
    pub fn probabilities(&self, qkv: &[f64], b: usize, t: usize, h: usize) -> (Vec<f64>, f64) {
        let (q, d) = (self.at(b, t, 0, h), self.head_dim);
        let end = if self.causal { t + 1 } else { self.seq };
        let scores: Vec<f64> = (0..end)
            .map(|k| {
                let key = self.at(b, k, 1, h);
                (0..d).map(|i| qkv[q + i] * qkv[key + i]).sum::<f64>() / (d as f64).sqrt()
            })
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        (scores.iter().map(|s| (s - top).exp() / sum).collect(), top + sum.ln())
    }
}

/// Returns (out, lse).
pub fn attention(qkv: &[f64], dims: Dims, factors: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
    let d = dims.head_dim;
    let mut out = vec![0.0; dims.batch * dims.seq * dims.heads * d];
    let mut lse = Vec::new();
    for b in 0..dims.batch {
        for h in 0..dims.heads {
            for t in 0..dims.seq {
                let (p, l) = dims.probabilities(qkv, b, t, h);
                lse.push(l);
                let o = dims.out_at(b, t, h);
                for (k, p) in p.iter().enumerate() {
                    let v = dims.at(b, k, 2, h);
                    let weight = p * dims.factor(factors, b * dims.heads + h, t, k);
                    for i in 0..d {
                        out[o + i] += weight * qkv[v + i];
                    }
                }
            }
        }
    }
    (out, lse)
}

/// Returns the gradient of qkv.
pub fn attention_backward(qkv: &[f64], dout: &[f64], dims: Dims, factors: Option<&[f64]>) -> Vec<f64> {
    let d = dims.head_dim;
    let scale = 1.0 / (d as f64).sqrt();
    let mut grad = vec![0.0; qkv.len()];
    for b in 0..dims.batch {
        for h in 0..dims.heads {
            for t in 0..dims.seq {
                let (p, _) = dims.probabilities(qkv, b, t, h);
                let (q, o) = (dims.at(b, t, 0, h), dims.out_at(b, t, h));
                let dp: Vec<f64> = (0..p.len())
                    .map(|k| {
                        let v = dims.at(b, k, 2, h);
                        let f = dims.factor(factors, b * dims.heads + h, t, k);
                        for i in 0..d {
                            grad[v + i] += p[k] * f * dout[o + i];
                        }
                        f * (0..d).map(|i| dout[o + i] * qkv[v + i]).sum::<f64>()
                    })
                    .collect();
                let mean: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                for k in 0..p.len() {
                    let key = dims.at(b, k, 1, h);
                    let ds = p[k] * (dp[k] - mean) * scale;
                    for i in 0..d {
                        grad[q + i] += ds * qkv[key + i];
                        grad[key + i] += ds * qkv[q + i];
                    }
                }
            }
        }
    }
    grad
}
