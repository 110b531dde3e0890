//! Learned step sizes: the one scale of a tensor, and perhaps an offset, are parameters.
//!
//! LSQ (Esser et al., arXiv 1902.08153), LSQ+ (Bhalgat et al., arXiv 2004.09576), and the layer of tutorials that rounds, clamps and has
//! one learnable scale. The scale is the magnitude of the parameter, so that a step through zero mirrors nothing. Weight decay leaves the
//! parameters alone, since they have one dimension.
//!
//! Beside the codes, the backward pass has the values that were quantized: where a value lies within its step is what the gradient of the scale
//! is made of, and codes have lost it. A layer whose inputs have a learned scale therefore keeps its input, rotated where there is a rotation, as one
//! in full precision does, and its codes on top. Of the weight it takes what the optimizer has anyway, or a rotated copy.

use super::{Asked, Coding, Operand, Rule, pass_back};
use crate::autograd::{Gradients, Target};
use crate::format::{Format, Grid, Span, Store, Ties, tables};
use crate::kernel::binary::{Binary, binary};
use crate::kernel::column_sum::column_sum;
use crate::kernel::hadamard::{Hadamard, hadamard};
use crate::kernel::learned_scale_backward::{self, Clip, LearnedScale, Outputs, learned_scale_backward};
use crate::kernel::matmul::{Epilogue, Form};
use crate::kernel::packed::Packed;
use crate::kernel::packed_matmul::{Operand as Factor, PackedMatmul, packed_matmul};
use crate::kernel::quantize::{Options, Statistic, quantize, tensor_scale};
use crate::kernel::reduce::{Reduction, reduce};
use crate::kernel::unary::{Unary, unary};
use crate::{Buffer, Context, DType, Error, Result, Tensor, Tier};
use std::fmt;

/// The methods that learn scales. Integers with one f32 scale per tensor, weights alone or weights and inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lsq {
    /// LSQ. Gradients of scales have the factor `1 / sqrt(N Qp)` for N elements and the largest level `Qp`, 1 where there is one bit; the
    /// range ends at the outermost levels. Scales start at `2 mean|x| / sqrt(Qp)`.
    Plain,
    /// LSQ+. The same, but inputs have an offset, too, with the same factor on its gradient: their range starts as that of the first batch.
    /// Scales of weights start at the least squares for normal data.
    Plus,
    /// A learnable scale without LSQ's factor, 0.01 at first; the range ends half a step beyond the outermost levels, since values are
    /// rounded before they are clamped. INT8 from -128 to 127 where no weights are named.
    Tutorial,
}

impl Lsq {
    pub(super) fn parse(name: &str, options: &[&str]) -> Option<Self> {
        match (name, options) {
            ("lsq", []) => Some(Self::Plain),
            ("lsq", ["plus"]) => Some(Self::Plus),
            ("learned", []) => Some(Self::Tutorial),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "lsq",
            Self::Plus => "lsq:plus",
            Self::Tutorial => "learned",
        }
    }

    /// Whether inputs have an offset.
    pub(crate) fn shifts_inputs(self) -> bool {
        self == Self::Plus
    }

    fn clip(self) -> Clip {
        if self == Self::Tutorial { Clip::AfterRounding } else { Clip::BeforeRounding }
    }

    /// The factor on the gradient of the scale of `len` elements; of none, whose gradient is an empty sum, that of one.
    #[expect(clippy::cast_precision_loss, reason = "below 2^32")]
    fn factor(self, format: Format, len: usize) -> f32 {
        match self {
            Self::Plain | Self::Plus => (len.max(1) as f64 * largest_level(format)).sqrt().recip() as f32,
            Self::Tutorial => 1.0,
        }
    }

