//! The AdamW update of a part of the parameter arena, with CAGE's pull toward the grid.

use crate::buffer::Buffer;
use crate::context::Grid;
use crate::kernel::{check_state, dim, expect};
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "adamw",
    source: include_str!("../../shaders/adamw.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    [(false, false), (true, false), (false, true), (true, true)].map(|(half, pull)| defines(half, pull)).to_vec()
}

fn defines(half: bool, pull: bool) -> Defines {
    let mut defines: Defines = vec![("HALF", half.into()), ("PULL", pull.into())];
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
    /// Elements below this index are pulled toward [`Chunk::targets`], with the strength that the state holds.
    pub pull_end: u32,
    /// 1: the pull joins the gradient, before the moments; 0: it joins the update.
    pub coupled: u32,
}

/// The buffers of one part of the arena, all of one length.
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
    /// What parameters are pulled toward, f32, if they are.
    pub targets: Option<&'a Buffer>,
}

/// Updates one part with the learning rate, scale, corrections and strength of the pull that `state` holds.
///
/// # Errors
/// [`Error::Shape`] where the buffers differ in length or are of other types, where `params.len` is not theirs or no multiple of 4, or for
/// a short state; [`Error::Limit`] where the part is too long for a dispatch.
///
/// # Source
/// Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101, algorithm 2, in the order that PyTorch applies it. The pull
/// is that of CAGE, arXiv 2510.18784.
pub fn adamw(context: &Context, params: &AdamwParams, chunk: Chunk<'_>, state: &Buffer) -> Result<()> {
    let op = KERNEL.name;
    let len = chunk.weights.len();
    if params.len != dim(len)? || !len.is_multiple_of(4) {
        return Err(Error::shape(op, format!("{len} elements, a multiple of 4"), format!("{}", params.len)));
    }
    let all = [
        ("weights", chunk.weights),
        ("grads", chunk.grads),
        ("moments1", chunk.moments1),
        ("moments2", chunk.moments2),
    ];
    all.into_iter().try_for_each(|(name, buffer)| expect(op, name, buffer, len, &[DType::F32]))?;
    chunk.halves.map_or(Ok(()), |halves| expect(op, "halves", halves, len, &[DType::F16]))?;
    chunk.targets.map_or(Ok(()), |targets| expect(op, "targets", targets, len, &[DType::F32]))?;
    check_state(op, state)?;
    let mut bindings =
        vec![chunk.grads.read(), state.read(), chunk.weights.write(), chunk.moments1.write(), chunk.moments2.write()];
    bindings.extend(chunk.halves.map(Buffer::write));
    bindings.extend(chunk.targets.map(Buffer::read));
    context.dispatch(
        &KERNEL,
        &defines(chunk.halves.is_some(), chunk.targets.is_some()),
        params,
        &bindings,
        Grid::Linear(u64::from(params.len).div_ceil(1024)),
    )
}
