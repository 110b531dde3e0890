//! Functions of one element, and SwiGLU.

use super::shape::float;
use crate::kernel::swiglu::{swiglu, swiglu_backward};
use crate::kernel::unary::{Unary, unary, unary_backward};
use crate::{Error, Result, Tensor};

impl Tensor {
    /// `function` of every element, in f32 arithmetic.
    ///
    /// # Shapes
    /// Any, f32 or f16; the result is like `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other types.
    pub fn unary(&self, function: Unary) -> Result<Tensor> {
        float("unary", self)?;
        let out = Tensor::empty(self.context(), self.shape(), self.dtype())?;
        unary(self.context(), function, self.buffer(), out.buffer())?;
        let x = self.clone();
        Ok(Tensor::from_op(out, &[self], move |gradient, gradients| {
            let Some(target) = gradients.target(&x)? else { return Ok(()) };
            let (dy, dx) = (gradient.buffer(), target.tensor.buffer());
            unary_backward(x.context(), function, x.buffer(), dy, dx, target.accumulate)
        }))
    }

    /// `x Phi(x)` with the distribution function of the normal distribution.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    ///
    /// # Source
    /// Hendrycks and Gimpel, arXiv 1606.08415.
    pub fn gelu(&self) -> Result<Tensor> {
        self.unary(Unary::GeluErf)
    }

    /// The approximation of [`Tensor::gelu`] by tanh, as in GPT-2.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    ///
    /// # Source
    /// Hendrycks and Gimpel, arXiv 1606.08415, section 2.
    pub fn gelu_tanh(&self) -> Result<Tensor> {
        self.unary(Unary::GeluTanh)
    }

    /// `x / (1 + exp(-x))`.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    ///
    /// # Source
    /// Elfwing, Uchibe and Doya, arXiv 1702.03118.
    pub fn silu(&self) -> Result<Tensor> {
        self.unary(Unary::Silu)
    }

    /// `max(x, 0)`; the derivative at 0 is 0.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn relu(&self) -> Result<Tensor> {
        self.unary(Unary::Relu)
    }

    /// `exp(x)`.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn exp(&self) -> Result<Tensor> {
        self.unary(Unary::Exp)
    }

    /// The natural logarithm.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn ln(&self) -> Result<Tensor> {
        self.unary(Unary::Log)
    }

    /// `tanh(x)`.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn tanh(&self) -> Result<Tensor> {
        self.unary(Unary::Tanh)
    }

    /// `-x`.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn neg(&self) -> Result<Tensor> {
        self.unary(Unary::Neg)
    }

    /// `x^2`.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn square(&self) -> Result<Tensor> {
        self.unary(Unary::Square)
    }

    /// The square root.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn sqrt(&self) -> Result<Tensor> {
        self.unary(Unary::Sqrt)
    }

    /// `1 / x`.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn reciprocal(&self) -> Result<Tensor> {
        self.unary(Unary::Reciprocal)
    }

    /// `factor x`.
    ///
    /// # Shapes
    /// As [`Tensor::unary`].
    ///
    /// # Errors
    /// As [`Tensor::unary`].
    pub fn scale(&self, factor: f32) -> Result<Tensor> {
        self.unary(Unary::Scale(factor))
    }

    /// `silu(gate) up` with the gate in the first half of the last dimension and up in the second.
    ///
    /// # Shapes
    /// `self` `[.., 2 w]`, f32 or f16; the result is `[.., w]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other types or an odd last dimension.
    ///
    /// # Source
    /// Shazeer, arXiv 2002.05202, equation 5.
    pub fn swiglu(&self) -> Result<Tensor> {
        float("swiglu", self)?;
        let Some((last, outer)) = self.shape().split_last().filter(|(last, _)| last.is_multiple_of(2)) else {
            return Err(Error::shape("swiglu", "an even last dimension", format!("{:?}", self.shape())));
        };
        let (context, rows, width) = (self.context(), self.rows(), last / 2);
        let out = Tensor::empty(context, &[outer, &[width]].concat(), self.dtype())?;
        swiglu(context, self.buffer(), out.buffer(), rows, width)?;
        let x = self.clone();
        Ok(Tensor::from_op(out, &[self], move |gradient, gradients| {
            let dx = Tensor::empty(x.context(), x.shape(), x.dtype())?;
            swiglu_backward(x.context(), x.buffer(), gradient.buffer(), dx.buffer(), rows, width)?;
            gradients.add(&x, dx)
        }))
    }
}
