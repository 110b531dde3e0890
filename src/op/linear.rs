//! `y = x W^T + b` and what follows it in a transformer, fused: an activation, or dropout and a residual.

use crate::autograd::Target;
use crate::kernel::hadamard::Hadamard;
use crate::kernel::matmul::{Activation, Dims, Epilogue, Form, Matmul, Terms, matmul_terms};
use crate::kernel::packed::Packed;
use crate::kernel::packed_matmul::{self, PackedMatmul, packed_matmul_terms};
use crate::kernel::sign_gradient::{Factor, sign_gradient};
use crate::kernel::{self, FLOATS};
use crate::nn::Dropout;
use crate::op::norm::LayerNorm;
use crate::qat::lsq::{Learned, offset_bias, with_offset};
use crate::qat::{self, Coding, Encoded, LearnedScales, Lsq, Noise, Products, Quantizer, pass_back};
use crate::tensor::Inner;
use crate::{Buffer, Context, DType, Error, Result, Tensor};

/// What [`linear`] does besides multiplying.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinearOptions<'a> {
    /// Added to each row, f32 `[n]`.
    pub bias: Option<&'a Tensor>,
    /// Applied to the result. Not together with `residual`.
    pub activation: Option<Activation>,
    /// Dropout of the result, before the residual is added. Needs `residual`.
    pub dropout: Option<&'a Dropout>,
    /// Added to the result, f32; the result is then f32 too.
    pub residual: Option<&'a Tensor>,
    /// Give an f32 result even for f16 inputs (logits).
    pub out_f32: bool,
    /// Quantize the operands.
    pub quantizer: Option<Quantizer>,
    /// The parameters of a quantizer that learns its scales.
    pub learned: Option<LearnedScales<'a>>,
    /// Where a quantizer whose gradients are quantized too has random numbers from; asked for only where there will be gradients.
    pub noise: Option<&'a Noise>,
    /// The weight as `quantizer` makes it, where it was quantized before; otherwise it is quantized now.
    pub packed_weight: Option<&'a Packed>,
}

/// An operand of a product.
#[derive(Clone, Debug)]
enum Operand {
    Dense(Buffer),
    Packed(Packed),
}

impl Operand {
    fn bytes(&self) -> u64 {
        match self {
            Self::Dense(buffer) => buffer.bytes(),
            Self::Packed(packed) => packed.bytes(),
        }
    }
}

/// What a product writes to, and how.
struct Output<'a> {
    out: &'a Buffer,
    bias: Option<&'a Buffer>,
    epilogue: Epilogue<'a>,
    /// For the gradient of a quantized operand.
    mask: Option<&'a Buffer>,
    accumulate: bool,
}

/// A product of whichever operands there are.
fn multiply(
    context: &Context,
    form: Form,
    dims: [usize; 3],
    a: &Operand,
    b: &Operand,
    output: Output<'_>,
) -> Result<()> {
    let (out, accumulate) = (output.out, output.accumulate);
    match multiply_to_terms(context, form, dims, a, b, output)? {
        Some(terms) => terms.add_up(context, out, 1.0, accumulate),
        None => Ok(()),
    }
}

/// The same, or, where it is computed as a sum, the terms of that instead.
fn multiply_to_terms(
    context: &Context,
    form: Form,
    [m, n, k]: [usize; 3],
    a: &Operand,
    b: &Operand,
    output: Output<'_>,
) -> Result<Option<Terms>> {
    let Output { out, bias, epilogue, mask, accumulate } = output;
    let a = match a {
        Operand::Dense(buffer) => packed_matmul::Operand::Dense(buffer),
        Operand::Packed(packed) => packed_matmul::Operand::Packed(packed),
    };
    match (a, b) {
        (packed_matmul::Operand::Dense(a), Operand::Dense(b)) => matmul_terms(
            context,
            &Matmul { form, dims: Dims::new(m, n, k), a, b, out, alpha: 1.0, bias, epilogue, accumulate },
        ),
        (a, Operand::Packed(b)) => packed_matmul_terms(
            context,
            &PackedMatmul { form, m, n, k, a, b, out, alpha: 1.0, bias, epilogue, accumulate, mask },
        ),
        (packed_matmul::Operand::Packed(_), Operand::Dense(_)) => {
            Err(Error::invalid("linear", "quantized weights beside quantized activations", "a dense weight"))
        }
    }
}

