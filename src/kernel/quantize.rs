//! Quantization: scales, codes, and a mask of what did not saturate, for every format.

use super::hadamard::{self, Signs};
use super::packed::{Packed, PackedInfo};
use super::quantize_transposed as transposed;
use super::{FLOATS, check_state, dim, each, expect, product, width};
use crate::buffer::{Binding, Buffer};
use crate::context::Grid;
use crate::format::{Format, Grid as Levels, HEADER, PackedMatrix, Power, Rule, Span, Store, Ties, UNIT, tables};
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

const NAME: &str = "quantize";
/// Rows that share scales with [`Options::square`].
const SQUARE_ROWS: usize = 16;

/// An invocation per group.
pub static KERNEL: Kernel = Kernel {
    name: NAME,
    source: include_str!("../../shaders/quantize.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || {
        product(&[
            each("STOCHASTIC", &[false, true]),
            classes(),
            loads(),
            [0u32, 1].map(|span| vec![("SPAN", span.into()), ("HANDED", (span == 0).into())]).to_vec(),
            each("WG_SIZE", &[64u32]),
        ])
    },
    proven_bounds: true,
};

/// A workgroup per row or long group.
pub static ROWS: Kernel = Kernel {
    name: "quantize_rows",
    source: include_str!("../../shaders/quantize.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: || {
        product(&[
            each("STOCHASTIC", &[false, true]),
            classes(),
            loads(),
            vec![vec![("SPAN", 2u32.into()), ("HANDED", false.into())]],
            shapes(&[8, 32, 256]),
        ])
    },
    proven_bounds: true,
};

/// Teams of a subgroup on tiles, for short groups.
pub static TILE: Kernel = Kernel {
    name: "quantize_tile",
    source: include_str!("../../shaders/quantize_tile.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || {
        let stochastic = each("STOCHASTIC", &[false, true]);
        let inputs = each("X", &[Scalar::F32, Scalar::F16]);
        let groups = each("GROUP", &[16u32, 32, 64, 128]);
        product(&[
            stochastic,
            each("CLASS", &[0u32, 1, 2, 3]),
            inputs,
            each("WIDTH", &[4u32]),
            each("HALVES", &[2u32]),
            groups,
        ])
    },
    proven_bounds: true,
};

/// The same for rows.
pub static ROWS_TILE: Kernel = Kernel {
    name: "quantize_rows_tile",
    source: include_str!("../../shaders/quantize_rows_tile.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || {
        let stochastic = each("STOCHASTIC", &[false, true]);
        let inputs = each("X", &[Scalar::F32, Scalar::F16]);
        product(&[stochastic, classes(), inputs, each("WIDTH", &[4u32]), tile_shapes()])
    },
    proven_bounds: true,
};

/// Teams of lanes that own a row of integers each, in registers.
pub static ROWS_SUBGROUP: Kernel = Kernel {
    name: "quantize_rows_subgroup",
    source: include_str!("../../shaders/quantize_rows_subgroup.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || {
        // Only f32 has numbers that count as zero.
        let inputs = [(Scalar::F32, true), (Scalar::F16, false)];
        let inputs = inputs.map(|(x, flush)| rows_inputs(x, flush, false)).into_iter();
        // What a layer norm is of is f32.
        let inputs = inputs.chain([rows_inputs(Scalar::F32, true, true)]).collect();
        product(&[inputs, each("CHUNKS", &CHUNKS), each("TALLY", &[false, true])])
    },
    proven_bounds: true,
};

fn rows_inputs(x: impl Into<Define>, flush: bool, norm: bool) -> Defines {
    vec![("CLASS", 0u32.into()), ("X", x.into()), ("FLUSH", flush.into()), ("LAYER_NORM", norm.into())]
}

/// Runs of 16 columns that a lane of [`ROWS_SUBGROUP`] may have.
const CHUNKS: [u32; 6] = [1, 2, 3, 4, 6, 8];

/// The statistics of a tensor.
pub static TENSOR: Kernel = Kernel {
    name: "quantize_tensor",
    source: include_str!("../../shaders/quantize_tensor.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: || {
        let (classes, rows) = (each("CLASS", &[0u32, 4]), each("TRANSPOSED", &[false]));
        let first = product(&[classes.clone(), loads(), each("PARTIALS", &[false]), shapes(&[8, 256])]);
        let second = product(&[classes, rows, each("PARTIALS", &[true]), shapes(&[8, 256])]);
        [first, second].concat()
    },
    proven_bounds: false,
};

