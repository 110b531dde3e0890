//! Quantization-aware training: how linear layers quantize their operands, and what their gradients make of it.
//!
//! A [`Method`] is one file here. It says which formats it takes, which of them a bare name means, whether operands are rotated, and, for
//! each operand, its [`Coding`]; [`crate::op::linear`] asks for the codings and knows no method, and kernels know neither.
//!
//! Weights stay f32 in the optimizer and are quantized at every forward pass. Products multiply codes; what is kept of inputs for the backward pass
//! is codes, scales and a bit per element. Where scales are learned, it is the input itself as well ([`Lsq`]).

mod backward;
mod binaryconnect;
mod bitnet;
mod bwn;
mod clipped;
pub(crate) mod lsq;
mod nvfp4;
mod onebit;
mod ptq;
mod quartet;
mod quest;
mod ste;

pub use backward::{Backward, Noise};
pub(crate) use backward::{Products, Target};
pub use binaryconnect::BinaryConnect;
pub use bitnet::BitNet;
pub use bwn::Bwn;
pub use clipped::Clipped;
pub use lsq::{LearnedScales, Lsq};
pub use nvfp4::Nvfp4;
pub use onebit::{OneBit, Svid, svid};
pub use ptq::Ptq;
pub use quartet::Quartet;
pub use quest::Quest;
pub use ste::Ste;

use crate::format::{self, Format, Grid, Span, Store};
use crate::kernel::dequantize::dequantize;
use crate::kernel::hadamard::{Hadamard, hadamard};
use crate::kernel::mask;
use crate::kernel::packed::Packed;
use crate::kernel::quantize::{FusedLayerNorm, Options as QuantizeOptions, normalizes, quantize};
use crate::kernel::sign_gradient::Factor;
use crate::{Buffer, Context, DType, Error, Result, Tensor, Tier};
pub(crate) use lsq::Learned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How weights and inputs of linear layers are quantized and what gradients make of it. Spelled `name[:option...]`, as in `quest` or
/// `quest:trust=1.3`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Method {
    /// Nothing is quantized.
    #[default]
    None,
    /// Training in full precision; evaluation and sampling with quantized operands.
    Ptq(Ptq),
    /// Straight-through estimation.
    Ste(Ste),
    /// Straight-through estimation without what saturates.
    Clipped(Clipped),
    /// QuEST.
    Quest(Quest),
    /// Learned scales.
    Lsq(Lsq),
    /// Quartet: MXFP4, backward too.
    Quartet(Quartet),
    /// NVIDIA's recipe: NVFP4, backward too.
    Nvfp4(Nvfp4),
    /// Signs.
    BinaryConnect(BinaryConnect),
    /// Binary weights with a scale per row.
    Bwn(Bwn),
    /// BitNet b1.58.
    BitNet(BitNet),
    /// OneBit.
    OneBit(OneBit),
}

/// What one method decides.
trait Rule {
    /// Its name and options.
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// The format of an operand for which `asked` was asked for, or an error that names the flag; `None`: it stays dense.
    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>>;

    /// Whether operands are rotated where nothing is said about it.
    fn rotates(&self) -> bool {
        false
    }

    /// The blocks of which the first one that fits is taken then.
    fn blocks(&self) -> &'static [u32] {
        &[128, 64, 32, 16]
    }

    /// Refuses settings that it cannot do together, naming the flag.
    fn check(&self, _: &Quantizer) -> Result<()> {
        Ok(())
    }

    /// Why they cannot be rotated by blocks of so many columns, if so.
    fn refuse_rotation(&self, _: u32) -> Option<Error> {
        None
    }

    /// What belongs to a layer beside its product.
    fn layer(&self) -> Layer {
        Layer::Plain
    }

    /// Whether updates end with weights moved back into [-1, 1].
    fn keeps_within_one(&self) -> bool {
        false
    }

    /// How it learns from a teacher, if it does.
    fn distillation(&self) -> Option<Distillation> {
        None
    }

    /// How an operand is quantized.
    fn coding(&self, operand: Operand, format: Format, hadamard: Option<u32>) -> Coding;

    /// Whether the forward passes of training quantize, and not only the others.
    fn trains_quantized(&self) -> bool {
        true
    }

    /// Whether quantized weights approximate the weights.
    fn approximates_weights(&self) -> bool {
        true
    }

    /// How scales are learned, if they are.
    fn learned(&self) -> Option<Lsq> {
        None
    }

    /// How the products of the backward pass are quantized, if they are.
    fn backward(&self) -> Option<Backward> {
        None
    }

    /// How many of the last of so many blocks are not quantized.
    fn dense_blocks(&self, _: usize) -> usize {
        0
    }
}

/// An operand of a linear layer's product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Weights,
    Activations,
}

impl Operand {
    fn flag(self) -> &'static str {
        match self {
            Self::Weights => "--weights",
            Self::Activations => "--activations",
        }
    }
}

