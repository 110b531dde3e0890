//! walsh's own container: safetensors that hold every format.
//!
//! A quantized tensor `name` is `name.codes` and `name.side`, the words of a [`PackedMatrix`], and `name.order` where its columns are permuted. The
//! metadata key [`KEY`] holds formats, shapes and original types as JSON, with the version of this layout.

use super::safetensors::{Dimensions, Header, Part};
use super::source::{Problem, Source, Span, in_tensor, shown};
use super::tensor::{Dtype, PackedTensor, check_scales, elements, rows_and_cols, word_bytes, words};
use super::{Claims, Content, Entry, Item, ItemContent, Packed, Parts};
use crate::format::{Format, Grid, Header as Side, Layout, PackedMatrix};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// The metadata key.
pub const KEY: &str = "walsh.quantized";
/// The version that is written and read.
const VERSION: u32 = 1;

/// Whether the container can hold `format` in tensors of this shape; the reason if not.
///
/// # Errors
/// The reason.
pub fn supports(format: &Format, shape: &[usize]) -> Result<(), String> {
    let (rows, cols) = rows_and_cols(shape);
    Layout::new(format, rows, cols).map(|_| ()).map_err(|e| e.to_string())
}

#[derive(serde::Deserialize)]
struct Metadata {
    version: u32,
    tensors: Tensors,
}

#[derive(serde::Deserialize)]
struct Described {
    format: Format,
    shape: Dimensions,
    dtype: String,
}

struct Tensors(Vec<(String, Described)>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Tensors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of quantized tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Tensors, M::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let described = map.next_value().map_err(|e| in_tensor(&name, e))?;
                    tensors.push((name, described));
                }
                Ok(Tensors(tensors))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The metadata of a file with these tensors.
pub(super) fn metadata(items: &[Item]) -> (String, String) {
    let tensors: serde_json::Map<_, _> = items
        .iter()
        .filter_map(|item| match item.content {
            ItemContent::Packed { format, dtype, .. } => Some((
                item.name.clone(),
                serde_json::json!({ "format": format.to_string(), "shape": item.shape, "dtype": dtype.name() }),
            )),
            ItemContent::Plain(_) => None,
        })
        .collect();
    (KEY.to_owned(), serde_json::json!({ "version": VERSION, "tensors": tensors }).to_string())
}

pub(super) fn parts(name: &str, shape: &[usize], format: &Format, permuted: bool) -> Result<Vec<Part>, String> {
    let (rows, cols) = rows_and_cols(shape);
    let layout = Layout::new(format, rows, cols).map_err(|e| e.to_string())?;
    let mut parts = vec![
        Part::new(format!("{name}.codes"), Dtype::U32, &[layout.code_words]),
        Part::new(format!("{name}.side"), Dtype::U32, &[layout.side_words]),
    ];
    if permuted {
        parts.push(Part::new(format!("{name}.order"), Dtype::U32, &[cols]));
    }
    Ok(parts)
}

/// Whether a reader takes a tensor for the order of the columns of one of the quantized tensors `packed`.
pub(super) fn is_order(name: &str, packed: &HashSet<&str>) -> bool {
    name.strip_suffix(".order").is_some_and(|name| packed.contains(name))
}

pub(super) fn encode(tensor: &PackedTensor) -> Vec<Vec<u8>> {
    let words = [Some(tensor.matrix.codes()), Some(tensor.matrix.side()), tensor.order.as_deref()];
    words.into_iter().flatten().map(word_bytes).collect()
}

pub(super) fn find(json: &str, header: &Header, claims: &mut Claims<'_>) -> Result<Vec<Entry>, Problem> {
    let metadata: Metadata =
        serde_json::from_str(json).map_err(|e| Problem::new(format!("formats under the metadata key {KEY}"), e))?;
    if metadata.version != VERSION {
        return Err(Problem::new(format!("version {VERSION} of walsh's quantized tensors"), metadata.version));
    }
    let mut entries = Vec::new();
    for (name, described) in metadata.tensors.0 {
        let entry = entry(name.clone(), described, header, claims).map_err(|problem| problem.of(&name))?;
        entries.push(entry);
    }
    Ok(entries)
}