/// The largest magnitudes of squares of 16 rows and 16 columns.
pub static SQUARE: Kernel = Kernel {
    name: "quantize_square",
    source: include_str!("../../shaders/quantize_square.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || product(&[loads(), each("WG_SIZE", &[64u32])]),
    proven_bounds: true,
};

/// Scales of scales.
pub static DOUBLE: Kernel = Kernel {
    name: "quantize_double",
    source: include_str!("../../shaders/quantize_double.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: || product(&[each("PHASE", &[0u32, 1, 2]), shapes(&[8, 256])]),
    proven_bounds: false,
};

/// The header's norm.
pub static NORM: Kernel = Kernel {
    name: "quantize_norm",
    source: include_str!("../../shaders/quantize_norm.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: || product(&[each("CLASS", &[0u32]), each("PARTIALS", &[false, true]), shapes(&[8, 256])]),
    proven_bounds: false,
};

fn classes() -> Vec<Defines> {
    each("CLASS", &[0u32, 1, 2, 3, 4])
}

fn loads() -> Vec<Defines> {
    let types = each("X", &[Scalar::F32, Scalar::F16]);
    product(&[types, each("HALVES", &[2u32]), each("WIDTH", &[4u32, 1]), each("TRANSPOSED", &[false])])
}

/// Whether a workgroup shares a row, and the size of tiles, in four units.
fn tile_shapes() -> Vec<Defines> {
    let shapes = [(false, 1), (false, 2), (false, 3), (false, 4), (true, 1), (true, 2), (true, 4)];
    shapes.map(|(long, halves)| vec![("LONG", Define::Bool(long)), ("HALVES", Define::U32(halves))]).to_vec()
}

/// Workgroups that reduce; no adapter has subgroups of 256.
pub(super) fn shapes(sizes: &[u32]) -> Vec<Defines> {
    let shape = |size: u32, one: bool| vec![("WG_SIZE", Define::U32(size)), ("ONE_SUBGROUP", Define::Bool(one))];
    sizes
        .iter()
        .flat_map(|s| [true, false].map(|one| (*s, one)))
        .filter(|s| *s != (256, true))
        .map(|(s, one)| shape(s, one))
        .collect()
}

/// The one to take for so many parts.
fn shape(context: &Context, parts: usize) -> Defines {
    let caps = context.capabilities();
    let size = match parts {
        _ if caps.is_cpu() => 8,
        0..=64 => 32,
        _ => 256,
    };
    let one = context.tier() >= Tier::Subgroup && size <= caps.subgroup_size.0;
    vec![("WG_SIZE", Define::U32(size)), ("ONE_SUBGROUP", Define::Bool(one))]
}

/// How values between two levels are rounded; see [`crate::format::Rounding`].
#[derive(Clone, Copy, Debug, Default)]
pub enum Rounding<'a> {
    /// To the nearest level; ties as the format says.
    #[default]
    Nearest,
    /// To either neighbour, with the numbers of [`crate::format::Uniform`].
    Stochastic {
        /// The 64-bit seed.
        seed: u64,
        /// Tells operations of one step apart.
        op: u32,
        /// The step.
        step: Step<'a>,
    },
}

/// The step that random numbers depend on.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// This one.
    Number(u32),
    /// That of a step state on the device, so that every step records the same commands.
    State(&'a Buffer),
}

/// What [`quantize`] does beside encoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Rounding.
    pub rounding: Rounding<'a>,
    /// A bit per element, u32 `[rows, ceil(cols / 32)]`, lowest bit first: 1 where the magnitude is at most this bound times the stored scale;
    /// 0 in groups that hold what is not finite.
    pub mask: Option<(&'a Buffer, f32)>,
    /// Orthonormal Walsh-Hadamard transform of each block of so many columns before anything but a layer norm: 16 to 256, a power of two
    /// that divides the
    /// columns.
    pub hadamard: Option<usize>,
    /// A layer norm of each row before anything else: what is quantized is `(x - mean) / sqrt(var + eps) * weight + bias`, in f32. Where
    /// [`normalizes`] says so, to the nearest, without signs, a factor, squares and another division.
    pub layer_norm: Option<FusedLayerNorm<'a>>,
    /// Random signs of columns, before the transform.
    pub signs: Option<&'a Signs>,
    /// A factor on elements, not on their scales: codes are those of `factor * x` by the scales of `x`, as is the matrix's value. A factor
    /// below 1 is headroom, without which stochastic rounding is biased where a scale's rounding makes the largest elements saturate: 3/4
    /// for E8M0 scales rounded down (Tseng et al., arXiv 2502.20586), 16/17 for E4M3. A mask is of `x` without it.
    pub factor: Option<f32>,
    /// Squares of 16 rows and 16 columns share a scale, so that the transposed matrix has the same values (NVIDIA, arXiv 2509.25149); with
    /// groups of 16 by their largest magnitude only.
    pub square: bool,
    /// Leaves the header's norm at 1, for consumers that do not ask for it: one dispatch less.
    pub skip_norm: bool,
    /// The scale of all elements instead of a computed one, f32 `[1]`, for formats with one f32 or f16 scale per tensor: its magnitude, at
    /// least 2^-100 (2^-24 where it is stored as f16), so that a learned scale may pass through zero. One that is not finite is stored as
    /// NaN, and all codes are those of zero. Elements that are not finite say nothing about the scale: infinities take the ends of the
    /// grid, a NaN counts as zero.
    pub scale: Option<&'a Buffer>,
    /// Subtracted from all elements after the rotation, f32 `[1]`; beside `scale` only. What is stored does not tell of it: the matrix
    /// stands for its values plus the offset. Not finite: as a scale that is not.
    pub offset: Option<&'a Buffer>,
    /// How the work is divided, instead of as suits the adapter.
    pub division: Option<Division>,
}

/// A layer norm that [`quantize`] begins with, which saves a matrix's way to memory and back.
#[derive(Clone, Copy, Debug)]
pub struct FusedLayerNorm<'a> {
    /// `[cols]`, f32.
    pub weight: &'a Buffer,
    /// `[cols]`, f32.
    pub bias: Option<&'a Buffer>,
    /// Added to the variance.
    pub eps: f32,
    /// What the norm's backward pass needs: the means of the rows, and from element [`FusedLayerNorm::second`] on their reciprocal standard
    /// deviations; f32, twice as long as that.
    pub statistics: &'a Buffer,
}

impl FusedLayerNorm<'_> {
    /// Where the second half of the statistics of so many rows begins.
    #[must_use]
    pub fn second(rows: usize) -> usize {
        rows.next_multiple_of(64)
    }
}

