//! Quantization of a transposed matrix, along what were its columns.

use super::dequantize::dequantize;
use super::packed::Packed;
use super::quantize::{Input, LONG, Options, run, shapes};
use super::{FLOATS, each, expect, product};
use crate::buffer::Buffer;
use crate::format::{Grid, Span, Store};
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

const NAME: &str = "quantize_transposed";

/// An invocation per group. Neighbours take neighbouring columns of `x`, so that loads are of neighbours without workgroup memory, whose
/// barriers are what software adapters are slow at.
pub static KERNEL: Kernel = Kernel {
    name: NAME,
    source: include_str!("../../shaders/quantize.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || {
        let all = product(&[
            each("STOCHASTIC", &[false, true]),
            each("CLASS", &[0u32, 1]),
            columns(&[4, 1]),
            each("SPAN", &[0u32, 1]),
            each("HANDED", &[false]),
            each("WG_SIZE", &[64u32]),
        ]);
        // Only random numbers ask whether rows start on a multiple of four.
        all.into_iter()
            .filter(|v| v.contains(&("STOCHASTIC", true.into())) || v.contains(&("WIDTH", 4u32.into())))
            .collect()
    },
    proven_bounds: true,
};

/// The statistics of a tensor.
pub static TENSOR: Kernel = Kernel {
    name: "quantize_transposed_tensor",
    source: include_str!("../../shaders/quantize_tensor.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: || product(&[each("CLASS", &[0u32]), columns(&[4]), each("PARTIALS", &[false]), shapes(&[8, 256])]),
    proven_bounds: false,
};

/// The largest magnitudes of squares.
pub static SQUARE: Kernel = Kernel {
    name: "quantize_transposed_square",
    source: include_str!("../../shaders/quantize_square.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || product(&[columns(&[4]), each("WG_SIZE", &[64u32])]),
    proven_bounds: true,
};

/// How matrices are read by columns.
fn columns(widths: &[u32]) -> Vec<Defines> {
    let inputs = each("X", &[Scalar::F32, Scalar::F16, Scalar::U32]);
    product(&[inputs, each("HALVES", &[2u32]), each("WIDTH", widths), each("TRANSPOSED", &[true])])
}

/// What to transpose.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// f32 or f16, row-major.
    Dense(&'a Buffer),
    /// Quantized along its rows, in any format; decoded where it is read, except by adapters that run shaders on a CPU, which unpack it
    /// first unless [`Options::division`] is given.
    Packed(&'a Packed),
}

/// Quantizes `x^T` into `out`, all of it: what [`super::quantize::quantize`] makes of the transposed matrix. Options mean rows and columns
/// of `out`: a rotation is along the rows of `x`, random signs are those of its rows, random numbers those of `out`'s elements.
///
/// # Shapes
/// `x` `[rows, cols]`, `out` `[cols, rows]`, integers or small floats with a scale per group of 16 to 1024. Any sizes: without a rotation
/// the last group of a row may be shorter, whose block must divide the rows of `x`.
///
/// # Errors
/// [`Error::Shape`] where sizes do not fit; [`Error::Invalid`] for other formats of `out`; as [`super::quantize::quantize`].
///
/// # Numerics
/// As [`super::quantize::quantize`] of the values of `x`, those of codes rounded to f32 once (twice where scales are E4M3 or
/// double-quantized). The scale of a tensor that E4M3 needs is that of the rotated matrix, which is read once more for it.
///
/// # Source
/// The backward pass of Castro et al., "Quartet", arXiv 2505.14669, and of NVIDIA, "Pretraining large language models with NVFP4", arXiv
/// 2509.25149.
pub fn quantize_transposed(context: &Context, x: Source<'_>, out: &Packed, options: Options<'_>) -> Result<()> {
    let (format, layout) = (out.format(), out.layout());
    let input = match x {
        Source::Dense(x) => {
            expect(NAME, "x", x, layout.rows * layout.cols, FLOATS)?;
            Input::Columns(x)
        }
        Source::Packed(x) => {
            let sizes = [x.layout().rows, x.layout().cols];
            if sizes != [layout.cols, layout.rows] {
                let [rows, cols] = sizes;
                return Err(Error::shape(
                    NAME,
                    format!("x of {} x {}", layout.cols, layout.rows),
                    format!("{rows} x {cols} in {}", x.format()),
                ));
            }
            Input::Packed(x)
        }
    };
    let unpacked;
    let input = match input {
        // A CPU has no fast memory that is not a cache, and takes eight elements at once where rows are contiguous.
        Input::Packed(x) if context.capabilities().is_cpu() && options.division.is_none() => {
            unpacked = context.alloc(layout.rows * layout.cols, DType::F32)?;
            dequantize(context, x, &unpacked)?;
            Input::Columns(&unpacked)
        }
        other => other,
    };
    let grid =
        matches!(format.grid(), Grid::Int { .. } | Grid::Centred { .. } | Grid::ZeroPoint { .. } | Grid::Float(_));
    let span = matches!(format.span(), Span::Group(n) if n as usize <= LONG);
    if !grid || !span || format.store() == Store::Double {
        let expected = "integers or small floats with a scale per group of 16 to 1024, such as mxfp4 and nvfp4";
        return Err(Error::invalid(NAME, expected, format.to_string()));
    }
    run(context, NAME, &input, out, options)
}
