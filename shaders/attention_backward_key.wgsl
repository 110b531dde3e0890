// attention_backward_key.wgsl: dk = scale * sum over queries of dS q, dv = sum over queries of (dropout factor * P) dout; P and dS as in
// attention_backward_query.wgsl, which must run before and leaves `stats`. One workgroup per head and 64 keys, see attention.wgsl, also for the
// bounds; here rows of the tile are keys and columns are queries.
#import attention_tile
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> dout: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<vec4<Elem>>;
#if DROPOUT
@group(0) @binding(5) var<storage, read> state: StepState;
#endif

fn fetch(head: Head, part: u32, t: u32, i: u32) -> vec4<f32> {
    if t >= params.seq { return vec4<f32>(); }
    if part == 3u { return vec4<f32>(dout[out_index(head.b, t, head.h) + i]); }
    return vec4<f32>(qkv[row_index(head.b, t, part, head.h) + i]);
}

fn store(k: u32, head: Head, part: u32, group: u32, value: vec4<f32>) {
    if k < params.seq && group < D4 { dqkv[row_index(head.b, k, part, head.h) + group] = vec4<Elem>(value); }
}

fn store_quad(k: u32, head: Head, part: u32, group: u32, acc: Quad, scale: f32) {
    store(k, head, part, group, acc.r0 * scale);
    store(k + 1u, head, part, group, acc.r1 * scale);
    store(k + 2u, head, part, group, acc.r2 * scale);
    store(k + 3u, head, part, group, acc.r3 * scale);
}

// Queries of a column tile that see key k.
fn live(k: u32, t: vec4<u32>) -> vec4<bool> {
    return (t < vec4<u32>(params.seq)) & ((vec4<u32>(k) <= t) | vec4<bool>(params.causal == 0u));
}

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let work = assignment(wg.y * grid.x + wg.x, false);
    let bh = work.x;
    if bh >= params.batch * params.heads { return; }
    let head = Head(bh / params.heads, bh % params.heads);
    let me = place(index);
    let k = work.y + 4u * me.ty;
    var dk: Acc;
    var dv: Acc;
    let scale2 = params.scale * LOG2E;
    for (var first = select(0u, work.y, params.causal != 0u); first < params.seq; first += 64u) {
        let qk = products(head, 1u, work.y, 0u, first, me);
        var ds = products(head, 2u, work.y, 3u, first, me);
        let t = vec4<u32>(0u, 1u, 2u, 3u) + (first + 4u * me.tx);
        let stat_base = bh * params.seq;
        let last = params.seq - 1u;
        let c0 = stats[stat_base + min(t.x, last)];
        let c1 = stats[stat_base + min(t.y, last)];
        let c2 = stats[stat_base + min(t.z, last)];
        let c3 = stats[stat_base + min(t.w, last)];
        let lse2 = vec4<f32>(c0.x, c1.x, c2.x, c3.x);
        let delta = vec4<f32>(c0.y, c1.y, c2.y, c3.y);
        var p = Quad(
            select(vec4<f32>(), exp2(qk.r0 * scale2 - lse2), live(k, t)),
            select(vec4<f32>(), exp2(qk.r1 * scale2 - lse2), live(k + 1u, t)),
            select(vec4<f32>(), exp2(qk.r2 * scale2 - lse2), live(k + 2u, t)),
            select(vec4<f32>(), exp2(qk.r3 * scale2 - lse2), live(k + 3u, t)),
        );
#if DROPOUT
        let step = state.step;
        // One column per query; transposed, one row per key.
        let f = transpose(mat4x4<f32>(
            attention_factors(bh, t.x, k / 4u, step), attention_factors(bh, t.y, k / 4u, step),
            attention_factors(bh, t.z, k / 4u, step), attention_factors(bh, t.w, k / 4u, step),
        ));
        ds = Quad(p.r0 * (ds.r0 * f[0] - delta), p.r1 * (ds.r1 * f[1] - delta), p.r2 * (ds.r2 * f[2] - delta), p.r3 * (ds.r3 * f[3] - delta));
        p = Quad(p.r0 * f[0], p.r1 * f[1], p.r2 * f[2], p.r3 * f[3]);
#else
        ds = Quad(p.r0 * (ds.r0 - delta), p.r1 * (ds.r1 - delta), p.r2 * (ds.r2 - delta), p.r3 * (ds.r3 - delta));
#endif
        add_weighted(&dv, p, head, 3u, first, me);
        add_weighted(&dk, ds, head, 0u, first, me);
    }
    let dk_low = gather(dk.low, me);
    let dv_low = gather(dv.low, me);
    if me.slice == 0u {
        store_quad(k, head, 1u, me.lane, dk_low, params.scale);
        store_quad(k, head, 2u, me.lane, dv_low, 1.0);
    }
#if WIDE
    store_quad(k, head, 1u, me.lane + 16u, dk.high, params.scale);
    store_quad(k, head, 2u, me.lane + 16u, dv.high, 1.0);
#endif
}
