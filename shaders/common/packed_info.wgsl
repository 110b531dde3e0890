// Where a quantized matrix has what, as `PackedInfo` in src/kernel/packed.rs, and the levels and scales that formats fix.
struct PackedInfo {
    cols: u32,
    row_words: u32,     // words of codes in a row
    groups: u32,        // groups in a row
    group_shift: u32,   // column >> group_shift is the group; 31 where a row has one
    store: u32,         // of scales: 0 f32, 1 f16, 2 E8M0, 3 E4M3, 4 double-quantized
    scale_stride: u32,  // words of scales in a row; 0 where rows share one
    zeros_at: u32,
    zero_stride: u32,
    nested_at: u32,
    map_at: u32,
    zero: f32,          // what integer codes are less than by where groups have no zero points
    code: u32,          // how codes are decoded, for packed_any.wgsl: bits, grid << 4, exponent bits << 8, mantissa bits << 12
}
fn f16_value(bits: u32) -> f32 {
    let mantissa = bits & 1023u;
    let exponent = (bits >> 10u) & 31u;
    // Subnormal halves are normal floats, whatever a driver does to subnormals.
    var v = select((exponent + 112u) << 23u | mantissa << 13u, bitcast<u32>(f32(mantissa) * 5.9604644775390625e-8), exponent == 0u);
    v = select(v, 0x7f800000u | mantissa << 13u, exponent == 31u);
    return bitcast<f32>(v | (bits & 0x8000u) << 16u);
}
fn e8m0_value(byte: u32) -> f32 {
    // 2^-127 is subnormal.
    return bitcast<f32>(select(select(byte << 23u, 0x00400000u, byte == 0u), 0x7fc00000u, byte == 255u));
}
fn e4m3_value(byte: u32) -> f32 {
    let exponent = (byte >> 3u) & 15u;
    let magnitude = f32((byte & 7u) + select(0u, 8u, exponent > 0u)) * bitcast<f32>((max(exponent, 1u) + 117u) << 23u);
    return bitcast<f32>(select(bitcast<u32>(magnitude), 0x7fc00000u, (byte & 127u) == 127u) | (byte & 128u) << 24u);
}
// Trees of selects: software adapters take ten times as long for a table indexed at run time.
fn nf4_level(code: vec4<u32>) -> vec4<f32> {
    let b0 = (code & vec4<u32>(1u)) != vec4<u32>();
    let b1 = (code & vec4<u32>(2u)) != vec4<u32>();
    let b2 = (code & vec4<u32>(4u)) != vec4<u32>();
    let b3 = (code & vec4<u32>(8u)) != vec4<u32>();
    let v0 = select(vec4<f32>(-1.0), vec4<f32>(-0.6961928009986877), b0);
    let v1 = select(vec4<f32>(-0.5250730514526367), vec4<f32>(-0.39491748809814453), b0);
    let v2 = select(vec4<f32>(-0.28444138169288635), vec4<f32>(-0.18477343022823334), b0);
    let v3 = select(vec4<f32>(-0.09105003625154495), vec4<f32>(0.0), b0);
    let v4 = select(vec4<f32>(0.07958029955625534), vec4<f32>(0.16093020141124725), b0);
    let v5 = select(vec4<f32>(0.24611230194568634), vec4<f32>(0.33791524171829224), b0);
    let v6 = select(vec4<f32>(0.44070982933044434), vec4<f32>(0.5626170039176941), b0);
    let v7 = select(vec4<f32>(0.7229568362236023), vec4<f32>(1.0), b0);
    return select(
        select(select(v0, v1, b1), select(v2, v3, b1), b2),
        select(select(v4, v5, b1), select(v6, v7, b1), b2),
        b3,
    );
}
fn fp4_level(code: vec4<u32>) -> vec4<f32> {
    let b0 = (code & vec4<u32>(1u)) != vec4<u32>();
    let b1 = (code & vec4<u32>(2u)) != vec4<u32>();
    let b2 = (code & vec4<u32>(4u)) != vec4<u32>();
    let v0 = select(vec4<f32>(0.0), vec4<f32>(0.005208333488553762), b0);
    let v1 = select(vec4<f32>(0.6666666865348816), vec4<f32>(1.0), b0);
    let v2 = select(vec4<f32>(0.3333333432674408), vec4<f32>(0.5), b0);
    let v3 = select(vec4<f32>(0.1666666716337204), vec4<f32>(0.25), b0);
    let magnitude = select(select(v0, v1, b1), select(v2, v3, b1), b2);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(magnitude) | (code & vec4<u32>(8u)) << vec4<u32>(28u));
}
fn nf3_level(code: vec4<u32>) -> vec4<f32> {
    let b0 = (code & vec4<u32>(1u)) != vec4<u32>();
    let b1 = (code & vec4<u32>(2u)) != vec4<u32>();
    let v0 = select(vec4<f32>(-1.0), vec4<f32>(-0.5350227355957031), b0);
    let v1 = select(vec4<f32>(-0.2469314038753510), vec4<f32>(0.0), b0);
    let v2 = select(vec4<f32>(0.1833375245332718), vec4<f32>(0.3819939494132996), b0);
    let v3 = select(vec4<f32>(0.6229856610298157), vec4<f32>(1.0), b0);
    return select(select(v0, v1, b1), select(v2, v3, b1), (code & vec4<u32>(4u)) != vec4<u32>());
}
// Two f16 in a word, with an E4M3's seven bits of magnitude from bit 7 on: those whose bits are all ones become NaN.
fn nan_e4m3(halves: u32) -> u32 {
    let all = ((halves & 0x3f803f80u) + 0x00800080u) & 0x40004000u;
    return halves | all | (all - (all >> 5u));
}
