//! Token and position embeddings. `keep` holds the factor of dropout for each element of the output.

/// `(table[tokens[r]] + positions[r % seq + offset]) * keep`; NaN where a token or position is beyond its table. An empty `positions` adds
/// nothing.
#[must_use]
pub fn forward(
    tokens: &[u32],
    table: &[f64],
    positions: &[f64],
    cols: usize,
    seq: usize,
    offset: usize,
    keep: &[f64],
) -> Vec<f64> {
    let mut out = Vec::new();
    for (r, token) in tokens.iter().enumerate() {
        for c in 0..cols {
            let mut value = table.get(*token as usize * cols + c).copied().unwrap_or(f64::NAN);
            if !positions.is_empty() {
                value += positions.get((r % seq + offset) * cols + c).copied().unwrap_or(f64::NAN);
            }
            out.push(value * keep[r * cols + c]);
        }
    }
    out
}

/// Gradients of table `[vocab, cols]` and positions `[block, cols]`.
#[must_use]
pub fn backward(
    dout: &[f64],
    tokens: &[u32],
    keep: &[f64],
    cols: usize,
    vocab: usize,
    block: usize,
    seq: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut table, mut positions) = (vec![0.0; vocab * cols], vec![0.0; block * cols]);
    for (r, token) in tokens.iter().enumerate() {
        for c in 0..cols {
            let value = dout[r * cols + c] * keep[r * cols + c];
            if (*token as usize) < vocab {
                table[*token as usize * cols + c] += value;
            }
            if block > 0 {
                positions[(r % seq) * cols + c] += value;
            }
        }
    }
    (table, positions)
}
