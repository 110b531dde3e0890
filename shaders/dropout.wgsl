// dropout.wgsl: out = x * factors (+ residual), inverted dropout; a plain conversion where threshold is 0. Four elements and one Philox call per
// invocation. The last vec4 may be partly padding.
#import philox
#import philox_wide
#import step_state
struct Params {
    len: u32,
    op: u32,
    micro: u32,
    threshold: u32,
    scale: f32,
    seed_low: u32,
    seed_high: u32,
    reserved: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(2) var<storage, read> state: StepState;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<Out>>;
#if RESIDUAL
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
#endif

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i * 4u >= params.len { return; }
    var value = vec4<f32>(x[i]);
    if params.threshold != 0u {
        let bits = philox_wide(vec2<u32>(params.seed_low, params.seed_high), vec4<u32>(i, params.op, state.step, params.micro));
        value *= select(vec4<f32>(params.scale), vec4<f32>(), bits < vec4<u32>(params.threshold));
    }
#if RESIDUAL
    value += residual[i];
#endif
    out[i] = vec4<Out>(value);
}
