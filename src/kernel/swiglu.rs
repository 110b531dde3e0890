//! `silu(gate) * up` and its gradient.

use super::{dim, expect};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "swiglu",
    source: include_str!("../../shaders/swiglu.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for elem in [Scalar::F32, Scalar::F16] {
        for grad in [false, true] {
            for vec in [false, true] {
                all.push(defines(elem.into(), grad, vec));
            }
        }
    }
    all
}

fn defines(elem: Define, grad: bool, vec: bool) -> Defines {
    vec![("ACTIVATION", 3u32.into()), ("Elem", elem), ("GRAD", grad.into()), ("VEC", vec.into())]
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    width: u32,
}

/// Whether rows fall on whole vec4, the parameters and the grid.
fn plan(rows: usize, width: usize) -> Result<(bool, Params, Grid)> {
    let vec = width.is_multiple_of(4);
    let items = if vec { width / 4 } else { width };
    let grid = Grid::Linear(((rows * items) as u64).div_ceil(256));
    Ok((vec, Params { rows: dim(rows)?, width: dim(items)? }, grid))
}

/// `out = silu(gate) * up` with `x [rows, 2 * width]` = gate, up and `out [rows, width]` of one type, f32 or f16.
///
/// # Errors
/// [`crate::Error::Shape`] for other buffers.
///
/// # Source
/// Shazeer, "GLU variants improve Transformer", 2020, equation 5.
pub fn swiglu(context: &Context, x: &Buffer, out: &Buffer, rows: usize, width: usize) -> Result<()> {
    expect("swiglu", "x", x, elements(&[2, rows, width])?, &[DType::F32, DType::F16])?;
    expect("swiglu", "out", out, elements(&[rows, width])?, &[x.dtype()])?;
    let (vec, params, grid) = plan(rows, width)?;
    context.dispatch(&KERNEL, &defines(x.dtype().into(), false, vec), &params, &[x.read(), out.write()], grid)
}

/// Gradient of [`swiglu`]: `dx [rows, 2 * width]` from `x` and `dy [rows, width]`, overwritten.
///
/// # Errors
/// [`crate::Error::Shape`] for other buffers.
pub fn swiglu_backward(
    context: &Context,
    x: &Buffer,
    dy: &Buffer,
    dx: &Buffer,
    rows: usize,
    width: usize,
) -> Result<()> {
    expect("swiglu_backward", "x", x, elements(&[2, rows, width])?, &[DType::F32, DType::F16])?;
    expect("swiglu_backward", "dy", dy, elements(&[rows, width])?, &[x.dtype()])?;
    expect("swiglu_backward", "dx", dx, x.len(), &[x.dtype()])?;
    let (vec, params, grid) = plan(rows, width)?;
    context.dispatch(&KERNEL, &defines(x.dtype().into(), true, vec), &params, &[x.read(), dy.read(), dx.write()], grid)
}