    /// Sets scale and offset to what they are before the first step.
    fn initialize(self, values: &Buffer, format: Format, scale: &Tensor, offset: Option<&Tensor>) -> Result<()> {
        let context = scale.context();
        match (self, offset) {
            (Self::Plain, _) => {
                let gain = (2.0 / largest_level(format).sqrt()) as f32;
                tensor_scale(context, values, Statistic::Mean { gain, least: 1e-8 }, scale.buffer())
            }
            (Self::Plus, None) => {
                // The largest level in standard deviations, and steps between the outermost levels.
                let (clip, steps) = match format.grid() {
                    Grid::Int { bits: 2, full: false } => (tables::GAUSSIAN_CLIP_TERNARY, 2.0),
                    _ => {
                        let levels = 1u32 << format.bits();
                        (tables::GAUSSIAN_CLIP[format.bits() as usize - 1], f64::from(levels - 1))
                    }
                };
                let (gain, epsilon) = ((2.0 * clip / steps) as f32, (2e-8 / steps) as f32);
                tensor_scale(context, values, Statistic::RootMeanSquare { gain, epsilon }, scale.buffer())
            }
            (Self::Plus, Some(offset)) => range(values, format, scale, offset),
            (Self::Tutorial, _) => context.upload(scale.buffer(), bytemuck::bytes_of(&START)),
        }
    }
}

/// What learned scales are until they are initialized, and where the tutorial's stay until the first step.
pub(crate) const START: f32 = 0.01;

/// `Qp`: the largest level of a grid with a zero, and what the largest code stands for on one without; 1 with one bit, where it would be 0.
fn largest_level(format: Format) -> f64 {
    f64::from(((1u32 << (format.bits() - 1)) - 1).max(1))
}

/// The scale and the offset with which the grid spans the values: `s = (max - min) / (levels - 1)`, `offset = min - s lowest`.
fn range(values: &Buffer, format: Format, scale: &Tensor, offset: &Tensor) -> Result<()> {
    let context = scale.context();
    let half = f64::from(1u32 << (format.bits() - 1));
    let (lowest, highest) = match format.grid() {
        Grid::Int { full: false, .. } => (1.0 - half, half - 1.0),
        Grid::Centred { .. } => (0.5 - half, half - 0.5),
        _ => (-half, half - 1.0),
    };
    let one = || context.alloc(1, DType::F32);
    let negated = context.alloc(values.len(), values.dtype())?;
    unary(context, Unary::Neg, values, &negated)?;
    let (top, bottom, width, low) = (one()?, one()?, one()?, one()?);
    reduce(context, values, &top, Reduction::Max)?;
    reduce(context, &negated, &bottom, Reduction::Max)?;
    binary(context, Binary::Add, (&top, &[1]), (&bottom, &[1]), &width)?;
    unary(context, Unary::Scale((highest - lowest).recip() as f32), &width, scale.buffer())?;
    unary(context, Unary::Scale(-lowest as f32), scale.buffer(), &low)?;
    binary(context, Binary::Sub, (&low, &[1]), (&bottom, &[1]), offset.buffer())
}

impl Rule for Lsq {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        let format = match asked {
            None if *self == Self::Tutorial && operand == Operand::Weights => "int8:tensor:f32:full".parse()?,
            None | Some(Asked::Dense) => return Ok(None),
            Some(Asked::Spelled(format)) => format,
            Some(Asked::Named(format)) => match format.grid() {
                Grid::Int { .. } if format.name().starts_with("int") => {
                    format!("{}:tensor:f32:full", format.name()).parse()?
                }
                Grid::Centred { .. } => format!("{}:tensor", format.name()).parse()?,
                _ => format,
            },
        };
        let grid = matches!(format.grid(), Grid::Int { .. } | Grid::Centred { .. });
        let ties = format.ties() == Ties::Even || format.bits() == 1;
        if grid && ties && (format.span(), format.store()) == (Span::Tensor, Store::F32) {
            return Ok(Some(format));
        }
        Err(Error::invalid(
            operand.flag(),
            format!(
                "int2 to int8, binary or ternary beside --method {}, with one f32 scale per tensor and ties to even, as in \
                 int4:tensor:f32:full, int4:tensor:f32:centred or binary:tensor (ste takes other formats)",
                self.name()
            ),
            format!("`{format}`"),
        ))
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        Coding::new(format, hadamard)
    }

    fn learned(&self) -> Option<Lsq> {
        Some(*self)
    }
}

