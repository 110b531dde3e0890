// dequantize.wgsl: out[row, col] = level(code) * scale, for tests, files, hosts and CPU adapters; elsewhere products read codes themselves. An
// invocation owns sixteen columns of a row, which have one scale. POWER: scales are E8M0.
// Bounds: rows and columns beyond the end are not stored; codes of the last unit exist in full. Tier: baseline.
#import packed P=B p=b

struct Params {
    b: PackedInfo,
    rows: u32,
    parts: u32,    // of sixteen columns in a row, the last one may be ragged
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> b_codes: array<u32>;
@group(0) @binding(2) var<storage, read> b_side: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<Out>;

#if POWER
// level * 2^(byte - 127) * unit to the bit, even where the result is subnormal, which devices may flush: level * 2^24 is an integer.
fn power_scaled(level: f32, byte: u32) -> f32 {
    let bits = bitcast<u32>(level);
    let exponent = (bits >> 23u) & 255u;
    if byte == 255u { return bitcast<f32>(bits | 0x7fc00000u); }
    if exponent == 0u || exponent == 255u { return level; }
    let power = i32(exponent) + i32(byte) - 127 - i32(127u - (b_side[0] >> 23u));
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    var magnitude = (u32(max(power, 1)) << 23u) | (bits & 0x7fffffu);
    if power > 254 { magnitude = 0x7f800000u; }
    if power < 1 { magnitude = mantissa >> u32(min(1 - power, 31)); }
    return bitcast<f32>(magnitude | (bits & 0x80000000u));
}
#endif

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let i = id.y * grid.x * 64u + id.x;
    let row = i / params.parts;
    let first = i % params.parts * 16u;
    if row >= params.rows { return; }
    let group = b_group(first);
    let zero = b_zero(row, group);
    let word = row * params.b.row_words + first / 32u * B_BITS;
#if POWER
    let byte = (b_side[32u + row * params.b.scale_stride + group / 4u] >> (group % 4u * 8u)) & 255u;
#else
    let scale = b_scale(row, group);
#endif
    for (var col = first; col < min(first + 16u, params.b.cols); col += 4u) {
        let level = b_level4(b_codes4(word, col % 32u / 4u), zero);
#if POWER
        let v = vec4<f32>(power_scaled(level.x, byte), power_scaled(level.y, byte), power_scaled(level.z, byte), power_scaled(level.w, byte));
#else
        let v = b_scaled4(level, scale);
#endif
        let to = row * params.b.cols + col;
        out[to] = Out(v.x);
#for j 1 4
        if col + {j}u < params.b.cols { out[to + {j}u] = Out(v[{j}]); }
#endfor
    }
}
