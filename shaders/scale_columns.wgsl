// scale_columns.wgsl: out[r, c] = x[r, c] * values[c], or out += that. An invocation owns a unit. Tier: baseline.
#import elem
struct Params { len: u32, units: u32, accumulate: u32 } // len in units
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<E>;            // [rows, units]
@group(0) @binding(2) var<storage, read> values: array<V>;       // [units]
@group(0) @binding(3) var<storage, read_write> out: array<E>;    // [rows, units]

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i >= params.len { return; }
    var v = V(x[i]) * values[i % params.units];
    if params.accumulate != 0u { v += V(out[i]); }
    out[i] = E(v);
}