/// What belongs to a quantized linear layer beside its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Nothing.
    Plain,
    /// A norm right before it.
    Normed,
    /// A vector of values that its inputs are multiplied by, one for its outputs, and a layer norm without parameters after it.
    Valued,
}

/// How a model learns from a teacher: from its distribution and from its hidden states.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// The weight of the distance of hidden states beside a cross-entropy of weight 1.
    pub hidden: f32,
}

/// Spellings of all methods, with their options, for messages and help.
pub const SPELLINGS: &str = "none, ptq, ste, clipped[:BOUND], lsq[:plus], learned, quest[:trust=S], binaryconnect[:unit], bwn[:exact], \
     bitnet, onebit[:hidden=B], quartet[:sr|:aligned], nvfp4[:dense=N][:unbiased]";

impl Method {
    fn rule(&self) -> Option<&dyn Rule> {
        Some(match self {
            Self::None => return None,
            Self::Ptq(rule) => rule,
            Self::Ste(rule) => rule,
            Self::Clipped(rule) => rule,
            Self::Quest(rule) => rule,
            Self::Lsq(rule) => rule,
            Self::Quartet(rule) => rule,
            Self::Nvfp4(rule) => rule,
            Self::BinaryConnect(rule) => rule,
            Self::Bwn(rule) => rule,
            Self::BitNet(rule) => rule,
            Self::OneBit(rule) => rule,
        })
    }

    /// Whether the forward passes of training quantize, and not only evaluation and sampling.
    #[must_use]
    pub fn trains_quantized(&self) -> bool {
        self.rule().is_some_and(Rule::trains_quantized)
    }

    /// Whether quantized weights approximate those behind them, so that the distance between them means something: not those of
    /// [`Method::OneBit`] and [`Method::BinaryConnect`], signs of one size for weights of whatever size.
    #[must_use]
    pub fn approximates_weights(&self) -> bool {
        self.rule().is_some_and(Rule::approximates_weights)
    }

    /// Whether training may pull weights toward the grid ([`crate::optim::Correction`]): it multiplies what is on the grid, and that approximates
    /// the weights.
    #[must_use]
    pub fn takes_correction(&self) -> bool {
        self.trains_quantized() && self.approximates_weights()
    }

    /// How it learns from a teacher, if it does.
    #[must_use]
    pub fn distillation(&self) -> Option<Distillation> {
        self.rule().and_then(Rule::distillation)
    }

    /// Its quantizer with the formats and the rotation that were asked for, those left open filled in; none for [`Method::None`].
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag, for what the method cannot do, and as [`Quantizer::validate`].
    pub fn quantizer(self, asked: &Settings) -> Result<Option<Quantizer>> {
        let Some(rule) = self.rule() else {
            return match (asked.weights.and_then(Asked::format), asked.activations.and_then(Asked::format)) {
                (Some(format), _) => Err(beside_none("--weights", "no format", format)),
                (None, Some(format)) => Err(beside_none("--activations", "no format", format)),
                (None, None) => match asked.hadamard {
                    Some(Rotation(Some(block))) => Err(beside_none("--hadamard", "no rotation", block)),
                    _ => Ok(None),
                },
            };
        };
        let activations = rule.format(Operand::Activations, asked.activations)?;
        let Some(weights) = rule.format(Operand::Weights, asked.weights)? else {
            return Err(match activations {
                Some(_) => Error::invalid("--activations", "--weights beside it", "--activations alone"),
                None => Error::invalid("--method", "none where there are no --weights", self.to_string()),
            });
        };
        let hadamard = match asked.hadamard {
            Some(Rotation(block)) => block,
            None if rule.rotates() => {
                let fits = |block: &u32| asked.widths.iter().all(|w| w.is_multiple_of(*block as usize));
                let block = rule.blocks().iter().copied().find(fits).ok_or_else(|| {
                    let widths = match rule.blocks() {
                        [only] => format!("widths that {only} divides"),
                        _ => "widths that 16 divides, or --hadamard off".into(),
                    };
                    Error::invalid(format!("--method {self}"), widths, format!("widths {:?}", asked.widths))
                });
                Some(block?)
            }
            None => None,
        };
        if let Some(refused) = hadamard.and_then(|block| rule.refuse_rotation(block)) {
            return Err(refused);
        }
        let quantizer = Quantizer { method: self, weights, activations, hadamard };
        rule.check(&quantizer)?;
        quantizer.validate(&asked.widths)?;
        Ok(Some(quantizer))
    }
}

