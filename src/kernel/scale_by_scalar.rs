//! `x *= s` where s is a scalar on the device.

use super::{FLOATS, dim, each, expect};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "scale_by_scalar",
    source: include_str!("../../shaders/scale_by_scalar.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    each("Elem", &[Scalar::F32, Scalar::F16])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    len: u32,
}

/// Multiplies every element of `x` by `s[0]`, in place.
///
/// # Shapes
/// `x` of any length, f32 or f16; `s` `[1]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that.
///
/// # Numerics
/// One rounding to the type of `x`; an f16 product beyond 65504 becomes infinite.
///
/// # Source
/// Elementwise.
pub fn scale_by_scalar(context: &Context, x: &Buffer, s: &Buffer) -> Result<()> {
    expect(KERNEL.name, "x", x, x.len(), FLOATS)?;
    expect(KERNEL.name, "s", s, 1, &[DType::F32])?;
    let params = Params { len: dim(x.len())? };
    let groups = (x.len() as u64).div_ceil(1024);
    context.dispatch(&KERNEL, &[("Elem", x.dtype().into())], &params, &[x.write(), s.read()], Grid::Linear(groups))
}
