// attention_cached.wgsl: out = softmax(scale * q k^T) v for one new token per sequence against the first length[0] + 1 rows of a KV cache. One
// workgroup per (sequence, head): invocation i takes keys i, i + WG_SIZE, .. with an online softmax of its own; the partial results are
// merged in workgroup memory, MERGE vec4 columns at a time, in invocation order. Any tier.
struct Params { batch: u32, heads: u32, max_seq: u32, scale: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;       // [batch, 3 * heads * D4]; q is read
@group(0) @binding(2) var<storage, read> length: array<u32>;           // tokens in the cache before this one
@group(0) @binding(3) var<storage, read> keys: array<vec4<Elem>>;      // [batch, heads, max_seq, D4]
@group(0) @binding(4) var<storage, read> values: array<vec4<Elem>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<Elem>>; // [batch, heads * D4]

const D4: u32 = HEAD_DIM / 4u;
const LOG2E: f32 = 1.4426950408889634;
const MASKED: f32 = -1e30;
var<workgroup> tops: array<f32, WG_SIZE>;
var<workgroup> totals: array<f32, WG_SIZE>;
var<workgroup> parts: array<vec4<f32>, WG_SIZE * 4u>;

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let bh = wg.y * grid.x + wg.x;
    if bh >= params.batch * params.heads { return; }
    let b = bh / params.heads;
    let h = bh % params.heads;
    let q_base = (b * 3u * params.heads + h) * D4;
    var q: array<vec4<f32>, D4>;
    var acc: array<vec4<f32>, D4>;
    for (var i = 0u; i < D4; i++) {
        q[i] = vec4<f32>(qkv[q_base + i]) * (params.scale * LOG2E);
        acc[i] = vec4<f32>();
    }
    var top = MASKED;
    var total = 0.0;
    let end = min(length[0] + 1u, params.max_seq);
    for (var k = index; k < end; k += WG_SIZE) {
        let base = (bh * params.max_seq + k) * D4;
        var sum = vec4<f32>();
        for (var i = 0u; i < D4; i++) { sum += q[i] * vec4<f32>(keys[base + i]); }
        let s = (sum.x + sum.y) + (sum.z + sum.w);
        let next = max(top, s);
        let fade = exp2(top - next);
        let p = exp2(s - next);
        top = next;
        total = total * fade + p;
        for (var i = 0u; i < D4; i++) { acc[i] = acc[i] * fade + p * vec4<f32>(values[base + i]); }
    }
    tops[index] = top;
    totals[index] = total;
    workgroupBarrier();
    var most = MASKED;
    for (var j = 0u; j < WG_SIZE; j++) { most = max(most, tops[j]); }
    var sum = 0.0;
    for (var j = 0u; j < WG_SIZE; j++) { sum += totals[j] * exp2(tops[j] - most); }
    // An invocation without keys has top = MASKED, total = 0 and acc = 0: it adds nothing.
    let weight = exp2(top - most) / sum;
    for (var start = 0u; start < D4; start += 4u) {
        workgroupBarrier();
        for (var c = 0u; c < 4u; c++) { parts[c * WG_SIZE + index] = acc[start + c] * weight; }
        workgroupBarrier();
        for (var c = index; c < 4u; c += WG_SIZE) {
            var value = vec4<f32>();
            for (var j = 0u; j < WG_SIZE; j++) { value += parts[c * WG_SIZE + j]; }
            out[bh * D4 + start + c] = vec4<Elem>(value);
        }
    }
}
