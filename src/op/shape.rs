//! Views and conversions.

use crate::buffer::elements;
use crate::kernel::FLOATS;
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// The same elements, in the same order and memory, as another shape.
    ///
    /// # Shapes
    /// `shape` has as many elements as `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has not; [`Error::Limit`] if their number overflows.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if elements(shape)? != self.len() {
            let expected = format!("a shape of {} elements for {:?}", self.len(), self.shape());
            return Err(Error::shape("reshape", expected, format!("{shape:?}")));
        }
        let x = self.clone();
        Ok(Tensor::from_op_any(self.view(shape), &[self], move |gradient, gradients| {
            let gradient = gradient.view(x.shape());
            gradients.add(&x, gradient)
        }))
    }

    /// The elements as `dtype`, rounded to nearest; the gradient is converted back.
    ///
    /// # Shapes
    /// Any; the result is shaped like `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless both types are floats or equal; [`Error::Unsupported`] for f16 on a device without `SHADER_F16`.
    ///
    /// # Numerics
    /// Beyond 65504 f16 overflows to infinity.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        if !FLOATS.contains(&self.dtype()) || !FLOATS.contains(&dtype) {
            return Err(Error::shape("to_dtype", "f32 or f16", format!("{} to {dtype}", self.dtype())));
        }
        let x = self.clone();
        Ok(Tensor::from_op_any(self.clone().cast(dtype)?, &[self], move |gradient, gradients| {
            gradients.add(&x, gradient.cast(x.dtype())?)
        }))
    }

    /// `self`, or a view with a gradient of its own where it is one of `others`: for kernels that write several gradients at once.
    pub(crate) fn apart(&self, others: &[&Tensor]) -> Result<Tensor> {
        if others.iter().any(|other| other.id() == self.id()) { self.reshape(self.shape()) } else { Ok(self.clone()) }
    }
}

/// Refuses element types other than f32 and f16.
pub(super) fn float(op: &'static str, x: &Tensor) -> Result<()> {
    if FLOATS.contains(&x.dtype()) {
        return Ok(());
    }
    Err(Error::shape(op, "f32 or f16", format!("{}", x.dtype())))
}

/// Refuses two tensors of different contexts, or of types other than f32 or f16, the same for both.
pub(super) fn alike(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if !a.context().same(b.context()) {
        return Err(Error::ContextMismatch { op });
    }
    float(op, a)?;
    if a.dtype() != b.dtype() {
        return Err(Error::shape(op, "two tensors of one type", format!("{} and {}", a.dtype(), b.dtype())));
    }
    Ok(())
}
