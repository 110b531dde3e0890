//! Sums, means and maxima.

use super::binary::apply;
use super::shape::float;
use crate::kernel::binary::Binary;
use crate::kernel::column_sum::column_sum;
use crate::kernel::reduce::{Reduction, reduce};
use crate::kernel::row_sum::row_sum;
use crate::kernel::unary::{Unary, unary};
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// The sum of all elements.
    ///
    /// # Shapes
    /// Any, f32 or f16; the result is an f32 scalar, 0 for no elements.
    ///
    /// # Errors
    /// [`Error::Shape`] for other types.
    ///
    /// # Numerics
    /// Summed in f32, in a fixed order.
    pub fn sum(&self) -> Result<Tensor> {
        total(self, "sum", 1.0)
    }

    /// The mean of all elements.
    ///
    /// # Shapes
    /// Any but empty, f32 or f16; the result is an f32 scalar.
    ///
    /// # Errors
    /// [`Error::Shape`] for other types, and for no elements.
    ///
    /// # Numerics
    /// As [`Tensor::sum`].
    pub fn mean(&self) -> Result<Tensor> {
        if self.is_empty() {
            return Err(Error::shape("mean", "at least one element", format!("{:?}", self.shape())));
        }
        total(self, "mean", 1.0 / self.len() as f32)
    }

    /// The largest element; not differentiable, so outside the graph. Undefined if there is a NaN.
    ///
    /// # Shapes
    /// Any but empty, f32 or f16; the result is an f32 scalar.
    ///
    /// # Errors
    /// [`Error::Shape`] for other types, and for no elements.
    pub fn max(&self) -> Result<Tensor> {
        float("max", self)?;
        let out = Tensor::empty(self.context(), &[], DType::F32)?;
        reduce(self.context(), self.buffer(), out.buffer(), Reduction::Max)?;
        Ok(out)
    }

    /// The sum over the last dimension.
    ///
    /// # Shapes
    /// `self` `[.., c]`, f32 or f16; the result is `[..]` f32.
    ///
    /// # Errors
    /// [`Error::Shape`] for other types, and for a scalar.
    ///
    /// # Numerics
    /// As [`Tensor::sum`].
    pub fn sum_last(&self) -> Result<Tensor> {
        let Some((_, outer)) = dimensions("sum_last", self)?.split_last() else { return scalar("sum_last") };
        let out = Tensor::empty(self.context(), outer, DType::F32)?;
        row_sum(self.context(), self.buffer(), out.buffer(), [self.rows(), self.columns()], 1.0, false)?;
        let x = self.clone();
        Ok(Tensor::from_op(out, &[self], move |gradient, gradients| {
            let column = gradient.view(&[gradient.shape(), &[1]].concat());
            gradients.add(&x, stretch(&column, x.shape(), x.dtype())?)
        }))
    }

    /// The sum over the first dimension.
    ///
    /// # Shapes
    /// `self` `[r, ..]`, f32 or f16; the result is `[..]` f32.
    ///
    /// # Errors
    /// [`Error::Shape`] for other types, and for a scalar.
    ///
    /// # Numerics
    /// As [`Tensor::sum`].
    pub fn sum_first(&self) -> Result<Tensor> {
        let Some((rows, inner)) = dimensions("sum_first", self)?.split_first() else { return scalar("sum_first") };
        let out = Tensor::empty(self.context(), inner, DType::F32)?;
        column_sum(self.context(), self.buffer(), out.buffer(), [*rows, out.len()], 1.0, false)?;
        let x = self.clone();
        Ok(Tensor::from_op(out, &[self], move |gradient, gradients| {
            gradients.add(&x, stretch(&gradient, x.shape(), x.dtype())?)
        }))
    }
}

fn dimensions<'a>(op: &'static str, x: &'a Tensor) -> Result<&'a [usize]> {
    float(op, x)?;
    Ok(x.shape())
}

fn scalar(op: &'static str) -> Result<Tensor> {
    Err(Error::shape(op, "at least one dimension", "a scalar"))
}

fn total(x: &Tensor, op: &'static str, factor: f32) -> Result<Tensor> {
    float(op, x)?;
    let out = Tensor::empty(x.context(), &[], DType::F32)?;
    reduce(x.context(), x.buffer(), out.buffer(), Reduction::Sum(factor))?;
    let input = x.clone();
    Ok(Tensor::from_op(out, &[x], move |mut gradient, gradients| {
        if factor != 1.0 {
            let scaled = Tensor::empty(input.context(), &[], DType::F32)?;
            unary(input.context(), Unary::Scale(factor), gradient.buffer(), scaled.buffer())?;
            gradient = scaled;
        }
        gradients.add(&input, stretch(&gradient, input.shape(), input.dtype())?)
    }))
}

/// `x` broadcast to `shape`, as `dtype`.
fn stretch(x: &Tensor, shape: &[usize], dtype: DType) -> Result<Tensor> {
    apply("sum", Binary::Add, &Tensor::zeros(x.context(), shape, dtype)?, &x.clone().cast(dtype)?)
}
