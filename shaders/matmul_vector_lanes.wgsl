// matmul_vector_lanes.wgsl: out[n] = sum_k a[k] b[n, k] for adapters that run shaders on a CPU, in the subgroup tier: a workgroup is one
// subgroup of LANES invocations that owns 16 columns, without workgroup memory or a barrier, and loads each vec4 of a once for all of them.
//
// Bounds: n and k are multiples of 4 (VEC); columns beyond the end repeat the last one and are not stored. More columns than a grid is wide go
// on in its second dimension.
#import matmul_operands
#import matmul_epilogue

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let batch = wg.z;
    let first = (wg.y * grid.x + wg.x) * 16u;
    if first >= params.n { return; }
    let row = batch * params.batch_a / 4u;
#for c 0 16
    let column{c} = (batch * params.batch_b + min(first + {c}u, params.n - 1u) * params.k) / 4u;
    var sum{c} = vec4<f32>();
#endfor
    for (var k = lane; k < params.k / 4u; k += LANES) {
        let x = vec4<f32>(a[row + k]);
#for c 0 16
        sum{c} = fma(x, vec4<f32>(b[column{c} + k]), sum{c});
#endfor
    }
    var v: array<f32, 16>;
#for c 0 16
    v[{c}] = subgroupAdd((sum{c}.x + sum{c}.y) + (sum{c}.z + sum{c}.w));
#endfor
    // Invocation q finishes the q-th four columns.
    for (var q = lane; q < 4u && first + q * 4u < params.n; q += LANES) {
        finish4(batch, 0u, first + q * 4u, vec4<f32>(v[q * 4u], v[q * 4u + 1u], v[q * 4u + 2u], v[q * 4u + 3u]));
    }
}
