//! Products of two matrices of integers in integers, by dot products of four bytes: every GPU.

use super::dim;
use super::matmul::{Form, Shape};
use super::packed::Packed;
use super::packed_matmul::{Operand, PACKED, PackedMatmul, bindings, defines, params, tail, tails};
use crate::context::Grid as Workgroups;
use crate::format::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "packed_integer",
    source: include_str!("../../shaders/packed_integer.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: true,
};

/// Results, what follows, scales along K or not, tiles.
pub(super) fn variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for out in [Scalar::F32, Scalar::F16].map(Define::from) {
        for epilogue in tails(Form::Nt, out) {
            for grouped in [false, true] {
                all.extend([Shape::Small, Shape::Wide].map(|shape| of(out, epilogue, grouped, shape)));
            }
        }
    }
    all
}

fn of(out: Define, epilogue: u32, grouped: bool, shape: Shape) -> Defines {
    let edge = Define::U32(if shape == Shape::Small { 4 } else { 8 });
    let mut all = defines(Form::Nt, PACKED, out, epilogue, false, true);
    all.extend([("GROUPED", grouped.into()), ("EDGE", edge)]);
    all
}

/// Both operands, where both are quantized.
pub(super) fn operands<'a>(spec: &PackedMatmul<'a>) -> Result<[&'a Packed; 2], &'static str> {
    match spec.a {
        _ if spec.form != Form::Nt => Err("it is written for the forward form"),
        Operand::Packed(a) => Ok([a, spec.b]),
        Operand::Dense(_) => Err("both operands must be quantized"),
    }
}

/// Elements of a row whose products are summed before scales come in.
pub(super) fn run_length(spec: &PackedMatmul<'_>, operands: [&Packed; 2]) -> usize {
    operands.iter().fold(spec.k, |run, packed| run.min(packed.layout().group))
}

/// Whether the kernel can do this product.
///
/// # Errors
/// The reason why it cannot.
pub(super) fn supports(spec: &PackedMatmul<'_>, shape: Shape) -> Result<(), &'static str> {
    let operands = operands(spec)?;
    let integers = |packed: &&Packed| {
        matches!(packed.format().grid(), Grid::Int { .. } | Grid::Centred { .. } | Grid::ZeroPoint { .. })
    };
    // A value is at most 2^bits in units of which it is a multiple: a byte and its excess, or twice that where it is a half-integer.
    let bits = operands.iter().map(|packed| packed.format().bits()).sum::<u32>();
    match shape {
        _ if spec.k == 0 => Err("it needs k > 0"),
        _ if !operands.iter().all(integers) => Err("both operands must be integers"),
        _ if (run_length(spec, operands) as u64) << bits >= 1 << 31 => Err("a sum might leave 32 bits"),
        Shape::Tall => Err("it has no tall tiles"),
        Shape::Small | Shape::Wide => Ok(()),
    }
}

/// Runs it.
pub(super) fn dispatch(context: &Context, spec: &PackedMatmul<'_>, shape: Shape) -> Result<()> {
    dispatch_by(&KERNEL, context, spec, shape)
}

/// Runs this kernel or [`super::packed_binary::KERNEL`].
pub(super) fn dispatch_by(
    kernel: &'static Kernel,
    context: &Context,
    spec: &PackedMatmul<'_>,
    shape: Shape,
) -> Result<()> {
    let grouped = operands(spec).is_ok_and(|o| o.iter().any(|packed| packed.layout().groups > 1));
    let tile = shape.tile();
    let grid = Workgroups::Xyz([dim(spec.n.div_ceil(tile))?, dim(spec.m.div_ceil(tile))?, 1]);
    let defines = of(spec.out.dtype().into(), tail(&spec.epilogue).0, grouped, shape);
    context.dispatch_tier(kernel, Tier::Baseline, &defines, &params(spec, spec.k, 1)?, &bindings(spec, true), grid)
}
