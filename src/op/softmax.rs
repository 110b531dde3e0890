//! Softmax over the last dimension.

use crate::kernel::softmax::{softmax, softmax_backward};
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// `exp(x - max x) / sum exp(x - max x)` over the last dimension.
    ///
    /// # Shapes
    /// `self` `[.., c]` f32 with c at least 1; the result is like `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes and types.
    ///
    /// # Source
    /// The gradient is y (dy - sum y dy).
    pub fn softmax(&self) -> Result<Tensor> {
        if self.shape().is_empty() || self.dtype() != DType::F32 {
            let got = format!("{:?} of {}", self.shape(), self.dtype());
            return Err(Error::shape("softmax", "an f32 input [.., c]", got));
        }
        let (context, rows, columns) = (self.context(), self.rows(), self.columns());
        let out = Tensor::empty(context, self.shape(), DType::F32)?;
        softmax(context, self.buffer(), out.buffer(), rows, columns)?;
        let (x, y) = (self.clone(), out.clone());
        Ok(Tensor::from_op(out, &[self], move |gradient, gradients| {
            let Some(target) = gradients.target(&x)? else { return Ok(()) };
            let (dy, dx) = (gradient.buffer(), target.tensor.buffer());
            softmax_backward(x.context(), y.buffer(), dy, dx, rows, columns, target.accumulate)
        }))
    }
}
