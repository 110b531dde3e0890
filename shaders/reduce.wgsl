// reduce.wgsl: out[g] = factor * (sum of a part of x), or its maximum with MAX. Workgroup g of `groups` takes every groups-th block of
// 4 * WG_SIZE elements; a second dispatch with one workgroup reduces the groups' results. Order fixed. Tiers: baseline, subgroup.
// A NaN makes a sum NaN; what it does to a maximum is not defined.
#import row
struct Params { len: u32, groups: u32, factor: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;   // padded to whole vec4; the padding is not read into the result
@group(0) @binding(2) var<storage, read_write> out: array<f32>;  // [groups]

fn combine(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
#if MAX
    return max(a, b);
#else
    return a + b;
#endif
}

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>) {
    // The neutral element: 0, or any element of x (its first).
#if MAX
    let neutral = vec4<f32>(f32(x[0].x));
#else
    let neutral = vec4<f32>(0.0);
#endif
    var acc = neutral;
    let whole = params.len / 4u;
    for (var i = wg.x * WG_SIZE + inv.index; i < whole; i += params.groups * WG_SIZE) { acc = combine(acc, vec4<f32>(x[i])); }
    if wg.x == 0u && inv.index == 0u && whole * 4u < params.len {
        let valid = vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.len - whole * 4u);
        acc = combine(acc, select(neutral, vec4<f32>(x[whole]), valid));
    }
#if MAX
    let result = row_max(max(max(acc.x, acc.y), max(acc.z, acc.w)), inv);
#else
    let result = row_sum((acc.x + acc.y) + (acc.z + acc.w), inv) * params.factor;
#endif
    if inv.index == 0u { out[wg.x] = result; }
}
