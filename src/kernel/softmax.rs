//! Softmax over the last dimension, and its gradient.

use super::{dim, expect, workgroup_size, workgroup_variants};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::Kernel;
use crate::{Context, DType, Error, Result, Tier};

/// Forward.
pub static KERNEL: Kernel = Kernel {
    name: "softmax",
    source: include_str!("../../shaders/softmax.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: workgroup_variants,
    proven_bounds: false,
};

/// Backward.
pub static BACKWARD: Kernel = Kernel {
    name: "softmax_backward",
    source: include_str!("../../shaders/softmax_backward.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: workgroup_variants,
    proven_bounds: false,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct BackwardParams {
    rows: u32,
    cols: u32,
    accumulate: u32,
}

fn not_empty(op: &'static str, cols: usize) -> Result<()> {
    if cols == 0 { Err(Error::shape(op, "rows of at least one element", "0")) } else { Ok(()) }
}

/// `y = exp(x - max x) / sum exp(x - max x)` for each row of `x [rows, cols]`, f32.
///
/// # Errors
/// [`Error::Shape`] for other buffers or empty rows.
pub fn softmax(context: &Context, x: &Buffer, y: &Buffer, rows: usize, cols: usize) -> Result<()> {
    not_empty("softmax", cols)?;
    expect("softmax", "x", x, elements(&[rows, cols])?, &[DType::F32])?;
    expect("softmax", "y", y, elements(&[rows, cols])?, &[DType::F32])?;
    context.dispatch(
        &KERNEL,
        &[workgroup_size(context)],
        &Params { rows: dim(rows)?, cols: dim(cols)? },
        &[x.read(), y.write()],
        Grid::Linear(rows as u64),
    )
}

/// `dx = y * (dy - sum(y * dy))`, or `dx += ..`, from the forward pass's `y`; all `[rows, cols]`, f32.
///
/// # Errors
/// [`Error::Shape`] for other buffers or empty rows.
pub fn softmax_backward(
    context: &Context,
    y: &Buffer,
    dy: &Buffer,
    dx: &Buffer,
    rows: usize,
    cols: usize,
    accumulate: bool,
) -> Result<()> {
    const OP: &str = "softmax_backward";
    not_empty(OP, cols)?;
    for (name, buffer) in [("y", y), ("dy", dy), ("dx", dx)] {
        expect(OP, name, buffer, elements(&[rows, cols])?, &[DType::F32])?;
    }
    context.dispatch(
        &BACKWARD,
        &[workgroup_size(context)],
        &BackwardParams { rows: dim(rows)?, cols: dim(cols)?, accumulate: accumulate.into() },
        &[y.read(), dy.read(), dx.write()],
        Grid::Linear(rows as u64),
    )
}
