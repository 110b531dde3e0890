//! Layer norm and RMS norm over the last dimension.

use crate::kernel::FLOATS;
use crate::kernel::layer_norm::{ParameterGradients, layer_norm as forward, layer_norm_backward};
use crate::kernel::quantize::FusedLayerNorm;
use crate::kernel::rms_norm::{rms_norm as rms_forward, rms_norm_backward};
use crate::qat::{Coding, Encoded};
use crate::{Buffer, DType, Error, Result, Tensor};

/// A layer norm that [`crate::op::normed_linear`] begins with; see [`Tensor::layer_norm`].
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// `[c]`, f32.
    pub weight: &'a Tensor,
    /// `[c]`, f32.
    pub bias: Option<&'a Tensor>,
    /// Added to the variance.
    pub eps: f32,
    /// Type of the result, where it is written, and of its gradient.
    pub out: DType,
}

impl LayerNorm<'_> {
    /// The norm of `x`, see [`Tensor::layer_norm`].
    ///
    /// # Errors
    /// As [`Tensor::layer_norm`].
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        x.layer_norm(self.weight, self.bias, self.eps, self.out)
    }
}

impl Tensor {
    /// `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, in `out`'s type.
    ///
    /// # Shapes
    /// `self` `[.., c]` f32, `weight` and `bias` `[c]` f32; the result is like `self`, of type `out`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`];
    /// [`Error::Unsupported`] for a result in f16 without `SHADER_F16`.
    ///
    /// # Source
    /// Ba, Kiros and Hinton, arXiv 1607.06450.
    pub fn layer_norm(&self, weight: &Tensor, bias: Option<&Tensor>, eps: f32, out: DType) -> Result<Tensor> {
        check("layer_norm", self, weight, bias, &[DType::F32])?;
        let context = self.context();
        let (weight, bias) = self.apart_from(weight, bias)?;
        let y = Tensor::empty(context, self.shape(), out)?;
        let mean = context.alloc(self.rows(), DType::F32)?;
        let rstd = context.alloc(self.rows(), DType::F32)?;
        forward(
            context,
            self.buffer(),
            weight.buffer(),
            bias.as_ref().map(Tensor::buffer),
            y.buffer(),
            &mean,
            &rstd,
            [self.rows(), self.columns()],
            eps,
        )?;
        Ok(self.normed(weight, bias, y, mean, rstd))
    }

    /// One kernel writes the gradients of all three: each needs a place of its own.
    fn apart_from(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let weight = weight.apart(&[self])?;
        let bias = bias.map(|b| b.apart(&[self, &weight])).transpose()?;
        Ok((weight, bias))
    }

    /// The codes of [`Tensor::layer_norm`], where [`Coding::normalizes`] says so, and that itself without its values, for their gradient.
    pub(crate) fn encoded_layer_norm(&self, norm: LayerNorm<'_>, coding: &Coding) -> Result<(Tensor, Encoded)> {
        let LayerNorm { weight, bias, eps, out } = norm;
        check("layer_norm", self, weight, bias, &[DType::F32])?;
        let (context, shape) = (self.context(), [self.rows(), self.columns()]);
        let (weight, bias) = self.apart_from(weight, bias)?;
        let half = FusedLayerNorm::second(shape[0]);
        let statistics = context.alloc(2 * half, DType::F32)?;
        let norm = FusedLayerNorm {
            weight: weight.buffer(),
            bias: bias.as_ref().map(Tensor::buffer),
            eps,
            statistics: &statistics,
        };
        let all = [Some(self), Some(&weight), bias.as_ref()];
        let differentiable = context.grad_enabled() && all.into_iter().flatten().any(Tensor::requires_grad);
        let encoded = coding.encode_normed(self, Some(norm), shape, differentiable)?;
        let [mean, rstd] = [statistics.slice(0, shape[0])?, statistics.slice(half, shape[0])?];
        let y = Tensor::shape_only(context, self.shape(), out)?;
        Ok((self.normed(weight, bias, y, mean, rstd), encoded))
    }

