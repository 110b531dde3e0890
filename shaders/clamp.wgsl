// clamp.wgsl: weights beyond [-limit, limit] become the nearer end, in place; four elements per invocation. Others, NaN among them, are not
// written. HALF: the f16 copy as well. Tier: baseline.
struct Params { len: u32, limit: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> weights: array<vec4<f32>>;
#if HALF
@group(0) @binding(2) var<storage, read_write> halves: array<vec4<Half>>;
#endif

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i * 4u >= params.len { return; }
    let w = weights[i];
    // Magnitudes compare as their bits; a NaN's are beyond infinity's.
    let bits = bitcast<vec4<u32>>(w) & vec4<u32>(0x7fffffffu);
    let beyond = (bits > vec4<u32>(bitcast<u32>(params.limit))) & (bits <= vec4<u32>(0x7f800000u));
    if any(beyond) {
        let inside = select(w, sign(w) * params.limit, beyond);
        weights[i] = inside;
#if HALF
        halves[i] = vec4<Half>(inside);
#endif
    }
}
