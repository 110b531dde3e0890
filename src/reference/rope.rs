//! Rotary position embedding.

/// Turns the heads of `[rows, heads, head_dim]`; the gradient is the same with `sign` -1.
pub fn rope(
    x: &[f64],
    seq: usize,
    heads: usize,
    frequencies: &[f64],
    interleaved: bool,
    position_offset: usize,
    sign: f64,
) -> Vec<f64> {
    let half = frequencies.len();
    let mut out = x.to_vec();
    for (n, head) in out.chunks_exact_mut(2 * half).enumerate() {
        let position = (n / heads) % seq + position_offset;
        for (i, frequency) in frequencies.iter().enumerate() {
            let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let angle = sign * position as f64 * frequency;
            let (u, v) = (head[a], head[b]);
            head[a] = u * angle.cos() - v * angle.sin();
            head[b] = u * angle.sin() + v * angle.cos();
        }
    }
    out
}
