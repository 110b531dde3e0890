//! Matrix products with quantized operands: codes are decoded where a kernel reads them. Only adapters that run shaders on a CPU unpack an
//! operand first, and others a left operand of one row, see [`choose`].

use super::dequantize::dequantize;
use super::dropout::dropout;
use super::mask::{mask, words};
use super::matmul::{self, Dims, Epilogue, Form, Matmul, SLOTS, SPLIT_UNIT, Shape, Terms, form_code};
use super::packed::{Packed, PackedInfo};
use super::unary::{unary, unary_backward};
use super::{
    Dropout, FLOATS, dim, packed_binary, packed_coop, packed_integer, packed_skinny, packed_tiled, packed_vector,
};
use crate::buffer::{Binding, Buffer, elements};
use crate::shader::{Define, Defines, Scalar};
use crate::{Context, DType, Error, Result};

/// The left operand.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// f32 or f16, row-major.
    Dense(&'a Buffer),
    /// Quantized along its rows; not with [`Form::Tn`].
    Packed(&'a Packed),
}

/// A product with a quantized right operand.
///
/// | form | `a` | `b` | use |
/// |---|---|---|---|
/// | `Nt` | `[m, k]` | `[n, k]` | forward, `x W^T` |
/// | `Nn` | `[m, k]` | `[k, n]` | input gradient, `dY W` |
/// | `Tn` | `[k, m]` | `[k, n]` | weight gradient, `dY^T X` |
///
/// `b` is quantized along its rows as listed, so along `k` in the first form and along `n` in the others. A quantized `a` of the second
/// form is quantized along `k`: gradients beside a weight whose scales are those of squares.
#[derive(Clone, Copy, Debug)]
pub struct PackedMatmul<'a> {
    /// How the operands are stored.
    pub form: Form,
    /// Rows of `out`.
    pub m: usize,
    /// Columns of `out`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Left operand.
    pub a: Operand<'a>,
    /// Right operand.
    pub b: &'a Packed,
    /// The result `[m, n]`, f32 or, where a dense `a` is f16 or `a` is quantized, f16.
    pub out: &'a Buffer,
    /// Factor on the product.
    pub alpha: f32,
    /// Added to each row, f32 `[n]`; with [`Form::Nt`] only.
    pub bias: Option<&'a Buffer>,
    /// What follows, as in [`super::matmul::matmul`].
    pub epilogue: Epilogue<'a>,
    /// With [`Form::Nn`] only: bits as [`super::mask::words`] has them; where one is 0 the result is 0, the derivative of a quantizer that
    /// clipped. What `out` holds is kept where [`Self::accumulate`] adds to it.
    pub mask: Option<&'a Buffer>,
    /// Add to what `out` holds.
    pub accumulate: bool,
}

/// A kernel for a product, with what the host decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// [`dequantize()`] into a buffer that is free again afterwards, then [`matmul::matmul`].
    Unpacked,
    /// The same for the left operand alone, then the kernels of [`packed_vector`].
    UnpackedVector,
    /// The kernels of [`packed_vector`].
    Vector,
    /// [`packed_skinny::KERNEL`].
    Skinny,
    /// [`packed_coop::KERNEL`].
    Coop {
        /// Parts into which K is cut, at least 1.
        splits: usize,
    },
    /// [`packed_binary::KERNEL`].
    Binary(Shape),
    /// [`packed_integer::KERNEL`].
    Integer(Shape),
    /// [`packed_tiled::KERNEL`].
    Tiled {
        /// Its tile: [`Shape::Small`] or [`Shape::Wide`].
        shape: Shape,
        /// Parts into which K is cut, at least 1.
        splits: usize,
    },
}

/// The least K for which [`Choice::Binary`] is faster than [`Choice::Unpacked`] on a CPU: tiles are slow there, however little they count.
const BINARY_K: usize = 1024;

/// The most rows for which [`Choice::Skinny`] is faster than [`Choice::Coop`].
const SKINNY_ROWS: usize = 32;

