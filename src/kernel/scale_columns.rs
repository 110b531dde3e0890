//! Columns times a number each, and the gradient of those numbers.

use super::{FLOATS, column_sum, dim, each, expect, product, width};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "scale_columns",
    source: include_str!("../../shaders/scale_columns.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

/// Sums of products down the columns of chunks of rows.
pub static DOT: Kernel = Kernel {
    name: "column_dot",
    source: include_str!("../../shaders/column_dot.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    product(&[each("WIDTH", &[1u32, 4]), each("Elem", &[Scalar::F32, Scalar::F16])])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    len: u32,
    units: u32,
    accumulate: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DotParams {
    rows: u32,
    units: u32,
    chunk: u32,
    chunks: u32,
    tiles: u32,
}

/// `out[r, c] = x[r, c] values[c]`, or `out` is increased by that: OneBit's input values, and the gradient of their product.
///
/// # Shapes
/// `x` and `out` `[rows, cols]` of one type, f32 or f16; `values` `[cols]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] for other buffers; [`crate::Error::Limit`].
pub fn scale_columns(
    context: &Context,
    x: &Buffer,
    values: &Buffer,
    out: &Buffer,
    [rows, cols]: [usize; 2],
    accumulate: bool,
) -> Result<()> {
    let op = KERNEL.name;
    expect(op, "x", x, elements(&[rows, cols])?, FLOATS)?;
    expect(op, "values", values, cols, &[DType::F32])?;
    expect(op, "out", out, elements(&[rows, cols])?, &[x.dtype()])?;
    let width = width(cols);
    let units = dim(cols)? / width;
    let len = dim(rows * cols)? / width;
    context.dispatch(
        &KERNEL,
        &[("WIDTH", width.into()), ("Elem", x.dtype().into())],
        &Params { len, units: units.max(1), accumulate: accumulate.into() },
        &[x.read(), values.read(), out.write()],
        Grid::Linear(u64::from(len).div_ceil(256)),
    )
}

/// `out[c] = sum_r x[r, c] d[r, c]`, or `out` is increased by that: the gradient of the values of [`scale_columns`].
///
/// # Shapes
/// `x` and `d` `[rows, cols]` of one type, f32 or f16; `out` `[cols]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] for other buffers; [`crate::Error::Limit`]; [`crate::Error::OutOfMemory`] for the workspace.
///
/// # Numerics
/// Sums in f32, in an order fixed by the shape and the kind of adapter.
pub fn column_dot(
    context: &Context,
    x: &Buffer,
    d: &Buffer,
    out: &Buffer,
    [rows, cols]: [usize; 2],
    accumulate: bool,
) -> Result<()> {
    let op = DOT.name;
    expect(op, "x", x, elements(&[rows, cols])?, FLOATS)?;
    expect(op, "d", d, elements(&[rows, cols])?, &[x.dtype()])?;
    expect(op, "out", out, cols, &[DType::F32])?;
    if cols == 0 {
        return Ok(());
    }
    let width = width(cols);
    let units = dim(cols)? / width;
    let tiles = units.div_ceil(32);
    let target = if context.capabilities().is_cpu() { 4 } else { 1056 };
    let chunk = rows.div_ceil((target / tiles as usize).max(1)).max(1);
    let chunks = rows.div_ceil(chunk).max(1);
    let partial = context.alloc(chunks * cols, DType::F32)?;
    let params = DotParams { rows: dim(rows)?, units, chunk: dim(chunk)?, chunks: dim(chunks)?, tiles };
    let defines = [("WIDTH", width.into()), ("Elem", x.dtype().into())];
    let grid = Grid::Linear(chunks as u64 * u64::from(tiles));
    context.dispatch(&DOT, &defines, &params, &[x.read(), d.read(), partial.write()], grid)?;
    column_sum::sum(context, &partial, &[out], [chunks, cols], 1.0, accumulate)
}
