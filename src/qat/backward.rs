//! Backward passes whose products are quantized too: each operand anew, along the dimension that the product sums over, rotated along it
//! with random signs that both operands share and that therefore cancel.

use super::Quantizer;
use crate::format::Format;
use crate::kernel::hadamard::{Signs, Step as SignStep};
use crate::kernel::matmul::{Epilogue, Form};
use crate::kernel::packed::Packed;
use crate::kernel::packed_matmul::{Operand, PackedMatmul, packed_matmul};
use crate::kernel::quantize::{Options, Rounding, Step, quantize};
use crate::kernel::quantize_transposed::{Source, quantize_transposed};
use crate::{Buffer, Context, Error, Result, Tier};

/// How the operands of a layer's backward products are quantized. G is the gradient of the layer's result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backward {
    /// Of everything that is quantized for the backward pass.
    pub format: Format,
    /// Whether G is rounded stochastically.
    pub stochastic_gradient: bool,
    /// Whether weights and inputs are, where they are quantized anew.
    pub stochastic_operands: bool,
    /// A factor on elements, not on their scales; products are divided by it for each operand.
    pub headroom: f32,
    /// A further factor on the value of each operand.
    pub gain: f32,
    /// Block of the rotation along the layer's outputs, for the gradient of the input: G and the codes of the weight, transposed. `None`:
    /// G as it is, and the codes of the weight as they are, whose scales must be those of squares.
    pub across: Option<u32>,
    /// Block of the rotation along tokens, for the gradient of the weight: G and the input, both transposed.
    pub tokens: u32,
    /// Whether signs are new in each pass, instead of the same for the whole run.
    pub fresh_signs: bool,
    /// Whether the transposed input is quantized from the codes of the forward pass, instead of from what these were made of.
    pub from_codes: bool,
}

/// Where the random numbers of a layer's backward pass come from: a function of seed, step, micro-batch and layer, so that a run that is
/// resumed draws the same.
#[derive(Clone, Debug)]
pub struct Noise {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer's state, whose first word is the step.
    pub state: Buffer,
    /// Which micro-batch of the step this is, below 2^15.
    pub micro: u32,
    /// Which layer, below 2^13.
    pub layer: u32,
}

/// What random numbers are for; each has numbers of its own.
#[derive(Clone, Copy, Debug)]
enum Use {
    SignsAcross,
    GradientAcross,
    Weight,
    SignsTokens,
    GradientTokens,
    Input,
    /// The signs of a whole run.
    Fixed,
}

impl Noise {
    /// The number of an operation: apart from those of dropout, which count from 1 up.
    fn op(&self, what: Use) -> u32 {
        1 << 31 | (self.micro & 0x7FFF) << 16 | (self.layer & 0x1FFF) << 3 | what as u32
    }

    fn signs(&self, fresh: bool, what: Use) -> Signs {
        if fresh {
            return Signs { seed: self.seed, op: self.op(what), step: SignStep::State(self.state.clone()) };
        }
        Signs { seed: self.seed, op: 1 << 31 | Use::Fixed as u32, step: SignStep::Number(0) }
    }

    fn rounding(&self, stochastic: bool, what: Use) -> Rounding<'_> {
        if stochastic {
            Rounding::Stochastic { seed: self.seed, op: self.op(what), step: Step::State(&self.state) }
        } else {
            Rounding::Nearest
        }
    }
}

/// Where a product goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub out: &'a Buffer,
    pub epilogue: Epilogue<'a>,
    pub mask: Option<&'a Buffer>,
    pub accumulate: bool,
}

/// The backward products of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Products {
    backward: Backward,
    noise: Noise,
}

impl Products {
    /// For a layer of `n` outputs that sees `m` tokens; none where the method's products are those of what the forward pass quantized.
    pub fn new(quantizer: Option<Quantizer>, noise: Option<&Noise>, [m, n]: [usize; 2]) -> Result<Option<Self>> {
        let Some((quantizer, backward)) = quantizer.and_then(|q| Some((q, q.backward()?))) else { return Ok(None) };
        let Some(noise) = noise else {
            let expected = format!("random numbers for gradients beside method {}", quantizer.method);
            return Err(Error::invalid("linear", expected, "none"));
        };
        let fits = |count: usize, block: u32, what: &str| {
            if count.is_multiple_of(block as usize) {
                return Ok(());
            }
            let expected = format!("{what} that {block} divides beside method {}", quantizer.method);
            Err(Error::shape("linear", expected, count.to_string()))
        };
        fits(m, backward.tokens, "a number of tokens")?;
        if let Some(across) = backward.across {
            fits(n, across, "a width")?;
        }
        Ok(Some(Self { backward, noise: noise.clone() }))
    }

