// row_sum.wgsl: out[r] = factor * (sum over c of x[r, c]), or out[r] += that. One workgroup (or subgroup) per row. Tiers: baseline, subgroup.
#import elem
#import row
struct Params { rows: u32, units: u32, accumulate: u32, factor: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<E>;            // [rows, units]
@group(0) @binding(2) var<storage, read_write> out: array<f32>;  // [rows]

@compute @workgroup_size(WG_SIZE * ROWS)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let row = (wg.y * grid.x + wg.x) * ROWS + row_slot(inv);
    if row >= params.rows { return; } // uniform per workgroup, or per subgroup where each has a row
    var sum = V(0.0);
    for (var c = inv.index; c < params.units; c += WG_SIZE) { sum += V(x[row * params.units + c]); }
    var result = row_sum(total(sum), inv) * params.factor;
    if inv.index == 0u {
        if params.accumulate != 0u { result += out[row]; }
        out[row] = result;
    }
}
