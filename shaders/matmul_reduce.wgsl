// matmul_reduce.wgsl: out = alpha * sum over the parts, or out += that: the end of a matrix product whose K was split. Part s of `parts`
// starts at s * stride units; an invocation owns one unit of WIDTH elements. Order fixed. Tier: baseline.
#import vector
struct Params { units: u32, stride: u32, parts: u32, accumulate: u32, alpha: f32 }
@group(0) @binding(0) var<uniform> params: Params;
#if WIDTH == 4
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Out>>;
#else
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<Out>;
#endif

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let unit = (wg.y * grid.x + wg.x) * 64u + index;
    if unit >= params.units { return; }
    // Four sums keep four loads in flight.
    var s0 = V(); var s1 = V(); var s2 = V(); var s3 = V();
    var i = 0u;
    for (; i + 4u <= params.parts; i += 4u) {
        let at = i * params.stride + unit;
        s0 += parts[at];
        s1 += parts[at + params.stride];
        s2 += parts[at + 2u * params.stride];
        s3 += parts[at + 3u * params.stride];
    }
    for (; i < params.parts; i++) { s0 += parts[i * params.stride + unit]; }
    var v = params.alpha * ((s0 + s1) + (s2 + s3));
    if params.accumulate != 0u { v += V(out[unit]); }
#if WIDTH == 4
    out[unit] = vec4<Out>(v);
#else
    out[unit] = Out(v);
#endif
}
