// value_norm.wgsl: out = (v - mean) * rstd + bias over each row of v = u * values, rstd = 1 / sqrt(variance + eps): OneBit's output values
// and its layer norm without parameters. One workgroup (or subgroup) per row. The variance is that of the differences from the mean,
// corrected for the mean's own rounding error. Tiers: baseline, subgroup.
//
// Bounds: row < rows and c < units wherever an array is read or written: u and out have rows * units units, values and bias have units,
// mean and rstd have rows elements (the wrapper checks it). Loops advance to fixed ends.
#import elem_in
#import row
struct Params { rows: u32, units: u32, biased: u32, inv_cols: f32, eps: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> u: array<I>;                // [rows, units]
@group(0) @binding(2) var<storage, read> values: array<V>;           // [units]
@group(0) @binding(3) var<storage, read> bias: array<V>;             // [units]; anything of that length where there is none
@group(0) @binding(4) var<storage, read_write> out: array<E>;        // [rows, units]
@group(0) @binding(5) var<storage, read_write> mean_out: array<f32>; // [rows]
@group(0) @binding(6) var<storage, read_write> rstd_out: array<f32>; // [rows]

@compute @workgroup_size(WG_SIZE * ROWS)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let row = (wg.y * grid.x + wg.x) * ROWS + row_slot(inv);
    if row >= params.rows { return; } // uniform per workgroup, or per subgroup where each has a row
    let units = params.units;
    let base = row * units;
    var sum = V(0.0);
    for (var c = inv.index; c < units; c += WG_SIZE) { sum += V(u[base + c]) * values[c]; }
    let mean = row_sum(total(sum), inv) * params.inv_cols;
    var squares = V(0.0);
    var rest = V(0.0);
    for (var c = inv.index; c < units; c += WG_SIZE) {
        let d = V(u[base + c]) * values[c] - mean;
        rest += d;
        squares += d * d;
    }
    let moments = row_sum2(vec2<f32>(total(squares), total(rest)), inv) * params.inv_cols;
    let shift = moments.y; // what is left of the mean after subtracting `mean`
    let rstd = inverseSqrt(max(moments.x - shift * shift, 0.0) + params.eps);
    for (var c = inv.index; c < units; c += WG_SIZE) {
        var z = (V(u[base + c]) * values[c] - mean - shift) * rstd;
        if params.biased != 0u { z += bias[c]; }
        out[base + c] = E(z);
    }
    if inv.index == 0u {
        mean_out[row] = mean + shift;
        rstd_out[row] = rstd;
    }
}
