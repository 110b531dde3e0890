//! `y = x W^T + b` and what follows it in a transformer, fused: an activation, or dropout and a residual.

use crate::kernel::matmul::{Activation, Dims, Epilogue, Form, Matmul, matmul};
use crate::kernel::packed::Packed;
use crate::kernel::packed_matmul::{self, PackedMatmul, packed_matmul};
use crate::kernel::{self, FLOATS};
use crate::nn::Dropout;
use crate::qat::{self, Quantizer};
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
    accumulate: bool,
}

/// A product of whichever operands there are.
fn multiply(
    context: &Context,
    form: Form,
    [m, n, k]: [usize; 3],
    a: &Operand,
    b: &Operand,
    output: Output<'_>,
) -> Result<()> {
    let Output { out, bias, epilogue, accumulate } = output;
    let a = match a {
        Operand::Dense(buffer) => packed_matmul::Operand::Dense(buffer),
        Operand::Packed(packed) => packed_matmul::Operand::Packed(packed),
    };
    match (a, b) {
        (packed_matmul::Operand::Dense(a), Operand::Dense(b)) => matmul(
            context,
            &Matmul { form, dims: Dims::new(m, n, k), a, b, out, alpha: 1.0, bias, epilogue, accumulate },
        ),
        (a, Operand::Packed(b)) => packed_matmul(
            context,
            &PackedMatmul { form, m, n, k, a, b, out, alpha: 1.0, bias, epilogue, accumulate, mask: None },
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

/// `y = residual + dropout(act(x W^T + bias))`, with the parts that `options` name.
///
/// With a quantizer, `x` and `W` stand for their quantized values. The gradients of those are handed on as the gradients of `x` and `W` (the
/// straight-through estimator of Bengio, Leonard and Courville, arXiv 1308.3432), and are computed from the codes.
///
/// # Shapes
/// `x` `[.., k]` (f32 or f16), `weight` `[n, k]` f32, `bias` `[n]` f32, `residual` like the result, which is `[.., n]`.
///
/// # Errors
/// [`Error::Shape`] where they do not fit or options exclude each other; [`Error::Invalid`] for a dropout outside [0, 1);
/// [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`].
pub fn linear(x: &Tensor, weight: &Tensor, options: LinearOptions<'_>) -> Result<Tensor> {
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
    for other in [Some(weight), options.bias, options.residual].into_iter().flatten() {
        if !context.same(other.context()) {
            return Err(Error::ContextMismatch { op: OP });
        }
    }

    let dtype = x.dtype();
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
    let out_dtype = if options.residual.is_some() || options.out_f32 { DType::F32 } else { dtype };
    let bias = options.bias.map(Tensor::buffer);
    let needs_grad = context.grad_enabled()
        && [Some(x), Some(weight), options.bias].into_iter().flatten().any(Tensor::requires_grad);
    let w = match (options.quantizer, options.packed_weight) {
        (None, None) => Operand::Dense(operand(context, weight, dtype)?),
        (None, Some(_)) => {
            return Err(Error::shape(OP, "a quantized weight together with a quantizer", "no quantizer"));
        }
        (Some(quantizer), Some(packed)) => {
            let layout = packed.layout();
            if packed.format() != quantizer.weights || [layout.rows, layout.cols] != [n, k] {
                return Err(Error::shape(
                    OP,
                    format!("a weight of [{n}, {k}] in {}", quantizer.weights),
                    format!("[{}, {}] in {}", layout.rows, layout.cols, packed.format()),
                ));
            }
            Operand::Packed(packed.clone())
        }
        (Some(quantizer), None) => Operand::Packed(quantizer.weight(weight)?),
    };
    let input = match options.quantizer {
        Some(Quantizer { activations: Some(format), .. }) => Operand::Packed(qat::encode(x, format, [m, k])?),
        _ => Operand::Dense(x.buffer().clone()),
    };
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
    let forward = Output { out: out.buffer(), bias, epilogue, accumulate: false };
    multiply(context, Form::Nt, [m, n, k], &input, &w, forward)?;
    if !needs_grad && !options.residual.is_some_and(Tensor::requires_grad) {
        return Ok(out);
    }

    let backward = {
        // Not the input itself: what is kept of it is `input`, which may be its codes alone.
        let activation = x.0.activation.clone();
        let (x, weight) = (x.as_input(), weight.clone());
        let (bias, residual) = (options.bias.cloned(), options.residual.map(Tensor::as_input));
        let dropout = options.dropout.cloned();
        let kept = context.keep(input.bytes());
        let context = context.clone();
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
            // An input that is an activation passes its gradient on to what the activation was computed from.
            let (target, epilogue) = match &activation {
                Some((activation, pre)) => {
                    (gradients.target(pre)?, Epilogue::ActivationGrad(*activation, pre.buffer()))
                }
                None => (gradients.target_of(&x)?, Epilogue::None),
            };
            if let Some(target) = target {
                let output =
                    Output { out: target.tensor.buffer(), bias: None, epilogue, accumulate: target.accumulate };
                multiply(&context, Form::Nn, [m, k, n], &masked, &w, output)?;
            }
            if let Some(target) = gradients.target(&weight)? {
                let output = Output {
                    out: target.tensor.buffer(),
                    bias: None,
                    epilogue: Epilogue::None,
                    accumulate: target.accumulate,
                };
                multiply(&context, Form::Tn, [n, k, m], &masked, &input, output)?;
            }
            drop((input, kept));
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
    let inputs: Vec<&Tensor> = [Some(x), Some(weight), options.bias, options.residual].into_iter().flatten().collect();
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
