//! Columns times a number each, then a layer norm without parameters, forward and backward.

use super::layer_norm::BackwardParams;
use super::{FLOATS, Rows, column_sum, dim, expect, row_variants};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The forward kernel.
pub static KERNEL: Kernel = Kernel {
    name: "value_norm",
    source: include_str!("../../shaders/value_norm.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

/// The backward kernel.
pub static BACKWARD: Kernel = Kernel {
    name: "value_norm_backward",
    source: include_str!("../../shaders/value_norm_backward.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

fn variants() -> Vec<Defines> {
    use Scalar::{F16, F32};
    let types = [(F32, F32), (F16, F32), (F16, F16), (F32, F16)];
    row_variants(&[types.map(|(input, elem)| vec![("In", input.into()), ("Elem", elem.into())]).to_vec()])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    units: u32,
    biased: u32,
    inv_cols: f32,
    eps: f32,
}

/// What the forward pass keeps per row for the backward pass, `[rows]` f32 both.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    /// Means of `u values`.
    pub mean: &'a Buffer,
    /// Reciprocal standard deviations of it.
    pub rstd: &'a Buffer,
}

/// `out = (v - mean) rstd + bias` over each row of `v = u values`, and the statistics that the backward pass needs.
///
/// # Shapes
/// `u` and `out` `[rows, cols]` f32 or f16, `values` and `bias` `[cols]` f32, statistics `[rows]`.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that; [`crate::Error::Limit`].
///
/// # Numerics
/// f32, in two passes as [`super::layer_norm::layer_norm`].
///
/// # Source
/// The output side of a layer of OneBit, arXiv 2402.11295, and the norm after it.
#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub fn value_norm(
    context: &Context,
    u: &Buffer,
    values: &Buffer,
    bias: Option<&Buffer>,
    out: &Buffer,
    statistics: Statistics<'_>,
    [rows, cols]: [usize; 2],
    eps: f32,
) -> Result<()> {
    let op = KERNEL.name;
    expect(op, "u", u, elements(&[rows, cols])?, FLOATS)?;
    expect(op, "values", values, cols, &[DType::F32])?;
    bias.map_or(Ok(()), |bias| expect(op, "bias", bias, cols, &[DType::F32]))?;
    expect(op, "out", out, elements(&[rows, cols])?, FLOATS)?;
    expect(op, "mean", statistics.mean, rows, &[DType::F32])?;
    expect(op, "rstd", statistics.rstd, rows, &[DType::F32])?;
    if cols == 0 {
        return Ok(());
    }
    let by = Rows::new(context, cols, &[("In", u.dtype().into()), ("Elem", out.dtype().into())])?;
    let biased = bias.is_some().into();
    let params = Params { rows: dim(rows)?, units: by.units, biased, inv_cols: 1.0 / cols as f32, eps };
    let Statistics { mean, rstd } = statistics;
    let bindings = [u.read(), values.read(), bias.unwrap_or(values).read(), out.write(), mean.write(), rstd.write()];
    context.dispatch(&KERNEL, &by.defines, &params, &bindings, by.grid(rows))
}

/// Gradients of [`value_norm`]: `du` and `dvalues`, each set or added to. That of the bias is the sum of the rows of `dz`.
///
/// # Shapes
/// `dz` `[rows, cols]` f32 or f16, `u` and `du` `[rows, cols]` f32 or f16 both, `values` and `dvalues` `[cols]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that; [`crate::Error::Limit`]; [`crate::Error::OutOfMemory`] for the
/// workspace.
///
/// # Numerics
/// f32 throughout, in an order fixed by the shape and the adapter: equal inputs give equal bits.
#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub fn value_norm_backward(
    context: &Context,
    dz: &Buffer,
    u: &Buffer,
    values: &Buffer,
    statistics: Statistics<'_>,
    du: &Buffer,
    accumulate: bool,
    dvalues: &Buffer,
    accumulate_values: bool,
    [rows, cols]: [usize; 2],
) -> Result<()> {
    let op = BACKWARD.name;
    expect(op, "dz", dz, elements(&[rows, cols])?, FLOATS)?;
    expect(op, "u", u, elements(&[rows, cols])?, FLOATS)?;
    expect(op, "values", values, cols, &[DType::F32])?;
    expect(op, "mean", statistics.mean, rows, &[DType::F32])?;
    expect(op, "rstd", statistics.rstd, rows, &[DType::F32])?;
    expect(op, "du", du, elements(&[rows, cols])?, &[u.dtype()])?;
    expect(op, "dvalues", dvalues, cols, &[DType::F32])?;
    if cols == 0 {
        return Ok(());
    }
    let by = Rows::new(context, cols, &[("In", u.dtype().into()), ("Elem", dz.dtype().into())])?;
    let slots = by.slots();
    // So many workgroups that the device is full; each has a row of sums per slot in the workspace.
    let target = if context.capabilities().is_cpu() { 16 } else { 528 };
    let (params, chunks) = BackwardParams::new([rows, cols], &by, target, accumulate)?;
    let partial = context.alloc(chunks * slots * cols, DType::F32)?;
    let Statistics { mean, rstd } = statistics;
    let bindings = [dz.read(), u.read(), values.read(), mean.read(), rstd.read(), du.write(), partial.write()];
    context.dispatch(&BACKWARD, &by.defines, &params, &bindings, Grid::Linear(chunks as u64))?;
    column_sum::sum(context, &partial, &[dvalues], [chunks * slots, cols], 1.0, accumulate_values)
}
