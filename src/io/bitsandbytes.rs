//! bitsandbytes' 4-bit tensors in safetensors: NF4 and FP4 with a scale per block of the flattened tensor, double-quantized or not.
//!
//! Source: `QuantState` of bitsandbytes 0.45. `P` holds two codes to a byte, the even element in the high four bits; `P.absmax`, `P.quant_map`
//! and, nested, `P.nested_absmax` and `P.nested_quant_map` the scales; `P.quant_state.bitsandbytes__nf4` (or `__fp4`) the rest as JSON.

use super::safetensors::{Dimensions, Part, Stored};
use super::source::{Problem, Source, Span, shown};
use super::tensor::{Dtype, PackedTensor, check_scales, elements, rows_and_cols, words};
use super::{Claims, Content, Entry, Packed, Parts};
use crate::format::{Format, Grid, Header as Side, PackedMatrix, Span as Sharing, Store};

/// Before the type's name, in the name of the tensor that holds the JSON.
const STATE: &str = ".quant_state.bitsandbytes__";
/// Scales that share a scale.
const NESTED: usize = 256;
/// Bytes for the JSON: its length is fixed before the offset of the scales is known, and spaces fill it.
const STATE_BYTES: usize = 512;

/// Whether the container can hold `format` in tensors of this shape; the reason if not.
///
/// # Errors
/// The reason.
pub fn supports(format: &Format, _shape: &[usize]) -> Result<(), String> {
    if !matches!(format.grid(), Grid::Nf4 | Grid::Fp4) {
        return Err("its codes are entries of NF4's or FP4's table".into());
    }
    if !matches!(format.span(), Sharing::Group(32..=4096)) {
        return Err("its blocks have 32 to 4096 elements".into());
    }
    match format.store() {
        Store::F32 | Store::Double => Ok(()),
        _ => Err("its scales are f32 or double-quantized (dq)".into()),
    }
}

/// Blocks run over the flattened tensor. Where they would cross rows, the matrix is one row.
pub(super) fn matrix_shape(format: &Format, shape: &[usize]) -> (usize, usize) {
    let (rows, cols) = rows_and_cols(shape);
    if cols.is_multiple_of(format.group(cols)) && matches!(format.span(), Sharing::Group(_)) {
        (rows, cols)
    } else {
        (1, rows.saturating_mul(cols))
    }
}

fn quant_type(format: &Format) -> &'static str {
    if format.grid() == Grid::Nf4 { "nf4" } else { "fp4" }
}

pub(super) fn parts(name: &str, shape: &[usize], format: &Format) -> Vec<Part> {
    let (rows, cols) = matrix_shape(format, shape);
    let count = rows.saturating_mul(cols);
    let blocks = count.div_ceil(format.group(cols));
    let mut parts = vec![
        Part::new(name, Dtype::U8, &[count.div_ceil(2), 1]),
        Part::new(format!("{name}{STATE}{}", quant_type(format)), Dtype::U8, &[STATE_BYTES]),
        Part::new(format!("{name}.quant_map"), Dtype::F32, &[16]),
    ];
    if format.store() == Store::Double {
        parts.extend([
            Part::new(format!("{name}.absmax"), Dtype::U8, &[blocks]),
            Part::new(format!("{name}.nested_absmax"), Dtype::F32, &[blocks.div_ceil(NESTED)]),
            Part::new(format!("{name}.nested_quant_map"), Dtype::F32, &[256]),
        ]);
    } else {
        parts.push(Part::new(format!("{name}.absmax"), Dtype::F32, &[blocks]));
    }
    parts
}

