// sum_to.wgsl: out[k] = sum over the reduced dimensions of x; x has four merged dimensions, of which `kept` says which remain. One workgroup per
// output element; invocation i adds elements i, i + WG_SIZE, .. in order, then the workgroup reduces: the same bits every time.
// A long reduction goes in two passes: `parts` workgroups per output element each take a contiguous part, then a second pass adds the parts.
#import reduce
struct Params {
    kept_sizes: vec4<u32>,      // sizes of the dimensions that remain, else 1
    kept_strides: vec4<u32>,    // their strides in x
    reduced_sizes: vec4<u32>,
    reduced_strides: vec4<u32>,
    outputs: u32,
    count: u32,                 // elements per output
    parts: u32,
    accumulate: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [outputs, parts]

fn place(i: u32, sizes: vec4<u32>, strides: vec4<u32>) -> u32 {
    let r2 = i / sizes.w;
    let r1 = r2 / sizes.z;
    let at = vec4<u32>(r1 / sizes.y, r1 % sizes.y, r2 % sizes.z, i % sizes.w) * strides;
    return at.x + at.y + at.z + at.w;
}

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let id = wg.y * grid.x + wg.x;
    if id >= params.outputs * params.parts { return; }
    let base = place(id / params.parts, params.kept_sizes, params.kept_strides);
    let length = (params.count + params.parts - 1u) / params.parts;
    let start = (id % params.parts) * length;
    let end = min(start + length, params.count);
    var sum = 0.0;
    for (var i = start + inv.index; i < end; i += WG_SIZE) { sum += f32(x[base + place(i, params.reduced_sizes, params.reduced_strides)]); }
    sum = workgroup_sum(sum, inv);
    if inv.index == 0u {
        if params.accumulate != 0u { sum += out[id]; }
        out[id] = sum;
    }
}
