//! AWQ's GEMM layout in safetensors.
//!
//! For a layer `P` whose weight is `[N, K]`: `P.qweight` i32 `[K, N / 8]`, eight rows of the weight to a word in the order 0 2 4 6 1 3 5 7, lowest
//! bits first; `P.qzeros` i32 `[groups, N / 8]` in the same order, as they are; `P.scales` f16 `[groups, N]`.

use super::Packed;
use super::gptq::{layer, layer_format, read_scales, with_zeros, zero};
use super::safetensors::Part;
use super::source::{Problem, Source, Span};
use super::tensor::{Dtype, PackedTensor, word_bytes, words};
use crate::format::{Format, PackedMatrix};

/// Where in a word the code of each of eight rows is: the inverse of the order 0 2 4 6 1 3 5 7.
const PLACE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Whether the container can hold `format` in tensors of this shape; the reason if not.
///
/// # Errors
/// The reason.
pub fn supports(format: &Format, shape: &[usize]) -> Result<(), String> {
    layer_format(format)?;
    if format.bits() != 4 {
        return Err("its codes have 4 bits".into());
    }
    let &[rows, cols] = shape else { return Err("its tensors have two dimensions".into()) };
    if !rows.is_multiple_of(8) {
        return Err(format!("{rows} rows are no multiple of the 8 that it packs together"));
    }
    if !cols.is_multiple_of(format.group(cols)) {
        return Err(format!("{cols} columns are no multiple of the group of {}", format.group(cols)));
    }
    Ok(())
}

pub(super) fn parts(name: &str, shape: &[usize], format: &Format) -> Result<Vec<Part>, String> {
    let layer = layer(name)?;
    let &[rows, cols] = shape else { return Err("its tensors have two dimensions".into()) };
    let groups = cols.div_ceil(format.group(cols));
    Ok(vec![
        Part::new(format!("{layer}.qweight"), Dtype::I32, &[cols, rows / 8]),
        Part::new(format!("{layer}.qzeros"), Dtype::I32, &[groups, rows / 8]),
        Part::new(format!("{layer}.scales"), Dtype::F16, &[groups, rows]),
    ])
}

pub(super) fn encode(tensor: &PackedTensor) -> Result<Vec<Vec<u8>>, String> {
    let matrix = &tensor.matrix;
    let layout = matrix.layout();
    let (rows, cols, groups) = (layout.rows, layout.cols, layout.groups);
    let width = rows / 8;
    let mut qweight = vec![0u32; cols * width];
    let mut qzeros = vec![0u32; groups * width];
    let mut scales = vec![0u16; groups * rows];
    let mut codes = vec![0; cols];
    for row in 0..rows {
        let (word, shift) = (row / 8, 4 * PLACE[row % 8]);
        matrix.row_codes(row, &mut codes);
        for (col, code) in codes.iter().enumerate() {
            qweight[col * width + word] |= u32::from(*code) << shift;
        }
        for group in 0..groups {
            qzeros[group * width + word] |= zero(matrix, row, group)? << shift;
            scales[group * rows + row] = matrix.scale_bits(row, group) as u16;
        }
    }
    let scales = scales.into_iter().flat_map(u16::to_le_bytes).collect();
    Ok(vec![word_bytes(&qweight), word_bytes(&qzeros), scales])
}

pub(super) fn read(
    source: &dyn Source,
    packed: &Packed,
    [codes, zeros, scales]: [Span; 3],
) -> Result<PackedMatrix, Problem> {
    let [rows, cols] = packed.matrix;
    let width = rows / 8;
    let zeros: Vec<u32> = words(&zeros.read(source)?).collect();
    let get = |words: &[u32], line: usize, row: usize| words[line * width + row / 8] >> (4 * PLACE[row % 8]) & 15;
    let mut matrix = with_zeros(packed, |row, group| get(&zeros, group, row))?;
    let words: Vec<u32> = words(&codes.read(source)?).collect();
    let mut row_codes = vec![0; cols];
    for row in 0..rows {
        for (col, code) in row_codes.iter_mut().enumerate() {
            *code = get(&words, col, row) as u8;
        }
        matrix.set_row_codes(row, &row_codes);
    }
    read_scales(source, scales, &mut matrix)?;
    Ok(matrix)
}
