// quantize_double.wgsl: double quantization of scales. PHASE 0: one workgroup writes their mean, the offset, and the 256 values of codes; 1: an
// invocation finds the largest difference from it of 256 groups; 2: an invocation writes a word of four codes, each the entry of the
// ascending map that is nearest to the difference, in units of the largest. Bounds: invocations beyond the last part return. Tiers:
// baseline, subgroup for the reduction.
#import quantize_info
struct Params {
    recipe: Recipe,
    map: array<vec4<f32>, 64>,
}
@group(0) @binding(0) var<uniform> block: Params;
@group(0) @binding(1) var<storage, read_write> side: array<u32>;
@group(0) @binding(2) var<storage, read> scratch: array<u32>;
#if PHASE == 0
// What the reduction asks for: it adds.
struct Adding { rule: u32 }
const params = Adding(3u);
#import quantize_span
#import quantize_total
#endif

fn map(code: u32) -> f32 { return block.map[code / 4u][code % 4u]; }
fn finite(bits: u32) -> bool { return (bits & 0x7fffffffu) < 0x7f800000u; }

#if PHASE == 0
@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation) {
    let groups = block.recipe.rows * block.recipe.p.groups;
    var sum = 0.0;
    var count = 0.0;
    for (var i = inv.index; i < groups; i += WG_SIZE) {
        let bits = scratch[i];
        sum += select(0.0, bitcast<f32>(bits), finite(bits));
        count += select(0.0, 1.0, finite(bits));
    }
    let total = workgroup_total(Total(0u, 0xffffffffu, sum, count), inv);
    for (var i = inv.index; i < 256u; i += WG_SIZE) { side[block.recipe.p.map_at + i] = bitcast<u32>(map(i)); }
    if inv.index == 0u { side[3] = bitcast<u32>(total.a / max(total.b, 1.0)); }
}
#else
@compute @workgroup_size(WG_SIZE)
fn main(@builtin(local_invocation_index) index: u32, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let i = (wg.y * grid.x + wg.x) * WG_SIZE + index;
    let p = block.recipe.p;
    let groups = block.recipe.rows * p.groups;
    let offset = bitcast<f32>(side[3]);
#if PHASE == 1
    if i >= (groups + 255u) / 256u { return; }
    var largest = 0u;
    for (var k = i * 256u; k < min(i * 256u + 256u, groups); k++) {
        let bits = scratch[k];
        let difference = bitcast<u32>(bitcast<f32>(bits) - offset) & 0x7fffffffu;
        largest = max(largest, select(0x7fc00000u, difference, finite(bits)));
    }
    side[p.nested_at + i] = largest;
#else
    if i >= block.recipe.rows * p.scale_stride { return; }
    let row = i / p.scale_stride;
    let first = i % p.scale_stride * 4u;
    var word = 0u;
    for (var k = first; k < min(first + 4u, p.groups); k++) {
        let number = row * p.groups + k;
        let nested = side[p.nested_at + number / 256u];
        let v = (bitcast<f32>(scratch[number]) - offset) / bitcast<f32>(nested);
        // The first entry that is not below v.
        var above = 0u;
        for (var step = 128u; step > 0u; step /= 2u) { above += select(0u, step, map(above + step - 1u) < v); }
        let below = max(above, 1u) - 1u;
        let code = select(above, below, v - map(below) <= map(above) - v);
        // Entry 127 is zero.
        word |= select(127u, code, finite(nested) && nested >= 0x00800000u) << (8u * (k - first));
    }
    side[32u + i] = word;
#endif
}
#endif
