// attention_rows_backward_key.wgsl: dk = scale * sum over queries of dS q, dv = sum over queries of (dropout factor * P) dout; P and dS as in
// attention_rows_backward_query.wgsl, which must run before and leaves `stats`. One key per invocation, 8 keys per workgroup, queries by `fan`.
// Bounds as in attention_rows.wgsl, with keys and queries exchanged.
#import fan
#import attention
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> dout: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<vec4<Elem>>;
#if DROPOUT
@group(0) @binding(5) var<storage, read> state: StepState;
#endif

@compute @workgroup_size(8)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let blocks = (params.seq + 7u) / 8u;
    let id = wg.y * grid.x + wg.x;
    if id >= params.batch * params.heads * blocks { return; }
    let bh = id / blocks;
    let first = (id % blocks) * 8u; // early keys are seen by most queries: the longest first
    let b = bh / params.heads;
    let h = bh % params.heads;
    let k = min(first + inv.index, params.seq - 1u);
    let lane = fan_lane(inv);

    var key: Row;
    var value: Row;
    var dk: Row;
    var dv: Row;
    let k_base = row_index(b, k, 1u, h);
    let v_base = row_index(b, k, 2u, h);
    for (var i = 0u; i < D4; i++) {
        key[i] = vec4<f32>(qkv[k_base + i]) * (params.scale * LOG2E);
        value[i] = vec4<f32>(qkv[v_base + i]);
        dk[i] = vec4<f32>();
        dv[i] = vec4<f32>();
    }
    let begin = select(0u, first, params.causal != 0u);
    for (var t = begin; t < params.seq; t++) {
        let stat = stats[bh * params.seq + t];
#if DROPOUT
        let factors = attention_factors(bh, t, k / 4u, state.step);
        let factor = select(select(factors.z, factors.w, (k & 1u) == 1u), select(factors.x, factors.y, (k & 1u) == 1u), (k & 2u) == 0u);
#else
        let factor = 1.0;
#endif
        var q: Row;
        var dy: Row;
        let q_base = row_index(b, t, 0u, h) + lane;
        let o_base = out_index(b, t, h) + lane;
        for (var i = 0u; i < D4; i += FAN_STEP) {
            fan_out(vec4<f32>(qkv[q_base + i]), &q, i);
            fan_out(vec4<f32>(dout[o_base + i]), &dy, i);
        }
        var s = vec4<f32>();
        var d = vec4<f32>();
        for (var i = 0u; i < D4; i++) {
            s += q[i] * key[i];
            d += dy[i] * value[i];
        }
        let p = select(0.0, exp2((s.x + s.y) + (s.z + s.w) - stat.x), k < visible(t));
        let ds = p * (factor * ((d.x + d.y) + (d.z + d.w)) - stat.y);
        let weight = p * factor;
        for (var i = 0u; i < D4; i++) {
            dk[i] += ds * q[i];
            dv[i] += weight * dy[i];
        }
    }
    if first + inv.index < params.seq {
        for (var i = 0u; i < D4; i++) {
            dqkv[k_base + i] = vec4<Elem>(dk[i] * params.scale);
            dqkv[v_base + i] = vec4<Elem>(dv[i]);
        }
    }
}
