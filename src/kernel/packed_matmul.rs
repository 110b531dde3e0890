//! Matrix products with quantized operands: codes are decoded where a kernel reads them, never into memory.

use super::matmul::{Epilogue, Form};
use super::packed::Packed;
use crate::buffer::Buffer;

/// The left operand.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// f32 or f16, row-major.
    Dense(&'a Buffer),
    /// Quantized along its rows; with [`Form::Nt`] only.
    Packed(&'a Packed),
}

/// A product with a quantized right operand.
///
/// | form | `a` | `b` | use |
/// |---|---|---|---|
/// | `Nt` | `[m, k]` | `[n, k]` | forward, `x W^T` |
/// | `Nn` | `[m, k]` | `[k, n]` | input gradient, `dY W` |
/// | `Tn` | `[k, m]` | `[k, n]` | weight gradient, `dY^T X` |
///
/// `b` is quantized along its rows as listed, so along `k` in the first form and along `n` in the others.
#[derive(Clone, Copy, Debug)]
pub struct PackedMatmul<'a> {
    /// How the operands are stored.
    pub form: Form,
    /// Rows of `out`.
    pub m: usize,
    /// Columns of `out`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Left operand.
    pub a: Operand<'a>,
    /// Right operand.
    pub b: &'a Packed,
    /// The result `[m, n]`, f32 or, where a dense `a` is f16 or `a` is quantized, f16.
    pub out: &'a Buffer,
    /// Factor on the product.
    pub alpha: f32,
    /// Added to each row, f32 `[n]`; with [`Form::Nt`] only.
    pub bias: Option<&'a Buffer>,
    /// What follows, as in [`super::matmul::matmul`].
    pub epilogue: Epilogue<'a>,
    /// Add to what `out` holds.
    pub accumulate: bool,
}
