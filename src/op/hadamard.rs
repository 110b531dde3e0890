//! The Walsh-Hadamard transform.

use super::shape::float;
use crate::kernel::hadamard::{Hadamard, Signs, hadamard};
use crate::{Result, Tensor};

/// Variants of [`Tensor::hadamard`].
#[derive(Clone, Debug, Default)]
pub struct HadamardOptions {
    /// Multiply by the transposed matrix, which is the inverse, and put the signs after it instead of before.
    pub transpose: bool,
    /// Random signs of the columns.
    pub signs: Option<Signs>,
}

impl Tensor {
    /// Multiplies every block of `n` neighbouring elements by an orthonormal Hadamard matrix, with random signs d where there are any:
    /// `(x . d) H`, or transposed `(x H^T) . d`, which undoes it. Products along the last dimension stay the same if both operands are
    /// transformed.
    ///
    /// # Shapes
    /// `self` `[.., c]`, f32 or f16, and n divides c; the result is like `self`. The sizes are those of [`crate::kernel::hadamard::sizes`].
    ///
    /// # Errors
    /// As [`crate::kernel::hadamard::hadamard`].
    ///
    /// # Numerics
    /// As [`crate::kernel::hadamard::hadamard`].
    ///
    /// # Source
    /// Fino and Algazi, "Unified matrix treatment of the fast Walsh-Hadamard transform", 1976. The gradient is the transposed transform.
    pub fn hadamard(&self, n: usize, options: &HadamardOptions) -> Result<Tensor> {
        float("hadamard", self)?;
        let HadamardOptions { transpose, signs } = options.clone();
        let transform = move |x: &Tensor, out: &Tensor, transpose, accumulate| {
            let task =
                Hadamard { transpose, signs: signs.as_ref(), accumulate, ..Hadamard::new(x.rows(), x.columns(), n) };
            hadamard(x.context(), &task, Some(x.buffer()), out.buffer())
        };
        let out = Tensor::empty(self.context(), self.shape(), self.dtype())?;
        transform(self, &out, transpose, false)?;
        let x = self.clone();
        Ok(Tensor::from_op(out, &[self], move |gradient, gradients| {
            let Some(target) = gradients.target(&x)? else { return Ok(()) };
            transform(&gradient, &target.tensor, !transpose, target.accumulate)
        }))
    }
}