/// The kernel that [`packed_matmul`] takes, by this table (the first line that fits):
///
/// | adapter | operands | product | kernel |
/// | --- | --- | --- | --- |
/// | any | dense with quantized | Nt, m = 1, no dropout | vector |
/// | coop tier | f16 with quantized | Nt, m <= 32, no dropout | skinny |
/// | any | dense with quantized | Nt, m <= 8, no dropout | vector |
/// | any | quantized, both | Nt, m = 1, no dropout | vector, after `a` is unpacked |
/// | CPU | quantized, both | Nt, m <= 8, no dropout | vector, after `a` is unpacked |
/// | CPU | signs, both | Nt, k >= 1024, groups of at least 128 | binary |
/// | CPU | all f32 or quantized | k > 0 | unpacked |
/// | any but CPU | f32 with quantized | Nt, m <= 64, no dropout | vector |
/// | coop tier | f16 or quantized; integers on both sides with sums below 2^24 | contiguous dimensions of dense matrices multiples of 4 | coop |
/// | any | signs, both | Nt, groups of at least 128 | binary |
/// | any | integers of any kind, both | Nt, sums that fit 32 bits | integer |
/// | any | any | m or n <= 64, fewer than 66 tiles of 128 x 128 (parts of K counted), or a contiguous dimension of a dense matrix that is no multiple of 4 | tiled, small |
/// | any | any | any | tiled, wide |
///
/// A CPU has no fast memory that is not a cache: there an operand that is unpacked once, not once per tile, is read as fast, and one compiled
/// product serves all formats. Coop wants parts of K of 1024 at least. Binary and integer tiles are small by the same rule. K is cut as
/// [`matmul::choose`] does, only without bias, epilogue and mask. The choice depends on nothing but this, so that a program gives the same
/// bits every time.
///
/// One row is unpacked on GPUs too: its product is bound by reading `b` once, which tiles, of 64 rows at least, do slowly. Its sums are of
/// f32, rounded as those of a dense row are, also where both operands are integers.
#[must_use]
pub fn choose(context: &Context, spec: &PackedMatmul<'_>) -> Choice {
    let PackedMatmul { m, n, k, .. } = *spec;
    let tiles = |size: usize| m.div_ceil(size) * n.div_ceil(size);
    let whole = if m <= 64 || n <= 64 || tiles(128) < SLOTS / 4 { Shape::Small } else { Shape::Wide };
    let may_split = can_split(spec).is_ok();
    let parts = |size: usize, enough: usize| if may_split { matmul::splits(tiles(size).max(1), k, enough) } else { 1 };
    let coop = Choice::Coop { splits: parts(packed_coop::TILE, 1024) };
    // In the order of the table.
    let f16 = spec.a.dtype() == DType::F16;
    let lines = [
        (m == 1, Choice::Vector),
        (m <= SKINNY_ROWS, Choice::Skinny),
        (m <= matmul::VECTOR_ROWS, Choice::Vector),
        (m == 1 || context.capabilities().is_cpu(), Choice::UnpackedVector),
        (context.capabilities().is_cpu() && k >= BINARY_K, Choice::Binary(whole)),
        (true, Choice::Unpacked),
        (!context.capabilities().is_cpu() && !f16, Choice::Vector),
        (!packed_coop::may_round(spec), coop),
        (true, Choice::Binary(whole)),
        (true, Choice::Integer(whole)),
    ];
    let fits = |choice: Choice| choice.supports(context, spec).is_ok();
    if let Some((_, choice)) = lines.into_iter().find(|(asked, choice)| *asked && fits(*choice)) {
        return choice;
    }
    let large = parts(128, 512);
    let wide = Choice::Tiled { shape: Shape::Wide, splits: large };
    if m <= 64 || n <= 64 || tiles(128) * large < SLOTS / 4 || wide.supports(context, spec).is_err() {
        return Choice::Tiled { shape: Shape::Small, splits: parts(64, 512) };
    }
    wide
}