impl Tensor {
    /// `x W^T + bias`.
    ///
    /// # Shapes
    /// `self` `[.., k]`, `weight` `[n, k]`, `bias` `[n]`; the result is `[.., n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`].
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        linear(self, weight, LinearOptions { bias, ..LinearOptions::default() })
    }
}

/// `x` as an operand of type `dtype`: itself, an f16 copy that the optimizer keeps, or a conversion.
fn operand(context: &Context, x: &Tensor, dtype: DType) -> Result<Buffer> {
    if x.dtype() == dtype {
        return Ok(x.buffer().clone());
    }
    if let (DType::F16, Some(half)) = (dtype, &x.0.half) {
        return Ok(half.clone());
    }
    let copy = context.alloc(x.len(), dtype)?;
    kernel::accumulate::accumulate(context, x.buffer(), &copy, false)?;
    Ok(copy)
}

/// An operand as the product sees it, and what its gradient goes through on its way back.
#[derive(Debug)]
struct Side {
    operand: Operand,
    /// A bit per element, 1 where the gradient passes.
    mask: Option<Buffer>,
    /// The block by which it was rotated.
    hadamard: Option<u32>,
    /// What its gradient is multiplied by.
    factor: Option<Factor>,
    /// What the gradient of a learned scale needs.
    learned: Option<Learned>,
}

impl Side {
    fn encoded(Encoded { packed, mask }: Encoded, coding: &Coding) -> Self {
        Self { operand: Operand::Packed(packed), mask, hadamard: coding.hadamard, factor: coding.factor, learned: None }
    }

    fn dense(buffer: Buffer, hadamard: Option<u32>) -> Self {
        Self { operand: Operand::Dense(buffer), mask: None, hadamard, factor: None, learned: None }
    }

    /// By a learned scale and offset.
    fn learned(
        lsq: Lsq,
        coding: Coding,
        x: &Tensor,
        rows: usize,
        scales: [Option<&Tensor>; 2],
        initialize: bool,
    ) -> Result<Self> {
        let (packed, learned) = Learned::encode(lsq, &coding, x, [rows, x.columns()], scales, initialize)?;
        let operand = Operand::Packed(packed);
        Ok(Self { operand, mask: None, hadamard: coding.hadamard, factor: None, learned: Some(learned) })
    }

    /// The offset of all its quantized values.
    fn offset(&self) -> Option<&Buffer> {
        self.learned.as_ref().and_then(Learned::offset)
    }
}

/// The input's side of a product with a quantized weight that `hadamard` rotates.
fn input(
    x: &Tensor,
    options: &LinearOptions<'_>,
    hadamard: Option<u32>,
    rows: usize,
    differentiable: bool,
) -> Result<Side> {
    let shape = [rows, x.columns()];
    let coding = options.quantizer.and_then(|quantizer| quantizer.activation_coding());
    if let (Some(coding), Some(lsq)) = (coding, options.quantizer.and_then(|quantizer| quantizer.learned())) {
        let scales = options.learned.map_or([None; 2], |learned| [learned.input, learned.offset]);
        let initialize = options.learned.is_some_and(|learned| learned.initialize);
        return Side::learned(lsq, coding, x, rows, scales, initialize);
    }
    match (coding, hadamard) {
        (Some(coding), _) => Ok(Side::encoded(coding.encode(x, shape, differentiable)?, &coding)),
        (None, None) => Ok(Side::dense(x.buffer().clone(), None)),
        (None, Some(block)) => {
            let rotated = x.context().alloc(x.len(), x.dtype())?;
            let task = Hadamard::new(rows, x.columns(), block as usize);
            kernel::hadamard::hadamard(x.context(), &task, Some(x.buffer()), &rotated)?;
            Ok(Side::dense(rotated, hadamard))
        }
    }
}

