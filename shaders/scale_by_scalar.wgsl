// scale_by_scalar.wgsl: x *= s[0] in place, four elements per invocation; the last vec4 may be partly padding.
struct Params { len: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> s: array<f32>; // [1]

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i >= (params.len + 3u) / 4u { return; }
    x[i] = vec4<Elem>(vec4<f32>(x[i]) * s[0]);
}
