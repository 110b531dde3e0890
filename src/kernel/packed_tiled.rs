//! Products with a quantized right operand through workgroup memory, f32 arithmetic: every GPU, every format.

use super::dim;
use super::matmul::{Form, Shape};
use super::packed::{B, Decode};
use super::packed_matmul::{Operand, PackedMatmul, bindings, defines, params, tails, types, vectors};
use crate::context::Grid;
use crate::shader::{Define, Kernel};
use crate::{Context, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "packed_tiled",
    source: include_str!("../../shaders/packed_tiled.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || {
        let mut all = Vec::new();
        for decode in Decode::all() {
            for (form, a, out) in types() {
                for epilogue in tails(form, out) {
                    // What follows ragged rows is a kernel of its own.
                    let single = [(false, Shape::Small)].into_iter().filter(|_| epilogue == 0);
                    for (vec, shape) in [(true, Shape::Small), (true, Shape::Wide)].into_iter().chain(single) {
                        all.push(of(form, a, out, epilogue, vec, shape, decode));
                    }
                }
            }
        }
        all
    },
    proven_bounds: true,
};

fn of(
    form: Form,
    a: Define,
    out: Define,
    epilogue: u32,
    vec: bool,
    shape: Shape,
    decode: Decode,
) -> crate::shader::Defines {
    [defines(form, a, out, epilogue, vec, true), shape.defines().to_vec(), decode.defines(&B)].concat()
}

/// Whether the kernel can do this product.
///
/// # Errors
/// The reason why it cannot.
pub(super) fn supports(spec: &PackedMatmul<'_>, shape: Shape) -> Result<(), &'static str> {
    match shape {
        _ if spec.k == 0 => Err("it needs k > 0"),
        Shape::Tall => Err("it has no tall tiles"),
        Shape::Wide if !vectors(spec) => Err("wide tiles need contiguous dimensions that are multiples of 4"),
        Shape::Wide | Shape::Small => Ok(()),
    }
}

/// Whether what follows the product can be fused in.
pub(super) fn fuses(spec: &PackedMatmul<'_>) -> bool {
    vectors(spec)
}

/// Runs it: `parts` parts of K, `split` long each.
pub(super) fn dispatch(
    context: &Context,
    spec: &PackedMatmul<'_>,
    shape: Shape,
    split: usize,
    parts: usize,
) -> Result<()> {
    let a = match spec.a {
        Operand::Dense(a) => a.dtype().into(),
        Operand::Packed(_) => super::packed_matmul::PACKED,
    };
    let (epilogue, ..) = super::packed_matmul::tail(&spec.epilogue);
    let decode = Decode::of(&spec.b.format());
    let defines = of(spec.form, a, spec.out.dtype().into(), epilogue, vectors(spec), shape, decode);
    let tile = shape.tile();
    let grid = Grid::Xyz([dim(spec.n.div_ceil(tile))?, dim(spec.m.div_ceil(tile))?, dim(parts)?]);
    context.dispatch_tier(&KERNEL, Tier::Baseline, &defines, &params(spec, split, parts)?, &bindings(spec, true), grid)
}
