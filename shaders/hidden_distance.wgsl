// hidden_distance.wgsl: per row the squared distance of directions, sum (a / |a| - b / |b|)^2, norms being at least 1e-12. GRAD: instead of
// it the gradient of its sum with respect to a, 2 / |a| (d - a' (d . a')) * factor with a' = a / |a| and d = a' - b', times the step's loss
// scale with HAS_STATE; 0 for rows of a smaller norm. One workgroup (or subgroup) per row. Tiers: baseline, subgroup.
//
// Bounds: row < rows and c < units wherever an array is read or written: a, b and grad have rows * units units, losses has rows elements.
// Loops advance to fixed ends.
#import vector
#import row
#if HAS_STATE
#import step_state
#endif
struct Params { rows: u32, units: u32, accumulate: u32, factor: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<V>;               // [rows, units]
@group(0) @binding(2) var<storage, read> b: array<V>;               // [rows, units]
#if GRAD
@group(0) @binding(3) var<storage, read_write> grad: array<V>;      // [rows, units]
#else
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;  // [rows]
#endif
#if HAS_STATE
@group(0) @binding(4) var<storage, read> state: StepState;
#endif
const LEAST: f32 = 1e-12;

@compute @workgroup_size(WG_SIZE * ROWS)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let row = (wg.y * grid.x + wg.x) * ROWS + row_slot(inv);
    if row >= params.rows { return; } // uniform per workgroup, or per subgroup where each has a row
    let units = params.units;
    let base = row * units;
    var aa = V(0.0);
    var bb = V(0.0);
    for (var c = inv.index; c < units; c += WG_SIZE) {
        let x = a[base + c];
        let y = b[base + c];
        aa += x * x;
        bb += y * y;
    }
    let norms = sqrt(row_sum2(vec2<f32>(total(aa), total(bb)), inv));
    let scale = vec2<f32>(1.0) / max(norms, vec2<f32>(LEAST));
    var sum = V(0.0);
    for (var c = inv.index; c < units; c += WG_SIZE) {
        let x = a[base + c] * scale.x;
        let d = x - b[base + c] * scale.y;
#if GRAD
        sum += d * x;
#else
        sum += d * d;
#endif
    }
    let along = row_sum(total(sum), inv);
#if GRAD
    var factor = 2.0 * scale.x * params.factor;
#if HAS_STATE
    factor *= state.loss_scale;
#endif
    if norms.x < LEAST { factor = 0.0; }
    for (var c = inv.index; c < units; c += WG_SIZE) {
        let x = a[base + c] * scale.x;
        var g = (x - b[base + c] * scale.y - x * along) * factor;
        if params.accumulate != 0u { g += grad[base + c]; }
        grad[base + c] = g;
    }
#else
    if inv.index == 0u { losses[row] = along; }
#endif
}
