//! `out = x` or `out += x`, converting between f32 and f16.

use crate::buffer::Buffer;
use crate::context::Grid;
use crate::kernel::{FLOATS, dim, expect};
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "accumulate",
    source: include_str!("../../shaders/accumulate.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    use Scalar::{F16, F32};
    [(F32, F32), (F32, F16), (F16, F32), (F16, F16)].map(|(x, out)| vec![("X", x.into()), ("Out", out.into())]).to_vec()
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    len: u32,
    accumulate: u32,
}

/// Elements handled by one workgroup: 256 invocations of four.
const PER_WORKGROUP: u64 = 1024;

/// Sets `out` to `x`, or adds `x` to it. `x` and `out` have one length; each is f32 or f16.
///
/// # Errors
/// [`crate::Error::Shape`] for other buffers; [`crate::Error::Limit`] where the tensor is too long for a dispatch.
pub fn accumulate(context: &Context, x: &Buffer, out: &Buffer, accumulate: bool) -> Result<()> {
    expect("accumulate", "x", x, x.len(), FLOATS)?;
    expect("accumulate", "out", out, x.len(), FLOATS)?;
    context.dispatch(
        &KERNEL,
        &[("X", x.dtype().into()), ("Out", out.dtype().into())],
        &Params { len: dim(x.len())?, accumulate: accumulate.into() },
        &[x.read(), out.write()],
        Grid::Linear((x.len() as u64).div_ceil(PER_WORKGROUP)),
    )
}
