// learned_scale_backward.wgsl: the gradient dy of x_hat = s level(round(v)) + offset, v = (x - offset) / s, handed on to x, to s and to the
// offset. With w = v - centre and the level round(w) + centre: where w, or with `rounded` round(w), is between the limits `first` and
// `last`, dx = dy, and dy (round(w) - w) goes to s; elsewhere dx = 0, and dy times the end level goes to s and dy to the offset. Workgroup
// g of `groups` takes every groups-th block of 4 * WG_SIZE elements and leaves its two sums, which another kernel adds up. An invocation
// sums 64 vec4 at a time, and then those sums. Order fixed. Bounds: vec4 beyond the last are not read; those of it beyond the last element
// count as zero. Tiers: baseline, subgroup.
#import row
#import handed_scale
struct Params {
    len: u32,
    groups: u32,
    accumulate: u32,   // dx is added to
    shifted: u32,      // there is an offset
    rounded: u32,
    first: f32,
    last: f32,
    low: f32,          // of levels less the centre
    high: f32,
    centre: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read> scale: array<u32>;
@group(0) @binding(4) var<storage, read> offset: array<u32>;
@group(0) @binding(5) var<storage, read_write> dx: array<vec4<Elem>>;
@group(0) @binding(6) var<storage, read_write> sums: array<f32>;   // [groups, 2]: of s, of the offset

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>) {
    let bits = scale[0];
    let s = bitcast<f32>(handed_magnitude(bits));
    // In two factors, as encoding has it: the reciprocal may be subnormal.
    let shrink = select(1.0, 2.3283064365386963e-10, s > 1.8446744073709552e19); // 2^-32 above 2^64
    let factor = 1.0 / (s * shrink);
    let beta = handed_number(offset[0] * params.shifted);
    let limit = handed_limit(bits);
    let middle = vec4<f32>(0.5 * (params.low + params.high));
    let units = (params.len + 3u) / 4u;
    var total_s = vec4<f32>();
    var total_offset = vec4<f32>();
    var i = wg.x * WG_SIZE + inv.index;
    while i < units {
        var sum_s = vec4<f32>();
        var sum_offset = vec4<f32>();
        for (var n = 0u; n < 64u && i < units; n++) {
            let w = handed_element(vec4<f32>(x[i]), beta, limit) * shrink * factor - vec4<f32>(params.centre);
            let level = round(w);
            let place = select(w, level, params.rounded == 1u);
            let inside = place > vec4<f32>(params.first) & place < vec4<f32>(params.last);
            let there = vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.len);
            let gradient = select(vec4<f32>(), vec4<f32>(dy[i]), there);
            let end = select(vec4<f32>(params.high), vec4<f32>(params.low), w < middle) + vec4<f32>(params.centre);
            sum_s += gradient * select(end, level - w, inside);
            sum_offset += select(gradient, vec4<f32>(), inside);
            var out = select(vec4<f32>(), gradient, inside);
            if params.accumulate != 0u { out += select(vec4<f32>(), vec4<f32>(dx[i]), there); }
            dx[i] = vec4<Elem>(out);
            i += params.groups * WG_SIZE;
        }
        total_s += sum_s;
        total_offset += sum_offset;
    }
    let s4 = total_s;
    let o4 = total_offset;
    let both = row_sum2(vec2<f32>((s4.x + s4.y) + (s4.z + s4.w), (o4.x + o4.y) + (o4.z + o4.w)), inv);
    if inv.index == 0u {
        // The scale is the magnitude of what the caller has.
        sums[2u * wg.x] = select(both.x, -both.x, (bits >> 31u) == 1u);
        sums[2u * wg.x + 1u] = both.y;
    }
}
