// optimizer_step.wgsl: ends the gradient part of a step. Adds the partial sums of squares in a fixed order, finds the global norm and the
// clipping factor, decides whether the step is applied, moves the loss scale, the learning rate and Adam's bias corrections on.
// One workgroup.
#import reduce      // Invocation, workgroup_sum, workgroup_max
#import step_state  // StepState
struct Params {
    partials: u32,
    clip: f32,             // maximum norm; 0: no clipping
    lr: f32,
    min_lr: f32,
    warmup: u32,           // steps of linear warm-up
    decay: u32,            // step at which min_lr is reached; 0: constant after the warm-up
    one_minus_beta1: f32,  // given as such because 1 - beta loses its digits in f32
    one_minus_beta2: f32,
    growth_interval: u32,  // finite steps after which the loss scale doubles; 0: it is constant
    max_loss_scale: f32,
    lambda: f32,           // strength of the pull toward the grid at its end; 0: there is none
    lambda_silent: u32,    // steps without it
    lambda_full: u32,      // the first step, counted from 1, that has all of it; in between it grows by
    lambda_slope: f32,     // so much a step
    lambda_offset: f32,    // from so many steps after the silent ones, at least -1 and at most 0, where the ramp starts between two steps
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> state: StepState;

fn is_finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }

// (1 + cos(pi r)) / 2 = cos(pi r / 2)^2 for r in [0, 1], by the Taylor series of the cosine to the 12th power (truncation below 7e-9):
// the built-in may be off by 2^-11.
fn half_cosine(r: f32) -> f32 {
    let y = 1.57079633 * r;
    let y2 = y * y;
    let c = 1.0 + y2 * (-0.5 + y2 * (4.16666667e-2 + y2 * (-1.38888889e-3 + y2 * (2.48015873e-5
        + y2 * (-2.75573192e-7 + y2 * 2.08767570e-9)))));
    return c * c;
}

// nanoGPT's schedule for the step numbered `it` from 0.
fn learning_rate(it: u32) -> f32 {
    if it < params.warmup { return params.lr * f32(it + 1u) / f32(params.warmup + 1u); }
    if params.decay == 0u { return params.lr; }
    if it >= params.decay { return params.min_lr; }
    let r = f32(it - params.warmup) / f32(params.decay - params.warmup);
    return params.min_lr + half_cosine(r) * (params.lr - params.min_lr);
}

// The strength of the pull in the step numbered `step` from 1: none through the silent ones, and to the bit all of it at the end.
fn pull(step: u32) -> f32 {
    if step <= params.lambda_silent { return 0.0; }
    if step >= params.lambda_full { return params.lambda; }
    return params.lambda_slope * (f32(step - params.lambda_silent) + params.lambda_offset);
}

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation) {
    var sum = 0.0;
    // Chunks counted from the end, so that a maximum finds the first bad one.
    var bad = 0.0;
    for (var i = inv.index; i < params.partials; i += WG_SIZE) {
        let partial = partials[i];
        sum += partial;
        if !is_finite(partial) { bad = max(bad, f32(params.partials - i)); }
    }
    let total = workgroup_sum(sum, inv);
    let worst = workgroup_max(bad, inv);
    if inv.index != 0u { return; }

    let step = state.step;
    // The bits decide: finite partials may still add up to an infinity.
    let finite = worst == 0.0 && is_finite(total);
    let scale = state.loss_scale;
    let norm = sqrt(max(total, 0.0)) / scale;
    state.lr = learning_rate(step);
    state.step = step + 1u;
    state.lambda = pull(step + 1u);
    state.finite = u32(finite);
    if finite {
        state.grad_norm = norm;
        var factor = 1.0;
        if params.clip > 0.0 { factor = min(1.0, params.clip / (norm + 1e-6)); }
        state.grad_scale = factor / scale;
        state.updates += 1u;
        // 1 - beta^(t+1) = (1 - beta^t) + beta^t (1 - beta), which keeps its digits where 1 - pow(beta, t) would not.
        state.correction1 += (1.0 - state.correction1) * params.one_minus_beta1;
        state.correction2 += (1.0 - state.correction2) * params.one_minus_beta2;
        state.good_steps += 1u;
        if params.growth_interval != 0u && state.good_steps >= params.growth_interval && scale * 2.0 <= params.max_loss_scale {
            state.loss_scale = scale * 2.0;
            state.good_steps = 0u;
        }
    } else {
        state.grad_scale = 0.0;
        state.skipped += 1u;
        state.good_steps = 0u;
        if params.growth_interval != 0u && scale > 1.0 {
            state.loss_scale = scale * 0.5;
        } else if state.bad_step == 0u {
            state.bad_step = step + 1u;
            state.bad_chunk = select(params.partials - u32(worst), 0u, worst == 0.0);
        }
    }
}
