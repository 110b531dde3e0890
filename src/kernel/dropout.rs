//! Inverted dropout, and conversion between f32 and f16.

use super::{Dropout, FLOATS, dim, expect};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "dropout",
    source: include_str!("../../shaders/dropout.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for x in [Scalar::F32, Scalar::F16] {
        for out in [Scalar::F32, Scalar::F16] {
            for (residual, int64) in [(false, false), (false, true), (true, false), (true, true)] {
                all.push(defines(x, out, residual, int64));
            }
        }
    }
    all
}

fn defines(x: impl Into<Define>, out: impl Into<Define>, residual: bool, int64: bool) -> Defines {
    vec![("X", x.into()), ("Out", out.into()), ("RESIDUAL", residual.into()), ("INT64", int64.into())]
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    len: u32,
    op: u32,
    micro: u32,
    threshold: u32,
    scale: f32,
    seed_low: u32,
    seed_high: u32,
    reserved: u32,
}

/// `out = x * factors`, or `x * factors + residual`; the gradient is the same call on `dy` without a residual. With `p = 0` a conversion.
///
/// # Shapes
/// `x`, `out` (each f32 or f16) and `residual` (f32) of one length. The random numbers count over the flat index.
///
/// # Errors
/// [`crate::Error::Shape`] for other buffers; [`crate::Error::Invalid`] for a probability outside [0, 1).
///
/// # Numerics
/// A product and a sum in f32, then rounding to `out`'s type; beyond 65504 f16 overflows to infinity.
///
/// # Source
/// Srivastava et al., "Dropout", 2014, section 10 (inverted).
pub fn dropout(
    context: &Context,
    x: &Buffer,
    residual: Option<&Buffer>,
    out: &Buffer,
    dropout: Dropout<'_>,
) -> Result<()> {
    expect("dropout", "x", x, x.len(), FLOATS)?;
    expect("dropout", "out", out, x.len(), FLOATS)?;
    if let Some(residual) = residual {
        expect("dropout", "residual", residual, x.len(), &[DType::F32])?;
    }
    dropout.check("dropout")?;
    let (threshold, scale) = dropout.factors();
    let [seed_low, seed_high] = dropout.seed_words();
    let params = Params {
        len: dim(x.len())?,
        op: dropout.op,
        micro: dropout.micro,
        threshold,
        scale,
        seed_low,
        seed_high,
        reserved: 0,
    };
    let int64 = context.capabilities().features.contains(wgpu::Features::SHADER_INT64);
    let mut bindings = vec![x.read(), dropout.state.read(), out.write()];
    bindings.extend(residual.map(Buffer::read));
    context.dispatch(
        &KERNEL,
        &defines(x.dtype(), out.dtype(), residual.is_some(), int64),
        &params,
        &bindings,
        Grid::Linear((x.len() as u64).div_ceil(1024)),
    )
}
