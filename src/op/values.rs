//! The value vectors of OneBit's layers, before and after the product with signs.

use crate::kernel::FLOATS;
use crate::kernel::column_sum::column_sum;
use crate::kernel::scale_columns::{column_dot, scale_columns};
use crate::kernel::value_norm::{Statistics, value_norm, value_norm_backward};
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// `x[.., c] * values[c]`.
    ///
    /// # Shapes
    /// `self` `[.., c]` f32 or f16, `values` `[c]` f32; the result is like `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`].
    ///
    /// # Numerics
    /// f32; gradients of the values are sums of f32 products.
    ///
    /// # Source
    /// The input values `g` of a layer of OneBit, arXiv 2402.11295.
    pub fn scale_columns(&self, values: &Tensor) -> Result<Tensor> {
        let (context, shape) = (self.context(), [self.rows(), self.columns()]);
        check("scale_columns", self, &[values])?;
        let out = Tensor::empty(context, self.shape(), self.dtype())?;
        scale_columns(context, self.buffer(), values.buffer(), out.buffer(), shape, false)?;
        let (x, values) = (self.clone(), values.clone());
        let inputs = [&x.clone(), &values.clone()];
        Ok(Tensor::from_op(out, &inputs, move |gradient, gradients| {
            let context = x.context();
            if let Some(target) = gradients.target(&x)? {
                let out = target.tensor.buffer();
                scale_columns(context, gradient.buffer(), values.buffer(), out, shape, target.accumulate)?;
            }
            if let Some(target) = gradients.target(&values)? {
                let out = target.tensor.buffer();
                column_dot(context, x.buffer(), gradient.buffer(), out, shape, target.accumulate)?;
            }
            Ok(())
        }))
    }

    /// The layer norm without parameters of `x[.., c] * values[c]`, plus `bias`, in `out`'s type.
    ///
    /// # Shapes
    /// `self` `[.., c]` f32 or f16, `values` and `bias` `[c]` f32; the result is like `self`, of type `out`.
    ///
    /// # Errors
    /// As [`Tensor::scale_columns`]; [`Error::Unsupported`] for a result in f16 without `SHADER_F16`.
    ///
    /// # Source
    /// The output values `h` of a layer of OneBit, arXiv 2402.11295, and the norm after it.
    pub fn value_norm(&self, values: &Tensor, bias: Option<&Tensor>, eps: f32, out: DType) -> Result<Tensor> {
        let (context, shape) = (self.context(), [self.rows(), self.columns()]);
        let all: Vec<&Tensor> = [Some(values), bias].into_iter().flatten().collect();
        check("value_norm", self, &all)?;
        // Their gradients are written by one kernel.
        let values = &values.apart(&[self])?;
        let z = Tensor::empty(context, self.shape(), out)?;
        let mean = context.alloc(shape[0], DType::F32)?;
        let rstd = context.alloc(shape[0], DType::F32)?;
        let statistics = Statistics { mean: &mean, rstd: &rstd };
        let offset = bias.map(Tensor::buffer);
        value_norm(context, self.buffer(), values.buffer(), offset, z.buffer(), statistics, shape, eps)?;
        let inputs: Vec<&Tensor> = [Some(self), Some(values), bias].into_iter().flatten().collect();
        let (u, h, b) = (self.clone(), values.clone(), bias.cloned());
        Ok(Tensor::from_op(z, &inputs, move |gradient, gradients| {
            let context = u.context();
            let du = gradients.target_or_scratch(&u)?;
            let dh = gradients.target_or_scratch(&h)?;
            let statistics = Statistics { mean: &mean, rstd: &rstd };
            value_norm_backward(
                context,
                gradient.buffer(),
                u.buffer(),
                h.buffer(),
                statistics,
                du.tensor.buffer(),
                du.accumulate,
                dh.tensor.buffer(),
                dh.accumulate,
                shape,
            )?;
            if let Some(b) = &b
                && let Some(target) = gradients.target(b)?
            {
                column_sum(context, gradient.buffer(), target.tensor.buffer(), shape, 1.0, target.accumulate)?;
            }
            Ok(())
        }))
    }
}

fn check(op: &'static str, x: &Tensor, vectors: &[&Tensor]) -> Result<()> {
    for vector in vectors {
        if !x.context().same(vector.context()) {
            return Err(Error::ContextMismatch { op });
        }
        if x.shape().is_empty()
            || !FLOATS.contains(&x.dtype())
            || vector.shape() != [x.columns()]
            || vector.dtype() != DType::F32
        {
            return Err(Error::shape(
                op,
                "an input [.., c] of f32 or f16 with f32 vectors [c]",
                format!("{:?} of {} with {:?} of {}", x.shape(), x.dtype(), vector.shape(), vector.dtype()),
            ));
        }
    }
    Ok(())
}
