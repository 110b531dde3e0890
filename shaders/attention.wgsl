// attention.wgsl: out = softmax(scale * q k^T) v per head, causal or not, with an online softmax; lse = log sum exp of the scaled
// scores. One workgroup per head and 64 queries; tiles of 64 keys, those that are masked throughout are skipped. For GPUs; any tier.
// Bounds: rows beyond seq are neither loaded nor stored, groups beyond D4 are not stored; loops count up to a bound.
#import attention_tile
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;         // [batch, heads, seq]
#if DROPOUT
@group(0) @binding(4) var<storage, read> state: StepState;
#endif

fn fetch(head: Head, part: u32, t: u32, i: u32) -> vec4<f32> {
    if t >= params.seq { return vec4<f32>(); }
    return vec4<f32>(qkv[row_index(head.b, t, part, head.h) + i]);
}

fn mask(s: vec4<f32>, t: u32, k: vec4<u32>) -> vec4<f32> {
    return select(vec4<f32>(MASKED), s * (params.scale * LOG2E), k < vec4<u32>(visible(t)));
}

fn top_of(s: vec4<f32>) -> f32 { return max(max(s.x, s.y), max(s.z, s.w)); }

fn weights(s: vec4<f32>, top: f32, t: u32, k: vec4<u32>) -> vec4<f32> {
    return select(vec4<f32>(), exp2(s - top), k < vec4<u32>(visible(t)));
}

fn sum_of(p: vec4<f32>) -> f32 { return (p.x + p.y) + (p.z + p.w); }

fn store(t: u32, head: Head, group: u32, value: vec4<f32>, total: f32) {
    if t < params.seq && group < D4 { out[out_index(head.b, t, head.h) + group] = vec4<Elem>(value / total); }
}

fn store_quad(t: u32, head: Head, group: u32, acc: Quad, total: vec4<f32>) {
    store(t, head, group, acc.r0, total.x);
    store(t + 1u, head, group, acc.r1, total.y);
    store(t + 2u, head, group, acc.r2, total.z);
    store(t + 3u, head, group, acc.r3, total.w);
}

fn fade_quad(acc: Quad, fade: vec4<f32>) -> Quad { return Quad(acc.r0 * fade.x, acc.r1 * fade.y, acc.r2 * fade.z, acc.r3 * fade.w); }

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
    let t = work.y + 4u * me.ty;
    var acc: Acc;
    var top = vec4<f32>(MASKED);
    var total = vec4<f32>(); // over this invocation's keys; they are added up at the end, since all share `top`
    let end = visible(work.y + 63u);
    for (var first = 0u; first < end; first += 64u) {
        var s = products(head, 0u, work.y, 1u, first, me);
        let k = vec4<u32>(0u, 1u, 2u, 3u) + (first + 4u * me.tx);
        s.r0 = mask(s.r0, t, k);
        s.r1 = mask(s.r1, t + 1u, k);
        s.r2 = mask(s.r2, t + 2u, k);
        s.r3 = mask(s.r3, t + 3u, k);
        workgroupBarrier();
        tile[me.tx * 16u + me.ty] = vec4<f32>(top_of(s.r0), top_of(s.r1), top_of(s.r2), top_of(s.r3));
        workgroupBarrier();
        var next = top;
        for (var j = 0u; j < 16u; j++) { next = max(next, tile[j * 16u + me.ty]); }
        let fade = exp2(top - next);
        top = next;
        s.r0 = weights(s.r0, top.x, t, k);
        s.r1 = weights(s.r1, top.y, t + 1u, k);
        s.r2 = weights(s.r2, top.z, t + 2u, k);
        s.r3 = weights(s.r3, top.w, t + 3u, k);
        total = total * fade + vec4<f32>(sum_of(s.r0), sum_of(s.r1), sum_of(s.r2), sum_of(s.r3));
#if DROPOUT
        let step = state.step;
        s.r0 *= attention_factors(bh, t, k.x / 4u, step);
        s.r1 *= attention_factors(bh, t + 1u, k.x / 4u, step);
        s.r2 *= attention_factors(bh, t + 2u, k.x / 4u, step);
        s.r3 *= attention_factors(bh, t + 3u, k.x / 4u, step);
#endif
        acc.low = fade_quad(acc.low, fade);
#if WIDE
        acc.high = fade_quad(acc.high, fade);
#endif
        add_weighted(&acc, s, head, 2u, first, me);
    }
    workgroupBarrier();
    tile[me.tx * 16u + me.ty] = total;
    workgroupBarrier();
    total = vec4<f32>();
    for (var j = 0u; j < 16u; j++) { total += tile[j * 16u + me.ty]; }
    let low = gather(acc.low, me);
    if me.slice == 0u { store_quad(t, head, me.lane, low, total); }
#if WIDE
    store_quad(t, head, me.lane + 16u, acc.high, total);
#endif
    if me.tx < 4u && t + me.tx < params.seq { lse[bh * params.seq + t + me.tx] = top[me.tx] * LN2 + log(total[me.tx]); }
}
