//! Rotary position embedding of packed queries, keys and values.

use super::shape::float;
use crate::kernel::rope::{Lane, Rope, RopePairs, rope};
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// Turns pairs of elements of queries and keys by their position times a frequency; values stay.
    ///
    /// # Shapes
    /// `self` `[batch, t, 3 c]`, f32 or f16: queries, keys and values side by side, each `heads` heads of d = c / heads, a multiple of 8.
    /// `frequencies` `[d / 2]` f32, radians per position, see [`crate::kernel::rope::frequencies`]. The result is like `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::ContextMismatch`].
    ///
    /// # Source
    /// Su et al., arXiv 2104.09864, equation 34; the gradient turns backwards.
    pub fn rope(&self, heads: usize, frequencies: &Tensor, pairs: RopePairs) -> Result<Tensor> {
        const OP: &str = "rope";
        if !self.context().same(frequencies.context()) {
            return Err(Error::ContextMismatch { op: OP });
        }
        float(OP, self)?;
        let head_dim = 2 * frequencies.len();
        let &[batch, seq, width] = self.shape() else {
            return Err(Error::shape(OP, "[batch, t, 3 c]", format!("{:?}", self.shape())));
        };
        let expected = heads.checked_mul(3).and_then(|parts| parts.checked_mul(head_dim));
        if heads == 0 || expected != Some(width) || frequencies.dtype() != DType::F32 {
            return Err(Error::shape(
                OP,
                format!("three times {heads} heads of {head_dim}, twice the number of f32 frequencies"),
                format!("{width} and frequencies of {}", frequencies.dtype()),
            ));
        }
        let frequencies = frequencies.detach();
        let turn = move |x: &Tensor, inverse: bool| {
            let context = x.context();
            let out = Tensor::empty(context, x.shape(), x.dtype())?;
            context.copy(x.buffer(), out.buffer())?;
            let rows = batch * seq;
            let (heads, frequencies, position_offset) = (2 * heads, frequencies.buffer(), None);
            // Of a sequence without tokens nothing is turned, but the kernel wants a length.
            let seq = seq.max(1);
            let task = Rope { rows, seq, heads, head_dim, pairs, inverse, frequencies, position_offset };
            rope(context, task, None, out.buffer(), Lane { stride: width, offset: 0 })?;
            Ok::<_, Error>(out)
        };
        let x = self.clone();
        Ok(Tensor::from_op(turn(self, false)?, &[self], move |gradient, gradients| {
            gradients.add(&x, turn(&gradient, true)?)
        }))
    }
}
