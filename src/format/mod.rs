//! Low-bit formats as data: a grid of values, a scale per tensor, row or group, and the packing of codes that all kernels share.
//!
//! # Spelling
//! `name[:option...]`, see `Format::from_str`. [`Format::named`] lists every name with its defaults.
//!
//! # Codes
//! A code of `b` bits stands for a value `v` in units of the stored scale:
//!
//! | grid | value of code `u` |
//! |---|---|
//! | integers with a zero | `u - 2^(b-1)` |
//! | centred integers (no zero); one bit is `binary` | `u - 2^(b-1) + 1/2` |
//! | integers with a zero point `z` per group | `u - z` |
//! | small floats | as their specification has the bits |
//! | tables (NF4, FP4, NF3) | entry `u` |
//!
//! # Packing
//! Rows of a matrix `[rows, cols]` start at a word. Each run of 32 columns (a *unit*) takes `b` words of 32 bits; the last unit of a row is
//! filled up with code 0. `b` is split into powers of two, largest first: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1. Each part is a
//! plane of its own: the plane of `p` bits takes `p` words, element `i` of the unit the bits `i * p % 32 ..` of word `i * p / 32`. The plane of
//! the widest part holds the lowest bits of the code, the next one those above, and so on.
//!
//! # Side data
//! Scales, zero points and constants are one array of words, see [`Layout`].

mod encode;
pub mod minifloat;
mod name;
mod packed;
pub mod tables;

pub use encode::{Rounding, Uniform};
pub use minifloat::Minifloat;
pub use name::options_table;
pub use packed::{HEADER, Header, Layout, PackedMatrix, UNIT};

/// The values that codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grid {
    /// Integers from `-2^(bits-1)` to `2^(bits-1) - 1`; `full` says whether encoding uses the lowest one.
    Int {
        /// 2 to 8.
        bits: u32,
        /// Whether encoding uses `-2^(bits-1)`.
        full: bool,
    },
    /// Half-integers from `-(2^bits - 1) / 2` to `(2^bits - 1) / 2`.
    Centred {
        /// 1 to 8.
        bits: u32,
    },
    /// Integers from 0 to `2^bits - 1` less a zero point per group.
    ZeroPoint {
        /// 2 to 8.
        bits: u32,
    },
    /// A small float.
    Float(Minifloat),
    /// NF4's quantiles.
    Nf4,
    /// bitsandbytes' 4-bit float.
    Fp4,
    /// BitDistiller's asymmetric 3-bit levels, with a scale for each sign.
    Nf3,
}

/// How many elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// The whole matrix.
    Tensor,
    /// A row.
    Row,
    /// So many neighbouring elements of a row: 16 or a larger power of two. The last group of a row may be shorter.
    Group(u32),
}

/// How a scale is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// 32-bit float.
    F32,
    /// 16-bit float, saturating at 65504.
    F16,
    /// A power of two in 8 bits (OCP MX 1.0, section 5.4.1): `2^(byte - 127)`, 255 is NaN. An all-zero group has byte 0 and codes of zero.
    E8M0(Power),
    /// An E4M3 float without sign, times an f32 scale of the whole tensor (NVFP4, arXiv 2509.25149, appendix B).
    E4M3,
    /// An E4M3 float without sign, rounded as ggml does it, and no scale of the tensor: GGUF's NVFP4.
    Ue4m3,
    /// An 8-bit code of [`tables::dynamic_map`], times an f32 scale per 256 groups, plus an f32 offset of the tensor (QLoRA's double
    /// quantization, arXiv 2305.14314, section 3).
    Double,
}

/// How an E8M0 scale is chosen for the group's largest magnitude `a` on a grid whose largest value is `max = f * 2^e`, `1 <= f < 2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Power {
    /// `2^(floor(log2 a) - e)` (OCP MX 1.0, section 6.3): values beyond `max` saturate.
    Floor,
    /// `2^ceil(log2(a / max))`: nothing saturates.
    RoundUp,
    /// `2^(ceil(log2 a) - e)`.
    Ceil,
    /// `2^(floor(log2 a') - e)` with `a'` rounded to the grid's mantissa bits, half away from zero.
    Even,
}

/// What a scale is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The largest magnitude falls on the grid's largest value.
    AbsMax,
    /// The element of largest magnitude, with its sign, falls on the grid's lowest value (ggml's Q4_0); scales may be negative.
    SignedMax,
    /// The largest and the smallest value, and zero, fall on the grid's ends, rounded to a zero point.
    MinMax,
    /// The mean magnitude: the least squares for signs, BitNet b1.58's rule for ternary levels.
    AbsMean,
    /// The clip of least squared error for normal data of the same root mean square ([`tables::GAUSSIAN_CLIP`]), plus 1e-8. With E8M0
    /// scales (`mxfp4:mse`) the power of two at or below that (Quartet, arXiv 2505.14669).
    Gaussian,
}

/// To which of two codes a value goes that is half-way between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Ties {
    /// Integers and floats: the even code (IEEE 754's rule).
    #[default]
    Even,
    /// The larger value.
    Up,
    /// The smaller value.
    Down,
    /// The value nearer to zero.
    Zero,
    /// The value farther from zero.
    Away,
}

/// A low-bit format: grid, scales, and how values are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    pub(crate) grid: Grid,
    pub(crate) span: Span,
    pub(crate) store: Store,
    pub(crate) rule: Rule,
    pub(crate) ties: Ties,
    pub(crate) exact: bool,
}

