//! Global gradient norm, clipping factor, loss scale, learning rate and bias corrections, on the device.

use crate::buffer::Buffer;
use crate::context::Grid;
use crate::kernel::{check_state, dim, expect, workgroup_size, workgroup_variants};
use crate::shader::Kernel;
use crate::{Context, DType, Error, Result, Tier};

/// Partial sums of squares.
pub static GRAD_NORM: Kernel = Kernel {
    name: "grad_norm",
    source: include_str!("../../shaders/grad_norm.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: || {
        let mut variants = workgroup_variants();
        variants.iter_mut().for_each(|v| v.push(("CHUNK", CHUNK.into())));
        variants
    },
    proven_bounds: false,
};

/// The end of the gradient part of a step.
pub static KERNEL: Kernel = Kernel {
    name: "optimizer_step",
    source: include_str!("../../shaders/optimizer_step.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: workgroup_variants,
    proven_bounds: false,
};

/// Gradients per partial sum; a non-finite gradient is located to within one of these.
pub const CHUNK: u32 = 4096;

/// The state of training that lives on the device; twin of `shaders/common/step_state.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepState {
    /// Optimizer steps ended.
    pub step: u32,
    /// 1 if every gradient of the last step was finite; 0: that step changed no parameter.
    pub finite: u32,
    /// Learning rate of the last step.
    pub lr: f32,
    /// Factor on the last step's gradients: 1 / `loss_scale` times the clipping factor.
    pub grad_scale: f32,
    /// Factor on the loss of the next backward pass.
    pub loss_scale: f32,
    /// Global norm of the last step's gradients, unscaled, before clipping.
    pub grad_norm: f32,
    /// 1 - beta1^t.
    pub correction1: f32,
    /// 1 - beta2^t.
    pub correction2: f32,
    /// t, the updates that were applied (steps that were not skipped).
    pub updates: u32,
    /// Finite steps since the loss scale last changed.
    pub good_steps: u32,
    /// Steps skipped so far because a gradient was not finite.
    pub skipped: u32,
    /// First skipped step, counted from 1, that no smaller loss scale could have saved; 0: none.
    pub bad_step: u32,
    /// Index of the first chunk of gradients that was not finite in that step.
    pub bad_chunk: u32,
    /// Strength of the pull of quantized parameters toward the grid in the last step; 0: none.
    pub lambda: f32,
    /// Padding. Not private, because `..StepState::default()` must work outside the crate.
    #[doc(hidden)]
    pub reserved: [u32; 2],
}

/// Constants of [`optimizer_step`]; twin of the shader's block.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[expect(missing_docs, reason = "explained where the shader declares them")]
pub struct StepParams {
    pub partials: u32,
    pub clip: f32,
    pub lr: f32,
    pub min_lr: f32,
    pub warmup: u32,
    pub decay: u32,
    pub one_minus_beta1: f32,
    pub one_minus_beta2: f32,
    pub growth_interval: u32,
    pub max_loss_scale: f32,
    pub lambda: f32,
    pub lambda_silent: u32,
    pub lambda_full: u32,
    pub lambda_slope: f32,
    pub lambda_offset: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NormParams {
    len: u32,
    first_partial: u32,
}

/// Writes one partial sum of squares per [`CHUNK`] elements of `grads` (length a multiple of 4) to `partials`, from `first_partial` on.
///
/// # Errors
/// [`Error::Shape`] where `partials` has no room, for other types or lengths; [`Error::Limit`] where the tensor is too long for a dispatch.
pub fn grad_norm(context: &Context, grads: &Buffer, partials: &Buffer, first_partial: usize) -> Result<()> {
    let chunks = (grads.len() as u64).div_ceil(CHUNK.into());
    let op = GRAD_NORM.name;
    expect(op, "grads", grads, grads.len(), &[DType::F32])?;
    expect(op, "partials", partials, partials.len(), &[DType::F32])?;
    if !grads.len().is_multiple_of(4) {
        return Err(Error::shape(op, "gradients of a multiple of 4", grads.len().to_string()));
    }
    if (first_partial as u64).saturating_add(chunks) > partials.len() as u64 {
        return Err(Error::shape(
            op,
            format!("{chunks} partial sums from {first_partial} on"),
            partials.len().to_string(),
        ));
    }
    context.dispatch(
        &GRAD_NORM,
        &[workgroup_size(context), ("CHUNK", CHUNK.into())],
        &NormParams { len: dim(grads.len())?, first_partial: dim(first_partial)? },
        &[grads.read(), partials.write()],
        Grid::Linear(chunks),
    )
}

/// Advances `state` (one [`StepState`]) by a step whose gradients have the given partial sums.
///
/// # Errors
/// [`Error::Shape`] where `params.partials` is not the length of `partials`, for other types or a short state.
pub fn optimizer_step(context: &Context, params: &StepParams, partials: &Buffer, state: &Buffer) -> Result<()> {
    expect(KERNEL.name, "partials", partials, params.partials as usize, &[DType::F32])?;
    check_state(KERNEL.name, state)?;
    context.dispatch(
        &KERNEL,
        &[workgroup_size(context)],
        params,
        &[partials.read(), state.write()],
        Grid::Xyz([1, 1, 1]),
    )
}
