// attention_backward_query.wgsl: dq = scale * sum over keys of dS k, where P = exp(scores - lse), dP = dropout factor * (dout . v),
// dS = P (dP - delta), delta = dout . out. Also leaves (lse * log2 e, delta) in `stats` for the pass over keys, which must follow.
// One workgroup per head and 64 queries, see attention.wgsl, also for the bounds.
#import attention_tile
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> out: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<Elem>>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<vec4<Elem>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;  // [batch, heads, seq]
#if DROPOUT
@group(0) @binding(7) var<storage, read> state: StepState;
#endif

fn fetch(head: Head, part: u32, t: u32, i: u32) -> vec4<f32> {
    if t >= params.seq { return vec4<f32>(); }
    if part == 3u { return vec4<f32>(dout[out_index(head.b, t, head.h) + i]); }
    return vec4<f32>(qkv[row_index(head.b, t, part, head.h) + i]);
}

// dS of query t and four keys, from their products q . k and dout . v.
fn grad(qk: vec4<f32>, dov: vec4<f32>, lse2: f32, delta: f32, bh: u32, t: u32, k: vec4<u32>) -> vec4<f32> {
    let p = exp2(qk * (params.scale * LOG2E) - lse2);
    var dp = dov;
#if DROPOUT
    dp *= attention_factors(bh, t, k.x / 4u, state.step);
#endif
    return select(vec4<f32>(), p * (dp - delta), k < vec4<u32>(visible(t)));
}

fn store(t: u32, head: Head, group: u32, value: vec4<f32>) {
    if t < params.seq && group < D4 { dqkv[row_index(head.b, t, 0u, head.h) + group] = vec4<Elem>(value * params.scale); }
}

fn store_quad(t: u32, head: Head, group: u32, acc: Quad) {
    store(t, head, group, acc.r0);
    store(t + 1u, head, group, acc.r1);
    store(t + 2u, head, group, acc.r2);
    store(t + 3u, head, group, acc.r3);
}

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let work = assignment(wg.y * grid.x + wg.x, true);
    let bh = work.x;
    if bh >= params.batch * params.heads { return; }
    let head = Head(bh / params.heads, bh % params.heads);
    let me = place(index);

    // Four invocations per row add up delta.
    var part = 0.0;
    let row = work.y + index / 4u;
    if row < params.seq {
        let base = out_index(head.b, row, head.h);
        for (var i = index % 4u; i < D4; i += 4u) { part += dot(vec4<f32>(dout[base + i]), vec4<f32>(out[base + i])); }
    }
    tile[index] = vec4<f32>(part);
    workgroupBarrier();
    if index < 64u {
        let delta = (tile[4u * index].x + tile[4u * index + 1u].x) + (tile[4u * index + 2u].x + tile[4u * index + 3u].x);
        let lse2 = lse[bh * params.seq + min(work.y + index, params.seq - 1u)] * LOG2E;
        // Invocation `index` alone reads and writes these four.
        tile[4u * index] = vec4<f32>(lse2, delta, 0.0, 0.0);
        if work.y + index < params.seq { stats[bh * params.seq + work.y + index] = vec2<f32>(lse2, delta); }
    }
    workgroupBarrier();
    let s0 = tile[16u * me.ty].xy;
    let s1 = tile[16u * me.ty + 4u].xy;
    let s2 = tile[16u * me.ty + 8u].xy;
    let s3 = tile[16u * me.ty + 12u].xy;

    let t = work.y + 4u * me.ty;
    var acc: Acc;
    let end = visible(work.y + 63u);
    for (var first = 0u; first < end; first += 64u) {
        let qk = products(head, 0u, work.y, 1u, first, me);
        let dov = products(head, 3u, work.y, 2u, first, me);
        let k = vec4<u32>(0u, 1u, 2u, 3u) + (first + 4u * me.tx);
        let ds = Quad(
            grad(qk.r0, dov.r0, s0.x, s0.y, bh, t, k),
            grad(qk.r1, dov.r1, s1.x, s1.y, bh, t + 1u, k),
            grad(qk.r2, dov.r2, s2.x, s2.y, bh, t + 2u, k),
            grad(qk.r3, dov.r3, s3.x, s3.y, bh, t + 3u, k),
        );
        add_weighted(&acc, ds, head, 1u, first, me);
    }
    let low = gather(acc.low, me);
    if me.slice == 0u { store_quad(t, head, me.lane, low); }
#if WIDE
    store_quad(t, head, me.lane + 16u, acc.high);
#endif
}