/// Whether [`quantize`] takes a layer norm of rows of so many columns, with this block of a rotation: before integers with a scale per row, by the
/// largest, mean or mean square magnitude, ties to even (of one bit: up), and no zero points; where the columns are a multiple of four, at most 128
/// times the lanes of a subgroup, of which 32 count, and a block at most 16 times; and where subgroups can share tiles of the work ([`tiles`]).
#[must_use]
pub fn normalizes(context: &Context, format: &Format, cols: usize, hadamard: Option<usize>) -> bool {
    tiles(context) && cols.is_multiple_of(4) && team(context, format, cols, hadamard).is_some()
}

/// How the work is divided among invocations. [`quantize`] chooses; this is for tests and measurements. Where a format or a shape does not
/// take one, the one before it is taken; those with subgroups need what [`tiles`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Division {
    /// Invocations have units of columns, workgroups long spans.
    Units,
    /// Teams of eight lanes have tiles.
    Tiles,
    /// Subgroups have rows: integers with a scale per row and no zero points, to the nearest, without signs and a factor.
    Rows,
}

impl Division {
    /// Every division.
    pub const ALL: [Self; 3] = [Self::Units, Self::Tiles, Self::Rows];
}

/// Whether a device's subgroups can share tiles of the work: their size is fixed, and eight divides it.
#[must_use]
pub fn tiles(context: &Context) -> bool {
    let (least, most) = context.capabilities().subgroup_size;
    context.tier() >= Tier::Subgroup && least == most && least > 0 && least.is_multiple_of(8)
}

/// The twin of `Recipe` in `shaders/common/quantize_info.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Recipe {
    p: PackedInfo,
    rows: u32,
    units: u32,
    bits: u32,
    group: u32,
    rule: u32,
    ties: u32,
    zero_points: u32,
    exact: u32,
    exponent: u32,
    mantissa: u32,
    max_code: u32,
    finite_only: u32,
    top: u32,
    threshold: u32,
    unit_log2: u32,
    span_odd: u32,
    span_exponent: i32,
    seed_low: u32,
    seed_high: u32,
    op: u32,
    step: u32,
    step_at_state: u32,
    masked: u32,
    rotated: u32,
    rotation_units: u32,
    last_stage: u32,
    given: u32,
    pieces: u32,
    piece_units: u32,
    header_words: u32,
    partials: u32,
    max: f32,
    gain: f32,
    epsilon: f32,
    least: f32,
    low: f32,
    high: f32,
    add: f32,
    centre: f32,
    bound: f32,
    rotation_factor: f32,
    big: f32,
    big_factor: f32,
    least_normal: f32,
    subnormals: f32,
    fraction: f32,
    scale_bits: u32,
    flat: u32,
    ue4m3: u32,
    handed: u32,
    shifted: u32,
    square: u32,
    factor: f32,
    flips: u32,
    flip_low: u32,
    flip_high: u32,
    flip_op: u32,
    flip_step: u32,
    flip_at_state: u32,
    layer_norm_eps: f32,
    biased: u32,
    rstd_at: u32,
    inv_cols: f32,
    reserved: u32,
    a: PackedInfo,
    header: [u32; HEADER],
}

const _: () = assert!(std::mem::size_of::<Recipe>() == 48 + 64 * 4 + 48 + HEADER * 4);

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DoubleParams {
    recipe: Recipe,
    map: [[f32; 64]; 4],
}

/// What the shaders' `CLASS` is.
fn class(format: &Format) -> u32 {
    match format.grid() {
        Levels::Int { .. } | Levels::Centred { .. } | Levels::ZeroPoint { .. } => 0,
        Levels::Float(_) => 1,
        Levels::Nf4 => 2,
        Levels::Fp4 => 3,
        Levels::Nf3 => 4,
    }
}

/// Exponent and 23 bits of mantissa of a number that f32 holds exactly.
fn parts(v: f64) -> (u32, u32) {
    let bits = (v as f32).to_bits();
    (bits >> 23, bits & 0x7F_FFFF)
}