/// Why K may not be cut, if so.
fn can_split(spec: &PackedMatmul<'_>) -> Result<(), &'static str> {
    match spec {
        PackedMatmul { epilogue: Epilogue::None, bias: None, mask: None, .. } => Ok(()),
        _ => Err("what follows a product needs whole sums"),
    }
}

impl Choice {
    fn splits(self) -> usize {
        match self {
            Self::Unpacked
            | Self::UnpackedVector
            | Self::Vector
            | Self::Skinny
            | Self::Binary(_)
            | Self::Integer(_) => 1,
            Self::Tiled { splits, .. } | Self::Coop { splits } => splits.max(1),
        }
    }

    /// Whether the kernel can do this product on this device.
    ///
    /// # Errors
    /// The reason why it cannot.
    pub fn supports(self, context: &Context, spec: &PackedMatmul<'_>) -> Result<(), &'static str> {
        if self.splits() > 1 {
            can_split(spec)?;
        }
        match self {
            Self::Unpacked => {
                let caps = context.capabilities();
                let f32s = spec.out.dtype() == DType::F32 && spec.a.dtype() != DType::F16;
                let most = (spec.n * spec.k).max(spec.m * spec.k) as u64 * 4;
                match (caps.is_cpu(), f32s, most <= caps.limits.max_storage_buffer_binding_size) {
                    (false, ..) => Err("it is written for adapters that run shaders on a CPU"),
                    (_, false, _) => Err("it unpacks to f32"),
                    (.., false) => Err("an unpacked operand does not fit a binding"),
                    _ if spec.k == 0 => Err("it needs k > 0"),
                    _ => Ok(()),
                }
            }
            Self::UnpackedVector => match spec.a {
                Operand::Dense(_) => Err("its left operand is quantized"),
                _ if spec.k == 0 => Err("it needs k > 0"),
                _ if spec.m > matmul::VECTOR_ROWS => Err("it takes at most 8 rows"),
                // Whatever is dense stands for what `a` will be.
                Operand::Packed(_) => {
                    packed_vector::supports(context, &PackedMatmul { a: Operand::Dense(spec.out), ..*spec })
                }
            },
            Self::Vector => packed_vector::supports(context, spec),
            Self::Skinny => packed_skinny::supports(context, spec),
            Self::Coop { .. } => packed_coop::supports(context, spec),
            Self::Binary(shape) => packed_binary::supports(spec, shape),
            Self::Integer(shape) => packed_integer::supports(spec, shape),
            Self::Tiled { shape, .. } => packed_tiled::supports(spec, shape),
        }
    }
}

impl Operand<'_> {
    /// The type of a dense operand; u32 for codes.
    fn dtype(&self) -> DType {
        match self {
            Self::Dense(a) => a.dtype(),
            Self::Packed(_) => DType::U32,
        }
    }
}

/// The element type by which shaders know a quantized left operand.
pub(super) const PACKED: Define = Define::Type(Scalar::U32);

/// Types of the left operand and of the result, per form.
pub(super) fn types() -> Vec<(Form, Define, Define)> {
    let [f32, f16] = [Scalar::F32, Scalar::F16].map(Define::from);
    let mut all = Vec::new();
    for form in Form::ALL {
        all.extend([(form, f32, f32), (form, f16, f32), (form, f16, f16)]);
    }
    for form in [Form::Nt, Form::Nn] {
        all.extend([(form, PACKED, f32), (form, PACKED, f16)]);
    }
    all
}

/// What may follow a product, as `shaders/common/matmul_epilogue.wgsl` numbers it.
pub(super) fn tails(form: Form, out: Define) -> Vec<u32> {
    match (form, out == Scalar::F32.into()) {
        (Form::Nt, true) => vec![0, 1, 3],
        (Form::Nt, false) => vec![0, 1],
        (Form::Nn, _) => vec![0, 2],
        (Form::Tn, _) => vec![0],
    }
}

/// The number of what follows, that of its activation, and its dropout.
pub(super) fn tail<'a>(epilogue: &Epilogue<'a>) -> (u32, u32, Option<Dropout<'a>>) {
    match epilogue {
        Epilogue::None => (0, 0, None),
        Epilogue::Activation(a, _) => (1, a.code(), None),
        Epilogue::ActivationGrad(a, _) => (2, a.code(), None),
        Epilogue::Residual(_, dropout) => (3, 0, *dropout),
    }
}