impl Format {
    /// The values that codes stand for.
    #[must_use]
    pub const fn grid(&self) -> Grid {
        self.grid
    }

    /// How many elements share a scale.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }

    /// How scales are stored.
    #[must_use]
    pub const fn store(&self) -> Store {
        self.store
    }

    /// What scales are computed from.
    #[must_use]
    pub const fn rule(&self) -> Rule {
        self.rule
    }

    /// Where ties go.
    #[must_use]
    pub const fn ties(&self) -> Ties {
        self.ties
    }

    /// Whether codes are chosen by the scale before it is rounded to its storage, as ggml and bitsandbytes do, and not by what is stored.
    #[must_use]
    pub const fn exact(&self) -> bool {
        self.exact
    }

    /// Bits of a code, without scales.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        self.grid.bits()
    }

    /// Whether a row has one scale (or the tensor has), so that the scale can leave a sum along the row.
    #[must_use]
    pub const fn row_scaled(&self) -> bool {
        matches!(self.span, Span::Row | Span::Tensor)
    }

    /// Elements that share a scale in a row of `cols`.
    #[must_use]
    pub fn group(&self, cols: usize) -> usize {
        match self.span {
            Span::Group(n) => n as usize,
            Span::Row | Span::Tensor => cols.max(1),
        }
    }

    /// Bits per element of a matrix `[rows, cols]`: codes and side data that depends on the size, without padding and constants.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn bits_per_element(&self, rows: usize, cols: usize) -> f64 {
        let elements = (rows * cols).max(1) as f64;
        let groups = match self.span {
            Span::Tensor => 1.0,
            _ => (rows * cols.div_ceil(self.group(cols))) as f64,
        };
        let scale = match self.store {
            Store::F32 => 32.0,
            Store::F16 => 16.0,
            Store::E8M0(_) | Store::E4M3 | Store::Ue4m3 => 8.0,
            Store::Double => 8.0 + 32.0 / 256.0,
        };
        let scales = if self.grid == Grid::Nf3 { 2.0 } else { 1.0 };
        let zero = if matches!(self.grid, Grid::ZeroPoint { .. }) { 8.0 } else { 0.0 };
        f64::from(self.bits()) + groups * (scales * scale + zero) / elements
    }
}

impl Grid {
    /// Bits of a code.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Int { bits, .. } | Self::Centred { bits } | Self::ZeroPoint { bits } => bits,
            Self::Float(float) => float.bits(),
            Self::Nf4 | Self::Fp4 => 4,
            Self::Nf3 => 3,
        }
    }

    /// The largest magnitude that encoding produces, in units of the scale.
    #[must_use]
    pub fn max(self) -> f64 {
        match self {
            Self::Int { bits, full: true } => f64::from(1u32 << (bits - 1)),
            Self::Int { bits, full: false } => f64::from((1u32 << (bits - 1)) - 1),
            Self::Centred { bits } => f64::from((1u32 << bits) - 1) / 2.0,
            Self::ZeroPoint { bits } => f64::from((1u32 << bits) - 1),
            Self::Float(float) => float.max(),
            Self::Nf4 | Self::Fp4 | Self::Nf3 => 1.0,
        }
    }

    /// The value of a code in units of the scale, with zero point `zero` where there is one. NF3's negative values are in units of the
    /// scale for negative numbers.
    #[must_use]
    pub fn decode(self, code: u32, zero: u32) -> f64 {
        let code = code & ((1 << self.bits()) - 1);
        match self {
            Self::Int { bits, .. } => f64::from(code) - f64::from(1u32 << (bits - 1)),
            Self::Centred { bits } => f64::from(code) - f64::from(1u32 << (bits - 1)) + 0.5,
            Self::ZeroPoint { .. } => f64::from(code) - f64::from(zero),
            Self::Float(float) => float.decode(code),
            Self::Nf4 => f64::from(tables::NF4[code as usize]),
            Self::Fp4 => f64::from(tables::FP4[code as usize]),
            Self::Nf3 => f64::from(tables::NF3[code as usize]),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        name::write(self, f)
    }
}

impl std::str::FromStr for Format {
    type Err = crate::Error;

    /// Reads `name[:option...]`. Names: `int2` to `int8`, `nf4`, `nf3`, `fp4`, `e2m1`, `mxfp4`, `mxfp6_e2m3`, `mxfp6_e3m2`, `mxfp8_e4m3`,
    /// `mxfp8_e5m2`, `mxint8`, `mxint4`, `nvfp4`, `nvint4`, `binary`, `ternary`. Options, in any order:
    ///
    /// | option | means |
    /// |---|---|
    /// | `tensor`, `row`, `g16`, `g32`, .. | what shares a scale |
    /// | `f32`, `f16`, `dq` | how scales are stored; `dq`: double-quantized |
    /// | `full`, `centred`, `asym` | integers that use the lowest code; without a zero; with zero points, no other rule and no `exact` |
    /// | `absmax`, `mse`, `absmean`, `signed` | what scales are computed from |
    /// | `floor`, `roundup`, `ceil`, `even` | how E8M0 scales are chosen |
    /// | `ue4m3` | E4M3 scales without a scale of the tensor, rounded as ggml does it |
    /// | `exact` | codes are chosen by the f32 scale before it is rounded to f16 |
    /// | `half-up`, `half-down`, `half-zero`, `half-away` | where ties go instead of to the even code |
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        name::parse(text)
    }
}

impl serde::Serialize for Format {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Format {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
