// From the total of a span to its scale as it is stored. Needs `params: Recipe` and CLASS, see quantize_code.wgsl.

fn power_of_two(e: i32) -> f32 { return bitcast<f32>(u32(e + 127) << 23u); }
// 0 where `v` is below the smallest normal number, whatever a device makes of such.
fn flushed(v: f32) -> f32 { return select(v, 0.0, (bitcast<u32>(v) & 0x7f800000u) == 0u); }
fn f16_bits(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    let a = min(bits & 0x7fffffffu, 0x477fe000u); // 65504
    let normal = (a - 0x37fff001u + ((a >> 13u) & 1u)) >> 13u;
    return ((bits >> 16u) & 0x8000u) | select(normal, u32(round(bitcast<f32>(a) * 16777216.0)), a < 0x38800000u);
}
// Of a positive number, to the nearest, at most 448.
fn e4m3_bits(v: f32) -> u32 {
    let a = min(bitcast<u32>(v), 0x43e00000u); // 448
    return select((a - 0x3bf80001u + ((a >> 20u) & 1u)) >> 20u, u32(round(bitcast<f32>(a) * 512.0)), a < 0x3c800000u);
}
// As ggml has it: ties up, nothing between the largest subnormal and the smallest normal number, 248 and more to the largest value.
fn ue4m3_bits(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    if bits < 0x3c800000u { return min(u32(v * 512.0 + 0.5), 7u); }
    let code = (bits >> 20u) - 960u + ((bits >> 19u) & 1u);
    return select(code, 126u, code >= 120u);
}
// The byte of E8M0 for the bits of a largest magnitude, or with rule 4 of a scale.
fn e8m0_bits(m: u32) -> u32 {
    let e = i32(m >> 23u) - i32(params.top) + i32(once((m & 0x7fffffu) >= params.threshold));
    return select(u32(clamp(e, 0, 254)), 0u, m == 0u);
}

// Scales before and after storage; NF3 has a second one for negative values.
struct Stored { pick: vec2<f32>, bits: vec2<u32>, zero: u32, good: bool }

fn ideal(t: Total, count: f32) -> vec2<f32> {
    let m = bitcast<f32>(t.m);
    switch params.rule {
        case 0u: { return vec2<f32>(m / params.max, 0.0); }
        case 1u: { return vec2<f32>(select(-m, m, (t.key & 1u) == 1u) / params.max, 0.0); }
#if CLASS == 4
        case 2u: { return vec2<f32>(t.a, t.b); }
#else
        case 2u: { return vec2<f32>(t.a / params.max + t.b / params.max, 0.0); }
#endif
        case 3u: {
            // Large ones carry big_factor once.
            let average = select(t.a / count, (t.a * params.big_factor + t.b) / count / params.big_factor, t.b > 0.0);
            return vec2<f32>(max(params.gain * average, params.least), 0.0);
        }
        default: {
            let scaled = sqrt((t.a * params.big_factor * params.big_factor + t.b) / count) / params.big_factor;
            return vec2<f32>(fma(params.gain, select(sqrt(t.a / count), scaled, t.b > 0.0), params.epsilon), 0.0);
        }
    }
}
fn stored_bits(scale: f32, m: u32, factor: f32) -> u32 {
    switch params.p.store {
        case 1u: { return f16_bits(scale); }
        case 2u: { return e8m0_bits(select(m, bitcast<u32>(scale), params.rule == 4u)); }
        case 3u: {
            if params.ue4m3 == 1u { return ue4m3_bits(scale); }
            return e4m3_bits(scale / factor);
        }
        default: { return bitcast<u32>(scale); }
    }
}
fn bad_bits() -> u32 {
    switch params.p.store {
        case 1u: { return 0x7e00u; }
        case 2u: { return 255u; }
        case 3u: { return 127u; }
        default: { return 0x7fc00000u; }
    }
}
// What a stored scale stands for, other than a power of two.
fn stored_value(bits: u32, factor: f32) -> f32 {
    switch params.p.store {
        case 1u: { return f16_value(bits); }
        case 3u: { return e4m3_value(bits) * factor; }
        default: { return bitcast<f32>(bits); }
    }
}
// `count` elements share the scale.
fn stored_of(t: Total, count: f32, factor: f32) -> Stored {
    var s: Stored;
    s.good = t.m < 0x7f800000u;
    let scale = ideal(t, count);
    s.pick = vec2<f32>(flushed(scale.x), flushed(scale.y));
    s.bits = vec2<u32>(stored_bits(s.pick.x, t.m, factor), stored_bits(s.pick.y, t.m, factor));
    if !s.good { s.bits = vec2<u32>(bad_bits()); }
    s.zero = 0u;
#if CLASS == 0
    for (var i = 0u; i < params.zero_points; i++) {
        let scaling = scaling_of(stored_value(s.bits.x, factor));
        s.zero = select(0u, u32(clamp(round(t.b * scaling.x * scaling.y), 0.0, params.high)), s.good);
    }
#endif
    return s;
}
// Two factors whose product divides by `scale`: neither they nor the product's first step overflow or vanish. 0 for a scale of 0.
fn scaling_of(scale: f32) -> vec2<f32> {
    let first = select(1.0, 2.3283064365386963e-10, abs(scale) > 1.8446744073709552e19); // 2^-32 above 2^64
    return select(vec2<f32>(first, 1.0 / (scale * first)), vec2<f32>(), scale == 0.0);
}

// The exponent of a number's bits times `times`, at most 255.
fn exponent_times(bits: u32, times: u32) -> i32 {
    let product = ((bits & 0x7fffffu) | 0x800000u) * times;
    return i32((bits >> 23u) & 255u) - 150 + i32(firstLeadingBit(product));
}
// The header's norm and its reciprocal for the largest stored scale: the bits of a float without sign, or E8M0's byte + 1; 0 where there is none.
fn norms(largest: u32, factor: u32) -> vec2<u32> {
    var e = 0;
    switch params.p.store {
        case 1u: { e = exponent_times(bitcast<u32>(f16_value(largest)), params.span_odd); }
        case 2u: { e = i32(largest) - 128 + exponent_times(factor, params.span_odd); }
        case 3u: {
            let exponent = largest >> 3u;
            let mantissa = (largest & 7u) + select(0u, 8u, exponent > 0u);
            e = exponent_times(factor, mantissa * params.span_odd) + i32(max(exponent, 1u)) - 10;
        }
        default: { e = exponent_times(largest, params.span_odd); }
    }
    let power = select(clamp(13 - e - params.span_exponent, -100, 100), 0, largest == 0u);
    return vec2<u32>(u32(127 + power) << 23u, u32(127 - power) << 23u);
}