    /// What the gradient of the weight will take instead of the input's codes, quantized now; `x` is `[m, k]`.
    pub fn input(&self, context: &Context, x: &Buffer, [m, k]: [usize; 2]) -> Result<Option<Packed>> {
        if self.backward.from_codes { Ok(None) } else { self.input_of(context, Source::Dense(x), [m, k]).map(Some) }
    }

    fn input_of(&self, context: &Context, x: Source<'_>, [m, k]: [usize; 2]) -> Result<Packed> {
        let signs = self.noise.signs(self.backward.fresh_signs, Use::SignsTokens);
        let rounding = self.noise.rounding(self.backward.stochastic_operands, Use::Input);
        self.transposed(context, x, [k, m], self.options(context, rounding, Some(self.backward.tokens), Some(&signs)))
    }

    fn options<'a>(
        &self,
        context: &Context,
        rounding: Rounding<'a>,
        block: Option<u32>,
        signs: Option<&'a Signs>,
    ) -> Options<'a> {
        Options {
            rounding,
            hadamard: block.map(|block| block as usize),
            signs,
            factor: Some(self.backward.headroom),
            // Only products by cooperative matrices ask for the norm.
            skip_norm: context.tier() < Tier::Coop,
            ..Options::default()
        }
    }

    fn transposed(
        &self,
        context: &Context,
        x: Source<'_>,
        [rows, cols]: [usize; 2],
        options: Options<'_>,
    ) -> Result<Packed> {
        let packed = Packed::empty(context, self.backward.format, rows, cols)?;
        quantize_transposed(context, x, &packed, options)?;
        Ok(packed)
    }

    /// What `operands` quantized ones change in a product.
    fn alpha(&self, operands: i32) -> f32 {
        (f64::from(self.backward.gain) / f64::from(self.backward.headroom)).powi(operands) as f32
    }

    /// The gradient of the quantized input, `G W`, from G `[m, n]` and the weight's codes `[n, k]`.
    pub fn input_gradient(
        &self,
        context: &Context,
        gradient: &Buffer,
        weight: &Packed,
        [m, n, k]: [usize; 3],
        target: Target<'_>,
    ) -> Result<()> {
        let (backward, noise) = (&self.backward, &self.noise);
        let signs = backward.across.map(|_| noise.signs(backward.fresh_signs, Use::SignsAcross));
        let rounding = noise.rounding(backward.stochastic_gradient, Use::GradientAcross);
        let rows = Packed::empty(context, backward.format, m, n)?;
        quantize(context, gradient, &rows, self.options(context, rounding, backward.across, signs.as_ref()))?;
        let Target { out, epilogue, mask, accumulate } = target;
        let product = |form, b: &Packed, alpha| {
            let a = Operand::Packed(&rows);
            packed_matmul(
                context,
                &PackedMatmul { form, m, n: k, k: n, a, b, out, alpha, bias: None, epilogue, mask, accumulate },
            )
        };
        if backward.across.is_none() {
            return product(Form::Nn, weight, self.alpha(1));
        }
        let rounding = noise.rounding(backward.stochastic_operands, Use::Weight);
        let options = self.options(context, rounding, backward.across, signs.as_ref());
        product(Form::Nt, &self.transposed(context, Source::Packed(weight), [k, n], options)?, self.alpha(2))
    }

    /// The gradient of the quantized weight, `G^T X`, from G `[m, n]` and the input's codes `[m, k]`, or what [`Self::input`] made of it.
    pub fn weight_gradient(
        &self,
        context: &Context,
        gradient: &Buffer,
        input: &Packed,
        [m, n, k]: [usize; 3],
        out: &Buffer,
        accumulate: bool,
    ) -> Result<()> {
        let (backward, noise) = (&self.backward, &self.noise);
        let signs = noise.signs(backward.fresh_signs, Use::SignsTokens);
        let rounding = noise.rounding(backward.stochastic_gradient, Use::GradientTokens);
        let options = self.options(context, rounding, Some(backward.tokens), Some(&signs));
        let rows = self.transposed(context, Source::Dense(gradient), [n, m], options)?;
        let anew =
            if backward.from_codes { Some(self.input_of(context, Source::Packed(input), [m, k])?) } else { None };
        let spec = PackedMatmul {
            form: Form::Nt,
            m: n,
            n: k,
            k: m,
            a: Operand::Packed(&rows),
            b: anew.as_ref().unwrap_or(input),
            out,
            alpha: self.alpha(2),
            bias: None,
            epilogue: Epilogue::None,
            mask: None,
            accumulate,
        };
        packed_matmul(context, &spec)
    }
}
