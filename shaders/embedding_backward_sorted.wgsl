// embedding_backward_sorted.wgsl: dtable[v] = sum over the rows r with token v of dout[r] * keep, or dtable[v] += that, for any vocabulary.
// One workgroup per place in the sorted order (see embedding_sort); that of a token's first row adds up all of its rows, in order, and is
// the only one to touch dtable[v]; the others end at once. Tokens beyond the table are skipped. Baseline.
#import vector
struct Params {
    rows: u32, units: u32, vocab: u32, accumulate: u32,
    seed_low: u32, seed_high: u32, op: u32, micro: u32, threshold: u32, keep_scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> order: array<vec2<u32>>;     // [rows]: token, row; sorted
@group(0) @binding(2) var<storage, read> dout: array<V>;              // [rows, units]
@group(0) @binding(3) var<storage, read_write> dtable: array<V>;      // [vocab, units]
#if DROPOUT
@group(0) @binding(4) var<storage, read> state: StepState;
#import dropout
#endif

fn value_at(i: u32) -> V {
#if DROPOUT
    return dout[i] * keep(i);
#else
    return dout[i];
#endif
}

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let place = wg.y * grid.x + wg.x;
    if place >= params.rows { return; }
    let token = order[place].x;
    if token >= params.vocab { return; }
    if place > 0u && order[place - 1u].x == token { return; }
    var end = place + 1u;
    while end < params.rows && order[end].x == token { end++; }
    for (var c = index; c < params.units; c += WG_SIZE) {
        var sum = V(0.0);
        var e = place;
        for (; e + 3u < end; e += 4u) {
            let a = value_at(order[e].y * params.units + c);
            let b = value_at(order[e + 1u].y * params.units + c);
            let d = value_at(order[e + 2u].y * params.units + c);
            let f = value_at(order[e + 3u].y * params.units + c);
            sum += (a + b) + (d + f);
        }
        for (; e < end; e++) { sum += value_at(order[e].y * params.units + c); }
        let at = token * params.units + c;
        if params.accumulate != 0u { sum += dtable[at]; }
        dtable[at] = sum;
    }
}
