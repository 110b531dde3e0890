// kv_append.wgsl: writes k and v of one new token per sequence into the caches at row length[0]. One invocation per vec4 of k and v; nothing is
// written where the cache is full.
struct Params { batch: u32, heads: u32, max_seq: u32, groups: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;           // [batch, 3 * heads * groups]
@group(0) @binding(2) var<storage, read> length: array<u32>;               // tokens in the cache already
@group(0) @binding(3) var<storage, read_write> keys: array<vec4<Elem>>;    // [batch, heads, max_seq, groups]
@group(0) @binding(4) var<storage, read_write> values: array<vec4<Elem>>;

@compute @workgroup_size(64)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let width = params.heads * params.groups;
    let i = (wg.y * grid.x + wg.x) * 64u + index;
    let t = length[0];
    if i >= params.batch * width || t >= params.max_seq { return; }
    let b = i / width;
    let within = i % width;
    let h = within / params.groups;
    let to = ((b * params.heads + h) * params.max_seq + t) * params.groups + within % params.groups;
    let from_k = (b * 3u + 1u) * width + within;
    keys[to] = qkv[from_k];
    values[to] = qkv[from_k + width];
}
