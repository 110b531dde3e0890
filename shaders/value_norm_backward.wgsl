// value_norm_backward.wgsl: with v = u * values and z = (v - mean) * rstd,
//   dv = rstd * (dz - mean(dz) - z * mean(dz * z)), du = dv * values, dvalues = sum over rows of dv * u.
// One workgroup per chunk of rows, a row (or one per subgroup) at a time. An invocation owns the same columns in each row, so it adds to
// its own places of `partial_sums`, one row of them per subgroup that has rows of its own; column_sum adds those up. Tiers: baseline,
// subgroup.
//
// Bounds: row < rows and c < units wherever an array is read or written: dz, u and du have rows * units units, values has units, mean and
// rstd have rows elements, partial_sums has ROWS * units units per chunk (the wrapper checks or allocates it). Loops advance to fixed ends.
#import elem_in
#import row
struct Params { rows: u32, units: u32, chunk: u32, chunks: u32, accumulate: u32, inv_cols: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dz: array<E>;                 // [rows, units]
@group(0) @binding(2) var<storage, read> u: array<I>;                  // [rows, units]
@group(0) @binding(3) var<storage, read> values: array<V>;             // [units]
@group(0) @binding(4) var<storage, read> mean_in: array<f32>;          // [rows]
@group(0) @binding(5) var<storage, read> rstd_in: array<f32>;          // [rows]
@group(0) @binding(6) var<storage, read_write> du: array<I>;           // [rows, units]
@group(0) @binding(7) var<storage, read_write> partial_sums: array<V>; // [chunks, ROWS, units]

@compute @workgroup_size(WG_SIZE * ROWS)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let chunk = wg.y * grid.x + wg.x;
    if chunk >= params.chunks { return; } // uniform per workgroup
    let units = params.units;
    let begin = chunk * params.chunk;
    let end = min(begin + params.chunk, params.rows);
    let sums = (chunk * ROWS + row_slot(inv)) * units;
    for (var c = inv.index; c < units; c += WG_SIZE) { partial_sums[sums + c] = V(0.0); }
    for (var row = begin + row_slot(inv); row < end; row += ROWS) {
        let base = row * units;
        let mean = mean_in[row];
        let rstd = rstd_in[row];
        var s = V(0.0);
        var t = V(0.0);
        for (var c = inv.index; c < units; c += WG_SIZE) {
            let d = V(dz[base + c]);
            s += d;
            t += d * ((V(u[base + c]) * values[c] - mean) * rstd);
        }
        let means = row_sum2(vec2<f32>(total(s), total(t)), inv) * params.inv_cols;
        for (var c = inv.index; c < units; c += WG_SIZE) {
            let x = V(u[base + c]);
            let z = (x * values[c] - mean) * rstd;
            let dv = rstd * (V(dz[base + c]) - means.x - z * means.y);
            partial_sums[sums + c] += dv * x;
            var d = dv * values[c];
            if params.accumulate != 0u { d += V(du[base + c]); }
            du[base + c] = I(d);
        }
    }
}
