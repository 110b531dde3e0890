//! Constants that published formats fix.

/// NF4's levels by code (Dettmers et al., "QLoRA", arXiv 2305.14314, appendix E, as bitsandbytes has them).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The levels of bitsandbytes' 4-bit float by code: bit 3 is the sign; the magnitudes are not in the order of the codes.
pub const FP4: [f32; 16] = {
    const MAGNITUDES: [f32; 8] = [0.0, 0.0625 / 12.0, 8.0 / 12.0, 1.0, 4.0 / 12.0, 6.0 / 12.0, 2.0 / 12.0, 3.0 / 12.0];
    let mut table = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        table[i] = MAGNITUDES[i];
        table[i + 8] = -MAGNITUDES[i];
        i += 1;
    }
    table
};

/// E2M1 by code: OCP Microscaling Formats (MX) Specification 1.0, section 5.3.3.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// BitDistiller's 3-bit NF-asym (arXiv 2402.10631) by code: codes 0 to 2 are the negative levels, in units of |min|; 3 is zero; 4 to 7 are
/// the positive ones, in units of max.
pub const NF3: [f32; 8] = [-1.0, -0.535_022_74, -0.246_931_4, 0.0, 0.183_337_52, 0.381_993_95, 0.622_985_66, 1.0];

/// Clip in standard deviations at which rounding of normal data to 2^b centred levels has the least squared error, for b = 1 to 8 (QuEST,
/// arXiv 2502.05003; the first is sqrt(2 / pi)).
pub const GAUSSIAN_CLIP: [f64; 8] = [
    0.797_884_558_714_091_3,
    1.493_534_620_001_591_3,
    2.051_068_354_131_873,
    2.513_930_578_568_423,
    2.916_093_883_496_122_5,
    3.276_597_282_593_217,
    3.601_049_718_822_165_5,
    3.884_938_678_807_525,
];
/// The same for ternary levels.
pub const GAUSSIAN_CLIP_TERNARY: f64 = 1.224_008_951_903_085_5;
/// The value of 1.0 on E2M1's grid in standard deviations, by the same criterion.
pub const GAUSSIAN_UNIT_E2M1: f64 = 0.487_079_483_934_662;

/// The signed dynamic map that bitsandbytes quantizes scales with (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv
/// 2110.02861, section 1.3): 256 ascending values.
#[must_use]
pub fn dynamic_map() -> [f32; 256] {
    let mut values = vec![0.0f64, 1.0];
    for i in 0..7 {
        // 2^i + 1 equally spaced points of [0.1, 1]; the means of neighbours.
        let points = 1usize << i;
        for j in 0..points {
            #[expect(clippy::cast_precision_loss, reason = "at most 64")]
            let mean = 0.1 + 0.9 * (j as f64 + 0.5) / points as f64;
            let value = mean * 10f64.powi(i - 6);
            values.extend([value, -value]);
        }
    }
    values.sort_by(f64::total_cmp);
    let mut map = [0.0; 256];
    for (to, from) in map.iter_mut().zip(values) {
        #[expect(clippy::cast_possible_truncation, reason = "the map is defined in f32")]
        let rounded = from as f32;
        *to = rounded;
    }
    map
}
