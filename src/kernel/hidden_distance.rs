//! How far the directions of two hidden states are apart, and the gradient of that.

use super::reduce::{Reduction, reduce};
use super::soft_cross_entropy::Factors;
use super::{Rows, check_state, dim, expect, row_variants};
use crate::buffer::{Buffer, elements};
use crate::shader::{Define, Defines, Kernel};
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "hidden_distance",
    source: include_str!("../../shaders/hidden_distance.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

fn variants() -> Vec<Defines> {
    let kind = |grad: bool, state: bool| vec![("GRAD", Define::Bool(grad)), ("HAS_STATE", Define::Bool(state))];
    row_variants(&[vec![kind(false, false), kind(true, false), kind(true, true)]])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    units: u32,
    accumulate: u32,
    factor: f32,
}

/// The mean over rows of `|a / |a| - b / |b||^2`, times the factor; norms count as 1e-12 at least.
///
/// # Shapes
/// `a` and `b` `[rows, cols]` f32, `losses` `[rows]` f32, `loss` `[1]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that; [`crate::Error::Limit`], [`crate::Error::OutOfMemory`].
///
/// # Numerics
/// f32; the difference is taken before it is squared, so that near directions keep their digits. Norms below 1e19 do not overflow.
///
/// # Source
/// The second part of OneBit's loss, arXiv 2402.11295.
pub fn hidden_distance(
    context: &Context,
    a: &Buffer,
    b: &Buffer,
    losses: &Buffer,
    loss: &Buffer,
    shape: [usize; 2],
    factor: f32,
) -> Result<()> {
    expect(KERNEL.name, "losses", losses, shape[0], &[DType::F32])?;
    expect(KERNEL.name, "loss", loss, 1, &[DType::F32])?;
    dispatch(context, [a, b], losses, None, shape, false)?;
    reduce(context, losses, loss, Reduction::Sum(factor / shape[0].max(1) as f32))
}

/// The gradient of [`hidden_distance`] with respect to `a`, set or added to; 0 for rows whose norm is below 1e-12.
///
/// # Shapes
/// As [`hidden_distance`]; `grad` like `a`.
///
/// # Errors
/// As [`hidden_distance`].
pub fn hidden_distance_backward(
    context: &Context,
    a: &Buffer,
    b: &Buffer,
    grad: &Buffer,
    shape: [usize; 2],
    factors: Factors<'_>,
    accumulate: bool,
) -> Result<()> {
    expect(KERNEL.name, "grad", grad, elements(&shape)?, &[DType::F32])?;
    dispatch(context, [a, b], grad, Some(factors), shape, accumulate)
}

fn dispatch(
    context: &Context,
    [a, b]: [&Buffer; 2],
    out: &Buffer,
    gradient: Option<Factors<'_>>,
    [rows, cols]: [usize; 2],
    accumulate: bool,
) -> Result<()> {
    let op = KERNEL.name;
    expect(op, "a", a, elements(&[rows, cols])?, &[DType::F32])?;
    expect(op, "b", b, elements(&[rows, cols])?, &[DType::F32])?;
    let state = gradient.and_then(|g| g.state);
    let mut bindings = vec![a.read(), b.read(), out.write()];
    if let Some(state) = state {
        check_state(op, state)?;
        bindings.push(state.read());
    }
    let own = [("GRAD", Define::Bool(gradient.is_some())), ("HAS_STATE", Define::Bool(state.is_some()))];
    let by = Rows::new(context, cols, &own)?;
    let factor = gradient.map_or(0.0, |g| g.factor / rows.max(1) as f32);
    let params = Params { rows: dim(rows)?, units: by.units, accumulate: accumulate.into(), factor };
    context.dispatch(&KERNEL, &by.defines, &params, &bindings, by.grid(rows))
}
