// column_dot.wgsl: partial_sums[chunk, c] = sum over a chunk of rows of x[r, c] * d[r, c]; column_sum adds up the chunks. An invocation
// owns a unit of columns in a chunk. Tier: baseline.
#import elem
struct Params { rows: u32, units: u32, chunk: u32, chunks: u32, tiles: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<E>;                  // [rows, units]
@group(0) @binding(2) var<storage, read> d: array<E>;                  // [rows, units]
@group(0) @binding(3) var<storage, read_write> partial_sums: array<V>; // [chunks, units]

@compute @workgroup_size(32)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let at = wg.y * grid.x + wg.x;
    let chunk = at / params.tiles;
    let c = at % params.tiles * 32u + index;
    if chunk >= params.chunks || c >= params.units { return; }
    let end = min((chunk + 1u) * params.chunk, params.rows);
    var sum = V(0.0);
    for (var row = chunk * params.chunk; row < end; row++) {
        let i = row * params.units + c;
        sum += V(x[i]) * V(d[i]);
    }
    partial_sums[chunk * params.units + c] = sum;
}
