//! Multi-head attention on packed queries, keys and values.

use crate::kernel::attention::{AttentionDims, HEAD_DIMS, attention as forward};
use crate::kernel::attention_backward::{AttentionGrads, attention_backward};
use crate::nn::Dropout;
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// `softmax(q k^T / sqrt(d)) v` per head, causal or not, with dropout of the probabilities.
    ///
    /// # Shapes
    /// `self` `[batch, t, 3 c]`: queries, keys and values side by side, each `heads` heads of `c / heads`; the result is `[batch, t, c]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where `heads` does not divide `c` or types do not fit; [`Error::Unsupported`] for head widths other than
    /// [`crate::kernel::attention::HEAD_DIMS`]; [`Error::Invalid`] for a dropout outside [0, 1); [`Error::Limit`], [`Error::OutOfMemory`].
    ///
    /// # Numerics
    /// The softmax is computed online in f32; nothing of size t x t is stored.
    ///
    /// # Source
    /// Vaswani et al., arXiv 1706.03762; Dao et al., arXiv 2205.14135.
    pub fn attention(&self, heads: usize, causal: bool, dropout: Option<&Dropout>) -> Result<Tensor> {
        let &[batch, seq, width] = self.shape() else {
            return Err(Error::shape("attention", "[batch, t, 3 c]", format!("{:?}", self.shape())));
        };
        let parts = heads.checked_mul(3).filter(|parts| *parts > 0 && width.is_multiple_of(*parts));
        let Some(parts) = parts else {
            return Err(Error::shape(
                "attention",
                format!("a last dimension of three times a multiple of {heads} heads"),
                format!("{width}"),
            ));
        };
        let head_dim = width / parts;
        if !HEAD_DIMS.iter().any(|d| *d as usize == head_dim) {
            return Err(Error::Unsupported {
                what: format!("attention with heads of width {head_dim}"),
                why: format!("there are kernels for {HEAD_DIMS:?}"),
            });
        }
        let context = self.context();
        let dims = AttentionDims { batch, seq, heads, head_dim, causal };
        let out = Tensor::empty(context, &[batch, seq, width / 3], self.dtype())?;
        let lse = context.alloc(dims.rows(), DType::F32)?;
        forward(context, self.buffer(), out.buffer(), &lse, dims, dropout.map(Dropout::kernel))?;
        let (qkv, saved, dropout) = (self.clone(), out.clone(), dropout.cloned());
        Ok(Tensor::from_op(out, &[self], move |gradient, gradients| {
            let context = qkv.context();
            // The kernel sets the gradient of the three parts; there is never one to add to in a transformer.
            let dqkv = Tensor::empty(context, qkv.shape(), qkv.dtype())?;
            let buffers = AttentionGrads {
                qkv: qkv.buffer(),
                out: saved.buffer(),
                dout: gradient.buffer(),
                lse: &lse,
                dqkv: dqkv.buffer(),
            };
            attention_backward(context, buffers, dims, dropout.as_ref().map(Dropout::kernel))?;
            gradients.add(&qkv, dqkv)
        }))
    }
}