/// Refuses codes that no description belongs to, in whatever file they are: without it nobody knows what they stand for.
pub(super) fn check_rest(claims: &Claims<'_>) -> Result<(), Problem> {
    match lost_description(claims) {
        Some(name) => Err(Problem::new(format!("a description under the metadata key {KEY}"), "none").of(name)),
        None => Ok(()),
    }
}

/// A tensor of which nobody has claimed codes and side.
pub(super) fn lost_description<'h>(claims: &Claims<'h>) -> Option<&'h str> {
    let header = claims.header;
    let free = |number: usize| {
        let stored = &header.tensors[number];
        !claims.used[number] && stored.dtype == Dtype::U32 && stored.shape.len() == 1
    };
    header.tensors.iter().enumerate().find_map(|(number, stored)| {
        let name = stored.name.strip_suffix(".codes").filter(|_| free(number))?;
        header.find(&format!("{name}.side")).is_some_and(free).then_some(name)
    })
}

fn entry(name: String, described: Described, header: &Header, claims: &mut Claims<'_>) -> Result<Entry, Problem> {
    let (format, shape) = (described.format, described.shape.0);
    if elements(&shape).is_none_or(|n| n == 0) {
        return Err(Problem::new("a shape of some elements", format!("{shape:?}")));
    }
    let dtype = Dtype::parse(&described.dtype)
        .ok_or_else(|| Problem::new("the type before quantization", shown(&described.dtype)))?;
    let (rows, cols) = rows_and_cols(&shape);
    let layout = Layout::new(&format, rows, cols)?;
    let codes = claims.take(&format!("{name}.codes"), Dtype::U32, &[layout.code_words])?;
    let side = claims.take(&format!("{name}.side"), Dtype::U32, &[layout.side_words])?;
    let order = format!("{name}.order");
    let order = header.find(&order).map(|_| claims.take(&order, Dtype::U32, &[cols])).transpose()?;
    let parts = Parts::Walsh { codes, side, order };
    Ok(Entry { name, shape, content: Content::Packed(Box::new(Packed { format, dtype, matrix: [rows, cols], parts })) })
}

pub(super) fn read(source: &dyn Source, packed: &Packed, [codes, side]: [Span; 2]) -> Result<PackedMatrix, Problem> {
    let [rows, cols] = packed.matrix;
    let read = |span: Span| span.read(source).map(|bytes| words(&bytes).collect::<Vec<u32>>());
    let mut matrix = PackedMatrix::from_words(packed.format, rows, cols, read(codes)?, read(side)?)?;
    if let Grid::ZeroPoint { bits } = packed.format.grid() {
        let groups = matrix.layout().groups;
        let zero = (0..rows * groups).map(|i| matrix.zero(i / groups, i % groups)).find(|zero| zero >> bits != 0);
        if let Some(zero) = zero {
            return Err(Problem::new(format!("zero points of {bits} bits"), zero));
        }
    }
    // Constants of the format and the factor of all scales are what shaders rely on.
    let constants = packed.format.header();
    let table = Side::Table as usize;
    if matrix.side()[table..table + 16] != constants[table..] {
        return Err(Problem::new(format!("the values of {}", packed.format), "others"));
    }
    if !(matrix.header(Side::Factor).is_finite() && matrix.header(Side::Offset).is_finite()) {
        return Err(Problem::new("a finite scale of the tensor", matrix.header(Side::Factor)));
    }
    check_scales(&matrix)?;
    matrix.set_norm();
    Ok(matrix)
}

/// The order of columns: each exactly once.
pub(super) fn read_order(source: &dyn Source, span: Span) -> Result<Vec<u32>, Problem> {
    let order: Vec<u32> = words(&span.read(source)?).collect();
    let mut seen = vec![false; order.len()];
    for col in &order {
        match seen.get_mut(*col as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Problem::new("each column once in the order of columns", format!("column {col}"))),
        }
    }
    Ok(order)
}