    /// `y`, which is the layer norm of this tensor, with its backward pass.
    fn normed(&self, weight: Tensor, bias: Option<Tensor>, y: Tensor, mean: Buffer, rstd: Buffer) -> Tensor {
        let shape = [self.rows(), self.columns()];
        let (x, w, b) = (self.clone(), weight.clone(), bias.clone());
        let inputs: Vec<&Tensor> = [Some(self), Some(&weight), bias.as_ref()].into_iter().flatten().collect();
        Tensor::from_op(y, &inputs, move |gradient, gradients| {
            let context = x.context();
            let dx = gradients.target_or_scratch(&x)?;
            let dw = gradients.target_or_scratch(&w)?;
            let db = b.as_ref().map(|b| gradients.target_or_scratch(b)).transpose()?;
            // The kernel sets both the weight's and the bias's gradient or adds to both.
            let accumulate = dw.accumulate || db.as_ref().is_some_and(|db| db.accumulate);
            for place in [Some(&dw), db.as_ref()].into_iter().flatten() {
                if accumulate && !place.accumulate {
                    context.clear(place.tensor.buffer())?;
                }
            }
            layer_norm_backward(
                context,
                gradient.buffer(),
                x.buffer(),
                w.buffer(),
                &mean,
                &rstd,
                dx.tensor.buffer(),
                dx.accumulate,
                ParameterGradients {
                    weight: dw.tensor.buffer(),
                    bias: db.as_ref().map(|db| db.tensor.buffer()),
                    accumulate,
                },
                shape,
            )
        })
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, in `out`'s type.
    ///
    /// # Shapes
    /// `self` `[.., c]` f32 or f16, `weight` `[c]` f32; the result is like `self`, of type `out`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`]; [`Error::Limit`], [`Error::OutOfMemory`];
    /// [`Error::Unsupported`] for a result in f16 without `SHADER_F16`.
    ///
    /// # Source
    /// Zhang and Sennrich, arXiv 1910.07467.
    pub fn rms_norm(&self, weight: &Tensor, eps: f32, out: DType) -> Result<Tensor> {
        let (context, shape) = (self.context(), [self.rows(), self.columns()]);
        check("rms_norm", self, weight, None, FLOATS)?;
        let weight = &weight.apart(&[self])?;
        let y = Tensor::empty(context, self.shape(), out)?;
        let rstd = context.alloc(shape[0], DType::F32)?;
        rms_forward(context, self.buffer(), weight.buffer(), y.buffer(), &rstd, shape, eps)?;
        let (x, w) = (self.clone(), weight.clone());
        Ok(Tensor::from_op(y, &[self, weight], move |gradient, gradients| {
            let dx = gradients.target_or_scratch(&x)?;
            let dw = gradients.target_or_scratch(&w)?;
            rms_norm_backward(
                x.context(),
                gradient.buffer(),
                x.buffer(),
                w.buffer(),
                &rstd,
                dx.tensor.buffer(),
                dx.accumulate,
                dw.tensor.buffer(),
                dw.accumulate,
                shape,
            )
        }))
    }
}

fn check(op: &'static str, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, inputs: &'static [DType]) -> Result<()> {
    for other in [Some(weight), bias].into_iter().flatten() {
        if !x.context().same(other.context()) {
            return Err(Error::ContextMismatch { op });
        }
        if other.shape() != [x.columns()]
            || other.dtype() != DType::F32
            || !inputs.contains(&x.dtype())
            || x.shape().is_empty()
        {
            return Err(Error::shape(
                op,
                format!("an input [.., c] of {inputs:?} with f32 parameters [c]"),
                format!("{:?} of {} with {:?} of {}", x.shape(), x.dtype(), other.shape(), other.dtype()),
            ));
        }
    }
    Ok(())
}