fn beside_none(flag: &str, expected: &str, got: impl fmt::Display) -> Error {
    Error::invalid(flag, format!("{expected} beside --method none"), format!("`{got}`"))
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule() {
            None => f.write_str("none"),
            Some(rule) => rule.spell(f),
        }
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::invalid("--method", format!("one of {SPELLINGS}"), format!("`{text}`"));
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let options: Vec<&str> = parts.collect();
        let method = match name {
            "none" if options.is_empty() => Self::None,
            "ptq" if options.is_empty() => Self::Ptq(Ptq),
            "ste" if options.is_empty() => Self::Ste(Ste),
            "clipped" => Self::Clipped(Clipped::parse(&options).ok_or_else(unknown)?),
            "lsq" | "learned" => Self::Lsq(Lsq::parse(name, &options).ok_or_else(unknown)?),
            "quartet" => Self::Quartet(Quartet::parse(&options).ok_or_else(unknown)?),
            "nvfp4" => Self::Nvfp4(Nvfp4::parse(&options).ok_or_else(unknown)?),
            "quest" => Self::Quest(Quest::parse(&options).ok_or_else(unknown)?),
            "binaryconnect" => Self::BinaryConnect(BinaryConnect::parse(&options).ok_or_else(unknown)?),
            "bwn" => Self::Bwn(Bwn::parse(&options).ok_or_else(unknown)?),
            "onebit" => Self::OneBit(OneBit::parse(&options).ok_or_else(unknown)?),
            "bitnet" if options.is_empty() => Self::BitNet(BitNet),
            _ => return Err(unknown()),
        };
        Ok(method)
    }
}

/// Reads an option that is a positive finite number, as `NUMBER` or, with a name, as `name=NUMBER`.
fn number(option: &str, name: Option<&str>) -> Option<f32> {
    let text = match name {
        Some(name) => option.strip_prefix(name)?.strip_prefix('=')?,
        None => option,
    };
    text.parse().ok().filter(|value: &f32| value.is_finite() && *value > 0.0)
}

/// Serde by Display and `FromStr`.
macro_rules! by_spelling {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

by_spelling!(Method, Asked);

/// What is asked for as the format of an operand: `dense`, or a format. One without options stands for the method's own variant of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asked {
    /// Not quantized.
    Dense,
    /// A name without options, with the field's defaults for it.
    Named(Format),
    /// A format with options: exactly this one.
    Spelled(Format),
}

impl Asked {
    /// The format, if any.
    #[must_use]
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Dense => None,
            Self::Named(format) | Self::Spelled(format) => Some(format),
        }
    }
}

impl From<Option<Format>> for Asked {
    fn from(format: Option<Format>) -> Self {
        format.map_or(Self::Dense, Self::Spelled)
    }
}

impl From<Asked> for Option<Format> {
    fn from(asked: Asked) -> Self {
        asked.format()
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Named(format) => f.write_str(format.name()),
            Self::Spelled(format) => format.fmt(f),
        }
    }
}

impl FromStr for Asked {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "dense" => Self::Dense,
            _ if text.contains(':') => Self::Spelled(text.parse()?),
            _ => Self::Named(text.parse()?),
        })
    }
}

/// The block of the Walsh-Hadamard transform by which both operands are rotated; spelled as a number, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation(pub Option<u32>);

impl From<Rotation> for Option<u32> {
    fn from(rotation: Rotation) -> Self {
        rotation.0
    }
}

impl FromStr for Rotation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let block = |text: &str| text.parse().ok().filter(|block| BLOCKS.contains(block));
        match text {
            "off" => Ok(Self(None)),
            _ => block(text)
                .map(|block| Self(Some(block)))
                .ok_or_else(|| Error::invalid("--hadamard", format!("off or one of {BLOCKS:?}"), format!("`{text}`"))),
        }
    }
}

impl<'de> Deserialize<'de> for Rotation {
    /// From a number or a string.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Spelled {
            Number(u32),
            Text(String),
        }
        let text = match Spelled::deserialize(deserializer)? {
            Spelled::Number(block) => block.to_string(),
            Spelled::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The blocks of rotations.
pub const BLOCKS: [u32; 5] = [16, 32, 64, 128, 256];

/// What is asked for beside a method.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// For weights.
    pub weights: Option<Asked>,
    /// For inputs.
    pub activations: Option<Asked>,
    /// The rotation.
    pub hadamard: Option<Rotation>,
    /// Widths of the layers' inputs.
    pub widths: Vec<usize>,
}

/// How the operands of linear layers are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantizer {
    /// The method.
    pub method: Method,
    /// Format of weights, along their rows.
    pub weights: Format,
    /// Format of inputs, along the width of the layer; `None`: they stay dense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<Format>,
    /// Block of the orthonormal Walsh-Hadamard transform that both operands go through first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hadamard: Option<u32>,
}

impl Quantizer {
    /// A quantizer with these very settings.
    ///
    /// # Errors
    /// As [`Method::quantizer`]; [`Error::Invalid`] for [`Method::None`].
    pub fn new(method: Method, weights: Format, activations: Option<Format>, hadamard: Option<u32>) -> Result<Self> {
        let asked = Settings {
            weights: Some(Asked::Spelled(weights)),
            activations: Some(activations.into()),
            hadamard: Some(Rotation(hadamard)),
            widths: Vec::new(),
        };
        method.quantizer(&asked)?.ok_or_else(|| beside_none("--weights", "no format", weights))
    }