/// All that does not depend on the options.
fn recipe(packed: &Packed) -> Result<Recipe> {
    let (format, layout) = (packed.format(), packed.layout());
    let grid = format.grid();
    let half = f64::from(1u32 << (format.bits() - 1));
    let (low, high, add, centre) = match grid {
        Levels::Int { full, .. } => (if full { -half } else { 1.0 - half }, half - 1.0, half, 0.0),
        Levels::Centred { .. } => (-half, half - 1.0, half, 0.5),
        _ => (0.0, grid.max(), 0.0, 0.0),
    };
    let (exponent, mantissa, max_code) = match grid {
        Levels::Float(float) => (float.layout().0, float.layout().1, float.max_code()),
        _ => (0, 0, 0),
    };
    let bias = (1i32 << exponent >> 1) - 1;
    let unit = f64::from(format.unit());
    let (top, fraction) = parts(grid.max() * unit);
    let threshold = match format.store() {
        Store::E8M0(Power::RoundUp) => fraction + 1,
        Store::E8M0(Power::Ceil) => 1,
        // The mantissa from which rounding to the grid's bits carries.
        Store::E8M0(Power::Even) => 0x80_0000 - (0x40_0000 >> grid.mantissa_bits()),
        _ => 0x80_0000,
    };
    let span = grid.span_max();
    let odd = (0..8).find(|e| (span * f64::from(1u32 << e)).fract() == 0.0).unwrap_or(0);
    let whole = (span * f64::from(1u32 << odd)) as u32;
    let ternary = matches!(grid, Levels::Int { .. });
    let (gain, epsilon) = match (format.rule(), grid) {
        (Rule::AbsMean, Levels::Centred { .. }) => (2.0, 0.0),
        (Rule::AbsMean, _) => (1.0, 0.0),
        _ => format.gaussian(),
    };
    let (big, big_factor) = if format.rule() == Rule::AbsMean { BIG_SUM } else { BIG_SQUARE };
    let group = match format.span() {
        Span::Group(n) => n,
        Span::Row | Span::Tensor => dim(layout.cols)?,
    };
    Ok(Recipe {
        p: packed.info()?,
        rows: dim(layout.rows)?,
        units: dim(layout.units)?,
        bits: format.bits(),
        group,
        rule: match (grid, format.rule()) {
            (Levels::Nf3, _) | (_, Rule::MinMax) => 2,
            (_, Rule::AbsMax) => 0,
            (_, Rule::SignedMax) => 1,
            (_, Rule::AbsMean) => 3,
            (_, Rule::Gaussian) => 4,
        },
        ties: match format.ties() {
            Ties::Even => 0,
            Ties::Up => 1,
            Ties::Down => 2,
            Ties::Zero => 3,
            Ties::Away => 4,
        },
        zero_points: u32::from(matches!(grid, Levels::ZeroPoint { .. })),
        exact: u32::from(format.exact()),
        ue4m3: u32::from(format.store() == Store::Ue4m3),
        exponent,
        mantissa,
        max_code,
        // The mean square gives a scale, not a largest magnitude.
        top: if format.rule() == Rule::Gaussian { 0 } else { top.wrapping_sub(127) },
        threshold,
        unit_log2: if unit < 1.0 { 6 } else { 0 },
        span_odd: whole >> whole.trailing_zeros(),
        span_exponent: whole.trailing_zeros() as i32 - odd,
        rotation_units: 1,
        scale_bits: dim(layout.scale_bits)?,
        max: grid.max() as f32,
        gain: gain as f32,
        epsilon: epsilon as f32,
        least: if format.rule() == Rule::AbsMean && ternary { 1e-5 } else { 0.0 },
        low: low as f32,
        high: high as f32,
        add: add as f32,
        centre,
        big: 2f32.powi(big),
        big_factor: 2f32.powi(big_factor),
        least_normal: 2f32.powi(1 - bias),
        subnormals: 2f32.powi(bias - 1 + mantissa as i32),
        fraction: 2f32.powi(mantissa as i32 - 23),
        factor: 1.0,
        header: format.header(),
        ..Recipe::default()
    })
}

/// Quantizes `x` into `out`, all of it: codes, scales, zero points and the header.
///
/// # Shapes
/// `x` `[rows, cols]` of `out`'s sizes, f32 or f16; a mask u32 `[rows, ceil(cols / 32)]`. Any sizes; the last unit of a row is filled up with
/// code 0.
///
/// # Errors
/// [`Error::Shape`] for other buffers and for columns that a rotation's block does not divide; [`Error::Invalid`] for a block that is not
/// one of 16, 32, 64, 128 and 256, for a mask with double-quantized scales, which are not known when it is written, for a scale of the
/// caller's where the format has more than one or a zero point, for an offset without a scale, for squares of another format than one with
/// groups of 16, for signs and rounding with step states of their own, and for a layer norm with what it does not go with;
/// [`Error::Unsupported`] for one on a device without subgroups of a fixed size; [`Error::Limit`].
///
/// # Numerics
/// [`PackedMatrix::quantize`] in f32. E8M0 scales by the largest magnitude and codes by E8M0 scales are exact; other scales have a few
/// roundings, and given the scale as it is stored, codes are nearest but within a few ulps of a midpoint. Subnormal numbers count as zero. A layer
/// norm's are those of [`super::layer_norm::layer_norm`] with an f32 result, but for the order of sums.
///
/// # Source
/// See [`Format`] for those of the formats; stochastic rounding with Philox as in [`crate::format::Uniform`].
pub fn quantize(context: &Context, x: &Buffer, out: &Packed, options: Options<'_>) -> Result<()> {
    expect(NAME, "x", x, out.layout().rows * out.layout().cols, FLOATS)?;
    run(context, NAME, &Input::Rows(x), out, options)
}

/// Where elements come from.
pub(super) enum Input<'a> {
    /// A matrix of the result's shape.
    Rows(&'a Buffer),
    /// One of the transposed shape.
    Columns(&'a Buffer),
    /// A quantized one of the transposed shape.
    Packed(&'a Packed),
}

impl<'a> Input<'a> {
    /// The first buffer, which is bound as x.
    fn x(&self) -> &'a Buffer {
        match self {
            Self::Rows(x) | Self::Columns(x) => x,
            Self::Packed(packed) => packed.codes(),
        }
    }

    /// What is bound last.
    fn last(&self) -> Option<Binding<'a>> {
        match self {
            Self::Packed(packed) => Some(packed.side().read()),
            _ => None,
        }
    }

    /// The defines of `shaders/common/quantize_load.wgsl`, for a matrix with rows of `cols`.
    fn defines(&self, cols: usize) -> Defines {
        let transposed = !matches!(self, Self::Rows(_));
        // Transposed, nothing is loaded by fours.
        let width = if transposed { 4 } else { width(cols) };
        vec![
            ("X", self.x().dtype().into()),
            ("HALVES", 2u32.into()),
            ("WIDTH", width.into()),
            ("TRANSPOSED", transposed.into()),
        ]
    }
}