/// The learned scales of a linear layer, f32 `[1]` each.
#[derive(Clone, Copy, Debug)]
pub struct LearnedScales<'a> {
    /// The weight's.
    pub weight: &'a Tensor,
    /// The input's, where inputs are quantized.
    pub input: Option<&'a Tensor>,
    /// The input's offset, where the method has one.
    pub offset: Option<&'a Tensor>,
    /// Sets them to what the method starts from, by the weight and the input that there are, before anything else.
    pub initialize: bool,
}

impl<'a> LearnedScales<'a> {
    /// Those that there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'a Tensor> {
        [Some(self.weight), self.input, self.offset].into_iter().flatten()
    }

    /// Checks that they are what the method of a quantizer learns.
    pub(crate) fn check(self, lsq: Lsq, activations: bool) -> Result<()> {
        let fail = |expected: &str, got: &str| Err(Error::shape("linear", expected, got));
        if self.all().any(|scale| scale.len() != 1 || scale.dtype() != DType::F32) {
            return fail("learned scales of one f32", "others");
        }
        if self.input.is_some() != activations {
            return fail("a learned scale of inputs where these are quantized, and only there", "otherwise");
        }
        if self.offset.is_some() != (activations && lsq.shifts_inputs()) {
            return fail("an offset beside --method lsq:plus with quantized inputs, and only there", "otherwise");
        }
        // One kernel writes the gradients of both.
        if self.input.zip(self.offset).is_some_and(|(scale, offset)| scale.id() == offset.id()) {
            return fail("an offset that is another tensor than the input's scale", "the same");
        }
        Ok(())
    }
}

/// One operand with a learned scale, as its gradient sees it.
#[derive(Debug)]
pub(crate) struct Learned {
    /// What was quantized, after the rotation.
    values: Buffer,
    grid: Grid,
    clip: Clip,
    factor: f32,
    scale: Tensor,
    offset: Option<Tensor>,
}

impl Learned {
    /// Quantizes `x`, `[rows, cols]`.
    pub fn encode(
        lsq: Lsq,
        coding: &Coding,
        x: &Tensor,
        [rows, cols]: [usize; 2],
        [scale, offset]: [Option<&Tensor>; 2],
        initialize: bool,
    ) -> Result<(Packed, Self)> {
        let (context, format) = (x.context(), coding.format);
        let Some(scale) = scale else {
            return Err(Error::shape("linear", format!("learned scales beside --method {}", lsq.name()), "none"));
        };
        let values = match coding.hadamard {
            None => x.buffer().clone(),
            Some(block) => {
                let rotated = context.alloc(x.len(), x.dtype())?;
                hadamard(context, &Hadamard::new(rows, cols, block as usize), Some(x.buffer()), &rotated)?;
                rotated
            }
        };
        if initialize {
            lsq.initialize(&values, format, scale, offset)?;
        }
        let packed = Packed::empty(context, format, rows, cols)?;
        let options = Options {
            scale: Some(scale.buffer()),
            offset: offset.map(Tensor::buffer),
            skip_norm: context.tier() < Tier::Coop,
            ..Options::default()
        };
        quantize(context, &values, &packed, options)?;
        let factor = lsq.factor(format, rows * cols);
        let (scale, offset) = (scale.clone(), offset.cloned());
        Ok((packed, Self { values, grid: format.grid(), clip: lsq.clip(), factor, scale, offset }))
    }

    /// Bytes that it keeps.
    pub fn bytes(&self) -> u64 {
        self.values.bytes()
    }

    /// Whether a gradient is of use to it.
    pub fn requires_grad(&self) -> bool {
        self.scale.requires_grad() || self.offset.as_ref().is_some_and(Tensor::requires_grad)
    }

    /// Ends of the range within which values get a gradient, in units of the scale and from the offset on.
    pub fn range(&self) -> Option<[f64; 2]> {
        let (low, high, centre) = learned_scale_backward::levels(self.grid)?;
        let margin = if self.clip == Clip::AfterRounding { 0.5 } else { 0.0 };
        Some([low + centre - margin, high + centre + margin].map(f64::from))
    }

