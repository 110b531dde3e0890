//! Quantized weights, in every format by its name.

use super::{Case, Prepared, Size, Work, numbers, packed_bytes, prepared, zeros};
use crate::format::{Format, PackedMatrix, Rounding};
use crate::kernel::dequantize::dequantize;
use crate::kernel::packed::Packed;
use crate::{Context, Result};

pub fn cases(size: Size) -> Vec<Case> {
    let shape = [4 * size.width, size.width];
    Format::named().map(|(_, format)| decode(format, shape)).collect()
}

fn decode(format: Format, [rows, cols]: [usize; 2]) -> Case {
    let work = Work::bytes(packed_bytes(format, [rows, cols]) + 4 * rows * cols);
    let prepare = move |context: &Context| prepare_decode(context, format, [rows, cols]);
    Case::new("dequantize", [rows, cols, 0], work, prepare).format(format.to_string())
}

fn prepare_decode(context: &Context, format: Format, [rows, cols]: [usize; 2]) -> Result<Prepared> {
    let weights = PackedMatrix::quantize(format, &numbers(rows * cols), rows, cols, Rounding::Nearest)?;
    let (weights, out, c) = (Packed::from_host(context, &weights)?, zeros(context, rows * cols)?, context.clone());
    prepared(&[&out.clone()], move || dequantize(&c, &weights, out.buffer()))
}
