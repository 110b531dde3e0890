//! gpt-oss' MXFP4 in safetensors: `X_blocks` u8 `[.., rows, K / 32, 16]` and `X_scales` u8 `[.., rows, K / 32]`.
//!
//! A byte holds element 2j in its low four bits and 2j + 1 in the high ones; codes are E2M1, scales E8M0. OpenAI's own files write `.blocks` and
//! `.scales`. The last dimension is the one that products contract; the values are not transposed.

use super::safetensors::{DIMENSIONS, Part};
use super::source::{Problem, Source, Span};
use super::tensor::{Dtype, PackedTensor, check_scales, elements, rows_and_cols};
use super::{Claims, Content, Entry, Packed, Parts};
use crate::format::{Format, Grid, Minifloat, PackedMatrix, Span as Sharing, Store};

/// Elements that share a scale.
const BLOCK: usize = 32;

/// Whether the container can hold `format` in tensors of this shape; the reason if not.
///
/// # Errors
/// The reason.
pub fn supports(format: &Format, shape: &[usize]) -> Result<(), String> {
    let e2m1 = format.grid() == Grid::Float(Minifloat::E2M1);
    if !e2m1 || !matches!(format.store(), Store::E8M0(_)) || format.span() != Sharing::Group(32) {
        return Err("it holds mxfp4 alone".into());
    }
    match shape {
        [.., cols] if !cols.is_multiple_of(BLOCK) => {
            Err(format!("rows of {cols} are no multiple of its block of {BLOCK}"))
        }
        [] | [_] => Err("its tensors have at least two dimensions".into()),
        // Blocks have one more.
        _ if shape.len() >= DIMENSIONS => Err(format!("its tensors have at most {} dimensions", DIMENSIONS - 1)),
        _ => Ok(()),
    }
}

pub(super) fn parts(name: &str, shape: &[usize]) -> Vec<Part> {
    let mut scales = shape.to_vec();
    if let Some(cols) = scales.last_mut() {
        *cols /= BLOCK;
    }
    let blocks: Vec<usize> = scales.iter().copied().chain([BLOCK / 2]).collect();
    vec![
        Part::new(format!("{name}_blocks"), Dtype::U8, &blocks),
        Part::new(format!("{name}_scales"), Dtype::U8, &scales),
    ]
}

pub(super) fn encode(tensor: &PackedTensor) -> Vec<Vec<u8>> {
    let matrix = &tensor.matrix;
    let layout = matrix.layout();
    let (mut blocks, mut scales) = (Vec::new(), Vec::new());
    let mut codes = vec![0; layout.cols];
    for row in 0..layout.rows {
        matrix.row_codes(row, &mut codes);
        blocks.extend(codes.chunks(2).map(|pair| pair[0] | pair[1] << 4));
        scales.extend((0..layout.groups).map(|group| matrix.scale_bits(row, group) as u8));
    }
    vec![blocks, scales]
}

/// The endings of the two names, as they are written and as OpenAI's own files have them.
const ENDINGS: [(&str, &str); 2] = [("_blocks", "_scales"), (".blocks", ".scales")];

/// Whether a tensor belongs to this container.
pub(super) fn recognises(name: &str, dtype: Dtype, shape: &[usize]) -> bool {
    dtype == Dtype::U8 && shape.len() >= 3 && ENDINGS.iter().any(|(blocks, _)| name.ends_with(blocks))
}

pub(super) fn find(claims: &mut Claims<'_>) -> Result<Vec<Entry>, Problem> {
    let mut entries = Vec::new();
    for (number, stored) in claims.header.tensors.iter().enumerate() {
        if !recognises(&stored.name, stored.dtype, &stored.shape) {
            continue;
        }
        claims.used[number] = true;
        for (blocks, scales) in ENDINGS {
            if let Some(name) = stored.name.strip_suffix(blocks) {
                let entry = entry(name, &stored.shape, stored.span, &format!("{name}{scales}"), claims);
                entries.push(entry.map_err(|problem| problem.of(&stored.name))?);
            }
        }
    }
    Ok(entries)
}

fn entry(name: &str, blocks: &[usize], codes: Span, scales: &str, claims: &mut Claims<'_>) -> Result<Entry, Problem> {
    let Some((&16, scales_shape)) = blocks.split_last() else {
        return Err(Problem::new("blocks of 16 bytes as the last dimension", format!("{blocks:?}")));
    };
    let scales = claims.take(scales, Dtype::U8, scales_shape)?;
    let mut shape = scales_shape.to_vec();
    if let Some(cols) = shape.last_mut() {
        *cols = cols.saturating_mul(BLOCK);
    }
    if elements(&shape).is_none_or(|n| n == 0) {
        return Err(Problem::new("a shape of some elements", format!("{blocks:?}")));
    }
    let (rows, cols) = rows_and_cols(&shape);
    let format: Format = "mxfp4".parse()?;
    let parts = Parts::GptOss { blocks: codes, scales };
    let packed = Packed { format, dtype: Dtype::BF16, matrix: [rows, cols], parts };
    Ok(Entry { name: name.to_owned(), shape, content: Content::Packed(Box::new(packed)) })
}

pub(super) fn read(source: &dyn Source, packed: &Packed, [blocks, scales]: [Span; 2]) -> Result<PackedMatrix, Problem> {
    let [rows, cols] = packed.matrix;
    let mut matrix = PackedMatrix::zeros(packed.format, rows, cols)?;
    let bytes = blocks.read(source)?;
    let mut codes = vec![0; cols];
    for (row, bytes) in bytes.chunks(cols / 2).enumerate() {
        for (pair, byte) in codes.chunks_mut(2).zip(bytes) {
            pair.copy_from_slice(&[byte & 15, byte >> 4]);
        }
        matrix.set_row_codes(row, &codes);
    }
    drop(bytes);
    let groups = matrix.layout().groups;
    for (number, bits) in scales.read(source)?.into_iter().enumerate() {
        matrix.set_scale_bits(number / groups, number % groups, bits.into());
    }
    check_scales(&matrix)?;
    matrix.set_norm();
    Ok(matrix)
}