/// The weight's side.
fn weight_side(weight: &Tensor, options: &LinearOptions<'_>, dtype: DType, differentiable: bool) -> Result<Side> {
    let context = weight.context();
    let (n, k) = (weight.rows(), weight.columns());
    match (options.quantizer, options.packed_weight) {
        (None, None) => Ok(Side::dense(operand(context, weight, dtype)?, None)),
        (None, Some(_)) => Err(Error::shape("linear", "a quantized weight together with a quantizer", "no quantizer")),
        (Some(quantizer), Some(packed)) => {
            let layout = packed.layout();
            if packed.format() != quantizer.weights || [layout.rows, layout.cols] != [n, k] {
                return Err(Error::shape(
                    "linear",
                    format!("a weight of [{n}, {k}] in {}", quantizer.weights),
                    format!("[{}, {}] in {}", layout.rows, layout.cols, packed.format()),
                ));
            }
            let coding = quantizer.weight_coding();
            if differentiable && (coding.bound.is_some() || quantizer.learned().is_some()) {
                let expected =
                    format!("no quantized weight where the gradient asks {} for more than codes", quantizer.method);
                return Err(Error::shape("linear", expected, "one"));
            }
            Ok(Side::encoded(Encoded { packed: packed.clone(), mask: None }, &coding))
        }
        (Some(quantizer), None) => {
            let coding = quantizer.weight_coding();
            if let Some(lsq) = quantizer.learned() {
                let scale = options.learned.map(|learned| learned.weight);
                let initialize = options.learned.is_some_and(|learned| learned.initialize);
                return Side::learned(lsq, coding, weight, n, [scale, None], initialize);
            }
            Ok(Side::encoded(coding.encode(weight, [n, k], differentiable)?, &coding))
        }
    }
}

/// `y = residual + dropout(act(x W^T + bias))`, with the parts that `options` name.
///
/// With a quantizer, `x` and `W` stand for their quantized values: rotated, `Q(x H) Q(W H)^T`, where it says so. The gradients of those go on,
/// masked and rotated back, as the gradients of `x` and `W`, and are computed from the codes; see [`crate::qat`].
///
/// # Shapes
/// `x` `[.., k]` (f32 or f16), `weight` `[n, k]` f32, `bias` `[n]` f32, `residual` like the result, which is `[.., n]`.
///
/// # Errors
/// [`Error::Shape`] where they do not fit or options exclude each other; [`Error::Invalid`] for a dropout outside [0, 1);
/// [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`].
pub fn linear(x: &Tensor, weight: &Tensor, options: LinearOptions<'_>) -> Result<Tensor> {
    linear_of(x, None, weight, options)
}

/// [`linear`] of the layer norm of `x`. Where the input is quantized and that can begin with the norm, the norm itself is never written to
/// memory.
///
/// # Shapes
/// `x` `[.., k]` f32, the rest as for [`linear`].
///
/// # Errors
/// As [`Tensor::layer_norm`] and [`linear`].
///
/// # Numerics
/// A norm that is not written is quantized as it is in f32, not rounded to `norm.out`. That hangs on the format, the width and the adapter
/// ([`crate::kernel::quantize::normalizes`]).
///
/// # Source
/// Ba, Kiros and Hinton, arXiv 1607.06450.
pub fn normed_linear(x: &Tensor, norm: LayerNorm<'_>, weight: &Tensor, options: LinearOptions<'_>) -> Result<Tensor> {
    match coding_of_norms(x, options.quantizer.as_ref()) {
        Some(coding) => {
            check(x, weight, &options, norm.out)?;
            let (normed, encoded) = x.encoded_layer_norm(norm, &coding)?;
            linear_of(&normed, Some((encoded, coding)), weight, options)
        }
        None => linear(&norm.of(x)?, weight, options),
    }
}

/// How a layer quantizes the norm of `x` without writing it, if it does. Not where scales are learned or backward passes quantize, since those read
/// the values themselves.
pub(crate) fn coding_of_norms(x: &Tensor, quantizer: Option<&Quantizer>) -> Option<Coding> {
    let reads_codes = |quantizer: &&Quantizer| quantizer.learned().is_none() && quantizer.backward().is_none();
    let coding = quantizer.filter(reads_codes)?.activation_coding()?;
    coding.normalizes(x.context(), x.columns()).then_some(coding)
}

/// Rows, and the widths of weight and result; the result's shape.
struct Checked {
    m: usize,
    n: usize,
    k: usize,
    shape: Vec<usize>,
}