/// Quantizes whatever there is; sizes are checked.
pub(super) fn run(
    context: &Context,
    name: &'static str,
    input: &Input<'_>,
    out: &Packed,
    options: Options<'_>,
) -> Result<()> {
    let (format, layout) = (out.format(), *out.layout());
    let mut recipe = recipe(out)?;
    if let Input::Packed(x) = input {
        recipe.a = x.info()?;
    }
    let mut stochastic = false;
    let mut states: [Option<&Buffer>; 2] = [None, None];
    if let Rounding::Stochastic { seed, op, step } = options.rounding {
        stochastic = true;
        (recipe.seed_low, recipe.seed_high, recipe.op) = (seed as u32, (seed >> 32) as u32, op);
        match step {
            Step::Number(step) => recipe.step = step,
            Step::State(buffer) => {
                check_state(name, buffer)?;
                states[0] = Some(buffer);
                recipe.step_at_state = 1;
            }
        }
    }
    if let Some(Signs { seed, op, step }) = options.signs {
        recipe.flips = 1;
        (recipe.flip_low, recipe.flip_high, recipe.flip_op) = (*seed as u32, (seed >> 32) as u32, *op);
        match step {
            hadamard::Step::Number(step) => recipe.flip_step = *step,
            hadamard::Step::State(buffer) => {
                check_state(name, buffer)?;
                states[1] = Some(buffer);
                recipe.flip_at_state = 1;
            }
        }
    }
    if let [Some(a), Some(b)] = states
        && !a.same(b)
    {
        return Err(Error::invalid(name, "one step state for signs and rounding", "two"));
    }
    let state = states[0].or(states[1]).unwrap_or(input.x());
    recipe.factor = options.factor.unwrap_or(1.0);
    if let Some((mask, bound)) = options.mask {
        expect(name, "mask", mask, layout.rows * layout.units, &[DType::U32])?;
        if format.store() == Store::Double {
            return Err(Error::invalid(name, "a mask with scales that are not double-quantized", format.to_string()));
        }
        (recipe.masked, recipe.bound) = (1, bound);
    }
    if options.square && (format.span() != Span::Group(16) || recipe.rule != 0) {
        let expected = "squares with groups of 16 by their largest magnitude";
        return Err(Error::invalid(name, expected, format.to_string()));
    }
    if let Some(block) = options.hadamard {
        rotate(name, &mut recipe, block, layout.cols)?;
    }
    handed(&mut recipe, format, &options)?;
    if let Some(norm) = &options.layer_norm {
        begin_with(context, name, &mut recipe, input, out, norm, &options)?;
    }
    if layout.rows * layout.cols == 0 {
        return context
            .upload(out.side(), bytemuck::cast_slice(PackedMatrix::zeros(format, layout.rows, layout.cols)?.side()));
    }
    recipe.given = u32::from(format.span() == Span::Tensor);
    let tensor = (recipe.given == 1 && recipe.handed == 0) || format.store() == Store::E4M3;
    recipe.header_words = if tensor { 0 } else { dim(HEADER)? };
    let mut scratch = match format.store() {
        Store::Double => layout.rows * layout.groups,
        _ if tensor => 4 + 4 * PARTIALS,
        _ => 1,
    };
    if options.square {
        recipe.square = dim(scratch)?;
        scratch += layout.rows.div_ceil(SQUARE_ROWS) * layout.groups;
    }
    let scratch = context.alloc(scratch, DType::U32)?;
    if tensor {
        tensor_statistics(context, recipe, input, state, out, &scratch)?;
    }
    if options.square {
        let kernel = if matches!(input, Input::Rows(_)) { &SQUARE } else { &transposed::SQUARE };
        let defines = [input.defines(layout.cols), vec![("WG_SIZE", 64u32.into())]].concat();
        let mut bindings = vec![input.x().read(), state.read(), scratch.write()];
        bindings.extend(input.last());
        let count = layout.rows.div_ceil(SQUARE_ROWS) * layout.units;
        context.dispatch(kernel, &defines, &recipe, &bindings, Grid::Linear((count as u64).div_ceil(64)))?;
    }

    let dummy = if options.mask.is_none() { Some(context.alloc(1, DType::U32)?) } else { None };
    let mask = options.mask.map(|m| m.0).or(dummy.as_ref()).unwrap_or(&scratch);
    let x = input.x();
    let mut bindings =
        vec![x.read(), state.read(), out.codes().write(), out.side().write(), mask.write(), scratch.write()];
    bindings.extend(input.last());
    let normed = encode(context, &mut recipe, input, out, &bindings, stochastic, options)?;
    if format.store() == Store::Double {
        double(context, recipe, out, &scratch)?;
    }
    if normed || options.skip_norm || recipe.given == 1 { Ok(()) } else { norm(context, recipe, out) }
}