    /// The offset of the quantized values.
    pub fn offset(&self) -> Option<&Buffer> {
        self.offset.as_ref().map(Tensor::buffer)
    }

    /// Hands the gradient `dy` of the quantized values, `[rows, cols]`, on to what they were before the rotation.
    pub fn hand_on(
        &self,
        dy: &Buffer,
        target: Option<Target>,
        hadamard: Option<u32>,
        shape: [usize; 2],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let context = self.scale.context();
        match (target, hadamard) {
            (Some(Target { tensor, accumulate }), None) => self.pass_back(dy, tensor.buffer(), accumulate, gradients),
            (target, _) => {
                let dx = context.alloc(dy.len(), dy.dtype())?;
                self.pass_back(dy, &dx, false, gradients)?;
                let Some(Target { tensor, accumulate }) = target else { return Ok(()) };
                let task = Hadamard { accumulate, ..pass_back(None, hadamard, shape) };
                crate::kernel::hadamard::hadamard(context, &task, Some(&dx), tensor.buffer())
            }
        }
    }

    /// Hands the gradient of the quantized values on: to the values into `dx`, to scale and offset into `gradients`.
    fn pass_back(&self, dy: &Buffer, dx: &Buffer, accumulate: bool, gradients: &mut Gradients) -> Result<()> {
        let scale = gradients.target_or_scratch(&self.scale)?;
        let offset = self.offset.as_ref().map(|offset| gradients.target_or_scratch(offset)).transpose()?;
        let context = self.scale.context();
        let accumulate_scalars = scale.accumulate || offset.as_ref().is_some_and(|offset| offset.accumulate);
        for target in [Some(&scale), offset.as_ref()].into_iter().flatten() {
            if accumulate_scalars && !target.accumulate {
                context.clear(target.tensor.buffer())?;
            }
        }
        let learned = LearnedScale {
            grid: self.grid,
            clip: self.clip,
            scale: self.scale.buffer(),
            offset: self.offset(),
            factor: self.factor,
        };
        let out = Outputs {
            dx,
            accumulate,
            scale: scale.tensor.buffer(),
            offset: offset.as_ref().map(|offset| offset.tensor.buffer()),
            accumulate_scalars,
        };
        learned_scale_backward(context, &self.values, dy, learned, out)
    }
}

/// What an offset of all inputs adds to the outputs, `offset * sum over k of w[n, k]`, and the bias: f32 `[n]`.
pub(crate) fn offset_bias(
    context: &Context,
    weight: &Packed,
    offset: &Buffer,
    bias: Option<&Buffer>,
) -> Result<Buffer> {
    let [n, k] = [weight.layout().rows, weight.layout().cols];
    let (zeros, offsets) = (context.alloc(k, DType::F32)?, context.alloc(k, DType::F32)?);
    context.clear(&zeros)?;
    binary(context, Binary::Add, (&zeros, &[k]), (offset, &[1]), &offsets)?;
    let out = context.alloc(n, DType::F32)?;
    let product = PackedMatmul {
        form: Form::Nt,
        m: 1,
        n,
        k,
        a: Factor::Dense(&offsets),
        b: weight,
        out: &out,
        alpha: 1.0,
        bias,
        epilogue: Epilogue::None,
        mask: None,
        accumulate: false,
    };
    packed_matmul(context, &product)?;
    Ok(out)
}

/// `dw`, f32 `[n, k]`, with what an offset of all inputs adds to it: `offset * sum over m of dy[m, n]`.
pub(crate) fn with_offset(
    context: &Context,
    dw: &Buffer,
    dy: &Buffer,
    offset: &Buffer,
    [m, n, k]: [usize; 3],
) -> Result<Buffer> {
    let (sums, shares) = (context.alloc(n, DType::F32)?, context.alloc(n, DType::F32)?);
    column_sum(context, dy, &sums, [m, n], 1.0, false)?;
    binary(context, Binary::Mul, (&sums, &[n, 1]), (offset, &[1]), &shares)?;
    let out = context.alloc(n * k, DType::F32)?;
    binary(context, Binary::Add, (dw, &[n, k]), (&shares, &[n, 1]), &out)?;
    Ok(out)
}
