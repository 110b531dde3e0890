//! The AdamW update of a chunk of the parameter arena.

use crate::buffer::Buffer;
use crate::context::Grid;
use crate::kernel::dim;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "adamw",
    source: include_str!("../../shaders/adamw.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    vec![defines(false), defines(true)]
}

fn defines(half: bool) -> Defines {
    let mut defines: Defines = vec![("HALF", half.into())];
    if half {
        defines.push(("Half", Scalar::F16.into()));
    }
    defines
}

/// Constants of the update; twin of the shader's block.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdamwParams {
    /// Elements, padding included.
    pub len: u32,
    /// Elements below this index are decayed.
    pub decay_end: u32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// 1 - beta1, rounded once.
    pub one_minus_beta1: f32,
    /// 1 - beta2, rounded once.
    pub one_minus_beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay per unit of learning rate.
    pub weight_decay: f32,
}

/// The buffers of one chunk, all of one length.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Parameters, f32.
    pub weights: &'a Buffer,
    /// Gradients, f32.
    pub grads: &'a Buffer,
    /// First moments, f32.
    pub moments1: &'a Buffer,
    /// Second moments, f32.
    pub moments2: &'a Buffer,
    /// The f16 copy of the parameters, if one is kept.
    pub halves: Option<&'a Buffer>,
}

/// Updates one chunk with the learning rate, scale and corrections that `state` holds.
///
/// # Errors
/// [`crate::Error::Limit`] where the chunk is too long for a dispatch.
///
/// # Source
/// Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101, algorithm 2, in the order that PyTorch applies it.
pub fn adamw(context: &Context, params: &AdamwParams, chunk: Chunk<'_>, state: &Buffer) -> Result<()> {
    let mut bindings =
        vec![chunk.grads.read(), state.read(), chunk.weights.write(), chunk.moments1.write(), chunk.moments2.write()];
    bindings.extend(chunk.halves.map(Buffer::write));
    debug_assert_eq!(params.len, dim(chunk.weights.len())?);
    context.dispatch(
        &KERNEL,
        &defines(chunk.halves.is_some()),
        params,
        &bindings,
        Grid::Linear(u64::from(params.len).div_ceil(1024)),
    )
}
