// soft_cross_entropy.wgsl: per row of logits z and of a teacher's logits y, with p = softmax(y): the loss log(sum exp(z)) - sum p z, and
// the gradient (softmax(z) - p) * factor, times the step's loss scale with HAS_STATE. One workgroup (or subgroup) per row. Maxima and sums
// come from one pass that rescales sums whenever a maximum grows. Tiers: baseline, subgroup.
//
// Bounds: row < rows and c < units wherever an array is read or written: logits, teacher and grad have rows * units units, losses has rows
// elements. Loops advance to fixed ends.
#import logits
#import row
#if HAS_STATE
#import step_state
#endif
struct Params { rows: u32, units: u32, classes: u32, factor: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<V>;          // [rows, units]
@group(0) @binding(2) var<storage, read> teacher: array<V>;         // [rows, units]
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;  // [rows]
@group(0) @binding(4) var<storage, read_write> grad: array<E>;      // [rows, units]
#if HAS_STATE
@group(0) @binding(5) var<storage, read> state: StepState;
#endif

@compute @workgroup_size(WG_SIZE * ROWS)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let row = (wg.y * grid.x + wg.x) * ROWS + row_slot(inv);
    if row >= params.rows { return; } // uniform per workgroup, or per subgroup where each has a row
    let units = params.units;
    let base = row * units;
    var m = V(LOWEST); // the student's maximum and sum
    var s = V(0.0);
    var n = V(LOWEST); // the teacher's, and the sum of its exponentials times the student's logits
    var r = V(0.0);
    var q = V(0.0);
    for (var c = inv.index; c < units; c += WG_SIZE) {
        let z = logits[base + c];
        let low = masked(z, c, LOWEST);
        let y = masked(teacher[base + c], c, LOWEST);
        let m1 = max(m, low);
        s = s * exp(m - m1) + exp(low - m1);
        m = m1;
        let n1 = max(n, y);
        let old = exp(n - n1);
        let e = exp(y - n1);
        r = r * old + e;
        q = q * old + e * masked(z, c, 0.0);
        n = n1;
    }
    let z_largest = row_max(largest(m), inv);
    let y_largest = row_max(largest(n), inv);
    let z_sum = row_sum(total(s * exp(m - z_largest)), inv);
    let rescale = exp(n - y_largest);
    let y_sums = row_sum2(vec2<f32>(total(r * rescale), total(q * rescale)), inv);
    if inv.index == 0u {
        losses[row] = log_sum(z_sum) + (z_largest - y_sums.y / y_sums.x);
    }
    var factor = params.factor;
#if HAS_STATE
    factor *= state.loss_scale;
#endif
    let z_scale = 1.0 / z_sum;
    let y_scale = 1.0 / y_sums.x;
    for (var c = inv.index; c < units; c += WG_SIZE) {
        let z = exp(masked(logits[base + c], c, LOWEST) - z_largest) * z_scale;
        let y = exp(masked(teacher[base + c], c, LOWEST) - y_largest) * y_scale;
        grad[base + c] = E((z - y) * factor);
    }
}