pub(super) fn encode(tensor: &PackedTensor) -> Result<Vec<Vec<u8>>, String> {
    let matrix = &tensor.matrix;
    let (format, layout) = (matrix.format(), matrix.layout());
    let mut codes = vec![0; layout.rows * layout.cols];
    for (row, codes) in codes.chunks_mut(layout.cols).enumerate() {
        matrix.row_codes(row, codes);
    }
    let bytes: Vec<u8> = codes.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0)).collect();
    let nested = format.store() == Store::Double;
    let mut state = serde_json::json!({
        "quant_type": quant_type(&format),
        "blocksize": layout.group,
        "dtype": tensor.dtype.torch(),
        "shape": tensor.shape,
    });
    if nested {
        state["nested_blocksize"] = NESTED.into();
        state["nested_dtype"] = "float32".into();
        state["nested_offset"] = f64::from(matrix.header(Side::Offset)).into();
    }
    let mut state = state.to_string().into_bytes();
    if state.len() > STATE_BYTES {
        return Err(format!("a shape whose description takes at most {STATE_BYTES} bytes"));
    }
    state.resize(STATE_BYTES, b' ');
    let floats = |words: &mut dyn Iterator<Item = u32>| words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let map = floats(&mut format.table().iter().map(|v| v.to_bits()));
    let places: Vec<(usize, usize)> =
        (0..layout.rows).flat_map(|row| (0..layout.groups).map(move |group| (row, group))).collect();
    let mut out = vec![bytes, state, map];
    if nested {
        out.push(places.iter().map(|(row, group)| matrix.scale_bits(*row, *group) as u8).collect());
        let scales = places.iter().step_by(NESTED).map(|(row, group)| matrix.nested(*row, *group).to_bits());
        out.push(floats(&mut { scales }));
        out.push(floats(&mut matrix.map().iter().copied()));
    } else {
        out.push(floats(&mut places.iter().map(|(row, group)| matrix.scale_bits(*row, *group))));
    }
    Ok(out)
}