/// The defines of `shaders/common/matmul_epilogue.wgsl`. Which activation, and whether there is a bias, a mask or, where the kernel `drops`, a
/// dropout, is decided at run time: formats have variants enough.
pub(super) fn defines(form: Form, a: Define, out: Define, epilogue: u32, vec: bool, drops: bool) -> Defines {
    let at: u32 = if a == PACKED { 5 } else { 4 };
    let mut defines: Defines = vec![
        ("FORM", form_code(form).into()),
        ("InA", a),
        ("Out", out),
        ("VEC", vec.into()),
        ("BIAS", (form == Form::Nt).into()),
        ("EPILOGUE", epilogue.into()),
        ("ACTIVATION", Define::U32(if matches!(epilogue, 1 | 2) { 4 } else { 0 })),
        ("DROPOUT", (drops && epilogue == 3).into()),
        ("PACKED", true.into()),
        ("OUT_AT", at.into()),
    ];
    if epilogue > 0 {
        defines.push(("EXTRA", Define::U32(at + 2)));
    }
    defines
}

/// Parameters of every kernel that multiplies quantized matrices.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Params {
    base: matmul::Params,
    b: PackedInfo,
    a: PackedInfo,
}

const _: () = assert!(std::mem::size_of::<Params>() == 176);

/// The parameters where K is cut into `parts` parts, `split` long each.
pub(super) fn params(spec: &PackedMatmul<'_>, split: usize, parts: usize) -> Result<Params> {
    let (_, activation, dropout) = tail(&spec.epilogue);
    let (threshold, keep_scale) = dropout.as_ref().map_or((0, 1.0), Dropout::factors);
    let base = matmul::Params {
        m: dim(spec.m)?,
        n: dim(spec.n)?,
        k: dim(spec.k)?,
        batch_a: 0,
        batch_b: 0,
        batch_out: dim(spec.m * spec.n)?,
        accumulate: spec.accumulate.into(),
        alpha: spec.alpha,
        split: dim(split)?,
        splits: dim(parts)?,
        threshold,
        keep_scale,
        op: dropout.map_or(0, |d| d.op),
        micro: dropout.map_or(0, |d| d.micro),
        seed: dropout.map_or([0; 2], |d| d.seed_words()),
        one: 1,
        flags: u32::from(spec.bias.is_some()) | u32::from(dropout.is_some()) << 1 | u32::from(spec.mask.is_some()) << 2,
        activation,
        pad: 0,
    };
    let a = match spec.a {
        Operand::Dense(_) => PackedInfo::default(),
        Operand::Packed(a) => a.info()?,
    };
    Ok(Params { base, b: spec.b.info()?, a })
}

/// What those defines ask for: operands, result, bias or mask, what follows. Side data stands in for what is not there; it is at least as long
/// as any structure.
pub(super) fn bindings<'a>(spec: &PackedMatmul<'a>, drops: bool) -> Vec<Binding<'a>> {
    let none = spec.b.side();
    let mut all = match spec.a {
        Operand::Dense(a) => vec![a.read()],
        Operand::Packed(a) => vec![a.codes().read(), a.side().read()],
    };
    all.extend([spec.b.codes().read(), spec.b.side().read(), spec.out.write()]);
    match spec.form {
        Form::Nt => all.push(spec.bias.unwrap_or(none).read()),
        Form::Nn => all.push(spec.mask.unwrap_or(none).read()),
        Form::Tn => {}
    }
    match spec.epilogue {
        Epilogue::None => {}
        Epilogue::Activation(_, pre) => all.push(pre.write()),
        Epilogue::ActivationGrad(_, pre) => all.push(pre.read()),
        Epilogue::Residual(residual, dropout) => {
            all.push(residual.read());
            all.extend(drops.then(|| dropout.map_or(none, |d| d.state).read()));
        }
    }
    all
}

/// True where every row of a dense operand and of the result starts on a multiple of four elements.
pub(super) fn vectors(spec: &PackedMatmul<'_>) -> bool {
    let along = match (spec.a, spec.form) {
        (Operand::Packed(_), _) => 0,
        (_, Form::Tn) => spec.m,
        (_, Form::Nt | Form::Nn) => spec.k,
    };
    along.is_multiple_of(4) && spec.n.is_multiple_of(4)
}

