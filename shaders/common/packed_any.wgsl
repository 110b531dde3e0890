// Reads a quantized matrix of any format: what packed.wgsl is specialised by is a parameter here, for operands that a workgroup decodes once for
// many uses. The functions have the same names. Import: `#import packed_any p=a`. Needs: `params.{p}: PackedInfo`; bindings {p}_codes and
// {p}_side, both array<u32>.
#import packed_info
#import packed_scales p={p}

// Codes of elements 4 quad .. 4 quad + 3 of the unit of 32 that starts at `word`.
fn {p}_codes4(word: u32, quad: u32) -> vec4<u32> {
    let bits = params.{p}.code & 15u;
    if bits == 8u { return (vec4<u32>({p}_codes[word + quad]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u); }
    var code = vec4<u32>();
    if (bits & 4u) != 0u {
        let plane = {p}_codes[word + quad / 2u] >> (quad % 2u * 16u);
        code = (vec4<u32>(plane) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    }
    if (bits & 2u) != 0u {
        let low = bits & 4u;
        let plane = {p}_codes[word + low + quad / 4u] >> (quad % 4u * 8u);
        code |= ((vec4<u32>(plane) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u)) << vec4<u32>(low);
    }
    if (bits & 1u) != 0u {
        let low = bits & 6u;
        let plane = {p}_codes[word + low] >> (quad * 4u);
        code |= ((vec4<u32>(plane) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u)) << vec4<u32>(low);
    }
    return code;
}

// Values of codes in units of the scale.
fn {p}_level4(code: vec4<u32>, zero: f32) -> vec4<f32> {
    let format = params.{p}.code;
    if ((format >> 4u) & 15u) < 2u { return vec4<f32>(code) - zero; }
    if (format & 15u) < 5u {
        // The header has the values of the other grids of at most 16.
        return bitcast<vec4<f32>>(vec4<u32>({p}_side[16u + code.x], {p}_side[16u + code.y], {p}_side[16u + code.z], {p}_side[16u + code.w]));
    }
    let exponent_bits = (format >> 8u) & 15u;
    let mantissa_bits = (format >> 12u) & 15u;
    let mantissa = code & vec4<u32>((1u << mantissa_bits) - 1u);
    let exponent = (code >> vec4<u32>(mantissa_bits)) & vec4<u32>((1u << exponent_bits) - 1u);
    let hidden = select(vec4<u32>(), vec4<u32>(1u << mantissa_bits), exponent > vec4<u32>());
    let power = max(exponent, vec4<u32>(1u)) + vec4<u32>(128u - (1u << (exponent_bits - 1u)) - mantissa_bits);
    var bits = bitcast<vec4<u32>>(vec4<f32>(mantissa + hidden) * bitcast<vec4<f32>>(power << vec4<u32>(23u)));
    if exponent_bits == 4u { bits = select(bits, vec4<u32>(0x7fc00000u), (code & vec4<u32>(127u)) == vec4<u32>(127u)); }
    if exponent_bits == 5u { bits = select(bits, vec4<u32>(0x7f800000u) | (mantissa << vec4<u32>(21u)), exponent == vec4<u32>(31u)); }
    return bitcast<vec4<f32>>(bits | ((code >> vec4<u32>(exponent_bits + mantissa_bits)) << vec4<u32>(31u)));
}

// The scale of positive and of negative levels, which only NF3 has apart.
fn {p}_scale(row: u32, group: u32) -> vec2<f32> {
    if ((params.{p}.code >> 4u) & 15u) == 5u { return vec2<f32>({p}_stored(row, 2u * group), {p}_stored(row, 2u * group + 1u)); }
    return vec2<f32>({p}_stored(row, group));
}
fn {p}_scaled4(level: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    return level * select(vec4<f32>(scale.x), vec4<f32>(scale.y), level < vec4<f32>());
}
fn {p}_zero(row: u32, group: u32) -> f32 {
    if ((params.{p}.code >> 4u) & 15u) != 1u { return params.{p}.zero; }
    let at = params.{p}.zeros_at + row * params.{p}.zero_stride + group / 4u;
    return f32(({p}_side[at] >> (group % 4u * 8u)) & 255u);
}
