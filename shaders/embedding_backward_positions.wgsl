// embedding_backward_positions.wgsl: dpositions[t] = sum over sequences b of dout[b, t] * keep, or dpositions[t] += that. An invocation owns
// one unit and adds in the order of b. Baseline.
#import vector
struct Params {
    rows: u32, units: u32, seq: u32, accumulate: u32,
    seed_low: u32, seed_high: u32, op: u32, micro: u32, threshold: u32, keep_scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dout: array<V>;               // [rows, units]
@group(0) @binding(2) var<storage, read_write> dpositions: array<V>;   // [block, units], the first seq rows are written
#if DROPOUT
@group(0) @binding(3) var<storage, read> state: StepState;
#import dropout
#endif

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * WG_SIZE + index;
    if i >= params.seq * params.units { return; }
    var sum = V(0.0);
    for (var at = i; at < params.rows * params.units; at += params.seq * params.units) {
#if DROPOUT
        sum += dout[at] * keep(at);
#else
        sum += dout[at];
#endif
    }
    if params.accumulate != 0u { sum += dpositions[i]; }
    dpositions[i] = sum;
}
