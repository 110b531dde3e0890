//! Keeps weights within bounds after an update.

use super::{dim, expect};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "clamp",
    source: include_str!("../../shaders/clamp.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || vec![defines(false), defines(true)],
    proven_bounds: false,
};

fn defines(half: bool) -> Defines {
    let mut defines: Defines = vec![("HALF", half.into())];
    if half {
        defines.push(("Half", Scalar::F16.into()));
    }
    defines
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    len: u32,
    limit: f32,
}

/// Moves what is beyond `[-limit, limit]` to the nearer end, in place; doing so twice is doing so once. NaN stays.
///
/// # Shapes
/// `weights` f32 of any length that is a multiple of 4; `halves`, their f16 copy, of the same.
///
/// # Errors
/// [`Error::Shape`] for other buffers; [`Error::Invalid`] for a limit that is not positive and finite; [`Error::Limit`].
///
/// # Source
/// Courbariaux et al., "BinaryConnect", arXiv 1511.00363.
pub fn clamp(context: &Context, weights: &Buffer, halves: Option<&Buffer>, limit: f32) -> Result<()> {
    let (op, len) = (KERNEL.name, weights.len());
    expect(op, "weights", weights, len, &[DType::F32])?;
    halves.map_or(Ok(()), |halves| expect(op, "halves", halves, len, &[DType::F16]))?;
    if !len.is_multiple_of(4) {
        return Err(Error::shape(op, "a multiple of 4 elements", len.to_string()));
    }
    if !(limit > 0.0 && limit.is_finite()) {
        return Err(Error::invalid(op, "a limit above 0", limit.to_string()));
    }
    let mut bindings = vec![weights.write()];
    bindings.extend(halves.map(Buffer::write));
    let grid = Grid::Linear((len as u64).div_ceil(1024));
    context.dispatch(&KERNEL, &defines(halves.is_some()), &Params { len: dim(len)?, limit }, &bindings, grid)
}
