//! Products of two matrices of signs by counting bits: every GPU.

use super::matmul::Shape;
use super::packed_integer::{dispatch_by, operands, run_length, variants};
use super::packed_matmul::PackedMatmul;
use crate::format::Grid;
use crate::shader::Kernel;
use crate::{Context, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "packed_binary",
    source: include_str!("../../shaders/packed_binary.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: true,
};

/// Whether the kernel can do this product.
///
/// # Errors
/// The reason why it cannot.
pub(super) fn supports(spec: &PackedMatmul<'_>, shape: Shape) -> Result<(), &'static str> {
    let operands = operands(spec)?;
    let signs = operands.iter().all(|packed| packed.format().grid() == Grid::Centred { bits: 1 });
    let run = run_length(spec, operands);
    match shape {
        _ if spec.k == 0 => Err("it needs k > 0"),
        _ if !signs => Err("both operands must be signs"),
        _ if run < spec.k && run < 128 => Err("it takes groups of 128 or more"),
        _ if run >= 1 << 30 => Err("a sum might leave 32 bits"),
        Shape::Tall => Err("it has no tall tiles"),
        Shape::Small | Shape::Wide => Ok(()),
    }
}

/// Runs it.
pub(super) fn dispatch(context: &Context, spec: &PackedMatmul<'_>, shape: Shape) -> Result<()> {
    dispatch_by(&KERNEL, context, spec, shape)
}