    /// Checks that the rotation is one that there is, and that its block divides the widths of all layers.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag, with what is possible instead.
    pub fn validate(&self, widths: &[usize]) -> Result<()> {
        let Some(block) = self.hadamard else { return Ok(()) };
        let divides = |block: u32| widths.iter().all(|width| width.is_multiple_of(block as usize));
        if BLOCKS.contains(&block) && divides(block) {
            return Ok(());
        }
        let fits: Vec<String> =
            BLOCKS.into_iter().filter(|block| divides(*block)).map(|block| block.to_string()).collect();
        let blocks = if fits.is_empty() { String::new() } else { format!(" or one of {}", fits.join(", ")) };
        Err(Error::invalid("--hadamard", format!("off{blocks} for layers of width {widths:?}"), block.to_string()))
    }

    /// Whether the forward passes of training quantize, and not only evaluation and sampling.
    #[must_use]
    pub fn trains_quantized(&self) -> bool {
        self.method.trains_quantized()
    }

    /// How scales are learned, if they are: linear layers then ask for [`LearnedScales`].
    #[must_use]
    pub fn learned(&self) -> Option<Lsq> {
        self.method.rule().and_then(Rule::learned)
    }

    /// How the products of the backward pass are quantized, if they are.
    #[must_use]
    pub fn backward(&self) -> Option<Backward> {
        self.method.rule().and_then(Rule::backward)
    }

    /// How many of the last of so many blocks of layers stay in full precision.
    #[must_use]
    pub fn dense_blocks(&self, blocks: usize) -> usize {
        self.method.rule().map_or(0, |rule| rule.dense_blocks(blocks))
    }