/// Multiplies.
///
/// # Shapes
/// As [`PackedMatmul`] says; `bias` is `[n]`, the buffers of the epilogue are like `out`.
///
/// # Errors
/// [`Error::Shape`] where an operand or a buffer has another size or the types are not supported together; [`Error::Invalid`] for a dropout
/// that is no probability below 1 and for a residual in the buffer of the result; [`Error::Unsupported`] for f16 where the device has none;
/// [`Error::Limit`] where a dispatch is too large.
///
/// # Numerics
/// Depends on the kernel, see the table at [`choose`]; sums are f32, in an order that is fixed per kernel and shape, and u is 2^-24.
/// - Unpacked and tiled: values of codes are rounded to f32 once (twice where scales are E4M3 or double-quantized): |error| <= (k + 8) u |a| |b|.
/// - Vector, after unpacking or not: as its documentation says, at most 3 (k + 40) u |a| |b|.
/// - Coop and skinny: values that carry a scale of their own within the sum are rounded to f16 besides: 2^-11 |a| |b| more, and what is smaller than
///   the largest value by 2^27 loses digits. Codes of integers with one scale a row are exact.
/// - Integer and binary: sums are exact until a scale changes: (groups + 4) u |a b| summed by group.
///
/// What is beyond the last column of an operand counts as zero.
pub fn packed_matmul(context: &Context, spec: &PackedMatmul<'_>) -> Result<()> {
    check(context, spec)?;
    run(context, spec, choose(context, spec))
}

/// Multiplies with a given kernel, for tests and measurements.
///
/// # Errors
/// As [`packed_matmul`]; [`Error::Unsupported`] where the kernel cannot do it.
#[doc(hidden)]
pub fn packed_matmul_with(context: &Context, spec: &PackedMatmul<'_>, choice: Choice) -> Result<()> {
    check(context, spec)?;
    choice
        .supports(context, spec)
        .map_err(|why| Error::Unsupported { what: format!("a product by {choice:?}"), why: why.into() })?;
    run(context, spec, choice)
}

/// [`packed_matmul`], but where K is cut, `out` is not written and alpha not applied: the terms of the result are returned instead.
pub(crate) fn packed_matmul_terms(context: &Context, spec: &PackedMatmul<'_>) -> Result<Option<Terms>> {
    check(context, spec)?;
    run_to_terms(context, spec, choose(context, spec))
}

fn run(context: &Context, spec: &PackedMatmul<'_>, choice: Choice) -> Result<()> {
    match run_to_terms(context, spec, choice)? {
        Some(terms) => terms.add_up(context, spec.out, spec.alpha, spec.accumulate),
        None => Ok(()),
    }
}

fn run_to_terms(context: &Context, spec: &PackedMatmul<'_>, choice: Choice) -> Result<Option<Terms>> {
    let PackedMatmul { m, n, k, .. } = *spec;
    if m == 0 || n == 0 {
        return Ok(None);
    }
    if k == 0 {
        return without_codes(context, spec).map(|()| None);
    }
    match choice {
        Choice::Unpacked if spec.mask.is_some() => unfused(context, spec, choice),
        Choice::Unpacked => {
            let a = match spec.a {
                Operand::Dense(a) => a.clone(),
                Operand::Packed(a) => unpack(context, a)?,
            };
            dense(context, spec, &a, &unpack(context, spec.b)?)
        }
        Choice::UnpackedVector => {
            let Operand::Packed(a) = spec.a else { return run_to_terms(context, spec, Choice::Vector) };
            let a = unpack(context, a)?;
            packed_vector::dispatch(context, &PackedMatmul { a: Operand::Dense(&a), ..*spec })
        }
        Choice::Vector => packed_vector::dispatch(context, spec),
        Choice::Skinny => packed_skinny::dispatch(context, spec),
        Choice::Binary(shape) => packed_binary::dispatch(context, spec, shape),
        Choice::Integer(shape) => packed_integer::dispatch(context, spec, shape),
        Choice::Tiled { .. } if !matches!(spec.epilogue, Epilogue::None) && !packed_tiled::fuses(spec) => {
            unfused(context, spec, choice)
        }
        Choice::Tiled { shape, splits } => {
            return in_parts(context, spec, splits, |spec, split, parts| {
                packed_tiled::dispatch(context, spec, shape, split, parts)
            });
        }
        // A kernel of its own draws random numbers while others load; in the epilogue of 16384 x 384 x 384 they took longer than the product.
        Choice::Coop { .. } if matches!(spec.epilogue, Epilogue::Residual(_, Some(_))) => {
            unfused(context, spec, choice)
        }
        Choice::Coop { splits } => {
            return in_parts(context, spec, splits, |spec, split, parts| {
                packed_coop::dispatch(context, spec, split, parts)
            });
        }
    }
    .map(|()| None)
}