/// Checks that all fits an input of the shape of `x` and of this type.
fn check(x: &Tensor, weight: &Tensor, options: &LinearOptions<'_>, dtype: DType) -> Result<Checked> {
    const OP: &str = "linear";
    let context = x.context();
    let &[n, k] = weight.shape() else {
        return Err(Error::shape(OP, "a weight of shape [n, k]", format!("{:?}", weight.shape())));
    };
    if x.shape().is_empty() || x.columns() != k {
        return Err(Error::shape(OP, format!("an input of shape [.., {k}]"), format!("{:?}", x.shape())));
    }
    let m = x.rows();
    let mut shape = x.shape().to_vec();
    shape[x.shape().len() - 1] = n;
    if let Some(bias) = options.bias
        && bias.shape() != [n]
    {
        return Err(Error::shape(OP, format!("a bias of shape [{n}]"), format!("{:?}", bias.shape())));
    }
    if let Some(residual) = options.residual
        && (residual.shape() != shape || residual.dtype() != DType::F32 || options.activation.is_some())
    {
        return Err(Error::shape(
            OP,
            format!("an f32 residual of shape {shape:?} and no activation"),
            format!("{:?} of {}, activation {:?}", residual.shape(), residual.dtype(), options.activation),
        ));
    }
    if options.dropout.is_some() && options.residual.is_none() {
        return Err(Error::shape(OP, "dropout together with a residual", "dropout alone"));
    }
    let scales = || options.learned.iter().flat_map(LearnedScales::all);
    for other in [Some(weight), options.bias, options.residual].into_iter().flatten().chain(scales()) {
        if !context.same(other.context()) {
            return Err(Error::ContextMismatch { op: OP });
        }
    }

    if !FLOATS.contains(&dtype)
        || ![DType::F32, dtype].contains(&weight.dtype())
        || options.bias.is_some_and(|b| b.dtype() != DType::F32)
    {
        return Err(Error::shape(
            OP,
            "an input of f32 or f16, a weight of f32 or the input's type, an f32 bias",
            format!("{dtype}, {} and {:?}", weight.dtype(), options.bias.map(Tensor::dtype)),
        ));
    }
    if let Some(learned) = options.learned {
        let Some((lsq, quantizer)) = options.quantizer.and_then(|q| q.learned().zip(Some(q))) else {
            return Err(Error::shape(OP, "learned scales beside a method that learns them", "others"));
        };
        learned.check(lsq, quantizer.activations.is_some())?;
        if weight.dtype() != DType::F32 {
            return Err(Error::shape(OP, "a weight of f32 beside learned scales", weight.dtype().to_string()));
        }
    }
    Ok(Checked { m, n, k, shape })
}

