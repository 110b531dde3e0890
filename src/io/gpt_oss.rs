//! gpt-oss' MXFP4 in safetensors: `X_blocks` u8 `[.., rows, K / 32, 16]` and `X_scales` u8 `[.., rows, K / 32]`.
//!
//! A byte holds element 2j in its low four bits and 2j + 1 in the high ones; codes are E2M1, scales E8M0. OpenAI's own files write `.blocks` and
//! `.scales`. The last dimension is the one that products contract; the values are not transposed.

use super::safetensors::{DIMENSIONS, Header, Part, Stored};
use super::source::{Problem, Source, Span, shown};
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

/// The tensor that these are the blocks of, and the name of its scales. The type of one of the two must say that it is gpt-oss': codes of three or
/// more dimensions, or bytes as scales. Whatever the other one is then, it is checked, and not taken for a tensor of its own.
fn blocks_of<'h>(stored: &'h Stored, header: &Header) -> Option<(&'h str, String)> {
    ENDINGS.iter().find_map(|(blocks, scales)| {
        let name = stored.name.strip_suffix(blocks)?;
        let scales = format!("{name}{scales}");
        let bytes = |number: usize| header.tensors[number].dtype == Dtype::U8;
        let codes = stored.dtype == Dtype::U8 && stored.shape.len() >= 3;
        (codes || header.find(&scales).is_some_and(bytes)).then_some((name, scales))
    })
}

/// The name of the blocks that scales have lost. A weight beside scales of bytes has a layout of its own: MLX has its MXFP4 in this way.
fn lost_blocks(stored: &Stored, header: &Header) -> Option<String> {
    if stored.dtype != Dtype::U8 || stored.shape.len() < 2 {
        return None;
    }
    let (name, blocks) =
        ENDINGS.iter().find_map(|(blocks, scales)| Some((stored.name.strip_suffix(scales)?, blocks)))?;
    let blocks = format!("{name}{blocks}");
    (header.find(&blocks).is_none() && header.find(&format!("{name}.weight")).is_none()).then_some(blocks)
}

/// Whether a tensor belongs to this container.
pub(super) fn recognises(stored: &Stored, header: &Header) -> bool {
    blocks_of(stored, header).is_some() || lost_blocks(stored, header).is_some()
}

pub(super) fn find(claims: &mut Claims<'_>) -> Result<Vec<Entry>, Problem> {
    let mut entries = Vec::new();
    for (number, stored) in claims.header.tensors.iter().enumerate() {
        if let Some((name, scales)) = blocks_of(stored, claims.header) {
            claims.used[number] = true;
            entries.push(entry(name, stored, &scales, claims).map_err(|problem| problem.of(&stored.name))?);
        } else if let Some(blocks) = lost_blocks(stored, claims.header) {
            let problem = Problem::new(format!("`{}` beside it", shown(&blocks)), "no such tensor");
            return Err(problem.of(&stored.name));
        }
    }
    Ok(entries)
}

fn entry(name: &str, stored: &Stored, scales: &str, claims: &mut Claims<'_>) -> Result<Entry, Problem> {
    let (blocks, codes) = (&stored.shape, stored.span);
    if stored.dtype != Dtype::U8 || blocks.len() < 3 {
        let got = format!("{} {blocks:?}", stored.dtype.name());
        return Err(Problem::new("blocks U8 of three and more dimensions, the last one of 16 bytes", got));
    }
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
