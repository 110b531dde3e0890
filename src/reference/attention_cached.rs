//! Attention of one new token against a cache.

/// q `[batch, heads, head_dim]`; caches `[batch, heads, max_seq, head_dim]` of which the first `count` rows count.
pub fn attention_cached(
    q: &[f64],
    keys: &[f64],
    values: &[f64],
    head_dim: usize,
    max_seq: usize,
    count: usize,
) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    for (bh, q) in q.chunks_exact(head_dim).enumerate() {
        let row = |cache: &'_ [f64], k: usize| {
            let at = (bh * max_seq + k) * head_dim;
            cache[at..at + head_dim].to_vec()
        };
        let scores: Vec<f64> = (0..count)
            .map(|k| row(keys, k).iter().zip(q).map(|(k, q)| k * q).sum::<f64>() / (head_dim as f64).sqrt())
            .collect();
        let p = super::softmax::softmax(&scores, count);
        for (k, p) in p.iter().enumerate() {
            for (i, v) in row(values, k).iter().enumerate() {
                out[bh * head_dim + i] += p * v;
            }
        }
    }
    out
}
