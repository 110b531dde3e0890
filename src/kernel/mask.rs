//! One bit per element decides what passes.

use super::{FLOATS, dim, each, expect};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::Kernel;
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "mask",
    source: include_str!("../../shaders/mask.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || each("Elem", FLOATS),
    proven_bounds: false,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    accumulate: u32,
}

/// Words of a mask of `rows` x `cols` bits: a row starts at a word, its first column is the lowest bit. Saturates.
#[must_use]
pub fn words(rows: usize, cols: usize) -> usize {
    rows.saturating_mul(cols.div_ceil(32))
}

/// `out[row, col] = x[row, col]` where the mask's bit is set, else 0; or `out` is increased by that.
///
/// # Shapes
/// `x` and `out` `[rows, cols]`, f32 or f16 both; `mask` u32 of [`words`].
///
/// # Errors
/// [`crate::Error::Shape`] where a buffer has another length or type; [`crate::Error::Limit`] where a dispatch is too large.
///
/// # Numerics
/// Exact; a NaN that is masked is gone.
pub fn mask(
    context: &Context,
    x: &Buffer,
    mask: &Buffer,
    out: &Buffer,
    [rows, cols]: [usize; 2],
    accumulate: bool,
) -> Result<()> {
    expect(KERNEL.name, "x", x, elements(&[rows, cols])?, FLOATS)?;
    expect(KERNEL.name, "mask", mask, words(rows, cols), &[DType::U32])?;
    expect(KERNEL.name, "out", out, elements(&[rows, cols])?, &[x.dtype()])?;
    context.dispatch(
        &KERNEL,
        &[("Elem", x.dtype().into())],
        &Params { rows: dim(rows)?, cols: dim(cols)?, accumulate: accumulate.into() },
        &[x.read(), mask.read(), out.write()],
        Grid::Linear((rows * cols).div_ceil(64) as u64),
    )
}
