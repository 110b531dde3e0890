//! Losses against a teacher: its distribution, and its hidden states.

use super::LossOptions;
use crate::kernel::hidden_distance::{hidden_distance, hidden_distance_backward};
use crate::kernel::scale_by_scalar::scale_by_scalar;
use crate::kernel::soft_cross_entropy::{Factors, soft_cross_entropy};
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// The mean over all positions of the cross-entropy with the distribution that `teacher`'s logits give, times the weight. `teacher`
    /// gets no gradient.
    ///
    /// # Shapes
    /// `self` and `teacher` `[.., classes]` f32; the result is a scalar.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`];
    /// [`Error::Unsupported`] for a gradient in f16 without `SHADER_F16`.
    ///
    /// # Source
    /// Hinton, Vinyals and Dean, arXiv 1503.02531.
    pub fn soft_cross_entropy(&self, teacher: &Tensor, options: LossOptions<'_>) -> Result<Tensor> {
        let (context, shape) = (self.context(), [self.rows(), self.columns()]);
        check("soft_cross_entropy", self, teacher)?;
        let losses = context.alloc(shape[0], DType::F32)?;
        let loss = Tensor::empty(context, &[], DType::F32)?;
        let grad = Tensor::empty(context, self.shape(), options.grad)?;
        let factors = Factors { factor: options.weight, state: options.state };
        let (z, y) = (self.buffer(), teacher.buffer());
        let classes = options.classes.unwrap_or(shape[1]);
        soft_cross_entropy(context, z, y, &losses, loss.buffer(), grad.buffer(), shape, classes, factors)?;
        let logits = self.clone();
        Ok(Tensor::from_op(loss, &[self], move |upstream, gradients| {
            let context = logits.context();
            if !context.is_one(&upstream) {
                scale_by_scalar(context, grad.buffer(), upstream.buffer())?;
            }
            gradients.add(&logits, grad)
        }))
    }

    /// The mean over all positions of the squared distance of the directions, `|a / |a| - b / |b||^2`, times the weight. `teacher` gets no
    /// gradient. Of the options, weight and state count.
    ///
    /// # Shapes
    /// `self` and `teacher` `[.., c]` f32; the result is a scalar.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`].
    ///
    /// # Source
    /// OneBit, arXiv 2402.11295.
    pub fn hidden_distance(&self, teacher: &Tensor, options: LossOptions<'_>) -> Result<Tensor> {
        let (context, shape) = (self.context(), [self.rows(), self.columns()]);
        check("hidden_distance", self, teacher)?;
        let losses = context.alloc(shape[0], DType::F32)?;
        let loss = Tensor::empty(context, &[], DType::F32)?;
        hidden_distance(context, self.buffer(), teacher.buffer(), &losses, loss.buffer(), shape, options.weight)?;
        let (a, b, weight, state) = (self.clone(), teacher.clone(), options.weight, options.state.cloned());
        Ok(Tensor::from_op(loss, &[self], move |upstream, gradients| {
            let context = a.context();
            let factors = Factors { factor: weight, state: state.as_ref() };
            if context.is_one(&upstream) {
                let Some(target) = gradients.target(&a)? else { return Ok(()) };
                let out = target.tensor.buffer();
                return hidden_distance_backward(
                    context,
                    a.buffer(),
                    b.buffer(),
                    out,
                    shape,
                    factors,
                    target.accumulate,
                );
            }
            let grad = Tensor::empty(context, a.shape(), DType::F32)?;
            hidden_distance_backward(context, a.buffer(), b.buffer(), grad.buffer(), shape, factors, false)?;
            scale_by_scalar(context, grad.buffer(), upstream.buffer())?;
            gradients.add(&a, grad)
        }))
    }
}

fn check(op: &'static str, student: &Tensor, teacher: &Tensor) -> Result<()> {
    if !student.context().same(teacher.context()) {
        return Err(Error::ContextMismatch { op });
    }
    let f32s = [student, teacher].iter().all(|t| t.dtype() == DType::F32);
    if student.shape().is_empty() || student.shape() != teacher.shape() || !f32s {
        return Err(Error::shape(
            op,
            "two f32 tensors [.., c] of one shape",
            format!("{:?} of {}, {:?} of {}", student.shape(), student.dtype(), teacher.shape(), teacher.dtype()),
        ));
    }
    Ok(())
}
