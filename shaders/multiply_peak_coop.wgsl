// multiply_peak_coop.wgsl: how fast cooperative matrices multiply where nothing else is in their way. Each block of 16 x 16 of out is
// `steps` times the sum over i < 2, j < 4 of a_i b_j, all 16 x 16 and row-major: f16 operands, f32 sums. One subgroup per block, two in a
// workgroup, so that it has eight independent sums in registers. Tier: coop (subgroups of exactly 32 invocations).
#enable f16
#enable wgpu_cooperative_matrix
struct Params { workgroups: u32, steps: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f16>;              // [2, 16, 16]
@group(0) @binding(2) var<storage, read> b: array<f16>;              // [4, 16, 16]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;      // [2 workgroups, 16, 16]

@compute @workgroup_size(64)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let workgroup = wg.y * grid.x + wg.x;
    if workgroup >= params.workgroups { return; }   // uniform per workgroup
#for i 0 2
    let a{i} = coopLoadT<coop_mat16x16<f16, A>>(&a[{i}u * 256u], 16u);
#endfor
#for j 0 4
    let b{j} = coopLoadT<coop_mat16x16<f16, B>>(&b[{j}u * 256u], 16u);
#for i 0 2
    var c{i}_{j} = coop_mat16x16<f32, C>();
#endfor
#endfor
    for (var step = 0u; step < params.steps; step++) {
#for j 0 4
#for i 0 2
        c{i}_{j} = coopMultiplyAdd(a{i}, b{j}, c{i}_{j});
#endfor
#endfor
    }
#for j 1 4
    c0_0 = c0_0 + c0_{j};
    c1_0 = c1_0 + c1_{j};
#endfor
    let sum = c0_0 + c1_0;
    let at = (workgroup * 2u + index / 32u) * 256u;
    coopStoreT(sum, &out[at], 16u);
}
