//! What encoders are given and what they make of it, beside [`crate::format::PackedMatrix::quantize`], which defines scales and codes.

use super::hadamard::hadamard;
use crate::Result;
use crate::format::{Format, PackedMatrix, Rounding};

/// What happens to a matrix before its scales are chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn<'a> {
    /// Columns become rows.
    pub transposed: bool,
    /// Factors of the columns (of the transposed matrix).
    pub signs: Option<&'a [f64]>,
    /// Block of the orthonormal transform of the columns, which comes after the signs.
    pub block: Option<usize>,
}

/// The matrix `[rows, cols]` that is encoded for `x`, which is `[rows, cols]` or, where it is transposed, `[cols, rows]`.
#[must_use]
pub fn turned(x: &[f64], [rows, cols]: [usize; 2], turn: Turn<'_>) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for row in 0..rows {
        for col in 0..cols {
            let value = if turn.transposed { x[col * rows + row] } else { x[row * cols + col] };
            out.push(value * turn.signs.map_or(1.0, |signs| signs[col]));
        }
    }
    turn.block.map_or_else(|| out.clone(), |block| hadamard(&out, block, false))
}

/// The largest magnitude among the 16 rows and 16 columns around each element.
#[must_use]
pub fn squares(x: &[f64], [rows, cols]: [usize; 2]) -> Vec<f64> {
    let largest = |row: usize, col: usize| {
        let (top, left) = (row / 16 * 16, col / 16 * 16);
        let lines = (top..(top + 16).min(rows)).flat_map(|r| (left..(left + 16).min(cols)).map(move |c| (r, c)));
        lines.fold(0.0f64, |m, (r, c)| m.max(x[r * cols + c].abs()))
    };
    (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))).map(|(row, col)| largest(row, col)).collect()
}

/// Codes of `factor * x` by the scales of `x`, `[rows, cols]`, or, with `square`, by those that squares of 16 x 16 share.
///
/// # Errors
/// As [`PackedMatrix::quantize`].
pub fn quantized(
    format: Format,
    x: &[f64],
    [rows, cols]: [usize; 2],
    factor: f64,
    square: bool,
    rounding: Rounding,
) -> Result<PackedMatrix> {
    let narrow = |x: &[f64]| x.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let by = if square { squares(x, [rows, cols]) } else { x.to_vec() };
    let mut matrix = PackedMatrix::quantize(format, &narrow(&by), rows, cols, Rounding::Nearest)?;
    let scaled: Vec<f64> = x.iter().map(|v| v * factor).collect();
    matrix.encode(&narrow(&scaled), rounding);
    Ok(matrix)
}
