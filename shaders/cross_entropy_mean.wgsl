// cross_entropy_mean.wgsl: loss[0] = (sum of losses) / max(count[0], 1). One workgroup, order of additions fixed. Tiers: baseline, subgroup.
#import row
struct Params { rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> losses: array<f32>;      // [rows]
@group(0) @binding(2) var<storage, read> count: array<f32>;       // [1]
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;  // [1]

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation) {
    var sum = vec4<f32>(0.0);
    let rows = params.rows;
    var i = inv.index;
    for (; i + 3u * WG_SIZE < rows; i += 4u * WG_SIZE) {
        sum += vec4<f32>(losses[i], losses[i + WG_SIZE], losses[i + 2u * WG_SIZE], losses[i + 3u * WG_SIZE]);
    }
    for (; i < rows; i += WG_SIZE) { sum.x += losses[i]; }
    let total = row_sum((sum.x + sum.y) + (sum.z + sum.w), inv);
    if inv.index == 0u { loss[0] = total / max(count[0], 1.0); }
}
