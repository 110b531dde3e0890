//! Sums over the columns of a matrix.

use super::{FLOATS, Rows, dim, each, expect, row_variants};
use crate::buffer::{Buffer, elements};
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "row_sum",
    source: include_str!("../../shaders/row_sum.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    row_variants(&[each("Elem", &[Scalar::F32, Scalar::F16])])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    units: u32,
    accumulate: u32,
    factor: f32,
}

/// Sets `out[r]` to `factor` times the sum of row r of `x`, or adds that to it.
///
/// # Shapes
/// `x` `[rows, cols]` f32 or f16, `out` `[rows]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that.
///
/// # Numerics
/// Sums in f32, in an order fixed by the shape and the adapter.
///
/// # Source
/// Tree reduction without atomics.
pub fn row_sum(
    context: &Context,
    x: &Buffer,
    out: &Buffer,
    [rows, cols]: [usize; 2],
    factor: f32,
    accumulate: bool,
) -> Result<()> {
    expect(KERNEL.name, "x", x, elements(&[rows, cols])?, FLOATS)?;
    expect(KERNEL.name, "out", out, rows, &[DType::F32])?;
    let by = Rows::new(context, cols, &[("Elem", x.dtype().into())])?;
    let params = Params { rows: dim(rows)?, units: by.units, accumulate: accumulate.into(), factor };
    context.dispatch(&KERNEL, &by.defines, &params, &[x.read(), out.write()], by.grid(rows))
}
