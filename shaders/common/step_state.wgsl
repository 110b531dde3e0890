// What changes from step to step, kept and advanced on the device so that every step submits the same commands.
// Twin of `StepState` in src/kernel/step.rs.
struct StepState {
    step: u32,          // optimizer steps begun, counted from 0; advanced at the end of a step
    finite: u32,        // 1 if every gradient of the last step was finite; 0: that step changed no parameter
    lr: f32,            // learning rate of the last step
    grad_scale: f32,    // factor on gradients: 1 / loss_scale times the clipping factor
    loss_scale: f32,    // factor on the loss of the next backward pass
    grad_norm: f32,     // global norm of the last step's gradients, before clipping
    correction1: f32,   // 1 / (1 - beta1^t)
    correction2: f32,   // 1 / (1 - beta2^t)
    updates: u32,       // t, the updates that were applied (steps that were not skipped)
    good_steps: u32,    // finite steps since the loss scale last changed
    loss_bad_step: u32, // first step whose loss was not finite, counted from 1; 0: none
    skipped: u32,       // steps skipped so far because a gradient was not finite
}
