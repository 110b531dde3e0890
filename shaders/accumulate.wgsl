// accumulate.wgsl: out = x, or out += x, four elements per invocation. Buffers are padded to 16 bytes, so the last vec4 may be partly
// padding, where zeros are stored: `out` may be a part of the gradient arena, whose norm counts the padding.
struct Params { len: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Out>>;

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i * 4u >= params.len { return; }
    var value = vec4<f32>(x[i]);
    if params.accumulate != 0u { value += vec4<f32>(out[i]); }
    let inside = vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.len);
    out[i] = vec4<Out>(select(vec4<f32>(), value, inside));
}
