// What changes from step to step, kept and advanced on the device so that every step submits the same commands.
// Twin of `StepState` in src/kernel/optimizer_step.rs.
struct StepState {
    step: u32,          // optimizer steps ended
    finite: u32,        // 1 if every gradient of the last step was finite; 0: that step changed no parameter
    lr: f32,            // learning rate of the last step
    grad_scale: f32,    // factor on the last step's gradients: 1 / loss_scale times the clipping factor
    loss_scale: f32,    // factor on the loss of the next backward pass
    grad_norm: f32,     // global norm of the last step's gradients, unscaled, before clipping
    correction1: f32,   // 1 - beta1^t
    correction2: f32,   // 1 - beta2^t
    updates: u32,       // t, the updates that were applied (steps that were not skipped)
    good_steps: u32,    // finite steps since the loss scale last changed
    skipped: u32,       // steps skipped so far because a gradient was not finite
    bad_step: u32,      // first skipped step, counted from 1, that no smaller loss scale could have saved; 0: none
    bad_chunk: u32,     // index of the first chunk of gradients that was not finite in that step
    lambda: f32,        // strength of the pull toward the grid in the last step; 0: none
    reserved0: u32,
    reserved1: u32,
}
