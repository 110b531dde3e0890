//! Inverted dropout.

use crate::random::philox4x32_10;

/// The factors of elements 0 to `len - 1`: 0 with probability `p`, else 1 / (1 - p) rounded to f32.
pub fn factors(len: usize, p: f64, seed: u64, op: u32, step: u32, micro: u32) -> Vec<f64> {
    let threshold = (p * 4_294_967_296.0).round() as u32;
    let scale = f64::from((1.0 / (1.0 - p)) as f32);
    (0..len)
        .map(|i| {
            let bits = philox4x32_10([seed as u32, (seed >> 32) as u32], [(i / 4) as u32, op, step, micro])[i % 4];
            if bits < threshold { 0.0 } else { scale }
        })
        .collect()
}