    /// Checks that a backward pass over so many tokens can be quantized.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flags, with what is possible instead.
    pub fn validate_tokens(&self, tokens: usize) -> Result<()> {
        match self.backward() {
            Some(Backward { tokens: block, .. }) if !tokens.is_multiple_of(block as usize) => {
                let expected = format!("a multiple of {block} tokens beside --method {}", self.method);
                Err(Error::invalid("--batch x --block", expected, tokens.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Checks that of so many blocks of layers one at least is quantized.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flags, with what is possible instead.
    pub fn validate_blocks(&self, blocks: usize) -> Result<()> {
        if self.dense_blocks(blocks) < blocks {
            return Ok(());
        }
        let expected = format!("nvfp4:dense=N with N below --layers ({blocks}), as in nvfp4:dense=0");
        Err(Error::invalid(format!("--method {}", self.method), expected, "every block in full precision"))
    }

    /// How weights are quantized.
    #[must_use]
    pub fn weight_coding(&self) -> Coding {
        self.coding(Operand::Weights, self.weights)
    }

    /// How inputs are quantized, if they are.
    #[must_use]
    pub fn activation_coding(&self) -> Option<Coding> {
        self.activations.map(|format| self.coding(Operand::Activations, format))
    }

    /// What belongs to a layer beside its product.
    #[must_use]
    pub fn layer(&self) -> Layer {
        self.method.rule().map_or(Layer::Plain, Rule::layer)
    }

    /// Whether updates end with weights moved back into [-1, 1].
    #[must_use]
    pub fn keeps_within_one(&self) -> bool {
        self.method.rule().is_some_and(Rule::keeps_within_one)
    }

    fn coding(&self, operand: Operand, format: Format) -> Coding {
        let plain = Coding::new(format, self.hadamard);
        self.method.rule().map_or(plain, |rule| rule.coding(operand, format, self.hadamard))
    }

    /// The quantized weight.
    ///
    /// # Shapes
    /// `weight` `[n, k]` f32.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape, and where scales are learned; [`Error::Limit`], [`Error::OutOfMemory`].
    pub fn weight(&self, weight: &Tensor) -> Result<Packed> {
        self.weight_by(weight, None)
    }

    /// The same; where scales are learned, by that of the weight.
    ///
    /// # Shapes
    /// `weight` `[n, k]` f32, `scale` `[1]` f32.
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes, and for a scale where none is learned or none where one is; [`Error::Limit`],
    /// [`Error::OutOfMemory`].
    pub fn weight_by(&self, weight: &Tensor, scale: Option<&Tensor>) -> Result<Packed> {
        let &[n, k] = weight.shape() else {
            return Err(Error::shape("quantize", "a weight of shape [n, k]", format!("{:?}", weight.shape())));
        };
        if let Some(lsq) = self.learned() {
            return Ok(Learned::encode(lsq, &self.weight_coding(), weight, [n, k], [scale, None], false)?.0);
        }
        if scale.is_some() {
            return Err(Error::shape("quantize", format!("no learned scale beside --method {}", self.method), "one"));
        }
        Ok(self.weight_coding().encode(weight, [n, k], false)?.packed)
    }

    /// The first group of a weight `[n, k]` with these values whose scale is beyond the largest one that the format stores, to which it
    /// saturates: row, group and the scale, see [`Format::saturated_scale`]. None where scales do not come from what is quantized.
    ///
    /// # Errors
    /// [`Error::Shape`] where the weight does not have `n * k` values; [`Error::Invalid`] where its rows cannot be rotated.
    ///
    /// # Numerics
    /// On the host: where the method rotates, in float64, so that a scale at the very end may fall to the other side than on the device.
    pub fn saturated_scale(&self, weight: &[f32], [n, k]: [usize; 2]) -> Result<Option<(usize, usize, f64)>> {
        self.validate(&[k])?;
        let coding = self.weight_coding();
        if self.learned().is_some() || coding.scale != Scale::Computed {
            return Ok(None);
        }
        let Some(block) = coding.hadamard.filter(|_| n.checked_mul(k) == Some(weight.len())) else {
            return self.weights.saturated_scale(weight, n, k);
        };
        // Each value of a rotated block is a sum of all of its values by factors of magnitude 1 / sqrt(block): at most sqrt(block) times
        // the largest of them.
        if !self.weights.may_saturate(weight, f64::from(block).sqrt()) {
            return Ok(None);
        }
        let mut wide: Vec<f64> = weight.iter().map(|value| f64::from(*value)).collect();
        rotate(&mut wide, block as usize);
        #[expect(clippy::cast_possible_truncation, reason = "as the device has it")]
        let rotated: Vec<f32> = wide.into_iter().map(|value| value as f32).collect();
        self.weights.saturated_scale(&rotated, n, k)
    }

    /// Writes the values of `packed`, a weight that this quantized, to `out`: rotated back where it rotates, so that they stand beside those of the
    /// weight itself.
    ///
    /// # Shapes
    /// `out` f32, of the weight's shape.
    ///
    /// # Errors
    /// [`Error::Shape`] for another one; [`Error::Limit`], [`Error::OutOfMemory`].
    ///
    /// # Numerics
    /// f32: the level times its scale, rounded once, and the transform's additions.
    pub fn dequantize(&self, packed: &Packed, out: &Tensor) -> Result<()> {
        let layout = packed.layout();
        let (rows, cols) = (layout.rows, layout.cols);
        if out.shape() != [rows, cols] || out.dtype() != DType::F32 {
            let got = format!("{:?} of {}", out.shape(), out.dtype());
            return Err(Error::shape("dequantize", format!("an f32 tensor of shape [{rows}, {cols}]"), got));
        }
        let context = out.context();
        dequantize(context, packed, out.buffer())?;
        match self.weight_coding().hadamard {
            Some(block) => {
                let task = Hadamard { transpose: true, ..Hadamard::new(rows, cols, block as usize) };
                hadamard(context, &task, None, out.buffer())
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Quantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, weights {}", self.method, self.weights)?;
        if let Some(activations) = &self.activations {
            write!(f, ", activations {activations}")?;
        }
        match self.hadamard {
            Some(block) => write!(f, ", rotated by {block}"),
            None => Ok(()),
        }
    }
}

/// How an operand is quantized, and which of its elements get a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coding {
    /// The format.
    pub format: Format,
    /// Block of the orthonormal Walsh-Hadamard transform that comes first.
    pub hadamard: Option<u32>,
    /// The gradient passes where the magnitude, after the transform, is at most so many stored scales; everywhere if there is none.
    pub bound: Option<f32>,
    /// Squares of 16 x 16 share scales, so that the transposed matrix has the same values.
    pub square: bool,
    /// What the gradient of a weight is multiplied by, instead of a bound; only where nothing is rotated.
    pub factor: Option<Factor>,
    /// Where the scale comes from.
    pub scale: Scale,
}

/// Where scales come from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// From what is quantized, as the format says.
    #[default]
    Computed,
    /// It is this number, whatever is quantized; for formats with one scale per tensor.
    Fixed(f32),
    /// The same, divided by the root of the number of columns.
    ByWidth(f32),
}

impl Scale {
    /// The number for matrices of so many columns.
    #[expect(clippy::cast_precision_loss, reason = "columns are below 2^32")]
    fn fixed(self, cols: usize) -> Option<f32> {
        match self {
            Self::Computed => None,
            Self::Fixed(scale) => Some(scale),
            Self::ByWidth(scale) => Some((f64::from(scale) / (cols.max(1) as f64).sqrt()) as f32),
        }
    }
}

/// A quantized operand.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub packed: Packed,
    /// A bit per element, 1 where the gradient passes.
    pub mask: Option<Buffer>,
}

impl Coding {
    /// In this format, and the gradient passes everywhere.
    #[must_use]
    pub fn new(format: Format, hadamard: Option<u32>) -> Self {
        Self { format, hadamard, bound: None, square: false, factor: None, scale: Scale::Computed }
    }

    /// Quantizes `x`, `[rows, cols]`; with a mask only if the gradient will ask for it.
    pub(crate) fn encode(&self, x: &Tensor, shape: [usize; 2], differentiable: bool) -> Result<Encoded> {
        self.encode_normed(x, None, shape, differentiable)
    }

    /// Whether it can begin with a layer norm of rows of so many columns.
    pub(crate) fn normalizes(&self, context: &Context, cols: usize) -> bool {
        let block = self.hadamard.map(|block| block as usize);
        self.scale == Scale::Computed && !self.square && normalizes(context, &self.format, cols, block)
    }

    /// As [`Coding::encode`], of the layer norm of `x`; where [`Coding::normalizes`] says so.
    pub(crate) fn encode_normed(
        &self,
        x: &Tensor,
        layer_norm: Option<FusedLayerNorm<'_>>,
        [rows, cols]: [usize; 2],
        differentiable: bool,
    ) -> Result<Encoded> {
        let context = x.context();
        let packed = Packed::empty(context, self.format, rows, cols)?;
        let bound = self.bound.filter(|_| differentiable);
        let mask = match bound {
            Some(bound) => Some((context.alloc(mask::words(rows, cols), DType::U32)?, bound)),
            None => None,
        };
        let scale = self.scale.fixed(cols).map(|scale| context.constant(scale)).transpose()?;
        let options = QuantizeOptions {
            layer_norm,
            scale: scale.as_ref(),
            mask: mask.as_ref().map(|(mask, bound)| (mask, *bound)),
            hadamard: self.hadamard.map(|block| block as usize),
            square: self.square,
            // Only products by cooperative matrices ask for the norm.
            skip_norm: context.tier() < Tier::Coop,
            ..QuantizeOptions::default()
        };
        quantize(context, x.buffer(), &packed, options)?;
        Ok(Encoded { packed, mask: mask.map(|(mask, _)| mask) })
    }
}

/// The orthonormal Walsh-Hadamard transform of every block, in place.
pub(crate) fn rotate(row: &mut [f64], block: usize) {
    #[expect(clippy::cast_precision_loss, reason = "at most 256")]
    let scale = (block as f64).sqrt().recip();
    for values in row.chunks_exact_mut(block) {
        let mut span = 1;
        while span < block {
            for pair in values.chunks_exact_mut(2 * span) {
                let (low, high) = pair.split_at_mut(span);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            span *= 2;
        }
        values.iter_mut().for_each(|value| *value *= scale);
    }
}

/// The way back of a gradient of quantized values to those that were quantized: masked, then transformed back, `(M . g) H^T`.
pub(crate) fn pass_back(mask: Option<&Buffer>, block: Option<u32>, [rows, cols]: [usize; 2]) -> Hadamard<'_> {
    Hadamard { transpose: true, mask, ..Hadamard::new(rows, cols, block.map_or(1, |block| block as usize)) }
}

/// The format of `operand` as it was asked for, for methods that have no variant of their own.
fn as_asked(asked: Option<Asked>) -> Option<Format> {
    asked.and_then(Asked::format)
}

/// As it was asked for, but a bare name of integers or `e2m1` stands for one scale per row, the least squares for normal data, and for
/// integers the grid without zero: QuEST's formats.
fn gaussian_rows(asked: Option<Asked>) -> Option<Format> {
    match asked? {
        Asked::Dense => None,
        Asked::Spelled(format) => Some(format),
        Asked::Named(format) => Some(match format.grid() {
            Grid::Int { bits, .. } if format.name().starts_with("int") => Format::gaussian_row(bits),
            Grid::Centred { .. } | Grid::Float(_) if format.store() == Store::F32 => {
                Format { rule: format::Rule::Gaussian, ..format.scaled(Span::Row, Store::F32) }
            }
            _ => format,
        }),
    }
}

/// The one format that weights have beside `method`.
fn only(method: &str, name: &str, asked: Option<Asked>) -> Result<Option<Format>> {
    let own: Format = name.parse()?;
    match asked {
        None => Ok(Some(own)),
        Some(asked) if asked.format() == Some(own) => Ok(Some(own)),
        Some(asked) => Err(Error::invalid(
            "--weights",
            format!("{name} beside --method {method} (ste and clipped take other formats)"),
            format!("`{asked}`"),
        )),
    }
}

/// Refuses quantized inputs beside `method`.
fn weights_alone(method: &str, asked: Option<Asked>) -> Result<Option<Format>> {
    match asked.and_then(Asked::format) {
        None => Ok(None),
        Some(format) => Err(Error::invalid(
            "--activations",
            format!(
                "dense beside --method {method}, which quantizes weights alone (ste, quest and bitnet quantize both)"
            ),
            format!("`{format}`"),
        )),
    }
}

/// The refusal of rotated operands beside `method`.
fn no_rotation(method: &str, block: u32) -> Error {
    Error::invalid(
        "--hadamard",
        format!("off beside --method {method}, whose signs are those of the weights themselves"),
        block.to_string(),
    )
}

/// Refuses formats whose range a bound on the magnitude does not describe.
fn refuse_without_bound(method: &str, operand: Operand, format: Format) -> Result<()> {
    let symmetric = !matches!(format.grid(), Grid::ZeroPoint { .. } | Grid::Nf3);
    if symmetric && format.store() != Store::Double {
        return Ok(());
    }
    Err(Error::invalid(
        operand.flag(),
        format!("a format whose range is symmetric, with scales stored once, beside --method {method} (ste takes all)"),
        format!("`{format}`"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_keep_norms_and_undo_themselves() {
        let x: Vec<f64> = (0..96).map(|i| f64::from((i * 37) % 23) - 11.0).collect();
        let mut y = x.clone();
        rotate(&mut y, 32);
        // By the definition: entry (i, j) of the matrix is -1 to the number of bits that i and j share.
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        for (x, y) in x.chunks(32).zip(y.chunks(32)) {
            for (i, y) in y.iter().enumerate() {
                let expected = (0..32).map(|j| sign(i, j) * x[j]).sum::<f64>() / 32f64.sqrt();
                assert!((y - expected).abs() < 1e-12, "{y} {expected}");
            }
        }
        rotate(&mut y, 32);
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-12));
    }

    #[test]
    fn saturated_scales_are_those_of_what_is_rotated() {
        let rotated = |weights: &str, block| Quantizer {
            method: Method::None,
            weights: weights.parse().unwrap(),
            activations: None,
            hadamard: Some(block),
        };
        // Equal values become one of sqrt(16) times their size: between what the bound lets pass and the end, at it, and far below.
        let quantizer = rotated("int4:row:f16", 16);
        for (value, scale) in [(8000.0, None), (114_659.0, None), (114_660.0, Some((1, 0, 65520.0))), (8190.0, None)] {
            let weight = [[0.0; 32], [value; 32]].concat();
            assert_eq!(quantizer.saturated_scale(&weight, [2, 32]).unwrap(), scale, "{value}");
        }
        // And one value that saturates where nothing is rotated is spread over its block.
        let one = [&[7.0 * 65520.0][..], &[0.0; 31]].concat();
        assert_eq!(quantizer.saturated_scale(&one, [1, 32]).unwrap(), None);
        assert!(quantizer.weights.saturated_scale(&one, 1, 32).unwrap().is_some());
        // The bound leaves out nothing: the same as to rotate in any case.
        for text in ["int4:row:f16", "int4:g32:f16:asym", "nvfp4:ue4m3"] {
            for block in BLOCKS {
                let (quantizer, k) = (rotated(text, block), 256);
                for exponent in -4..20 {
                    let weight: Vec<f32> =
                        (0..k).map(|i| ((i * i) % 23) as f32 - 4.0).map(|x| x * 2f32.powi(exponent)).collect();
                    let mut wide: Vec<f64> = weight.iter().map(|x| f64::from(*x)).collect();
                    rotate(&mut wide, block as usize);
                    let wide: Vec<f32> = wide.into_iter().map(|x| x as f32).collect();
                    let want = quantizer.weights.saturated_scale(&wide, 1, k).unwrap();
                    assert_eq!(quantizer.saturated_scale(&weight, [1, k]).unwrap(), want, "{text} {block} {exponent}");
                }
            }
        }
    }

    #[test]
    fn saturated_scales_of_rows_that_cannot_be_rotated_are_refused() {
        for (block, k) in [(0, 32), (24, 48), (32, 48), (512, 512)] {
            let quantizer = Quantizer {
                method: Method::None,
                weights: "int4:row:f16".parse().unwrap(),
                activations: None,
                hadamard: Some(block),
            };
            let error = quantizer.saturated_scale(&vec![1e6; k], [1, k]).unwrap_err().to_string();
            assert!(error.starts_with("--hadamard: expected off"), "{error}");
        }
        for hadamard in [None, Some(16)] {
            let quantizer = Quantizer {
                method: Method::None,
                weights: "int4:row:f16".parse().unwrap(),
                activations: None,
                hadamard,
            };
            for shape in [[2, 32], [usize::MAX / 8, 32]] {
                let error = quantizer.saturated_scale(&[1e6; 32], shape).unwrap_err();
                assert!(matches!(error, Error::Shape { .. }), "{error}");
            }
        }
    }

    fn asked(weights: &str, activations: &str, hadamard: &str) -> Settings {
        fn read<T: FromStr<Err = Error>>(text: &str) -> Option<T> {
            (!text.is_empty()).then(|| text.parse().unwrap())
        }
        Settings {
            weights: read(weights),
            activations: read(activations),
            hadamard: read(hadamard),
            widths: vec![384, 1536],
        }
    }

    fn quantizer(method: &str, weights: &str, activations: &str, hadamard: &str) -> Result<Option<Quantizer>> {
        method.parse::<Method>().unwrap().quantizer(&asked(weights, activations, hadamard))
    }

    #[test]
    fn what_is_left_open_is_the_methods() {
        for (method, weights, activations, hadamard, expected) in [
            ("ste", "int4", "", "", "ste, weights int4"),
            ("ste", "int4", "int8:row", "64", "ste, weights int4, activations int8:row, rotated by 64"),
            ("ptq", "nf4", "dense", "", "ptq, weights nf4"),
            ("clipped", "int4", "", "", "clipped, weights int4:row:f32:centred:mse"),
            ("clipped:1.5", "mxfp4", "mxfp4", "32", "clipped:1.5, weights mxfp4, activations mxfp4, rotated by 32"),
            (
                "quest",
                "int4",
                "int4",
                "",
                "quest, weights int4:row:f32:centred:mse, activations int4:row:f32:centred:mse, rotated by 128",
            ),
            ("quest", "int2", "", "off", "quest, weights int2:row:f32:centred:mse"),
            ("quest:trust=1.2", "binary", "", "", "quest:trust=1.2, weights binary:mse, rotated by 128"),
            ("quest", "e2m1", "", "off", "quest, weights e2m1:mse"),
            ("lsq", "int4", "int4", "", "lsq, weights int4:tensor:f32:full, activations int4:tensor:f32:full"),
            ("lsq", "int3:tensor:f32:centred", "", "", "lsq, weights int3:tensor:f32:centred"),
            ("lsq", "binary", "ternary", "", "lsq, weights binary:tensor, activations ternary"),
            (
                "lsq:plus",
                "int2",
                "int8",
                "64",
                "lsq:plus, weights int2:tensor:f32:full, activations int8:tensor:f32:full, rotated by 64",
            ),
            ("learned", "", "", "", "learned, weights int8:tensor:f32:full"),
            (
                "learned",
                "int4:tensor:f32",
                "int8",
                "",
                "learned, weights int4:tensor:f32, activations int8:tensor:f32:full",
            ),
        ] {
            let quantizer = quantizer(method, weights, activations, hadamard).unwrap().unwrap();
            assert_eq!(quantizer.to_string(), expected);
            let again: Quantizer = serde_json::from_str(&serde_json::to_string(&quantizer).unwrap()).unwrap();
            assert_eq!(again, quantizer);
            // What is spelled in full stays as it is.
            let full = Quantizer::new(quantizer.method, quantizer.weights, quantizer.activations, quantizer.hadamard);
            assert_eq!(full.unwrap(), quantizer);
        }
        assert_eq!(quantizer("none", "", "dense", "off").unwrap(), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_flag() {
        for (method, weights, activations, hadamard, message) in [
            ("none", "int4", "", "", "--weights: expected no format beside --method none, found `int4"),
            ("none", "", "int8:row", "", "--activations: expected no format beside --method none"),
            ("none", "", "", "64", "--hadamard: expected no rotation beside --method none"),
            ("ste", "", "", "", "--method: expected none where there are no --weights, found ste"),
            ("ste", "dense", "int8", "", "--activations: expected --weights beside it"),
            ("quest", "int4", "", "256", "--hadamard: expected off or one of 16, 32, 64, 128 for layers of width"),
            ("quest", "nf4", "", "", "--weights: expected "),
            ("quest", "int4:g128", "", "", "--weights: expected "),
            ("quest", "int4", "mxfp4", "", "--activations: expected "),
            ("clipped", "int4:asym", "", "", "--weights: expected a format whose range is symmetric"),
            ("clipped", "nf4:dq", "", "", "--weights: expected a format whose range is symmetric"),
            ("lsq", "mxfp4", "", "", "--weights: expected int2 to int8, binary or ternary beside --method lsq"),
            ("lsq", "int4:g128", "", "", "--weights: expected int2 to int8, binary or ternary beside --method lsq"),
            ("lsq", "int4:tensor", "", "", "--weights: expected int2 to int8, binary or ternary beside --method lsq"),
            ("lsq", "int4:tensor:f32:half-up", "", "", "--weights: expected int2 to int8"),
            ("lsq:plus", "int4", "int4:row:f32", "", "--activations: expected int2 to int8"),
            ("lsq", "int4:tensor:f32:asym", "", "", "--weights: expected int2 to int8"),
            ("lsq", "", "", "", "--method: expected none where there are no --weights"),
            ("learned", "dense", "", "", "--method: expected none where there are no --weights"),
            ("learned", "nf4", "", "", "--weights: expected int2 to int8"),
        ] {
            let error = quantizer(method, weights, activations, hadamard).unwrap_err().to_string();
            assert!(error.starts_with(message), "{method} {weights} {activations} {hadamard}: {error}");
        }
        for name in [
            "magic",
            "ste:1",
            "clipped:0",
            "clipped:nan",
            "quest:1.3",
            "quest:trust=-1",
            "none:x",
            "lsq:minus",
            "learned:plus",
        ] {
            let error = name.parse::<Method>().unwrap_err().to_string();
            assert!(error.contains(&format!("one of {SPELLINGS}, found `{name}`")), "{error}");
        }
        for block in ["12", "512", "on", "0", "-16"] {
            let error = block.parse::<Rotation>().unwrap_err().to_string();
            assert!(error.starts_with("--hadamard: expected off or one of"), "{error}");
        }
    }
}
