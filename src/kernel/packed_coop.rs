//! Products with quantized operands by cooperative matrices: f16 operands, f32 accumulation.

use super::dim;
use super::matmul::{Activation, Form, SPLIT_UNIT};
use super::packed::{self, Decode};
use super::packed_matmul::{Operand, PACKED, PackedMatmul, bindings, defines, params, tail, tails, vectors};
use crate::context::Grid;
use crate::format::{Format, Span, Store};
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
                    for epilogue in tails(form, out) {
                        let open: &[bool] = if matches!(epilogue, 1 | 2) { &[true, false] } else { &[true] };
                        for full in [true, false] {
                            all.extend(open.iter().map(|open| of(form, a, b, out, epilogue, *open, full)));
                        }
                    }
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
    /// Groups are of 16, so that a unit of codes has two.
    halves: bool,
    /// Scales are double-quantized.
    double: bool,
}

impl Coded {
    fn of(form: Form, format: &Format) -> Self {
        let decode = Decode::of(format);
        Self {
            decode,
            fold: form != Form::Nt || !format.row_scaled() || decode.grid > 2,
            halves: format.span() == Span::Group(16),
            double: format.store() == Store::Double,
        }
    }

    fn defines(self, names: &packed::Names, [fold, halves, double]: [&'static str; 3]) -> Defines {
        let flags = [(fold, self.fold.into()), (halves, self.halves.into()), (double, self.double.into())];
        [self.decode.defines(names), flags.to_vec()].concat()
    }
}

/// Every way for one operand. Groups of 16 are the rule for 4-bit integers and floats alone, double quantization for 4-bit tables.
fn kinds(form: Form) -> Vec<Coded> {
    let plain = |fold| move |decode| Coded { decode, fold, halves: false, double: false };
    let mut all: Vec<Coded> = Decode::all().into_iter().map(plain(true)).collect();
    for kind in all.clone() {
        match kind.decode {
            Decode { grid: 0 | 2, bits: 4, .. } => all.push(Coded { halves: true, ..kind }),
            Decode { grid: 3 | 4, .. } => all.push(Coded { double: true, ..kind }),
            _ => {}
        }
    }
    if form == Form::Nt {
        all.extend(Decode::all().into_iter().filter(|d| d.grid <= 2).map(plain(false)));
    }
    all
}

/// What the operands may be: on the left f16 with any format on the right, or the same kind of format, or more bits on the left where both
/// are integers with scales of whole rows.
fn operands(form: Form) -> Vec<(Option<Coded>, Coded)> {
    let kinds = kinds(form);
    let mut all: Vec<_> = kinds.iter().map(|kind| (None, *kind)).collect();
    if form != Form::Tn {
        all.extend(kinds.iter().map(|kind| (Some(*kind), *kind)));
    }
    if form == Form::Nt {
        let decode = |bits| Decode { grid: 0, bits, exponent: 0, mantissa: 0 };
        let int = |bits| Coded { decode: decode(bits), fold: false, halves: false, double: false };
        all.extend([(8, 4), (8, 2), (8, 1), (4, 2), (4, 1)].map(|(a, b)| (Some(int(a)), int(b))));
    }
    all
}

/// `full`: tiles and slices are whole, so nothing is checked where results leave; such checks are branches, which cost a step of `baby` trained
/// by QuEST 7 %. Unless `open`, the activation is compiled in, the exact GELU. A branch there, however uniform, keeps the compiler from
/// interleaving a tile's results, and costs a product of 16384 x 1536 x 384 two thirds more time.
fn of(form: Form, a: Option<Coded>, b: Coded, out: Define, epilogue: u32, open: bool, full: bool) -> Defines {
    let left = if a.is_some() { PACKED } else { Scalar::F16.into() };
    let mut all = defines(form, left, out, epilogue, true, false);
    if !open {
        all.retain(|(name, _)| *name != "ACTIVATION");
        all.push(("ACTIVATION", Activation::Gelu.code().into()));
    }
    all.extend([("FULL", full.into()), ("A_PACKED", a.is_some().into())]);
    all.extend(b.defines(&packed::B, ["B_FOLD", "B_HALVES", "B_DOUBLE"]));
    match a {
        Some(a) => all.extend(a.defines(&packed::A, ["A_FOLD", "A_HALVES", "A_DOUBLE"])),
        None => all.push(("A_FOLD", false.into())),
    }
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
    match spec.a {
        _ if context.tier() < Tier::Coop => Err("it needs the coop tier"),
        Operand::Dense(a) if a.dtype() != DType::F16 => Err("its left operand is f16 or quantized"),
        _ if spec.k == 0 => Err("it needs k > 0"),
        _ if !vectors(spec) => Err("it needs contiguous dimensions that are multiples of 4"),
        _ if !operands(spec.form).contains(&(left(spec), Coded::of(spec.form, &spec.b.format()))) => {
            Err("it is not written for this format or pair of formats")
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
    let (epilogue, activation, _) = tail(&spec.epilogue);
    let right = Coded::of(spec.form, &spec.b.format());
    let open = activation != Activation::Gelu.code();
    let full = spec.m.is_multiple_of(TILE) && spec.n.is_multiple_of(TILE) && spec.k.is_multiple_of(SPLIT_UNIT);
    let defines = of(spec.form, left(spec), right, spec.out.dtype().into(), epilogue, open, full);
    let grid = Grid::Xyz([dim(spec.n.div_ceil(TILE))?, dim(spec.m.div_ceil(TILE))?, dim(parts)?]);
    context.dispatch_tier(&KERNEL, Tier::Coop, &defines, &params(spec, split, parts)?, &bindings(spec, false), grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Grid as Levels, Header, PackedMatrix, Rounding};
    use crate::kernel::packed::{Packed, PackedInfo};
    use crate::{ContextOptions, Tensor};
    use half::f16;

    /// Decodes units as the kernel does, on adapters without cooperative matrices too.
    static UNITS: Kernel = Kernel {
        name: "packed_units",
        source: "
#enable f16
#import packed_unit P=B p=b LUT=0u
struct Params { b: PackedInfo, count: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> b_codes: array<BWord>;
@group(0) @binding(2) var<storage, read> b_side: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
var<workgroup> block: array<vec4<f32>, 256>;
@compute @workgroup_size(32)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    b_prepare(index);
    workgroupBarrier();
    if id.x >= params.count { return; }
    let units = (params.b.cols + 31u) / 32u;
    let row = id.x / units;
    let unit = id.x % units;
#if B_FOLD
    let s = b_scaling();
    let v = b_decode(b_fetch(row, unit), b_scales(row, unit, s), row, unit, s);
#else
    let v = b_decode(b_fetch(row, unit), unit);
#endif
#for q 0 8
    out[id.x * 8u + {q}u] = vec4<f32>(v[{q}]);
#endfor
}
",
        tiers: &[Tier::Baseline],
        variants: || {
            kinds(Form::Nt)
                .into_iter()
                .map(|kind| kind.defines(&packed::B, ["B_FOLD", "B_HALVES", "B_DOUBLE"]))
                .collect()
        },
        proven_bounds: false,
    };

    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct Params {
        b: PackedInfo,
        count: u32,
    }

    /// All codes in every row, beside scales that differ by group.
    fn matrix(format: Format, rows: usize, cols: usize) -> PackedMatrix {
        let x: Vec<f32> =
            (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * (1.0 + (i / 16 % 13) as f32)).collect();
        let mut matrix = PackedMatrix::quantize(format, &x, rows, cols, Rounding::Nearest).unwrap();
        for row in 0..rows {
            for col in 0..cols {
                matrix.set_code(row, col, (col * 7 + row * 5) as u32 & ((1 << format.bits()) - 1));
            }
        }
        matrix
    }

    #[test]
    fn units_decode_to_what_the_format_says() {
        let [rows, cols] = [3, 300];
        for number in 0..Context::adapters().len() {
            let options = ContextOptions::default().adapter(format!("#{number}")).max_tier(Tier::Baseline);
            let context = Context::with_options(&options).unwrap();
            if !context.capabilities().f16 {
                continue;
            }
            for format in Format::all() {
                for form in [Form::Nt, Form::Nn] {
                    let kind = Coded::of(form, &format);
                    let host = matrix(format, rows, cols);
                    let packed = Packed::from_host(&context, &host).unwrap();
                    let units = packed.layout().units;
                    let out = Tensor::zeros(&context, &[rows * units * 32], DType::F32).unwrap();
                    let params = Params { b: packed.info().unwrap(), count: dim(rows * units).unwrap() };
                    let defines = kind.defines(&packed::B, ["B_FOLD", "B_HALVES", "B_DOUBLE"]);
                    let bindings = [packed.codes().read(), packed.side().read(), out.buffer().write()];
                    let groups = Grid::Xyz([dim((rows * units).div_ceil(32)).unwrap(), 1, 1]);
                    context.dispatch_tier(&UNITS, Tier::Baseline, &defines, &params, &bindings, groups).unwrap();
                    let got = out.to_vec().unwrap();
                    for (i, (row, col)) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).enumerate() {
                        let got = f64::from(got[row * units * 32 + col]);
                        let (code, group) = (host.code(row, col), col / host.layout().group);
                        let level = format.grid().decode(code, host.zero(row, group));
                        let norm = if kind.fold { f64::from(host.header(Header::Norm)) } else { 1.0 };
                        let want = if kind.fold { host.value(row, col) * norm } else { level };
                        // One rounding to f16 after some to f32; none of exact levels.
                        let bound = if kind.fold { want.abs() * 2f64.powi(-11) * 1.01 + 2f64.powi(-24) } else { 0.0 };
                        let same = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= bound;
                        assert!(same, "{format} {form:?} element {i}, code {code}: {got} for {want}");
                        assert!(kind.fold || f16::from_f64(level).to_f64() == level || level.is_nan());
                    }
                    assert!(matches!(format.grid(), Levels::Float(_)) || got.iter().all(|v| v.is_finite()));
                }
            }
        }
    }
}
