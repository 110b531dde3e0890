// multiply_peak.wgsl: how fast multiply-adds are where nothing else is in their way. out[i] = sum over j < CHAINS of v_j, which starts as
// x[i] + j and becomes factor * v_j + addend `steps` times. One invocation per vec4 of x and out, so that it has 4 CHAINS independent chains
// in registers. Tier: baseline.
const UNROLL: u32 = 8u;
struct Params { units: u32, steps: u32, factor: f32, addend: f32 }   // steps: a multiple of UNROLL
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * WG_SIZE + index;
    if i >= params.units { return; }
    let factor = vec4<f32>(params.factor);
    let addend = vec4<f32>(params.addend);
#for j 0 CHAINS
    var v{j} = x[i] + {j}.0;
#endfor
    for (var step = 0u; step < params.steps; step += UNROLL) {
#for t 0 8
#for j 0 CHAINS
        v{j} = fma(v{j}, factor, addend);
#endfor
#endfor
    }
    var sum = v0;
#for j 1 CHAINS
    sum += v{j};
#endfor
    out[i] = sum;
}
