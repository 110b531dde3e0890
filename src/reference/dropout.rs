//! Inverted dropout.

/// Philox 4x32-10: four random words for a key and a counter.
pub fn philox(key: u64, mut counter: [u32; 4]) -> [u32; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let a = 0xD251_1F53u64 * u64::from(counter[0]);
        let b = 0xCD9E_8D57u64 * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ k0, b as u32, (a >> 32) as u32 ^ counter[3] ^ k1, a as u32];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    counter
}

/// The factors of elements 0 to `len - 1`: 0 with probability `p`, else 1 / (1 - p) rounded to f32.
pub fn factors(len: usize, p: f64, seed: u64, op: u32, step: u32, micro: u32) -> Vec<f64> {
    let threshold = (p * 4_294_967_296.0).round() as u32;
    let scale = f64::from((1.0 / (1.0 - p)) as f32);
    (0..len)
        .map(|i| {
            let bits = philox(seed, [(i / 4) as u32, op, step, micro])[i % 4];
            if bits < threshold { 0.0 } else { scale }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn philox_known_answers() {
        // From the known-answer file of the Random123 distribution.
        assert_eq!(super::philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(super::philox(u64::MAX, [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }
}
