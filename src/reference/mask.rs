//! Masks of one bit per element.

/// `x` where the mask's bit is set, else 0; rows of `cols` start at a word, the first column is the lowest bit.
#[must_use]
pub fn mask(x: &[f64], bits: &[u32], cols: usize) -> Vec<f64> {
    let words = cols.div_ceil(32);
    let passes = |i: usize| bits[i / cols * words + i % cols / 32] >> (i % cols % 32) & 1 == 1;
    x.iter().enumerate().map(|(i, v)| if passes(i) { *v } else { 0.0 }).collect()
}
