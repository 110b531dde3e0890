//! Copies of matrices with zeros around, for kernels that take whole tiles only.

use super::{FLOATS, dim, expect};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::Kernel;
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "pad_rows",
    source: include_str!("../../shaders/pad_rows.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || {
        [[DType::F32; 2], [DType::F16, DType::F32], [DType::F16; 2]]
            .map(|[from, to]| vec![("In", from.into()), ("Out", to.into())])
            .to_vec()
    },
    proven_bounds: false,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    width: u32,
    elements: u32,
}

/// `out[row, col] = x[row, col]`, zero beyond the rows and columns of `x`.
///
/// # Shapes
/// `x` `[rows, cols]`, f32 or f16; `out` `[height, width]`, f32, or f16 like `x`.
///
/// # Errors
/// [`crate::Error::Shape`] where a buffer has another length or type, or `x` is larger than `out`; [`crate::Error::Limit`] where the dispatch
/// is too large.
pub fn pad_rows(
    context: &Context,
    x: &Buffer,
    [rows, cols]: [usize; 2],
    out: &Buffer,
    [height, width]: [usize; 2],
) -> Result<()> {
    let (needed, room) = (elements(&[rows, cols])?, elements(&[height, width])?);
    if x.len() < needed || !FLOATS.contains(&x.dtype()) {
        let got = format!("{} elements, {}", x.len(), x.dtype());
        return Err(crate::Error::shape(KERNEL.name, format!("x of at least {needed} elements, f32 or f16"), got));
    }
    expect(KERNEL.name, "out", out, room, if x.dtype() == DType::F16 { FLOATS } else { &[DType::F32] })?;
    if rows > height || cols > width {
        let got = format!("{rows} x {cols}");
        return Err(crate::Error::shape(KERNEL.name, format!("x of at most {height} x {width}"), got));
    }
    let params = Params { rows: dim(rows)?, cols: dim(cols)?, width: dim(width)?, elements: dim(room)? };
    let defines = [("In", x.dtype().into()), ("Out", out.dtype().into())];
    let groups = room.div_ceil(64) as u64;
    context.dispatch(&KERNEL, &defines, &params, &[x.read(), out.write()], Grid::Linear(groups))
}
