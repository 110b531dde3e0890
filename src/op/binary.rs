//! Sums, differences, products and quotients with NumPy's broadcasting.

use super::shape::alike;
use crate::kernel::accumulate::accumulate;
use crate::kernel::binary::{Binary, binary, broadcast_shape, sum_to};
use crate::kernel::unary::{Unary, unary};
use crate::{DType, Gradients, Result, Tensor};

impl Tensor {
    /// `self + other`.
    ///
    /// # Shapes
    /// Sizes are aligned at the end and equal or 1, which stretches; f32 or f16, one type. After merging neighbours at most four dimensions.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where shapes or types do not fit; [`crate::Error::ContextMismatch`].
    ///
    /// # Source
    /// The broadcasting rules of NumPy; the gradient of a stretched dimension is a sum over it.
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        let out = apply("add", Binary::Add, self, other)?;
        let (a, b) = (self.clone(), other.clone());
        Ok(Tensor::from_op(out, &[self, other], move |gradient, gradients| {
            add_reduced(gradients, &a, gradient.clone())?;
            add_reduced(gradients, &b, gradient)
        }))
    }

    /// `self - other`.
    ///
    /// # Shapes
    /// As [`Tensor::add`].
    ///
    /// # Errors
    /// As [`Tensor::add`].
    ///
    /// # Source
    /// As [`Tensor::add`].
    pub fn sub(&self, other: &Tensor) -> Result<Tensor> {
        let out = apply("sub", Binary::Sub, self, other)?;
        let (a, b) = (self.clone(), other.clone());
        Ok(Tensor::from_op(out, &[self, other], move |gradient, gradients| {
            if b.requires_grad() {
                add_reduced(gradients, &b, negative(&gradient)?)?;
            }
            add_reduced(gradients, &a, gradient)
        }))
    }

    /// `self * other`, element by element.
    ///
    /// # Shapes
    /// As [`Tensor::add`].
    ///
    /// # Errors
    /// As [`Tensor::add`].
    ///
    /// # Numerics
    /// In f16 a gradient is rounded to f16 before it is summed over stretched dimensions.
    ///
    /// # Source
    /// As [`Tensor::add`].
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        let out = apply("mul", Binary::Mul, self, other)?;
        let (a, b) = (self.clone(), other.clone());
        Ok(Tensor::from_op(out, &[self, other], move |gradient, gradients| {
            for (x, factor) in [(&a, &b), (&b, &a)] {
                if x.requires_grad() {
                    add_reduced(gradients, x, apply("mul", Binary::Mul, &gradient, factor)?)?;
                }
            }
            Ok(())
        }))
    }

    /// `self / other`, element by element.
    ///
    /// # Shapes
    /// As [`Tensor::add`].
    ///
    /// # Errors
    /// As [`Tensor::add`].
    ///
    /// # Numerics
    /// Good to 2.5 ulp; gradients as in [`Tensor::mul`].
    ///
    /// # Source
    /// As [`Tensor::add`].
    pub fn div(&self, other: &Tensor) -> Result<Tensor> {
        let out = apply("div", Binary::Div, self, other)?;
        let (a, b, quotient) = (self.clone(), other.clone(), out.clone());
        Ok(Tensor::from_op(out, &[self, other], move |gradient, gradients| {
            let scaled = apply("div", Binary::Div, &gradient, &b)?;
            drop(gradient);
            if b.requires_grad() {
                let product = apply("div", Binary::Mul, &scaled, &quotient)?;
                add_reduced(gradients, &b, negative(&product)?)?;
            }
            add_reduced(gradients, &a, scaled)
        }))
    }
}

/// The operation outside the graph.
pub(super) fn apply(name: &'static str, op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    alike(name, a, b)?;
    let out = Tensor::empty(a.context(), &broadcast_shape(a.shape(), b.shape())?, a.dtype())?;
    binary(a.context(), op, (a.buffer(), a.shape()), (b.buffer(), b.shape()), out.buffer())?;
    Ok(out)
}

fn negative(x: &Tensor) -> Result<Tensor> {
    let out = Tensor::empty(x.context(), x.shape(), x.dtype())?;
    unary(x.context(), Unary::Neg, x.buffer(), out.buffer())?;
    Ok(out)
}

/// Adds `gradient` to that of `x`, summed over the dimensions in which `x` was stretched.
fn add_reduced(gradients: &mut Gradients, x: &Tensor, gradient: Tensor) -> Result<()> {
    if gradient.len() == x.len() {
        let gradient = if gradient.shape() == x.shape() { gradient } else { gradient.view(x.shape()) };
        return gradients.add(x, gradient);
    }
    let Some(target) = gradients.target(x)? else { return Ok(()) };
    let (context, out) = (x.context(), target.tensor.buffer());
    if out.dtype() == DType::F32 {
        return sum_to(context, gradient.buffer(), gradient.shape(), out, x.shape(), target.accumulate);
    }
    let sums = context.alloc(x.len(), DType::F32)?;
    sum_to(context, gradient.buffer(), gradient.shape(), &sums, x.shape(), false)?;
    accumulate(context, &sums, out, target.accumulate)
}