/// A product whose K is cut into so many parts at most: `dispatch` is called with the length and the number of parts.
fn in_parts(
    context: &Context,
    spec: &PackedMatmul<'_>,
    splits: usize,
    dispatch: impl Fn(&PackedMatmul<'_>, usize, usize) -> Result<()>,
) -> Result<Option<Terms>> {
    let PackedMatmul { m, n, k, .. } = *spec;
    let split = k.div_ceil(splits.max(1)).next_multiple_of(SPLIT_UNIT);
    let count = k.div_ceil(split);
    if count < 2 {
        return dispatch(spec, k, 1).map(|()| None);
    }
    let buffer = context.alloc(count * m * n, DType::F32)?;
    dispatch(&PackedMatmul { out: &buffer, alpha: 1.0, accumulate: false, ..*spec }, split, count)?;
    Ok(Some(Terms { buffer, count }))
}

fn unpack(context: &Context, packed: &Packed) -> Result<Buffer> {
    let out = context.alloc(packed.layout().rows * packed.layout().cols, DType::F32)?;
    dequantize(context, packed, &out)?;
    Ok(out)
}

/// A product with k = 0: the dense one of nothing, whose epilogue is the same. Zeros need no mask.
pub(super) fn without_codes(context: &Context, spec: &PackedMatmul<'_>) -> Result<()> {
    let nothing = context.alloc(1, spec.out.dtype())?;
    dense(context, spec, &nothing, &nothing)
}

/// The same product of dense operands.
fn dense(context: &Context, spec: &PackedMatmul<'_>, a: &Buffer, b: &Buffer) -> Result<()> {
    let PackedMatmul { form, m, n, k, out, alpha, bias, epilogue, accumulate, .. } = *spec;
    matmul::matmul(context, &Matmul { form, dims: Dims::new(m, n, k), a, b, out, alpha, bias, epilogue, accumulate })
}

/// A product whose mask and epilogue are kernels of their own.
fn unfused(context: &Context, spec: &PackedMatmul<'_>, choice: Choice) -> Result<()> {
    let plain = PackedMatmul { epilogue: Epilogue::None, accumulate: false, ..*spec };
    let scratch = || context.alloc(spec.m * spec.n, spec.out.dtype());
    match (spec.epilogue, spec.mask) {
        (Epilogue::None, None) => run(context, spec, choice),
        (Epilogue::None, Some(bits)) => {
            let sum = scratch()?;
            run(context, &PackedMatmul { out: &sum, mask: None, ..plain }, choice)?;
            mask(context, &sum, bits, spec.out, [spec.m, spec.n], spec.accumulate)
        }
        (Epilogue::Activation(activation, pre), _) => {
            run(context, &PackedMatmul { out: pre, ..plain }, choice)?;
            unary(context, activation.into(), pre, spec.out)
        }
        (Epilogue::ActivationGrad(activation, pre), _) => {
            let sum = scratch()?;
            run(context, &PackedMatmul { out: &sum, ..plain }, choice)?;
            unary_backward(context, activation.into(), pre, &sum, spec.out, spec.accumulate)
        }
        (Epilogue::Residual(residual, None), _) => {
            context.copy(residual, spec.out)?;
            run(context, &PackedMatmul { accumulate: true, ..plain }, choice)
        }
        (Epilogue::Residual(residual, Some(drop)), _) => {
            let sum = scratch()?;
            run(context, &PackedMatmul { out: &sum, ..plain }, choice)?;
            dropout(context, &sum, Some(residual), spec.out, drop)
        }
    }
}

const OP: &str = "packed_matmul";

fn check(context: &Context, spec: &PackedMatmul<'_>) -> Result<()> {
    let PackedMatmul { form, m, n, k, .. } = *spec;
    let fail = |expected: String, got: String| Err(Error::shape(OP, expected, got));
    let [of_a, of_out] = [elements(&[m, k])?, elements(&[m, n])?];
    let of = |name: &str, packed: &Packed, [rows, cols]: [usize; 2]| {
        let layout = packed.layout();
        if [layout.rows, layout.cols] != [rows, cols] {
            return fail(
                format!("{name} of {rows} x {cols} for {form:?} of {m} x {n} x {k}"),
                format!("{} x {} in {}", layout.rows, layout.cols, packed.format()),
            );
        }
        Ok(())
    };
    of("b", spec.b, if form == Form::Nt { [n, k] } else { [k, n] })?;
    match spec.a {
        Operand::Packed(_) if form == Form::Tn => return fail("a dense a".into(), format!("codes with {form:?}")),
        Operand::Packed(a) => of("a", a, [m, k])?,
        Operand::Dense(a) if a.len() < of_a || !FLOATS.contains(&a.dtype()) => {
            return fail(format!("a of at least {of_a} elements, f32 or f16"), describe(a));
        }
        Operand::Dense(_) => {}
    }
    let out = spec.out.dtype();
    let wide = spec.a.dtype() == DType::F32;
    if out == DType::U32 || (wide && out == DType::F16) {
        return fail(
            "out of f32, or of f16 where a is f16 or quantized".into(),
            format!("{out} for {}", spec.a.dtype()),
        );
    }
    if (out == DType::F16 || spec.a.dtype() == DType::F16) && !context.capabilities().f16 {
        return Err(Error::Unsupported { what: format!("{OP} in f16"), why: "the device has no f16".into() });
    }
    let follows = !matches!(spec.epilogue, Epilogue::None);
    if spec.out.len() < of_out || (follows && spec.out.len() != of_out) {
        return fail(format!("out of {of_out} elements"), describe(spec.out));
    }
    if spec.accumulate && matches!(spec.epilogue, Epilogue::Activation(..) | Epilogue::Residual(..)) {
        return fail("no accumulation into an activation or a residual sum".into(), format!("{:?}", spec.epilogue));
    }
    let like_out = |name: &str, buffer: &Buffer, dtype: DType| {
        if buffer.len() != of_out || buffer.dtype() != dtype {
            return fail(format!("{name} of {of_out} elements, {dtype}"), describe(buffer));
        }
        Ok(())
    };
    match spec.epilogue {
        Epilogue::None => {}
        Epilogue::Activation(_, pre) | Epilogue::ActivationGrad(_, pre) => like_out("pre", pre, out)?,
        Epilogue::Residual(residual, dropout) => {
            like_out("residual", residual, DType::F32)?;
            dropout.map_or(Ok(()), |d| d.check(OP))?;
        }
    }
    if !tails(form, out.into()).contains(&tail(&spec.epilogue).0) {
        return fail(
            "activations after Nt, their derivatives after Nn, residuals after Nt into f32".into(),
            format!("{:?} with form {form:?} into {out}", spec.epilogue),
        );
    }
    if let Some(bias) = spec.bias
        && (form != Form::Nt || bias.len() < n || bias.dtype() != DType::F32)
    {
        return fail(format!("a bias of {n} elements, f32, with form Nt"), format!("{} with {form:?}", describe(bias)));
    }
    if let Some(mask) = spec.mask
        && (form != Form::Nn || mask.len() != words(m, n) || mask.dtype() != DType::U32)
    {
        return fail(
            format!("a mask of {} words, u32, with form Nn", words(m, n)),
            format!("{} with {form:?}", describe(mask)),
        );
    }
    matmul::residual_apart(OP, spec.epilogue, spec.out)
}

fn describe(buffer: &Buffer) -> String {
    format!("{} elements, {}", buffer.len(), buffer.dtype())
}
