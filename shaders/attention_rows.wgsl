// attention_rows.wgsl: out = softmax(scale * q k^T) v per head, causal or not, with an online softmax; lse = log sum exp of the scaled
// scores. For adapters that run shaders on the CPU: one query per invocation, 8 queries per workgroup, q and the accumulator in registers,
// keys and values four at a time by `fan`. No workgroup memory, no barrier.
// Bounds: t < seq, keys are clamped to seq - 1, b < batch, h < heads; both loops count up to a bound.
#import fan
#import attention
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;         // [batch, heads, seq]
#if DROPOUT
@group(0) @binding(4) var<storage, read> state: StepState;
#endif

fn qkv_row(base: u32, lane: u32) -> Row {
    var row: Row;
    for (var i = 0u; i < D4; i += FAN_STEP) { fan_out(vec4<f32>(qkv[base + i + lane]), &row, i); }
    return row;
}

fn row_dot(a: ptr<function, Row>, base: u32, lane: u32) -> f32 {
    var row = qkv_row(base, lane);
    var sum = vec4<f32>();
    for (var i = 0u; i < D4; i++) { sum += (*a)[i] * row[i]; }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

fn row_add(acc: ptr<function, Row>, weight: f32, base: u32, lane: u32) {
    var row = qkv_row(base, lane);
    for (var i = 0u; i < D4; i++) { (*acc)[i] += weight * row[i]; }
}

@compute @workgroup_size(8)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let blocks = (params.seq + 7u) / 8u;
    let id = wg.y * grid.x + wg.x;
    if id >= params.batch * params.heads * blocks { return; }
    let bh = id / blocks;
    let first = (blocks - 1u - id % blocks) * 8u; // the longest rows first, so that the last workgroups to run are short
    let b = bh / params.heads;
    let h = bh % params.heads;
    let t = min(first + inv.index, params.seq - 1u); // a ragged end repeats the last query
    let lane = fan_lane(inv);

    var q: Row;
    var acc: Row;
    let q_base = row_index(b, t, 0u, h);
    for (var i = 0u; i < D4; i++) {
        q[i] = vec4<f32>(qkv[q_base + i]) * (params.scale * LOG2E);
        acc[i] = vec4<f32>();
    }
    var top = MASKED;
    var total = 0.0;
    let seen = visible(t);
    let end = visible(first + 7u);
    for (var k = 0u; k < end; k += 4u) {
        let last = params.seq - 1u;
        let k1 = min(k + 1u, last);
        let k2 = min(k + 2u, last);
        let k3 = min(k + 3u, last);
        let scores = vec4<f32>(
            row_dot(&q, row_index(b, k, 1u, h), lane),
            row_dot(&q, row_index(b, k1, 1u, h), lane),
            row_dot(&q, row_index(b, k2, 1u, h), lane),
            row_dot(&q, row_index(b, k3, 1u, h), lane),
        );
        let live = vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(seen);
        let s = select(vec4<f32>(MASKED), scores, live);
        let next = max(max(top, max(s.x, s.y)), max(s.z, s.w));
        let fade = exp2(top - next);
        var p = select(vec4<f32>(), exp2(s - next), live);
        total = total * fade + ((p.x + p.y) + (p.z + p.w));
        top = next;
#if DROPOUT
        p *= attention_factors(bh, t, k / 4u, state.step);
#endif
        for (var i = 0u; i < D4; i++) { acc[i] *= fade; }
        row_add(&acc, p.x, row_index(b, k, 2u, h), lane);
        row_add(&acc, p.y, row_index(b, k1, 2u, h), lane);
        row_add(&acc, p.z, row_index(b, k2, 2u, h), lane);
        row_add(&acc, p.w, row_index(b, k3, 2u, h), lane);
    }
    if first + inv.index < params.seq {
        let o_base = out_index(b, t, h);
        for (var i = 0u; i < D4; i++) { out[o_base + i] = vec4<Elem>(acc[i] / total); }
        lse[bh * params.seq + t] = top * LN2 + log(total);
    }
}
