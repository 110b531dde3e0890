// adamw.wgsl: one AdamW update (Loshchilov and Hutter, arXiv 1711.05101, in PyTorch's order) of a part of the parameter arena, four
// elements per invocation. Elements below `decay_end` are decayed. A step whose gradients were not finite changes nothing.
// HALF: also writes the f16 copy that the next step's products read.
// PULL: CAGE's correction (arXiv 2510.18784): lambda (x - Q(x)) of the elements below `pull_end`, with x as it is before the update and Q(x)
// in `targets`, joins the update beside Adam's, or, coupled, the gradient after it was unscaled and clipped.
#import step_state  // StepState
struct Params {
    len: u32,
    decay_end: u32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    eps: f32,
    weight_decay: f32,
    pull_end: u32,
    coupled: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> state: StepState;
@group(0) @binding(3) var<storage, read_write> weights: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> moments1: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> moments2: array<vec4<f32>>;
#if HALF
@group(0) @binding(6) var<storage, read_write> halves: array<vec4<Half>>;
#if PULL
@group(0) @binding(7) var<storage, read> targets: array<vec4<f32>>;
#endif
#else
#if PULL
@group(0) @binding(6) var<storage, read> targets: array<vec4<f32>>;
#endif
#endif

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i * 4u >= params.len || state.finite == 0u { return; }
    var g = grads[i] * state.grad_scale;
    var w = weights[i];
#if PULL
    var pull = vec4<f32>();
    // Where there is no pull, a target that is not finite must not count either.
    if state.lambda != 0.0 {
        let pulled = vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.pull_end);
        pull = select(vec4<f32>(), state.lambda * (w - targets[i]), pulled);
    }
    if params.coupled != 0u { g += pull; }
#endif
    if i * 4u < params.decay_end { w -= w * (state.lr * params.weight_decay); }
    let m = params.beta1 * moments1[i] + params.one_minus_beta1 * g;
    let v = params.beta2 * moments2[i] + params.one_minus_beta2 * g * g;
    w -= state.lr * (m / state.correction1) / (sqrt(v / state.correction2) + params.eps);
#if PULL
    if params.coupled == 0u { w -= state.lr * pull; }
#endif
    moments1[i] = m;
    moments2[i] = v;
    weights[i] = w;
#if HALF
    halves[i] = vec4<Half>(w);
#endif
}