/// Of `x`, or of what it stands for.
fn linear_of(
    x: &Tensor,
    encoded: Option<(Encoded, Coding)>,
    weight: &Tensor,
    options: LinearOptions<'_>,
) -> Result<Tensor> {
    let context = x.context();
    let dtype = x.dtype();
    let Checked { m, n, k, shape } = check(x, weight, &options, dtype)?;
    let scales = || options.learned.iter().flat_map(LearnedScales::all);
    let out_dtype = if options.residual.is_some() || options.out_f32 { DType::F32 } else { dtype };
    let bias = options.bias.map(Tensor::buffer);
    let needs_grad = context.grad_enabled()
        && [Some(x), Some(weight), options.bias].into_iter().flatten().chain(scales()).any(Tensor::requires_grad);
    let learns = |t: &Tensor| context.grad_enabled() && t.requires_grad();
    let w = weight_side(weight, &options, dtype, learns(weight))?;
    let input = match encoded {
        Some((encoded, coding)) => Side::encoded(encoded, &coding),
        None => input(x, &options, w.hadamard, m, learns(x))?,
    };
    let shifted = match (input.offset(), &w.operand) {
        (Some(offset), Operand::Packed(packed)) => Some(offset_bias(context, packed, offset, bias)?),
        _ => None,
    };
    let bias = shifted.as_ref().or(bias);
    let products =
        if learns(x) || learns(weight) { Products::new(options.quantizer, options.noise, [m, n])? } else { None };
    let pre = match options.activation {
        Some(_) => Some(Tensor::empty(context, &shape, out_dtype)?),
        None => None,
    };
    let out = Tensor::empty(context, &shape, out_dtype)?;
    let epilogue = match (options.activation, &pre, options.residual) {
        (Some(activation), Some(pre), _) => Epilogue::Activation(activation, pre.buffer()),
        (_, _, Some(residual)) => Epilogue::Residual(residual.buffer(), options.dropout.map(Dropout::kernel)),
        _ => Epilogue::None,
    };
    let forward = Output { out: out.buffer(), bias, epilogue, mask: None, accumulate: false };
    multiply(context, Form::Nt, [m, n, k], &input.operand, &w.operand, forward)?;
    if !needs_grad && !options.residual.is_some_and(Tensor::requires_grad) {
        return Ok(out);
    }

    let backward = {
        // Not the input itself: what is kept of it is `input`, which may be its codes alone.
        let activation = x.0.activation.clone();
        let (bias, residual) = (options.bias.cloned(), options.residual.map(Tensor::as_input));
        let dropout = options.dropout.cloned();
        // An operand is for the gradient of the other one.
        let Side { operand: input, mask, hadamard, learned, .. } = input;
        // The offset is in the gradient of the weight whether or not its own gradient is wanted.
        let offset = learned.as_ref().and_then(Learned::offset).cloned();
        let learned = learned.filter(|learned| learns(x) || learned.requires_grad());
        let w_learned = w.learned.filter(|learned| learns(weight) || learned.requires_grad());
        let w = Side { learned: w_learned, ..w };
        let input = match &products {
            _ if !learns(weight) && w.learned.is_none() => None,
            // Instead of the codes of the forward pass.
            Some(products) => Some(products.input(context, x.buffer(), [m, k])?.map_or(input, Operand::Packed)),
            None => Some(input),
        };
        let kept = context.keep(
            input.as_ref().map_or(0, Operand::bytes)
                + mask.as_ref().map_or(0, Buffer::bytes)
                + learned.as_ref().map_or(0, Learned::bytes),
        );
        let context = context.clone();
        let (x, weight) = (x.as_input(), weight.clone());
        move |gradient: Tensor, gradients: &mut crate::Gradients| {
            if let Some(residual) = &residual {
                gradients.add_to(residual, gradient.clone())?;
            }
            // The gradient that the products see: masked as the forward pass was, in the type of the operands.
            let masked = match &dropout {
                Some(dropout) => {
                    let masked = context.alloc(gradient.len(), dtype)?;
                    kernel::dropout::dropout(&context, gradient.buffer(), None, &masked, dropout.kernel())?;
                    masked
                }
                None => operand(&context, &gradient, dtype)?,
            };
            drop(gradient);
            let masked = Operand::Dense(masked);
            // An input that is an activation passes its gradient on to what the activation was computed from, unless its scale is learned or
            // there is no kernel for both the rotation and the activation.
            let (target, epilogue, gelu_grad) = match &activation {
                Some((activation, pre)) if hadamard.is_none() && learned.is_none() => {
                    (gradients.target(pre)?, Epilogue::ActivationGrad(*activation, pre.buffer()), None)
                }
                Some((Activation::Gelu, pre)) if learned.is_none() => {
                    (gradients.target(pre)?, Epilogue::None, Some(pre.buffer()))
                }
                _ => (gradients.target_of(&x)?, Epilogue::None, None),
            };
            let product = |out: &Buffer, mask: Option<&Buffer>, accumulate: bool| {
                if let (Some(products), Operand::Dense(gradient), Operand::Packed(w)) = (&products, &masked, &w.operand)
                {
                    let target = qat::Target { out, epilogue, mask, accumulate };
                    return products.input_gradient(&context, gradient, w, [m, n, k], target);
                }
                let output = Output { out, bias: None, epilogue, mask, accumulate };
                multiply(&context, Form::Nn, [m, k, n], &masked, &w.operand, output)
            };
            if let Some(learned) = &learned {
                let quantized = context.alloc(m * k, dtype)?;
                product(&quantized, None, false)?;
                learned.hand_on(&quantized, target, hadamard, [m, k], gradients)?;
            } else if let Some(Target { tensor, accumulate }) = target {
                if hadamard.is_some() {
                    let rotated = context.alloc(m * k, tensor.dtype())?;
                    product(&rotated, None, false)?;
                    let task = Hadamard { gelu_grad, accumulate, ..pass_back(mask.as_ref(), hadamard, [m, k]) };
                    kernel::hadamard::hadamard(&context, &task, Some(&rotated), tensor.buffer())?;
                } else {
                    product(tensor.buffer(), mask.as_ref(), accumulate)?;
                }
            }
            drop(mask);
            let terms = |input: &Operand, out: &Buffer, accumulate: bool| {
                if let (Some(products), Operand::Dense(gradient), Operand::Packed(input)) = (&products, &masked, input)
                {
                    let written = products.weight_gradient(&context, gradient, input, [m, n, k], out, accumulate);
                    return written.map(|()| None);
                }
                let output = Output { out, bias: None, epilogue: Epilogue::None, mask: None, accumulate };
                multiply_to_terms(&context, Form::Tn, [n, k, m], &masked, input, output)
            };
            let product = |input: &Operand, out: &Buffer, accumulate: bool| match terms(input, out, accumulate)? {
                Some(terms) => terms.add_up(&context, out, 1.0, accumulate),
                None => Ok(()),
            };
            let target = gradients.target(&weight)?;
            if let (Some(own), Some(input), Operand::Dense(masked)) = (&w.learned, &input, &masked) {
                let mut quantized = context.alloc(n * k, DType::F32)?;
                product(input, &quantized, false)?;
                if let Some(offset) = &offset {
                    quantized = with_offset(&context, &quantized, masked, offset, [m, n, k])?;
                }
                own.hand_on(&quantized, target, w.hadamard, [n, k], gradients)?;
            } else if let (Some(Target { tensor, accumulate }), Some(input)) = (target, &input) {
                if let (Some(factor), Operand::Packed(quantized)) = (w.factor, &w.operand) {
                    let signs = context.alloc(n * k, tensor.dtype())?;
                    product(input, &signs, false)?;
                    let (values, out) = (weight.buffer(), tensor.buffer());
                    sign_gradient(&context, factor, &signs, values, quantized, out, accumulate)?;
                } else if w.hadamard.is_some() || w.mask.is_some() {
                    let rotated = context.alloc(n * k, tensor.dtype())?;
                    let mut task = Hadamard { accumulate, ..pass_back(w.mask.as_ref(), w.hadamard, [n, k]) };
                    let from = match terms(input, &rotated, false)? {
                        // The transform adds them up as it loads.
                        Some(terms) if (n * k).is_multiple_of(4) => {
                            task.terms = terms.count;
                            drop(rotated);
                            terms.buffer
                        }
                        Some(terms) => {
                            terms.add_up(&context, &rotated, 1.0, false)?;
                            rotated
                        }
                        None => rotated,
                    };
                    kernel::hadamard::hadamard(&context, &task, Some(&from), tensor.buffer())?;
                } else {
                    product(input, tensor.buffer(), accumulate)?;
                }
            }
            drop((input, learned, kept));
            if let (Some(bias), Operand::Dense(masked)) = (&bias, &masked)
                && let Some(target) = gradients.target(bias)?
            {
                kernel::column_sum::column_sum(
                    &context,
                    masked,
                    target.tensor.buffer(),
                    [m, n],
                    1.0,
                    target.accumulate,
                )?;
            }
            Ok(())
        }
    };
    let inputs: Vec<&Tensor> =
        [Some(x), Some(weight), options.bias, options.residual].into_iter().flatten().chain(scales()).collect();
    let Some((activation, pre)) = options.activation.zip(pre) else {
        return Ok(Tensor::from_op_any(out, &inputs, backward));
    };
    // Two nodes for one kernel: the sum, and its activation.
    let pre = Tensor::from_op_any(pre, &inputs, backward);
    let source = pre.clone();
    let out = Tensor::from_op(out, &[&pre], move |gradient, gradients| {
        let Some(target) = gradients.target(&source)? else { return Ok(()) };
        kernel::unary::unary_backward(
            source.context(),
            activation.into(),
            source.buffer(),
            gradient.buffer(),
            target.tensor.buffer(),
            target.accumulate,
        )
    });
    Ok(Tensor::with(Inner {
        id: out.id(),
        node: out.0.node.clone(),
        requires_grad: out.requires_grad(),
        activation: Some((activation, pre)),
        ..Inner::plain(context, out.buffer().clone(), &shape)
    }))
}
