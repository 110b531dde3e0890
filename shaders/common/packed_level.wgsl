// Levels and scales of a quantized matrix, for kernels that load codes their own way; imported with parameters as packed.wgsl is.
// Needs: defines {P}_GRID (0 integers, 1 integers with zero points, 2 small floats, 3 NF4, 4 FP4, 5 NF3), {P}_BITS, {P}_EXPONENT and
// {P}_MANTISSA (bits of small floats, else 0); `params.{p}: PackedInfo`; a binding {p}_side: array<u32>.
#import packed_scales p={p}

// Values of codes in units of the scale; `zero` is the group's zero point, see {p}_zero.
fn {p}_level4(code: vec4<u32>, zero: f32) -> vec4<f32> {
#if {P}_GRID < 2
    return vec4<f32>(code) - zero;
#endif
#if {P}_GRID == 2
    let mantissa = code & vec4<u32>((1u << {P}_MANTISSA) - 1u);
    let exponent = (code >> vec4<u32>({P}_MANTISSA)) & vec4<u32>((1u << {P}_EXPONENT) - 1u);
    let hidden = select(vec4<u32>(), vec4<u32>(1u << {P}_MANTISSA), exponent > vec4<u32>());
    // 2^(exponent - bias - mantissa bits); the bias is 2^(exponent bits - 1) - 1.
    let power = max(exponent, vec4<u32>(1u)) + vec4<u32>(128u - (1u << ({P}_EXPONENT - 1u)) - {P}_MANTISSA);
    let magnitude = vec4<f32>(mantissa + hidden) * bitcast<vec4<f32>>(power << vec4<u32>(23u));
    var bits = bitcast<vec4<u32>>(magnitude);
#if {P}_EXPONENT == 4
    bits = select(bits, vec4<u32>(0x7fc00000u), (code & vec4<u32>(127u)) == vec4<u32>(127u));
#endif
#if {P}_EXPONENT == 5
    bits = select(bits, vec4<u32>(0x7f800000u) | (mantissa << vec4<u32>(21u)), exponent == vec4<u32>(31u));
#endif
    return bitcast<vec4<f32>>(bits | ((code >> vec4<u32>({P}_EXPONENT + {P}_MANTISSA)) << vec4<u32>(31u)));
#endif
#if {P}_GRID == 3
    return nf4_level(code);
#endif
#if {P}_GRID == 4
    return fp4_level(code);
#endif
#if {P}_GRID == 5
    return nf3_level(code);
#endif
}

#if {P}_GRID == 5
// Scales for positive and for negative levels.
fn {p}_scale(row: u32, group: u32) -> vec2<f32> { return vec2<f32>({p}_stored(row, 2u * group), {p}_stored(row, 2u * group + 1u)); }
fn {p}_scaled4(level: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    return level * select(vec4<f32>(scale.x), vec4<f32>(scale.y), level < vec4<f32>());
}
#else
fn {p}_scale(row: u32, group: u32) -> f32 { return {p}_stored(row, group); }
fn {p}_scaled4(level: vec4<f32>, scale: f32) -> vec4<f32> { return level * scale; }
#endif
// What integer codes are less than by: the group's zero point, in a word with others, or the same for the whole matrix.
#if {P}_GRID == 1
fn {p}_zero_word(row: u32, group: u32) -> u32 { return {p}_side[params.{p}.zeros_at + row * params.{p}.zero_stride + group / 4u]; }
fn {p}_zero_in(word: u32, group: u32) -> f32 { return f32((word >> (group % 4u * 8u)) & 255u); }
fn {p}_zero(row: u32, group: u32) -> f32 { return {p}_zero_in({p}_zero_word(row, group), group); }
#else
fn {p}_zero(row: u32, group: u32) -> f32 { return params.{p}.zero; }
#endif
