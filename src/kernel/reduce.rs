//! The sum or the maximum of all elements.

use super::{FLOATS, dim, each, expect, product, row_shape, row_shapes};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "reduce",
    source: include_str!("../../shaders/reduce.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    product(&[each("MAX", &[false, true]), each("Elem", &[Scalar::F32, Scalar::F16]), row_shapes()])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    len: u32,
    groups: u32,
    factor: f32,
}

/// What [`reduce`] computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduction {
    /// This factor times the sum; 1 / length makes it the mean.
    Sum(f32),
    /// The largest element.
    Max,
}

/// Sets `out[0]` to the sum or the maximum of all elements of `x`.
///
/// # Shapes
/// `x` of any length, f32 or f16; `out` `[1]` f32. The sum of nothing is 0.
///
/// # Errors
/// [`Error::Shape`] where `out` is not one f32, or for the maximum of nothing.
///
/// # Numerics
/// Sums in f32, in an order fixed by the length and the adapter. A NaN makes the sum NaN; the maximum is undefined then.
///
/// # Source
/// Two-stage tree reduction without atomics.
pub fn reduce(context: &Context, x: &Buffer, out: &Buffer, reduction: Reduction) -> Result<()> {
    expect(KERNEL.name, "x", x, x.len(), FLOATS)?;
    expect(KERNEL.name, "out", out, 1, &[DType::F32])?;
    if x.is_empty() {
        if reduction == Reduction::Max {
            return Err(Error::shape(KERNEL.name, "at least one element", "none"));
        }
        return context.clear(out);
    }
    // A first stage pays where one workgroup would be busy for longer than a dispatch takes.
    let (least, most) = if context.capabilities().is_cpu() { (1 << 14, 16) } else { (1 << 12, 512) };
    let groups = (x.len() / least).clamp(1, most);
    if groups == 1 {
        return stage(context, x, out, 1, reduction);
    }
    let partial = context.alloc(groups, DType::F32)?;
    let first = if reduction == Reduction::Max { Reduction::Max } else { Reduction::Sum(1.0) };
    stage(context, x, &partial, dim(groups)?, first)?;
    stage(context, &partial, out, 1, reduction)
}

fn stage(context: &Context, x: &Buffer, out: &Buffer, groups: u32, reduction: Reduction) -> Result<()> {
    let (max, factor) = match reduction {
        Reduction::Sum(factor) => (false, factor),
        Reduction::Max => (true, 1.0),
    };
    let mut defines = vec![("MAX", Define::Bool(max)), ("Elem", x.dtype().into())];
    defines.extend(row_shape(context, u32::MAX));
    let params = Params { len: dim(x.len())?, groups, factor };
    context.dispatch(&KERNEL, &defines, &params, &[x.read(), out.write()], Grid::Xyz([groups, 1, 1]))
}
