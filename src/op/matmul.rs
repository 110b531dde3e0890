//! Matrix products, one or many.

use super::shape::alike;
use crate::kernel::matmul::{Dims, Epilogue, Form, Matmul, matmul};
use crate::{Buffer, Error, Result, Tensor};

impl Tensor {
    /// The matrix product `self other`, for each matrix of a batch.
    ///
    /// # Shapes
    /// `self` `[.., m, k]`, `other` `[.., k, n]` with the same leading sizes, or `[k, n]` for all; f32 or f16, one type. The result is
    /// `[.., m, n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes or types do not fit; [`Error::ContextMismatch`]; [`Error::Limit`] for more than 65535 matrices.
    ///
    /// # Numerics
    /// Summed in f32.
    ///
    /// # Source
    /// dA = dC B^T, dB = A^T dC.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        product(self, other, false)
    }

    /// The matrix product `self other^T`, for each matrix of a batch.
    ///
    /// # Shapes
    /// `self` `[.., m, k]`, `other` `[.., n, k]` with the same leading sizes, or `[n, k]` for all; f32 or f16, one type. The result is
    /// `[.., m, n]`.
    ///
    /// # Errors
    /// As [`Tensor::matmul`].
    ///
    /// # Numerics
    /// Summed in f32.
    ///
    /// # Source
    /// dA = dC B, dB = dC^T A.
    pub fn matmul_transposed(&self, other: &Tensor) -> Result<Tensor> {
        product(self, other, true)
    }
}

fn product(a: &Tensor, b: &Tensor, transposed: bool) -> Result<Tensor> {
    const OP: &str = "matmul";
    alike(OP, a, b)?;
    let fail = || {
        let right = if transposed { "[.., n, k]" } else { "[.., k, n]" };
        let expected = format!("[.., m, k] and {right}, the right one perhaps without leading sizes");
        Err(Error::shape(OP, expected, format!("{:?} and {:?}", a.shape(), b.shape())))
    };
    let ([outer @ .., rows, k], [b_outer @ .., first, second]) = (a.shape(), b.shape()) else { return fail() };
    let (b_k, n) = if transposed { (second, first) } else { (first, second) };
    let shared = b_outer.is_empty();
    if b_k != k || !(shared || b_outer == outer) {
        return fail();
    }
    // With one right operand for all, the batch is just more rows.
    let count: usize = outer.iter().product();
    let (batch, m, k, n) = if shared { (1, count * rows, *k, *n) } else { (count, *rows, *k, *n) };
    let run = move |form: Form, [m, n, k]: [usize; 3], a: &Buffer, b: &Buffer, out: &Tensor, accumulate: bool| {
        let dims = Dims { m, n, k, batch, stride: (m * k, k * n) };
        let (alpha, bias, epilogue, buffer) = (1.0, None, Epilogue::None, out.buffer());
        matmul(out.context(), &Matmul { form, dims, a, b, out: buffer, alpha, bias, epilogue, accumulate })
    };
    let out = Tensor::empty(a.context(), &[outer, &[*rows, n]].concat(), a.dtype())?;
    run(if transposed { Form::Nt } else { Form::Nn }, [m, n, k], a.buffer(), b.buffer(), &out, false)?;
    let (left, right) = (a.clone(), b.clone());
    Ok(Tensor::from_op(out, &[a, b], move |gradient, gradients| {
        let (a, b, g) = (left.buffer(), right.buffer(), gradient.buffer());
        if let Some(target) = gradients.target(&left)? {
            let form = if transposed { Form::Nn } else { Form::Nt };
            run(form, [m, k, n], g, b, &target.tensor, target.accumulate)?;
        }
        if let Some(target) = gradients.target(&right)? {
            let (sizes, x, y) = if transposed { ([n, k, m], g, a) } else { ([k, n, m], a, g) };
            run(Form::Tn, sizes, x, y, &target.tensor, target.accumulate)?;
        }
        Ok(())
    }))
}
