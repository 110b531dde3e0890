// attention_rows_backward_query.wgsl: dq = scale * sum over keys of dS k, where P = exp(scores - lse), dP = dropout factor * (dout . v),
// dS = P (dP - delta), delta = dout . out. Also leaves (lse * log2 e, delta) in `stats` for the pass over keys, which must follow. One query per
// invocation, see attention_rows.wgsl, also for the bounds.
#import fan
#import attention
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> out: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<Elem>>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<vec4<Elem>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;  // [batch, heads, seq]
#if DROPOUT
@group(0) @binding(7) var<storage, read> state: StepState;
#endif

@compute @workgroup_size(8)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let blocks = (params.seq + 7u) / 8u;
    let id = wg.y * grid.x + wg.x;
    if id >= params.batch * params.heads * blocks { return; }
    let bh = id / blocks;
    let first = (blocks - 1u - id % blocks) * 8u;
    let b = bh / params.heads;
    let h = bh % params.heads;
    let t = min(first + inv.index, params.seq - 1u);
    let lane = fan_lane(inv);

    var q: Row;
    var dy: Row;
    var dq: Row;
    let q_base = row_index(b, t, 0u, h);
    let o_base = out_index(b, t, h);
    var sum = vec4<f32>();
    for (var i = 0u; i < D4; i++) {
        q[i] = vec4<f32>(qkv[q_base + i]) * (params.scale * LOG2E);
        dy[i] = vec4<f32>(dout[o_base + i]);
        sum += dy[i] * vec4<f32>(out[o_base + i]);
        dq[i] = vec4<f32>();
    }
    let delta = (sum.x + sum.y) + (sum.z + sum.w);
    let lse2 = lse[bh * params.seq + t] * LOG2E;
    let seen = visible(t);
    let end = visible(first + 7u);
    var factors = vec4<f32>(1.0);
    for (var k = 0u; k < end; k++) {
#if DROPOUT
        if k % 4u == 0u { factors = attention_factors(bh, t, k / 4u, state.step); }
        let factor = select(select(factors.z, factors.w, (k & 1u) == 1u), select(factors.x, factors.y, (k & 1u) == 1u), (k & 2u) == 0u);
#else
        let factor = 1.0;
#endif
        var key: Row;
        var value: Row;
        let k_base = row_index(b, k, 1u, h) + lane;
        let v_base = row_index(b, k, 2u, h) + lane;
        for (var i = 0u; i < D4; i += FAN_STEP) {
            fan_out(vec4<f32>(qkv[k_base + i]), &key, i);
            fan_out(vec4<f32>(qkv[v_base + i]), &value, i);
        }
        var s = vec4<f32>();
        var d = vec4<f32>();
        for (var i = 0u; i < D4; i++) {
            s += q[i] * key[i];
            d += dy[i] * value[i];
        }
        let p = select(0.0, exp2((s.x + s.y) + (s.z + s.w) - lse2), k < seen);
        let ds = p * (factor * ((d.x + d.y) + (d.z + d.w)) - delta);
        for (var i = 0u; i < D4; i++) { dq[i] += ds * key[i]; }
    }
    if first + inv.index < params.seq {
        for (var i = 0u; i < D4; i++) { dqkv[q_base + i] = vec4<Elem>(dq[i] * params.scale); }
        stats[bh * params.seq + t] = vec2<f32>(lse2, delta);
    }
}
