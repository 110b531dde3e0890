//! Products with quantized operands by cooperative matrices: f16 operands, f32 accumulation.

use super::dim;
use super::matmul::Form;
use super::packed::{self, Decode};
use super::packed_matmul::{Operand, PACKED, PackedMatmul, bindings, defines, params, tail, tails, vectors};
use crate::context::Grid;
use crate::format::{Format, Span};
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The kernel.
///
/// # Numerics
/// Operands are f16: a quantized one's values are rounded to it once, relative to the largest that the matrix could hold, except that in form
/// `Nt` integers and small floats with scales of rows or of the tensor are exact and the scales are factors on the sums. Products of f16 are
/// exact and summed in f32, in an order that is fixed per shape, with |error| <= 2 (k + k / 16 + 6) u |a| |b|, u = 2^-24, as cooperative
/// matrices may cut off instead of round. So where both operands are integers with scales of rows, sums below 2^24 are exact.
pub static KERNEL: Kernel = Kernel {
    name: "packed_coop",
    source: include_str!("../../shaders/packed_coop.wgsl"),
    tiers: &[Tier::Coop],
    variants: || {
        let mut all = Vec::new();
        for form in Form::ALL {
            for (a, b) in operands(form) {
                for out in [Scalar::F32, Scalar::F16].map(Define::from) {
                    all.extend(tails(form, out).into_iter().map(|epilogue| of(form, a, b, out, epilogue)));
                }
            }
        }
        all
    },
    proven_bounds: true,
};

/// Rows and columns of the tile of a workgroup.
pub(super) const TILE: usize = 128;

/// How an operand's codes become f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Coded {
    decode: Decode,
    /// Scales are in the f16 values, else they are factors on rows and columns of the result.
    fold: bool,
}

impl Coded {
    fn of(form: Form, format: &Format) -> Self {
        let decode = Decode::of(format);
        Self { decode, fold: form != Form::Nt || !format.row_scaled() || decode.grid > 2 }
    }
}

/// What the operands may be: on the left f16 with any format on the right, or the same kind of format, or more bits on the left where both
/// are integers with scales of whole rows.
fn operands(form: Form) -> Vec<(Option<Coded>, Coded)> {
    let mut kinds: Vec<Coded> = Decode::all().into_iter().map(|decode| Coded { decode, fold: true }).collect();
    let mut all = Vec::new();
    if form == Form::Nt {
        let whole = Decode::all().into_iter().filter(|d| d.grid <= 2);
        kinds.extend(whole.map(|decode| Coded { decode, fold: false }));
        all.extend(kinds.iter().map(|kind| (Some(*kind), *kind)));
        let int = |bits| Coded { decode: Decode { grid: 0, bits, exponent: 0, mantissa: 0 }, fold: false };
        all.extend([(8, 4), (8, 2), (8, 1), (4, 2), (4, 1)].map(|(a, b)| (Some(int(a)), int(b))));
    }
    all.extend(kinds.into_iter().map(|kind| (None, kind)));
    all
}

fn of(form: Form, a: Option<Coded>, b: Coded, out: Define, epilogue: u32) -> Defines {
    let left = if a.is_some() { PACKED } else { Scalar::F16.into() };
    let mut all = defines(form, left, out, epilogue, true);
    all.extend([
        ("FULL", false.into()),
        ("A_PACKED", a.is_some().into()),
        ("A_FOLD", a.is_some_and(|a| a.fold).into()),
        ("B_FOLD", b.fold.into()),
    ]);
    all.extend(b.decode.defines(&packed::B));
    all.extend(a.into_iter().flat_map(|a| a.decode.defines(&packed::A)));
    all
}

fn left(spec: &PackedMatmul<'_>) -> Option<Coded> {
    match spec.a {
        Operand::Dense(_) => None,
        Operand::Packed(a) => Some(Coded::of(spec.form, &a.format())),
    }
}

/// Whether the kernel can do this product on this device.
///
/// # Errors
/// The reason why it cannot.
pub(super) fn supports(context: &Context, spec: &PackedMatmul<'_>) -> Result<(), &'static str> {
    let two_scales = |format: Format| Decode::of(&format).grid == 5 && matches!(format.span(), Span::Group(16));
    match spec.a {
        _ if context.tier() < Tier::Coop => Err("it needs the coop tier"),
        Operand::Dense(a) if a.dtype() != DType::F16 => Err("its left operand is f16 or quantized"),
        Operand::Packed(a) if two_scales(a.format()) => Err("it is not written for nf3 in groups of 16"),
        _ if two_scales(spec.b.format()) => Err("it is not written for nf3 in groups of 16"),
        _ if spec.k == 0 => Err("it needs k > 0"),
        _ if !vectors(spec) => Err("it needs contiguous dimensions that are multiples of 4"),
        _ if !operands(spec.form).contains(&(left(spec), Coded::of(spec.form, &spec.b.format()))) => {
            Err("it is not written for this pair of formats")
        }
        _ => Ok(()),
    }
}

/// Whether both operands are integers whose sums may exceed what f32 holds exactly.
pub(super) fn may_round(spec: &PackedMatmul<'_>) -> bool {
    let whole = |format: Format| {
        let decode = Decode::of(&format);
        (decode.grid < 2 && format.row_scaled()).then(|| format.grid().span_max())
    };
    let Operand::Packed(a) = spec.a else { return false };
    // Halves are integers in units of a half.
    let halves = |format: Format| if matches!(format.grid(), crate::format::Grid::Centred { .. }) { 2.0 } else { 1.0 };
    let (left, right) = (a.format(), spec.b.format());
    match (whole(left), whole(right)) {
        #[expect(clippy::cast_precision_loss, reason = "a length")]
        (Some(a), Some(b)) => a * halves(left) * b * halves(right) * spec.k as f64 > 16_777_216.0,
        _ => false,
    }
}

/// Runs it: `parts` parts of K, `split` long each.
pub(super) fn dispatch(context: &Context, spec: &PackedMatmul<'_>, split: usize, parts: usize) -> Result<()> {
    let (epilogue, ..) = tail(&spec.epilogue);
    let right = Coded::of(spec.form, &spec.b.format());
    let defines = of(spec.form, left(spec), right, spec.out.dtype().into(), epilogue);
    let grid = Grid::Xyz([dim(spec.n.div_ceil(TILE))?, dim(spec.m.div_ceil(TILE))?, dim(parts)?]);
    context.dispatch_tier(&KERNEL, Tier::Coop, &defines, &params(spec, split, parts)?, &bindings(spec), grid)
}
