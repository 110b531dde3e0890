// cross_entropy_count.wgsl: count[0] = how many targets are below `classes`. One workgroup. Counts in f32, exact up to 2^24 targets.
// Tiers: baseline, subgroup.
#import row
struct Params { rows: u32, classes: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> targets: array<vec4<u32>>; // padded to whole vec4
@group(0) @binding(2) var<storage, read_write> count: array<f32>;   // [1]

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation) {
    var found = vec4<u32>(0u);
    for (var i = inv.index; i * 4u < params.rows; i += WG_SIZE) {
        let inside = vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.rows);
        found += select(vec4<u32>(0u), vec4<u32>(1u), inside & (targets[i] < vec4<u32>(params.classes)));
    }
    let total = row_sum(f32(found.x + found.y + found.z + found.w), inv);
    if inv.index == 0u { count[0] = total; }
}
