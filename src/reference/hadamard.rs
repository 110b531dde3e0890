//! The Walsh-Hadamard transform and its random signs.

use crate::random::philox4x32_10;

/// Rows of the matrices of order 12, 20 and 28, the highest of the bits is the first column, 1 is -1.
const H12: [u32; 12] = [0x400, 0xd55, 0x13c, 0x769, 0x04f, 0x5da, 0x313, 0x676, 0x3c4, 0x69d, 0x0f1, 0x5a7];
const H20: [u32; 20] = [
    0x7bcc9, 0xbdc74, 0xdee2a, 0xef705, 0xf7992, 0x83ec6, 0x45d63, 0x26eb1, 0x17758, 0x0f9ac, 0xca5f0, 0xe52e8,
    0x72b64, 0x397a2, 0x9cbc1, 0xb65ef, 0x5f2f7, 0xabb7b, 0xd1fbd, 0x6cfde,
];
const H28: [u32; 28] = [
    0x7e7_96b3, 0xbe3_eb59, 0xdf1_d5ec, 0xef8_eab6, 0xf7c_751b, 0xfbe_1acd, 0xfcf_2d66, 0xc2f_e62d, 0xe17_d356,
    0x71b_c9ab, 0x39d_e4d5, 0x1de_f26a, 0x0ff_5935, 0x87f_8cda, 0xa4c_dfe1, 0x536_6ff0, 0xa9b_37b8, 0x54d_bb9c,
    0x2a6_fd8e, 0x953_7e87, 0x4b9_bf43, 0x994_8f3f, 0x4ca_47df, 0x275_23ef, 0x92a_b1f7, 0xc85_78fb, 0x652_bc7d,
    0x329_5e7e,
];

/// The order of the matrix in blocks of `n` that is no power of two, or 1.
fn factor(n: usize) -> usize {
    let odd = n >> n.trailing_zeros();
    if odd == 1 { 1 } else { 4 * odd }
}

/// The sign of entry `[row][column]` of the matrix of order `n`, one of 2^k and of 12, 20 or 28 times 2^k.
pub fn sign(n: usize, row: usize, column: usize) -> f64 {
    let m = factor(n);
    let chunk = n / m;
    let (r, c) = (row / chunk, column / chunk);
    let outer = match m {
        12 => H12[r] >> (11 - c) & 1,
        20 => H20[r] >> (19 - c) & 1,
        28 => H28[r] >> (27 - c) & 1,
        _ => 0,
    };
    let inner = ((row % chunk) & (column % chunk)).count_ones();
    if (outer + inner).is_multiple_of(2) { 1.0 } else { -1.0 }
}

/// `x H` of every block of `n`, or `x H^T`: sums over the chunks by the matrix, over a chunk by butterflies.
pub fn hadamard(x: &[f64], n: usize, transpose: bool) -> Vec<f64> {
    let m = factor(n);
    let chunk = n / m;
    let mut out = Vec::with_capacity(x.len());
    for block in x.chunks_exact(n) {
        let mut y: Vec<f64> = (0..n)
            .map(|i| {
                let (to, at) = (i / chunk, i % chunk);
                let entry = |from| {
                    if transpose { sign(n, to * chunk, from * chunk) } else { sign(n, from * chunk, to * chunk) }
                };
                (0..m).map(|from| entry(from) * block[from * chunk + at]).sum()
            })
            .collect();
        let mut span = 1;
        while span < chunk {
            for start in (0..n).step_by(2 * span) {
                for i in start..start + span {
                    (y[i], y[i + span]) = (y[i] + y[i + span], y[i] - y[i + span]);
                }
            }
            span *= 2;
        }
        let scale = 1.0 / (n as f64).sqrt();
        out.extend(y.iter().map(|v| v * scale));
    }
    out
}

/// The random signs of `cols` columns.
pub fn signs(cols: usize, seed: u64, op: u32, step: u32) -> Vec<f64> {
    let key = [seed as u32, (seed >> 32) as u32];
    (0..cols)
        .map(|c| {
            let word = philox4x32_10(key, [(c / 128) as u32, op, step, 0])[c / 32 % 4];
            if word >> (c % 32) & 1 == 1 { -1.0 } else { 1.0 }
        })
        .collect()
}
