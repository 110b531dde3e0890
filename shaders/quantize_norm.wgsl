// quantize_norm.wgsl: the header's norm from the largest scale that is stored. Each of params.partials workgroups takes a share of the scales; a
// single one, or with PARTIALS the second dispatch, writes the header. Bounds: loops end at the number of words, of groups and of
// partial results; words of zero points in the last vec4 are left out. Tiers: baseline, subgroup for the reduction.
@group(0) @binding(0) var<uniform> params: Recipe;
@group(0) @binding(1) var<storage, read_write> side: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>;
#import quantize_span
#import quantize_total
#import quantize_scale

// The largest field below `limit` in words of fields of `width` bits.
fn fields(v: vec4<u32>, width: u32, limit: u32) -> vec4<u32> {
    var largest = vec4<u32>();
    for (var shift = 0u; shift < 32u; shift += width) {
        let field = (v >> vec4<u32>(shift)) & vec4<u32>(0xffffffffu >> (33u - width));
        largest = max(largest, select(vec4<u32>(), field, field < vec4<u32>(limit)));
    }
    return largest;
}
fn scales(v: vec4<u32>) -> vec4<u32> {
    switch params.p.store {
        case 1u: { return fields(v, 16u, 0x7c00u); }
        case 2u: {
            var largest = vec4<u32>();
            for (var shift = 0u; shift < 32u; shift += 8u) {
                let byte = (v >> vec4<u32>(shift)) & vec4<u32>(255u);
                largest = max(largest, select(vec4<u32>(), byte + 1u, byte < vec4<u32>(255u)));
            }
            return largest;
        }
        case 3u: { return fields(v, 8u, 127u); }
        default: { return fields(v, 32u, 0x7f800000u); }
    }
}
fn word(at: u32) -> u32 { return side[at / 4u][at % 4u]; }

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>) {
    var largest = vec4<u32>();
#if PARTIALS
    for (var i = inv.index; i < params.partials; i += WG_SIZE) { largest.x = max(largest.x, scratch[i]); }
#else
    let stride = params.partials * WG_SIZE;
    let start = wg.x * WG_SIZE + inv.index;
    if params.p.store == 4u {
        for (var i = start; i < params.rows * params.p.groups; i += stride) {
            let g = i % params.p.groups;
            let byte = (word(32u + i / params.p.groups * params.p.scale_stride + g / 4u) >> (g % 4u * 8u)) & 255u;
            let nested = bitcast<f32>(word(params.p.nested_at + i / 256u));
            let scale = fma(bitcast<f32>(word(params.p.map_at + byte)), nested, bitcast<f32>(side[0].w));
            let bits = bitcast<u32>(scale) & 0x7fffffffu;
            largest.x = max(largest.x, select(0u, bits, bits < 0x7f800000u && bitcast<u32>(nested) < 0x7f800000u));
        }
    } else {
        for (var i = start; i < (params.p.zeros_at - 29u) / 4u; i += stride) {
            let left = params.p.zeros_at - 32u - 4u * i;
            let v = select(vec4<u32>(), side[8u + i], vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
            largest = max(largest, scales(v));
        }
    }
#endif
    let mine = max(max(largest.x, largest.y), max(largest.z, largest.w));
    let total = workgroup_total(Total(mine, 0xffffffffu, 0.0, 0.0), inv);
    if inv.index == 0u {
#if !PARTIALS
        if params.partials > 1u {
            scratch[wg.x] = total.m;
            return;
        }
#endif
        let norm = norms(total.m, side[0].x);
        side[0].y = norm.x;
        side[0].z = norm.y;
    }
}