/// Scales, where they are not given, and codes; true where it wrote the header's norm too.
fn encode(
    context: &Context,
    recipe: &mut Recipe,
    input: &Input<'_>,
    out: &Packed,
    bindings: &[Binding<'_>],
    stochastic: bool,
    options: Options<'_>,
) -> Result<bool> {
    let (format, layout) = (out.format(), out.layout());
    let rows = matches!(input, Input::Rows(_));
    let mut defines: Defines = vec![("STOCHASTIC", stochastic.into()), ("CLASS", class(&format).into())];
    let mut plain = [defines.clone(), input.defines(layout.cols)].concat();
    if !rows && stochastic {
        // Random numbers come by fours.
        plain.iter_mut().filter(|d| d.0 == "WIDTH").for_each(|d| d.1 = width(layout.cols).into());
    }
    let aligned = rows && !options.square && layout.cols.is_multiple_of(4);
    let cpu = context.capabilities().is_cpu();
    let suiting = match cpu {
        false => Division::Rows,
        true if layout.rows * layout.units > 128 => Division::Tiles,
        true => Division::Units,
    };
    let suiting = if options.layer_norm.is_some() { Division::Rows } else { suiting };
    let division = if aligned && tiles(context) { options.division.unwrap_or(suiting) } else { Division::Units };
    let plain_rows = !stochastic && recipe.flips == 0 && recipe.factor.to_bits() == 1f32.to_bits();
    if division == Division::Rows
        && plain_rows
        && let Some([team, chunks]) = team(context, &format, layout.cols, options.hadamard)
    {
        let dtype = input.x().dtype();
        let mut defines = rows_inputs(dtype, dtype == DType::F32, options.layer_norm.is_some());
        defines.extend([("CHUNKS", chunks.into()), ("TALLY", (!options.skip_norm).into())]);
        recipe.pieces = team;
        let workgroups = layout.rows.div_ceil(128 / team as usize);
        // Neither state nor scratch.
        let mut bindings = [&bindings[..1], &bindings[2..5]].concat();
        if let Some(FusedLayerNorm { weight, bias, statistics, .. }) = options.layer_norm {
            bindings.extend([weight.read(), bias.unwrap_or(weight).read(), statistics.write()]);
        }
        let tally = if options.skip_norm { None } else { Some(out.tally(context)?) };
        bindings.extend(tally.as_ref().map(Buffer::write));
        context.dispatch(&ROWS_SUBGROUP, &defines, recipe, &bindings, Grid::Linear(workgroups as u64))?;
        return Ok(!options.skip_norm);
    }
    debug_assert!(options.layer_norm.is_none(), "`begin_with` lets through only what the kernel above takes");
    defines.extend([("X", input.x().dtype().into()), ("WIDTH", 4u32.into())]);
    if division >= Division::Tiles {
        let squares = recipe.rule == 4 && recipe.group <= 32;
        let simple = (recipe.rule == 0 && format.grid() != Levels::Nf3) || squares;
        match format.span() {
            Span::Row => {
                // Up to 512 columns stay in a team's registers; on a GPU a workgroup shares rows of more than 1024.
                let long = layout.units > 32 && (!cpu || options.division.is_some());
                let halves = match layout.units {
                    units if !long => dim(units.div_ceil(4))?.min(4),
                    // 32 teams have 128 units at a time by four.
                    0..=128 => 1,
                    129..=256 => 2,
                    _ => 4,
                };
                // A rotation's block is a team's.
                let halves = halves.max(recipe.rotation_units.div_ceil(4));
                defines.extend([("LONG", long.into()), ("HALVES", halves.into())]);
                let workgroups = if long { layout.rows } else { layout.rows.div_ceil(32) };
                context.dispatch(&ROWS_TILE, &defines, recipe, bindings, Grid::Linear(workgroups as u64))?;
                return Ok(false);
            }
            Span::Group(group @ (16 | 32 | 64 | 128)) if simple => {
                let whole = |n: usize| layout.cols.is_multiple_of(n);
                let words = (layout.groups * layout.scale_bits).is_multiple_of(32);
                recipe.flat = u32::from(whole(UNIT) && whole(group as usize) && words);
                let pieces = layout.units.div_ceil(8);
                recipe.pieces = dim(pieces)?;
                let tiles =
                    if recipe.flat == 1 { (layout.rows * layout.units).div_ceil(8) } else { layout.rows * pieces };
                defines.extend([("HALVES", 2u32.into()), ("GROUP", group.into())]);
                context.dispatch(&TILE, &defines, recipe, bindings, Grid::Linear(tiles.div_ceil(32) as u64))?;
                return Ok(false);
            }
            _ => {}
        }
    }
    let mut defines = plain;
    let (span, units) = match format.span() {
        Span::Tensor => (0, 1),
        Span::Group(16) => (1, 1),
        Span::Group(n) if n as usize <= LONG && n as usize <= layout.cols.next_multiple_of(UNIT) => {
            (0, n as usize / UNIT)
        }
        Span::Group(n) => (2, n as usize / UNIT),
        Span::Row => (2, layout.units),
    };
    let units = units.min(layout.units);
    recipe.piece_units = dim(units)?;
    let pieces = layout.units.div_ceil(units);
    recipe.pieces = dim(pieces)?;
    defines.extend([("SPAN", span.into()), ("HANDED", (rows && span == 0).into())]);
    let count = (layout.rows * pieces) as u64;
    if span == 2 {
        defines.extend(shape(context, units));
        context.dispatch(&ROWS, &defines, recipe, bindings, Grid::Linear(count))?;
        return Ok(false);
    }
    defines.push(("WG_SIZE", 64u32.into()));
    let mut bindings = bindings.to_vec();
    if rows && span == 0 {
        let none = input.x();
        bindings.extend([options.scale.unwrap_or(none).read(), options.offset.unwrap_or(none).read()]);
    }
    let kernel = if rows { &KERNEL } else { &transposed::KERNEL };
    context.dispatch(kernel, &defines, recipe, &bindings, Grid::Linear(count.div_ceil(64)))?;
    Ok(false)
}

/// Lanes, and runs of 16 columns of each, with which [`ROWS_SUBGROUP`] has a row, if it can: as many lanes as have work, up to a subgroup.
/// (Fewer lanes with more runs, none of them idle, take a fifth longer for 16384 rows of 384: they want more registers.)
fn team(context: &Context, format: &Format, cols: usize, hadamard: Option<usize>) -> Option<[u32; 2]> {
    let grid = matches!(format.grid(), Levels::Int { .. } | Levels::Centred { .. });
    // One bit has no levels in between for ties to matter but zero, which goes up.
    let ties = if format.bits() == 1 { format.ties() == Ties::Up } else { format.ties() == Ties::Even };
    let rule = matches!(format.rule(), Rule::AbsMax | Rule::AbsMean | Rule::Gaussian);
    if !(grid && ties && rule && format.span() == Span::Row) {
        return None;
    }
    let halves = 2 * cols.div_ceil(UNIT);
    let team = halves.next_power_of_two().clamp(4, context.capabilities().subgroup_size.0.min(32) as usize);
    let chunks = CHUNKS.into_iter().find(|chunks| *chunks as usize * team >= halves)?;
    // A rotation's block is a team's in each of its runs.
    (hadamard.unwrap_or(16) <= 16 * team).then_some([dim(team).ok()?, chunks])
}

/// Magnitudes beyond the first power of two are summed apart, with the second as a factor: of themselves, and of their squares.
const BIG_SUM: (i32, i32) = (80, -40);
const BIG_SQUARE: (i32, i32) = (47, -80);

/// Elements of a group that an invocation takes alone at most.
pub(super) const LONG: usize = 1024;
/// Workgroups that reduce a tensor at most.
const PARTIALS: usize = 256;

/// The caller's scale and offset, if there are any.
fn handed(recipe: &mut Recipe, format: Format, options: &Options<'_>) -> Result<()> {
    for (name, buffer) in [("scale", options.scale), ("offset", options.offset)] {
        let Some(buffer) = buffer else { continue };
        expect(NAME, name, buffer, 1, &[DType::F32])?;
    }
    let floats = matches!(format.store(), Store::F32 | Store::F16);
    let symmetric = !matches!(format.grid(), Levels::ZeroPoint { .. } | Levels::Nf3);
    match (options.scale, options.offset) {
        (Some(_), _) if format.span() == Span::Tensor && floats && symmetric => {
            (recipe.handed, recipe.shifted) = (1, options.offset.is_some().into());
            Ok(())
        }
        (Some(_), _) => {
            let expected =
                "one f32 or f16 scale per tensor and no zero point, such as `int4:tensor:f32`, for a given scale";
            Err(Error::invalid(NAME, expected, format!("`{format}`")))
        }
        (None, Some(_)) => Err(Error::invalid(NAME, "a scale beside the offset", "an offset alone")),
        (None, None) => Ok(()),
    }
}

/// The layer norm that comes first, if it can.
fn begin_with(
    context: &Context,
    name: &'static str,
    recipe: &mut Recipe,
    input: &Input<'_>,
    out: &Packed,
    norm: &FusedLayerNorm<'_>,
    options: &Options<'_>,
) -> Result<()> {
    let (format, layout) = (out.format(), *out.layout());
    let alone = [
        ("rounding to the nearest", matches!(options.rounding, Rounding::Nearest)),
        ("no signs", options.signs.is_none()),
        ("no factor", options.factor.is_none()),
        ("no squares", !options.square),
        ("rows divided among subgroups", options.division.unwrap_or(Division::Rows) == Division::Rows),
        ("a matrix of the result's shape", matches!(input, Input::Rows(_))),
    ];
    if let Some((expected, _)) = alone.into_iter().find(|(_, holds)| !holds) {
        return Err(Error::invalid(name, format!("{expected} beside a layer norm"), "something else"));
    }
    if !tiles(context) {
        let why = "it needs the subgroup tier and subgroups of a fixed size that eight divides".to_owned();
        return Err(Error::Unsupported { what: format!("{name} with a layer norm"), why });
    }
    if !normalizes(context, &format, layout.cols, options.hadamard) {
        let expected =
            "a layer norm before integers with a scale per row and no zero points, in rows that a subgroup holds";
        let block = options.hadamard.map_or(String::new(), |block| format!(", rotated by {block}"));
        return Err(Error::invalid(name, expected, format!("`{format}`, {} columns{block}", layout.cols)));
    }
    let FusedLayerNorm { weight, bias, eps, statistics } = *norm;
    expect(name, "x", input.x(), layout.rows * layout.cols, &[DType::F32])?;
    expect(name, "statistics", statistics, 2 * FusedLayerNorm::second(layout.rows), &[DType::F32])?;
    for (what, buffer) in [("weight", Some(weight)), ("bias", bias)] {
        let Some(buffer) = buffer else { continue };
        expect(name, what, buffer, layout.cols, &[DType::F32])?;
    }
    recipe.layer_norm_eps = eps;
    recipe.biased = u32::from(bias.is_some());
    recipe.rstd_at = dim(FusedLayerNorm::second(layout.rows))?;
    recipe.inv_cols = 1.0 / layout.cols as f32;
    Ok(())
}

fn rotate(name: &'static str, recipe: &mut Recipe, block: usize, cols: usize) -> Result<()> {
    if !(16..=256).contains(&block) || !block.is_power_of_two() {
        return Err(Error::invalid(name, "a Hadamard block of 16, 32, 64, 128 or 256 columns", block.to_string()));
    }
    if !cols.is_multiple_of(block) {
        return Err(Error::shape(
            name,
            format!("a multiple of {block} columns for a Hadamard block of {block}"),
            cols.to_string(),
        ));
    }
    recipe.rotated = 1;
    recipe.rotation_units = dim(block.div_ceil(UNIT))?;
    recipe.last_stage = u32::from(block > 16);
    recipe.rotation_factor = (block as f64).sqrt().recip() as f32;
    Ok(())
}

/// What [`tensor_scale`] makes a scale of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// `gain mean|x|`, at least `least`.
    Mean {
        /// The factor.
        gain: f32,
        /// The smallest result.
        least: f32,
    },
    /// `gain sqrt(mean(x^2)) + epsilon`.
    RootMeanSquare {
        /// The factor.
        gain: f32,
        /// What is added.
        epsilon: f32,
    },
}

