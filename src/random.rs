//! Philox 4x32-10: the counter-based generator that host and device share.
//!
//! A draw is a pure function of a 64-bit key and a 128-bit counter, so that any invocation, on any device and in any
//! order, computes its own bits, and the host recomputes the same ones.
//!
//! Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 4.2; the test
//! vectors are those published with Random123.

/// Multiplier of the counter's word 0.
const PHILOX_M0: u32 = 0xD251_1F53;
/// Multiplier of the counter's word 2.
const PHILOX_M1: u32 = 0xCD9E_8D57;
/// What each round but the first adds to the key's word 0 (the golden ratio's fraction).
const PHILOX_W0: u32 = 0x9E37_79B9;
/// What each round but the first adds to the key's word 1 (the fraction of sqrt 3).
const PHILOX_W1: u32 = 0xBB67_AE85;
/// Rounds of the generator.
const PHILOX_ROUNDS: u32 = 10;

/// Last counter word of host streams.
const HOST_COUNTER: u32 = 1;

/// High and low word of a 64-bit value.
const fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, (value & 0xFFFF_FFFF) as u32)
}

/// High and low word of the 64-bit product of two words.
const fn wide_product(a: u32, b: u32) -> (u32, u32) {
    halves(a as u64 * b as u64)
}

/// Returns the 128 random bits that belong to a key and a counter.
///
/// Words are least significant first: a 64-bit seed is the key `[low, high]`.
///
/// ```
/// use walsh::random::philox4x32_10;
///
/// assert_eq!(philox4x32_10([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
/// ```
#[must_use]
pub const fn philox4x32_10(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let mut round = 0;
    while round < PHILOX_ROUNDS {
        if round > 0 {
            k0 = k0.wrapping_add(PHILOX_W0);
            k1 = k1.wrapping_add(PHILOX_W1);
        }
        let (high0, low0) = wide_product(PHILOX_M0, c0);
        let (high1, low1) = wide_product(PHILOX_M1, c2);
        [c0, c1, c2, c3] = [high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0];
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// Maps 32 random bits to a number in [0, 1): their upper 24 bits times 2^-24, which is exact in f32.
#[must_use]
pub fn uniform(bits: u32) -> f32 {
    const UNIT: f32 = 1.0 / 16_777_216.0;
    (bits >> 8) as f32 * UNIT
}

/// A sequential stream of Philox draws for the host.
///
/// The stream's counter is `[index low, index high, stream, 1]`, where `index` counts blocks of four words from 0.
/// Streams of one seed never overlap each other; a stream is the same on every platform. Kernels count
/// `[element / 4, op, step, micro-batch]`, so of one seed the second micro-batch of step `s` drops elements of op 0 by
/// the bits of stream `s`: what must not depend on a dropout mask takes another seed.
#[derive(Clone, Debug)]
pub struct Philox {
    key: [u32; 2],
    stream: u32,
    /// Index of the next block.
    index: u64,
    block: [u32; 4],
    /// Words of `block` that were handed out.
    used: usize,
}

impl Philox {
    /// Starts stream `stream` of `seed` at its first word.
    #[must_use]
    pub fn new(seed: u64, stream: u32) -> Self {
        let (high, low) = halves(seed);
        Self { key: [low, high], stream, index: 0, block: [0; 4], used: 4 }
    }

    /// Returns the stream's next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == self.block.len() {
            let (high, low) = halves(self.index);
            self.block = philox4x32_10(self.key, [low, high, self.stream, HOST_COUNTER]);
            self.index = self.index.wrapping_add(1);
            self.used = 0;
        }
        let word = self.block[self.used];
        self.used += 1;
        word
    }

    /// Returns a number in [0, 1): a multiple of 2^-53, made of the next two words.
    pub fn next_f64(&mut self) -> f64 {
        const UNIT: f64 = 1.0 / 9_007_199_254_740_992.0;
        let high = f64::from(self.next_u32() >> 5);
        let low = f64::from(self.next_u32() >> 6);
        (high * 67_108_864.0 + low) * UNIT
    }

    /// Returns an integer in `0..n`, each with probability exactly 1/n given independent uniform words.
    ///
    /// Source: Lemire, "Fast Random Integer Generation in an Interval", 2019, algorithm 5.
    ///
    /// # Panics
    ///
    /// Panics if `n` is 0, since the range is empty then.
    pub fn below(&mut self, n: u32) -> u32 {
        assert!(n > 0, "Philox::below needs a range of at least one value");
        let (mut value, mut rest) = wide_product(self.next_u32(), n);
        if rest < n {
            // 2^32 mod n: that many low products would make some values likelier than others.
            let surplus = n.wrapping_neg() % n;
            while rest < surplus {
                (value, rest) = wide_product(self.next_u32(), n);
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        let cases = [
            ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, expected) in cases {
            assert_eq!(philox4x32_10(key, counter), expected, "key {key:08x?}, counter {counter:08x?}");
        }
    }

    #[test]
    fn uniform_covers_the_half_open_unit_interval() {
        assert_eq!(uniform(0), 0.0);
        assert_eq!(uniform(0xFF), 0.0);
        assert_eq!(uniform(0x100), f32::EPSILON / 2.0);
        assert_eq!(uniform(1 << 31), 0.5);
        assert_eq!(uniform(u32::MAX), 1.0 - f32::EPSILON / 2.0);
    }

    #[test]
    fn stream_is_the_blocks_in_order() {
        let seed = 0x0123_4567_89AB_CDEF;
        let mut stream = Philox::new(seed, 7);
        for index in 0..5 {
            for word in philox4x32_10([0x89AB_CDEF, 0x0123_4567], [index, 0, 7, 1]) {
                assert_eq!(stream.next_u32(), word, "block {index}");
            }
        }
        assert_ne!(Philox::new(seed, 8).next_u32(), Philox::new(seed, 7).next_u32());
    }

    #[test]
    fn index_carries_into_the_counters_second_word() {
        let mut stream = Philox::new(1, 2);
        stream.index = u64::from(u32::MAX);
        let words: Vec<u32> = (0..8).map(|_| stream.next_u32()).collect();
        assert_eq!(words[..4], philox4x32_10([1, 0], [u32::MAX, 0, 2, 1]));
        assert_eq!(words[4..], philox4x32_10([1, 0], [0, 1, 2, 1]));
    }

    #[test]
    fn f64_uses_53_bits_of_two_words() {
        let (mut words, mut floats) = (Philox::new(3, 0), Philox::new(3, 0));
        for _ in 0..1000 {
            let bits = (u64::from(words.next_u32() >> 5) << 26) | u64::from(words.next_u32() >> 6);
            let value = floats.next_f64();
            assert!((0.0..1.0).contains(&value));
            assert_eq!(value, bits as f64 / (1u64 << 53) as f64);
        }
    }

    #[test]
    fn below_is_in_range_and_even() {
        const DRAWS: u32 = 60_000;
        let mut stream = Philox::new(11, 0);
        assert!((0..100).all(|_| stream.below(1) == 0));
        for n in [2u32, 3, 7, 60] {
            let mut counts = vec![0u32; n as usize];
            for _ in 0..DRAWS {
                counts[stream.below(n) as usize] += 1;
            }
            let p = 1.0 / f64::from(n);
            let sigma = (f64::from(DRAWS) * p * (1.0 - p)).sqrt();
            for (value, &count) in counts.iter().enumerate() {
                let off = (f64::from(count) - f64::from(DRAWS) * p).abs();
                assert!(off < 6.0 * sigma, "value {value} of {n} came {count} times");
            }
        }
        // With n = 3/4 of 2^32 and no rejection, two of four words would give a multiple of three: half, not a third.
        let thirds = f64::from((0..DRAWS).map(|_| u32::from(stream.below(3 << 30).is_multiple_of(3))).sum::<u32>());
        let expected = f64::from(DRAWS) / 3.0;
        assert!((thirds - expected).abs() < 6.0 * (expected * 2.0 / 3.0).sqrt(), "{thirds} multiples of three");
    }

    #[test]
    #[should_panic(expected = "at least one value")]
    fn below_rejects_an_empty_range() {
        Philox::new(0, 0).below(0);
    }
}
