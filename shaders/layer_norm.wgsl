// layer_norm.wgsl: out = (x - mean) * rstd * weight + bias over each row, rstd = 1 / sqrt(variance + eps); with CENTERED false the RMS norm
// out = x * rstd * weight, rstd = 1 / sqrt(mean of x^2 + eps). One workgroup (or subgroup) per row; an invocation keeps its first CACHE units of the row
// in registers and reads what lies beyond again. The variance is that of the differences from the mean, corrected for the mean's own
// rounding error. Tiers: baseline, subgroup.
//
// Bounds: row < rows and c < units wherever an array is read or written: x and out have rows * units units, weight and bias have units,
// mean and rstd have rows elements (the wrapper checks it). i < CACHE. Loops advance to fixed ends.
#import elem_in
#import row
struct Params { rows: u32, units: u32, inv_cols: f32, eps: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<I>;              // [rows, units]
@group(0) @binding(2) var<storage, read> weight: array<V>;         // [units]
@group(0) @binding(3) var<storage, read_write> out: array<E>;      // [rows, units]
@group(0) @binding(4) var<storage, read_write> rstd_out: array<f32>; // [rows]
#if CENTERED
@group(0) @binding(5) var<storage, read_write> mean_out: array<f32>; // [rows]
#endif
#if HAS_BIAS
@group(0) @binding(6) var<storage, read> bias: array<V>;           // [units]
#endif
const CACHE: u32 = 4u;

fn affine(normed: V, c: u32) -> E {
#if HAS_BIAS
    return E(normed * weight[c] + bias[c]);
#else
    return E(normed * weight[c]);
#endif
}

@compute @workgroup_size(WG_SIZE * ROWS)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let row = (wg.y * grid.x + wg.x) * ROWS + row_slot(inv);
    if row >= params.rows { return; } // uniform per workgroup, or per subgroup where each has a row
    let units = params.units;
    let base = row * units;
    var v: array<V, CACHE>;
    var mean = 0.0;
    var shift = 0.0; // what is left of the mean after subtracting `mean`
#if CENTERED
    var sum = V(0.0);
    for (var i = 0u; i < CACHE; i++) {
        let c = i * WG_SIZE + inv.index;
        if c < units { v[i] = V(x[base + c]); sum += v[i]; }
    }
    for (var c = CACHE * WG_SIZE + inv.index; c < units; c += WG_SIZE) { sum += V(x[base + c]); }
    mean = row_sum(total(sum), inv) * params.inv_cols;
    var squares = V(0.0);
    var rest = V(0.0);
    for (var i = 0u; i < CACHE; i++) {
        if i * WG_SIZE + inv.index < units { v[i] -= mean; rest += v[i]; squares += v[i] * v[i]; }
    }
    for (var c = CACHE * WG_SIZE + inv.index; c < units; c += WG_SIZE) {
        let d = V(x[base + c]) - mean;
        rest += d;
        squares += d * d;
    }
    let moments = row_sum2(vec2<f32>(total(squares), total(rest)), inv) * params.inv_cols;
    shift = moments.y;
    let variance = max(moments.x - shift * shift, 0.0);
#else
    var squares = V(0.0);
    for (var i = 0u; i < CACHE; i++) {
        let c = i * WG_SIZE + inv.index;
        if c < units { v[i] = V(x[base + c]); squares += v[i] * v[i]; }
    }
    for (var c = CACHE * WG_SIZE + inv.index; c < units; c += WG_SIZE) { let d = V(x[base + c]); squares += d * d; }
    let variance = row_sum(total(squares), inv) * params.inv_cols;
#endif
    let rstd = inverseSqrt(variance + params.eps);
    for (var i = 0u; i < CACHE; i++) {
        let c = i * WG_SIZE + inv.index;
        if c < units { out[base + c] = affine((v[i] - shift) * rstd, c); }
    }
    for (var c = CACHE * WG_SIZE + inv.index; c < units; c += WG_SIZE) { out[base + c] = affine((V(x[base + c]) - mean - shift) * rstd, c); }
    if inv.index == 0u {
        rstd_out[row] = rstd;
#if CENTERED
        mean_out[row] = mean + shift;
#endif
    }
}