/// Sets `out[0]` to a scale for all of `x`, such as a learned one starts from.
///
/// # Shapes
/// `x` of any length, f32 or f16; `out` f32 `[1]`.
///
/// # Errors
/// [`Error::Shape`] for other buffers and where `x` is empty; [`Error::Limit`], [`Error::OutOfMemory`].
///
/// # Numerics
/// As the statistics of a tensor that [`quantize`] takes: f32 sums in a fixed order, without overflow; not finite where an element is not.
pub fn tensor_scale(context: &Context, x: &Buffer, statistic: Statistic, out: &Buffer) -> Result<()> {
    const OP: &str = "tensor_scale";
    expect(OP, "x", x, x.len().max(1), FLOATS)?;
    expect(OP, "out", out, 1, &[DType::F32])?;
    let grid = Levels::Int { bits: 8, full: false };
    let format =
        Format { grid, span: Span::Tensor, store: Store::F32, rule: Rule::AbsMax, ties: Ties::Even, exact: false };
    // Only its scale is written; it is given back at once.
    let packed = Packed::empty(context, format, 1, x.len())?;
    let (rule, gain, epsilon, least, (big, big_factor)) = match statistic {
        Statistic::Mean { gain, least } => (3, gain, 0.0, least, BIG_SUM),
        Statistic::RootMeanSquare { gain, epsilon } => (4, gain, epsilon, 0.0, BIG_SQUARE),
    };
    let (big, big_factor) = (2f32.powi(big), 2f32.powi(big_factor));
    let recipe = Recipe { rule, gain, epsilon, least, big, big_factor, given: 1, ..recipe(&packed)? };
    let scratch = context.alloc(4 + 4 * PARTIALS, DType::F32)?;
    tensor_statistics(context, recipe, &Input::Rows(x), x, &packed, &scratch)?;
    context.copy(&scratch.slice(0, 1)?, out)
}

