//! Softmax cross-entropy, with the gradient computed in the forward pass.

use crate::kernel::cross_entropy::{Gradient, cross_entropy};
use crate::kernel::scale_by_scalar::scale_by_scalar;
use crate::{Buffer, DType, Error, Result, Tensor};

/// What [`Tensor::cross_entropy`] does besides the loss.
#[derive(Clone, Copy, Debug)]
pub struct LossOptions<'a> {
    /// Classes that count, where the last columns of the logits are padding; `None`: all.
    pub classes: Option<usize>,
    /// Factor on loss and gradient, such as one over the micro-batches of a step.
    pub weight: f32,
    /// The optimizer's state, whose loss scale multiplies the gradient (not the loss).
    pub state: Option<&'a Buffer>,
    /// Type of the gradient.
    pub grad: DType,
}

impl Default for LossOptions<'_> {
    fn default() -> Self {
        Self { classes: None, weight: 1.0, state: None, grad: DType::F32 }
    }
}

impl Tensor {
    /// The mean over all positions of `log(sum exp(x)) - x[target]`, times the weight. A target of [`crate::IGNORE`] does not count.
    ///
    /// # Shapes
    /// `self` `[.., classes]` f32, `targets` `[..]` u32; the result is a scalar.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`];
    /// [`Error::Unsupported`] for a gradient in f16 without `SHADER_F16`.
    pub fn cross_entropy(&self, targets: &Tensor, options: LossOptions<'_>) -> Result<Tensor> {
        let context = self.context();
        let (shape, valid) = check(self, targets, options.classes)?;
        let losses = context.alloc(shape[0], DType::F32)?;
        let loss = Tensor::empty(context, &[], DType::F32)?;
        let wanted = context.grad_enabled() && self.requires_grad();
        let grad = if wanted { Some(Tensor::empty(context, self.shape(), options.grad)?) } else { None };
        let gradient =
            grad.as_ref().map(|g| Gradient { out: Some(g.buffer()), factor: options.weight, state: options.state });
        let dims = [shape[0], shape[1]];
        cross_entropy(context, self.buffer(), targets.buffer(), &losses, loss.buffer(), dims, valid, gradient)?;
        if options.weight != 1.0 {
            let weight = Tensor::from_f32(context, &[options.weight], &[1])?;
            scale_by_scalar(context, loss.buffer(), weight.buffer())?;
        }
        let Some(grad) = grad else { return Ok(loss) };
        let logits = self.clone();
        Ok(Tensor::from_op(loss, &[self], move |upstream, gradients| {
            let context = logits.context();
            if !context.is_one(&upstream) {
                scale_by_scalar(context, grad.buffer(), upstream.buffer())?;
            }
            gradients.add(&logits, grad)
        }))
    }

    /// The loss of every position, 0 where the target is [`crate::IGNORE`]; not differentiable.
    ///
    /// # Shapes
    /// As [`Tensor::cross_entropy`]; the result is shaped like `targets`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`].
    pub fn token_losses(&self, targets: &Tensor, classes: Option<usize>) -> Result<Tensor> {
        let context = self.context();
        let (shape, valid) = check(self, targets, classes)?;
        let losses = Tensor::empty(context, targets.shape(), DType::F32)?;
        let loss = context.alloc(1, DType::F32)?;
        cross_entropy(context, self.buffer(), targets.buffer(), losses.buffer(), &loss, shape, valid, None)?;
        Ok(losses)
    }
}

fn check(logits: &Tensor, targets: &Tensor, classes: Option<usize>) -> Result<([usize; 2], usize)> {
    const OP: &str = "cross_entropy";
    if !logits.context().same(targets.context()) {
        return Err(Error::ContextMismatch { op: OP });
    }
    let columns = logits.columns();
    let valid = classes.unwrap_or(columns);
    if logits.shape().is_empty()
        || targets.shape() != &logits.shape()[..logits.shape().len() - 1]
        || targets.dtype() != DType::U32
        || logits.dtype() != DType::F32
        || valid == 0
        || valid > columns
    {
        return Err(Error::shape(
            OP,
            "f32 logits [.., c], u32 targets [..], and at most c classes",
            format!(
                "{:?} of {}, {:?} of {}, {valid} classes",
                logits.shape(),
                logits.dtype(),
                targets.shape(),
                targets.dtype()
            ),
        ));
    }
    Ok(([logits.rows(), columns], valid))
}
