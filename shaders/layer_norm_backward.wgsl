// layer_norm_backward.wgsl: with xhat = (x - mean) * rstd and g = dy * weight,
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), dweight = sum over rows of dy * xhat, dbias = sum over rows of dy;
// with CENTERED false (RMS norm) xhat = x * rstd and dx lacks mean(g). One workgroup per chunk of rows, a row (or one per subgroup) at a
// time; an invocation owns the same columns in each row, so the parameters' gradients add up in its registers (its first CACHE units; it
// reads what lies beyond again) and end as one row of `partial_sums`, which column_sum adds up. Tiers: baseline, subgroup.
//
// Bounds: row < rows and c < units, or an index at most the row's last, wherever an array is read or written: dy, x and dx have
// rows * units units with units > 0, weight has units, mean and rstd have rows elements, partial_sums has OUTPUTS * units units per chunk
// (the wrapper checks or allocates it). i < CACHE.
#import elem_in
#import row
struct Params { rows: u32, units: u32, chunk: u32, chunks: u32, accumulate: u32, inv_cols: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dy: array<E>;             // [rows, units]
@group(0) @binding(2) var<storage, read> x: array<I>;              // [rows, units]
@group(0) @binding(3) var<storage, read> weight: array<V>;         // [units]
@group(0) @binding(4) var<storage, read> rstd_in: array<f32>;      // [rows]
@group(0) @binding(5) var<storage, read_write> dx: array<I>;       // [rows, units]
@group(0) @binding(6) var<storage, read_write> partial_sums: array<V>; // [chunks, OUTPUTS, units]: dweight, then dbias
#if CENTERED
@group(0) @binding(7) var<storage, read> mean_in: array<f32>;      // [rows]
#endif
const CACHE: u32 = 4u;
const OUTPUTS: u32 = select(1u, 2u, HAS_BIAS);

#if ROWS != 1
var<workgroup> combined: array<V, ROWS * CACHE * WG_SIZE>;
#endif

fn mean_of(row: u32) -> f32 {
#if CENTERED
    return mean_in[row];
#else
    return 0.0;
#endif
}

fn store(i: u32, value: V) {
    if params.accumulate != 0u { dx[i] = I(V(dx[i]) + value); } else { dx[i] = I(value); }
}

@compute @workgroup_size(WG_SIZE * ROWS)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let chunk = wg.y * grid.x + wg.x;
    if chunk >= params.chunks { return; } // uniform per workgroup
    let units = params.units;
    let begin = chunk * params.chunk;
    let end = min(begin + params.chunk, params.rows);
    var w: array<V, CACHE>;
    var xhat: array<V, CACHE>;
    var dweight: array<V, CACHE>;
    var dbias: array<V, CACHE>;
    for (var i = 0u; i < CACHE; i++) {
        let c = i * WG_SIZE + inv.index;
        dweight[i] = V(0.0);
        dbias[i] = V(0.0);
        if c < units { w[i] = weight[c]; }
    }
    for (var row = begin + row_slot(inv); row < end; row += ROWS) {
        let base = row * units;
        let mean = mean_of(row);
        let rstd = rstd_in[row];
        var s = V(0.0);
        var t = V(0.0);
        // All loads first and without branches, so that they are under way together; columns that do not exist repeat the last one.
        let last = base + units - 1u;
        let at = base + inv.index;
        let x0 = V(x[min(at, last)]);
        let x1 = V(x[min(at + WG_SIZE, last)]);
        let x2 = V(x[min(at + 2u * WG_SIZE, last)]);
        let x3 = V(x[min(at + 3u * WG_SIZE, last)]);
        let d0 = V(dy[min(at, last)]);
        let d1 = V(dy[min(at + WG_SIZE, last)]);
        let d2 = V(dy[min(at + 2u * WG_SIZE, last)]);
        let d3 = V(dy[min(at + 3u * WG_SIZE, last)]);
        var old = array<V, CACHE>();
        if params.accumulate != 0u {
            old[0] = V(dx[min(at, last)]);
            old[1] = V(dx[min(at + WG_SIZE, last)]);
            old[2] = V(dx[min(at + 2u * WG_SIZE, last)]);
            old[3] = V(dx[min(at + 3u * WG_SIZE, last)]);
        }
        let d = array<V, CACHE>(d0, d1, d2, d3);
        xhat = array<V, CACHE>((x0 - mean) * rstd, (x1 - mean) * rstd, (x2 - mean) * rstd, (x3 - mean) * rstd);
        for (var i = 0u; i < CACHE; i++) {
            let g = d[i] * w[i]; // 0 where there is no column
            dweight[i] += d[i] * xhat[i];
            dbias[i] += d[i];
            s += g;
            t += g * xhat[i];
        }
        for (var c = CACHE * WG_SIZE + inv.index; c < units; c += WG_SIZE) {
            let grad = V(dy[base + c]) * weight[c];
            s += grad;
            t += grad * ((V(x[base + c]) - mean) * rstd);
        }
#if CENTERED
        let means = row_sum2(vec2<f32>(total(s), total(t)), inv) * params.inv_cols;
#else
        let means = vec2<f32>(0.0, row_sum(total(t), inv) * params.inv_cols);
#endif
        for (var i = 0u; i < CACHE; i++) {
            let c = i * WG_SIZE + inv.index;
            if c < units { dx[base + c] = I(old[i] + rstd * (d[i] * w[i] - means.x - xhat[i] * means.y)); }
        }
        for (var c = CACHE * WG_SIZE + inv.index; c < units; c += WG_SIZE) {
            let normed = (V(x[base + c]) - mean) * rstd;
            store(base + c, rstd * (V(dy[base + c]) * weight[c] - means.x - normed * means.y));
        }
    }
    let at = chunk * OUTPUTS * units;
#if ROWS != 1
    // Subgroup 0 adds up what the others summed. (Rows so short have no columns beyond the registers.)
    for (var i = 0u; i < CACHE; i++) { combined[(row_slot(inv) * CACHE + i) * WG_SIZE + inv.index] = dweight[i]; }
    workgroupBarrier();
    if row_slot(inv) == 0u {
        for (var i = 0u; i < CACHE; i++) {
            for (var s = 1u; s < ROWS; s++) { dweight[i] += combined[(s * CACHE + i) * WG_SIZE + inv.index]; }
        }
    }
#if HAS_BIAS
    workgroupBarrier();
    for (var i = 0u; i < CACHE; i++) { combined[(row_slot(inv) * CACHE + i) * WG_SIZE + inv.index] = dbias[i]; }
    workgroupBarrier();
    if row_slot(inv) == 0u {
        for (var i = 0u; i < CACHE; i++) {
            for (var s = 1u; s < ROWS; s++) { dbias[i] += combined[(s * CACHE + i) * WG_SIZE + inv.index]; }
        }
    }
#endif
    if row_slot(inv) != 0u { return; }
#endif
    for (var i = 0u; i < CACHE; i++) {
        let c = i * WG_SIZE + inv.index;
        if c < units {
            partial_sums[at + c] = dweight[i];
#if HAS_BIAS
            partial_sums[at + units + c] = dbias[i];
#endif
        }
    }
    for (var c = CACHE * WG_SIZE + inv.index; c < units; c += WG_SIZE) {
        var sum_w = V(0.0);
        var sum_b = V(0.0);
        for (var row = begin; row < end; row++) {
            let d = V(dy[row * units + c]);
            sum_w += d * ((V(x[row * units + c]) - mean_of(row)) * rstd_in[row]);
            sum_b += d;
        }
        partial_sums[at + c] = sum_w;
#if HAS_BIAS
        partial_sums[at + units + c] = sum_b;
#endif
    }
}
