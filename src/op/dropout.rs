//! Inverted dropout.

use super::shape::float;
use crate::kernel::dropout::dropout;
use crate::nn::Dropout;
use crate::{Result, Tensor};

impl Tensor {
    /// Sets elements to 0 with the probability of `mask` and divides the others by one minus it. The mask depends on the seed, the place, the
    /// optimizer's step and the micro-batch; the backward pass makes it again instead of keeping it.
    ///
    /// # Shapes
    /// Any, f32 or f16; the result is like `self`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for other types; [`crate::Error::Invalid`] for a probability outside [0, 1).
    ///
    /// # Source
    /// Srivastava et al., "Dropout", 2014, section 10.
    pub fn dropout(&self, mask: &Dropout) -> Result<Tensor> {
        float("dropout", self)?;
        let mask = mask.clone();
        let masked = move |x: &Tensor| {
            let out = Tensor::empty(x.context(), x.shape(), x.dtype())?;
            dropout(x.context(), x.buffer(), None, out.buffer(), mask.kernel())?;
            Ok::<_, crate::Error>(out)
        };
        let x = self.clone();
        Ok(Tensor::from_op(masked(self)?, &[self], move |gradient, gradients| gradients.add(&x, masked(&gradient)?)))
    }
}