#[derive(serde::Deserialize)]
struct State {
    quant_type: String,
    blocksize: u32,
    dtype: String,
    shape: Dimensions,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// Whether a name belongs to this container and to no other.
pub(super) fn recognises(name: &str) -> bool {
    name.contains(STATE) || name.ends_with(".quant_map")
}

/// The endings of the tensors that belong to a quantized one, beside [`STATE`].
const ENDINGS: [&str; 4] = [".quant_map", ".absmax", ".nested_absmax", ".nested_quant_map"];

/// Whether a reader of this container takes a tensor for a part of a quantized one; it refuses those that belong to none.
pub(super) fn is_part(name: &str) -> bool {
    name.contains(STATE) || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

pub(super) fn find(source: &dyn Source, claims: &mut Claims<'_>) -> Result<Vec<Entry>, Problem> {
    let mut entries = Vec::new();
    for (number, stored) in claims.header.tensors.iter().enumerate() {
        let Some((name, _)) = stored.name.split_once(STATE) else { continue };
        claims.used[number] = true;
        entries.push(entry(name, stored, source, claims).map_err(|problem| problem.of(name))?);
    }
    let orphan = |suffix: &str| Problem::new(format!("`{STATE}..` beside `{suffix}`"), "no such tensor");
    for (stored, used) in claims.header.tensors.iter().zip(&claims.used) {
        for suffix in ENDINGS {
            if let (Some(name), false) = (stored.name.strip_suffix(suffix), used) {
                return Err(orphan(suffix).of(name));
            }
        }
    }
    Ok(entries)
}

fn entry(name: &str, stored: &Stored, source: &dyn Source, claims: &mut Claims<'_>) -> Result<Entry, Problem> {
    if stored.dtype != Dtype::U8 || stored.shape.len() != 1 {
        let got = format!("{} {:?}", stored.dtype.name(), stored.shape);
        return Err(Problem::new(format!("U8 of one dimension as `{}`", shown(&stored.name)), got));
    }
    let state_bytes = stored.span.bytes;
    let state: State = serde_json::from_slice(&stored.span.read(source)?)
        .map_err(|e| Problem::new("a quantization state as JSON", e))?;
    let base: Format = match state.quant_type.as_str() {
        kind @ ("nf4" | "fp4") => kind.parse()?,
        other => return Err(Problem::new("quant_type nf4 or fp4", shown(other))),
    };
    if !(32..=4096).contains(&state.blocksize) || !state.blocksize.is_power_of_two() {
        return Err(Problem::new("a blocksize of 32, 64, .. 4096", state.blocksize));
    }
    let dtype = Dtype::from_torch(&state.dtype)
        .ok_or_else(|| Problem::new("dtype float32, float16 or bfloat16", shown(&state.dtype)))?;
    let shape = state.shape.0;
    let count = elements(&shape)
        .filter(|n| *n > 0)
        .ok_or_else(|| Problem::new("a shape of some elements", format!("{shape:?}")))?;
    let nested = state.nested_blocksize.is_some();
    let store = if nested { Store::Double } else { Store::F32 };
    let format = Format { span: Sharing::Group(state.blocksize), store, exact: nested, ..base };
    let blocks = count.div_ceil(state.blocksize as usize);
    let codes = claims.take_any_shape(name, Dtype::U8, count.div_ceil(2))?;
    let map = claims.take(&format!("{name}.quant_map"), Dtype::F32, &[16])?.read(source)?;
    if !words(&map).zip(format.table()).all(|(bits, level)| f32::from_bits(bits) == *level) {
        return Err(Problem::new(format!("the values of {} as quant_map", state.quant_type), "others"));
    }
    let absmax = claims.take(&format!("{name}.absmax"), if nested { Dtype::U8 } else { Dtype::F32 }, &[blocks])?;
    let nested = match state.nested_blocksize {
        None => None,
        Some(NESTED) => Some((
            claims.take(&format!("{name}.nested_absmax"), Dtype::F32, &[blocks.div_ceil(NESTED)])?,
            claims.take(&format!("{name}.nested_quant_map"), Dtype::F32, &[256])?,
            state.nested_offset.ok_or_else(|| Problem::new("a nested_offset", "none"))? as f32,
        )),
        Some(other) => return Err(Problem::new(format!("a nested_blocksize of {NESTED}"), other)),
    };
    let (rows, cols) = matrix_shape(&format, &shape);
    let described = state_bytes + map.len() as u64;
    let parts = Parts::Bitsandbytes { codes, absmax, nested, described };
    let packed = Packed { format, dtype, matrix: [rows, cols], parts };
    Ok(Entry { name: name.to_owned(), shape, content: Content::Packed(Box::new(packed)) })
}

pub(super) fn read(
    source: &dyn Source,
    packed: &Packed,
    [codes, absmax]: [Span; 2],
    nested: Option<(Span, Span, f32)>,
) -> Result<PackedMatrix, Problem> {
    let [rows, cols] = packed.matrix;
    let mut matrix = PackedMatrix::zeros(packed.format, rows, cols)?;
    let bytes = codes.read(source)?;
    let mut codes = vec![0; cols];
    for row in 0..rows {
        for (col, code) in codes.iter_mut().enumerate() {
            let element = row * cols + col;
            *code = bytes[element / 2] >> (4 * (1 - element % 2)) & 15;
        }
        matrix.set_row_codes(row, &codes);
    }
    drop(bytes);
    let groups = matrix.layout().groups;
    let scales = absmax.read(source)?;
    if let Some((absmax, map, offset)) = nested {
        matrix.set_header(Side::Offset, offset);
        let mut values = [0.0; 256];
        for (value, bits) in values.iter_mut().zip(words(&map.read(source)?)) {
            *value = f32::from_bits(bits);
        }
        matrix.set_map(&values);
        for (block, bits) in words(&absmax.read(source)?).enumerate() {
            let first = block * NESTED;
            matrix.set_nested(first / groups, first % groups, f32::from_bits(bits));
        }
        for (number, code) in scales.into_iter().enumerate() {
            matrix.set_scale_bits(number / groups, number % groups, code.into());
        }
    } else {
        for (number, bits) in words(&scales).enumerate() {
            matrix.set_scale_bits(number / groups, number % groups, bits);
        }
    }
    check_scales(&matrix)?;
    matrix.set_norm();
    Ok(matrix)
}