fn tensor_statistics(
    context: &Context,
    mut recipe: Recipe,
    input: &Input<'_>,
    state: &Buffer,
    out: &Packed,
    scratch: &Buffer,
) -> Result<()> {
    let layout = out.layout();
    let class = if out.format().grid() == Levels::Nf3 { 4u32 } else { 0 };
    let classes: Defines = vec![("CLASS", class.into())];
    let kernel = if matches!(input, Input::Rows(_)) { &TENSOR } else { &transposed::TENSOR };
    let shape = shape(context, usize::MAX);
    // A workgroup of a GPU takes four units per invocation at least; on a software adapter a second dispatch is as long as 4096 units.
    let per_workgroup = if context.capabilities().is_cpu() { 4096 } else { 1024 };
    let partials = (layout.rows * layout.units).div_ceil(per_workgroup).min(PARTIALS);
    recipe.partials = dim(partials)?;
    // What is not finite leaves the rest of a tensor of groups alone.
    recipe.finite_only = 1 - recipe.given;
    let first = [classes.as_slice(), &input.defines(layout.cols), &[("PARTIALS", false.into())], &shape].concat();
    let mut bindings = vec![out.side().write(), scratch.write(), input.x().read(), state.read()];
    bindings.extend(input.last());
    context.dispatch(kernel, &first, &recipe, &bindings, Grid::Xyz([recipe.partials, 1, 1]))?;
    if partials == 1 {
        return Ok(());
    }
    let second = [classes.as_slice(), &[("TRANSPOSED", false.into()), ("PARTIALS", true.into())], &shape].concat();
    context.dispatch(&TENSOR, &second, &recipe, &bindings[..2], Grid::Xyz([1, 1, 1]))
}

fn double(context: &Context, recipe: Recipe, out: &Packed, scratch: &Buffer) -> Result<()> {
    let layout = out.layout();
    let mut map = [[0.0; 64]; 4];
    map.as_flattened_mut().copy_from_slice(&tables::dynamic_map());
    let params = DoubleParams { recipe, map };
    let shape = shape(context, usize::MAX);
    let Some((_, Define::U32(size))) = shape.first().copied() else { return Ok(()) };
    let words = layout.rows * layout.scale_stride;
    for (phase, count) in [(0u32, 1), (1, (layout.rows * layout.groups).div_ceil(256)), (2, words)] {
        let defines = [&[("PHASE", phase.into())], shape.as_slice()].concat();
        let grid = Grid::Linear((count as u64).div_ceil(size.into()));
        context.dispatch(&DOUBLE, &defines, &params, &[out.side().write(), scratch.read()], grid)?;
    }
    Ok(())
}

fn norm(context: &Context, mut recipe: Recipe, out: &Packed) -> Result<()> {
    let layout = out.layout();
    let words = (layout.zeros_at - HEADER).div_ceil(4);
    let per_workgroup = if context.capabilities().is_cpu() { 16384 } else { 4096 };
    let partials = words.div_ceil(per_workgroup).min(PARTIALS);
    recipe.partials = dim(partials)?;
    let shape = shape(context, usize::MAX);
    let scratch = context.alloc(PARTIALS, DType::U32)?;
    for second in [false, true].into_iter().take(if partials == 1 { 1 } else { 2 }) {
        let defines = [&[("CLASS", 0u32.into()), ("PARTIALS", second.into())], shape.as_slice()].concat();
        let workgroups = if second { 1 } else { recipe.partials };
        context.dispatch(
            &NORM,
            &defines,
            &recipe,
            &[out.side().write(), scratch.write()],
            Grid::Xyz([workgroups, 1, 1]),
        )?;
    }
    Ok(())
}
