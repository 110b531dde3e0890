// cross_entropy.wgsl: per row of logits the loss log(sum exp(z - max)) + max - z[target], and with GRAD the gradient of the mean loss,
// (exp(z - max) / sum - [c = target]) * factor / count, times the step's loss scale with HAS_STATE. GRAD 1 writes it over the logits, GRAD 2
// into `grad`. One workgroup (or subgroup) per row. Maximum and sum come from one pass that rescales the sum whenever the maximum grows, so that logits are
// read twice at most. An invocation touches its own columns only, so overwriting needs no barrier. Target 0xffffffff: loss and gradient 0.
// Any other target beyond the classes: gradient 0 and loss NaN, which shows in the mean. Tiers: baseline, subgroup.
//
// Bounds: row < rows and c < units wherever an array is read or written: logits and grad have rows * units units, targets and losses rows
// elements; the target's unit is used only where it is below units. Loops advance to fixed ends.
#import logits
#import row
#if HAS_STATE
#import step_state
#endif
struct Params { rows: u32, units: u32, classes: u32, factor: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> targets: array<u32>;       // [rows]
@group(0) @binding(2) var<storage, read> count: array<f32>;         // [1]
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;  // [rows]
#if GRAD == 1
@group(0) @binding(4) var<storage, read_write> logits: array<V>;    // [rows, units]
#else
@group(0) @binding(4) var<storage, read> logits: array<V>;          // [rows, units]
#endif
#if HAS_STATE
@group(0) @binding(5) var<storage, read> state: StepState;
#endif
#if GRAD == 2
#if HAS_STATE
@group(0) @binding(6) var<storage, read_write> grad: array<E>;      // [rows, units]
#else
@group(0) @binding(5) var<storage, read_write> grad: array<E>;      // [rows, units]
#endif
#endif

fn component(v: V, i: u32) -> f32 {
#if WIDTH == 4
    return v[i];
#else
    return v;
#endif
}

fn one_hot(i: u32) -> V {
#if WIDTH == 4
    return select(vec4<f32>(0.0), vec4<f32>(1.0), vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(i));
#else
    return 1.0;
#endif
}

fn put(i: u32, value: V) {
#if GRAD == 1
    logits[i] = value;
#endif
#if GRAD == 2
    grad[i] = E(value);
#endif
}

@compute @workgroup_size(WG_SIZE * ROWS)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let row = (wg.y * grid.x + wg.x) * ROWS + row_slot(inv);
    if row >= params.rows { return; } // uniform per workgroup, or per subgroup where each has a row
    let units = params.units;
    let base = row * units;
    let t = targets[row];
    let counted = t < params.classes;
    let target_unit = t / WIDTH;
    var target_logit = 0.0;
    var m = V(LOWEST);
    var s = V(0.0);
    for (var c = inv.index; c < units; c += WG_SIZE) {
        let z = masked(logits[base + c], c, LOWEST);
        if c == target_unit { target_logit = component(z, t % WIDTH); }
        let n = max(m, z);
        s = s * exp(m - n) + exp(z - n);
        m = n;
    }
    let lane_max = largest(m);
    let row_largest = row_max(lane_max, inv);
    let sum = row_sum(total(s * exp(m - row_largest)), inv);
    // The owner of the target's column writes the loss; of a row that has none, invocation 0.
    if counted {
        if inv.index == target_unit % WG_SIZE {
            losses[row] = log_sum(sum) + (row_largest - target_logit);
        }
    } else if inv.index == 0u {
        var bits = 0u;
        if t != 0xffffffffu { bits = 0x7fc00000u; } // a NaN, made from its bits because WGSL has no way to write one
        losses[row] = bitcast<f32>(bits);
    }
#if GRAD != 0
    var factor = params.factor / max(count[0], 1.0);
#if HAS_STATE
    factor *= state.loss_scale;
#endif
    let scale = 1.0 / sum;
    for (var c = inv.index; c < units; c += WG_SIZE) {
        var g = V(0.0);
        if counted {
            g = exp(masked(logits[base + c], c, LOWEST) - row_largest) * scale;
            if c == target_unit { g -= one_hot(t % WIDTH); }
            g *= factor;
        }
        put(base + c, g);
    }
#endif
}
