//! GGUF version 3, little-endian: the files of ggml and llama.cpp.
//!
//! A header, typed metadata, the tensors' names, dimensions (innermost first) and types, then their aligned bytes. Of ggml's quantized types walsh
//! reads and writes Q4_0, Q8_0, TQ2_0, MXFP4 and NVFP4; others are recognised and refused by name. Blocks run along rows:
//!
//! | type | values | bytes | content |
//! |---|---|---|---|
//! | Q4_0 | 32 | 18 | f16 `d`; byte j holds code j low and code j + 16 high; `(q - 8) d` |
//! | Q8_0 | 32 | 34 | f16 `d`; 32 signed bytes; `q d` |
//! | TQ2_0 | 256 | 66 | twice 32 bytes, whose bits 2l and 2l + 1 hold code 32 l + j of 128; f16 `d`; `(q - 1) d` |
//! | MXFP4 | 32 | 17 | E8M0 scale; byte j holds E2M1 code j low and code j + 16 high |
//! | NVFP4 | 64 | 36 | four E4M3 scales without sign; per 16 values 8 bytes with E2M1 code j low and j + 8 high |
//!
//! An NVFP4 tensor `X.weight` may have a scale of the whole tensor: the F32 tensor `X.scale` of one element, as llama.cpp's loader names it.
//! Another tensor of that name is one like all; one that would be taken for the scale is not written.

use super::source::{Problem, Source, Span, shown};
use super::tensor::{Dtype, PackedTensor, check_scales, elements, rows_and_cols};
use super::{Content, Entry, Item, ItemContent, Packed, Parts};
use crate::format::{Format, Grid, Header as Side, Minifloat, PackedMatrix, Span as Sharing, Store, Ties};

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Where tensors start unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;
/// ggml's `GGML_MAX_NAME`, with the byte that ends a name.
const MAX_NAME: usize = 64;
/// How deep arrays may lie in arrays.
const MAX_DEPTH: u32 = 4;

/// A block of values with its scales, as ggml's files have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// 4-bit integers.
    Q4_0,
    /// 8-bit integers.
    Q8_0,
    /// Ternary.
    Tq2_0,
    /// E2M1 with E8M0 scales.
    Mxfp4,
    /// E2M1 with E4M3 scales.
    Nvfp4,
}

impl Entry {
    /// Where a tensor of this container lies; none for types of unknown size.
    fn span(&self) -> Option<Span> {
        match &self.content {
            Content::Plain { span, .. } => Some(*span),
            Content::Packed(packed) => match packed.parts {
                Parts::Gguf { data, .. } => Some(data),
                _ => None,
            },
            Content::Foreign(_, span) => *span,
        }
    }
}

impl Block {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Q4_0, Self::Q8_0, Self::Tq2_0, Self::Mxfp4, Self::Nvfp4];

    /// ggml's number and name, values and bytes.
    const fn layout(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Tq2_0 => (35, "TQ2_0", 256, 66),
            Self::Mxfp4 => (39, "MXFP4", 32, 17),
            Self::Nvfp4 => (40, "NVFP4", 64, 36),
        }
    }

    /// The format that ggml's encoder makes.
    const fn encoding(self) -> Format {
        const fn integers(bits: u32, group: u32) -> Format {
            let format = Format::int(bits).scaled(Sharing::Group(group), Store::F16);
            Format { exact: true, ties: Ties::Away, ..format }
        }
        match self {
            Self::Q4_0 => Format::GGML_INT4,
            Self::Q8_0 => integers(8, 32),
            Self::Tq2_0 => integers(2, 256),
            Self::Mxfp4 => Format { ties: Ties::Zero, ..Format::MXFP4 },
            Self::Nvfp4 => Format { store: Store::Ue4m3, ties: Ties::Zero, ..Format::NVFP4 },
        }
    }

    /// The one that holds a format.
    fn of(format: &Format) -> Result<Self, String> {
        let e2m1 = format.grid() == Grid::Float(Minifloat::E2M1);
        match (format.grid(), format.store(), format.span()) {
            (Grid::Int { bits: 4, .. }, Store::F16, Sharing::Group(32)) => Ok(Self::Q4_0),
            (Grid::Int { bits: 8, .. }, Store::F16, Sharing::Group(32)) => Ok(Self::Q8_0),
            (Grid::Int { bits: 2, full: false }, Store::F16, Sharing::Group(256)) => Ok(Self::Tq2_0),
            (_, Store::E8M0(_), _) if e2m1 => Ok(Self::Mxfp4),
            (_, Store::E4M3 | Store::Ue4m3, _) if e2m1 => Ok(Self::Nvfp4),
            (Grid::Centred { .. }, ..) => {
                Err("its integers have a zero, and this grid's levels are half-integers".into())
            }
            (Grid::ZeroPoint { .. }, ..) => Err("the types that walsh writes have no zero points".into()),
            (Grid::Int { bits: bits @ (2 | 4 | 8), .. }, ..) => {
                let group = if bits == 2 { 256 } else { 32 };
                Err(format!("its {bits}-bit integers have an f16 scale per group of {group}"))
            }
            _ => Err("it has Q4_0, Q8_0, TQ2_0 (int2), MXFP4 and NVFP4 blocks".into()),
        }
    }
}

/// ggml's types that are no blocks of codes.
const PLAIN: [(u32, Dtype); 8] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::BF16),
];

/// ggml's types that walsh does not read, with values and bytes per block; no values where that is not known: by the number of Q2_0 there are
/// files with 64 values to 18 bytes and others with 128 to 34.
const FOREIGN: [(u32, &str, usize, usize); 26] = [
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (29, "IQ1_M", 256, 56),
    (31, "Q4_0_4_4", 32, 18),
    (32, "Q4_0_4_8", 32, 18),
    (33, "Q4_0_8_8", 32, 18),
    (34, "TQ1_0", 256, 54),
    (36, "IQ4_NL_4_4", 32, 18),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 0, 0),
];

/// Whether the container can hold `format` in tensors of this shape; the reason if not.
///
/// # Errors
/// The reason.
pub fn supports(format: &Format, shape: &[usize]) -> Result<(), String> {
    let (_, name, values, _) = Block::of(format)?.layout();
    match shape {
        [.., cols] if !cols.is_multiple_of(values) => {
            Err(format!("rows of {cols} are no multiple of {name}'s block of {values}"))
        }
        [] => Err("its quantized tensors have rows".into()),
        _ if shape.len() > 4 => Err("its tensors have at most four dimensions".into()),
        _ => Ok(()),
    }
}

/// The formats that ggml's encoders make, by name.
pub(super) fn encodings() -> impl Iterator<Item = (&'static str, Format)> {
    let names = |block| match block {
        Block::Q4_0 => &["int4"][..],
        Block::Q8_0 => &["int8"],
        Block::Tq2_0 => &["int2", "ternary"],
        Block::Mxfp4 => &["mxfp4"],
        Block::Nvfp4 => &["nvfp4"],
    };
    Block::ALL.into_iter().flat_map(move |block| names(block).iter().map(move |name| (*name, block.encoding())))
}

/// An entry of the metadata: its value is kept as the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// Its key.
    pub key: String,
    /// The number of its type.
    pub kind: u32,
    /// Its bytes; for an array the type of the elements, their number, and the elements.
    pub bytes: Vec<u8>,
}

impl KeyValue {
    /// An unsigned number.
    #[must_use]
    pub fn from_u32(key: &str, value: u32) -> Self {
        Self { key: key.to_owned(), kind: 4, bytes: value.to_le_bytes().to_vec() }
    }

    /// A text.
    #[must_use]
    pub fn from_text(key: &str, value: &str) -> Self {
        let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
        bytes.extend(value.bytes());
        Self { key: key.to_owned(), kind: 8, bytes }
    }

    /// A number with a fraction.
    #[must_use]
    pub fn from_f32(key: &str, value: f32) -> Self {
        Self { key: key.to_owned(), kind: 6, bytes: value.to_le_bytes().to_vec() }
    }

    /// Texts.
    #[must_use]
    pub fn from_texts<'t>(key: &str, values: impl ExactSizeIterator<Item = &'t str>) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            bytes.extend((value.len() as u64).to_le_bytes());
            bytes.extend(value.bytes());
        }
        Self { key: key.to_owned(), kind: 9, bytes }
    }

    /// Signed numbers.
    #[must_use]
    pub fn from_i32s(key: &str, values: &[i32]) -> Self {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        Self { key: key.to_owned(), kind: 9, bytes }
    }

    /// The value, if it is a text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes.get(8..).filter(|_| self.kind == 8)?).ok()
    }

    /// The value, if it is a u32.
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        (self.kind == 4).then(|| self.bytes.as_slice().try_into().map(u32::from_le_bytes).ok()).flatten()
    }

    /// The value for people: arrays by their length only.
    #[must_use]
    pub fn describe(&self) -> String {
        fn number<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.first_chunk().copied().unwrap_or([0; N])
        }
        let b = self.bytes.as_slice();
        match self.kind {
            0 => number::<1>(b)[0].to_string(),
            1 => i8::from_le_bytes(number(b)).to_string(),
            2 => u16::from_le_bytes(number(b)).to_string(),
            3 => i16::from_le_bytes(number(b)).to_string(),
            4 => u32::from_le_bytes(number(b)).to_string(),
            5 => i32::from_le_bytes(number(b)).to_string(),
            6 => f32::from_le_bytes(number(b)).to_string(),
            7 => (number::<1>(b)[0] != 0).to_string(),
            8 => String::from_utf8_lossy(b.get(8..).unwrap_or_default()).into_owned(),
            9 => format!("array of {}", u64::from_le_bytes(number(b.get(4..).unwrap_or_default()))),
            10 => u64::from_le_bytes(number(b)).to_string(),
            11 => i64::from_le_bytes(number(b)).to_string(),
            _ => f64::from_le_bytes(number(b)).to_string(),
        }
    }
}

/// Bytes of a value of fixed size.
const fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Reads a header from front to back through a small buffer.
struct Cursor<'s> {
    source: &'s dyn Source,
    at: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl<'s> Cursor<'s> {
    fn new(source: &'s dyn Source) -> Self {
        Self { source, at: 0, buffer: Vec::new(), buffer_at: 0 }
    }

    fn rest(&self) -> u64 {
        self.source.size() - self.at
    }

    fn need(&self, bytes: u64) -> Result<(), Problem> {
        if bytes > self.rest() {
            return Err(Problem::new(
                format!("{bytes} bytes of the header at {}", self.at),
                format!("the file's end at {}", self.source.size()),
            ));
        }
        Ok(())
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, Problem> {
        self.need(count)?;
        let bytes = Span { offset: self.at, bytes: count }.read(self.source)?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        self.need(N as u64)?;
        let held = |cursor: &Self| {
            let start = usize::try_from(cursor.at.checked_sub(cursor.buffer_at)?).ok()?;
            cursor.buffer.get(start..)?.first_chunk().copied()
        };
        let found = match held(self) {
            Some(found) => found,
            None => {
                self.buffer_at = self.at;
                self.buffer.resize(usize::try_from(self.rest().min(4096)).unwrap_or(4096), 0);
                self.source.read_at(self.at, &mut self.buffer)?;
                held(self).ok_or_else(|| Problem::new("a header", "the file's end"))?
            }
        };
        self.at += N as u64;
        Ok(found)
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self) -> Result<String, Problem> {
        let length = self.u64()?;
        let bytes = self.bytes(length)?;
        let name = String::from_utf8(bytes).map_err(|_| Problem::new("names in UTF-8", "other bytes"))?;
        if name.is_empty() { Err(Problem::new("names", "an empty one")) } else { Ok(name) }
    }

    /// Steps over a value.
    fn skip(&mut self, kind: u32, depth: u32) -> Result<(), Problem> {
        let step = match (kind, size(kind)) {
            (_, Some(size)) => size,
            (8, _) => self.u64()?,
            (9, _) if depth < MAX_DEPTH => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if let Some(size) = size(kind) {
                    count.saturating_mul(size)
                } else {
                    // Each string or array has a length of its own.
                    self.need(count.saturating_mul(8))?;
                    for _ in 0..count {
                        self.skip(kind, depth + 1)?;
                    }
                    0
                }
            }
            _ => return Err(Problem::new("a type of metadata", format!("number {kind}"))),
        };
        self.need(step)?;
        self.at += step;
        Ok(())
    }

    fn key_value(&mut self) -> Result<KeyValue, Problem> {
        let (key, kind) = (self.name()?, self.u32()?);
        let start = self.at;
        self.skip(kind, 0)?;
        let bytes = Span { offset: start, bytes: self.at - start }.read(self.source)?;
        Ok(KeyValue { key, kind, bytes })
    }
}

struct Info {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

fn info(cursor: &mut Cursor<'_>) -> Result<Info, Problem> {
    let name = cursor.name()?;
    let dimensions = cursor.u32()?;
    if !(1..=4).contains(&dimensions) {
        return Err(Problem::new("one to four dimensions", dimensions).of(&name));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        let n = cursor.u64()?;
        shape.push(usize::try_from(n).map_err(|_| Problem::new("a dimension that fits memory", n).of(&name))?);
    }
    shape.reverse();
    Ok(Info { name, shape, kind: cursor.u32()?, offset: cursor.u64()? })
}

/// As many elements as the header says, where the rest of the file has room for them.
fn list<T>(
    cursor: &mut Cursor<'_>,
    what: &str,
    count: u64,
    least: u64,
    read: impl Fn(&mut Cursor<'_>) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    if count > cursor.rest() / least {
        return Err(Problem::new(
            format!("at most {} {what} in what is left of the file", cursor.rest() / least),
            count,
        ));
    }
    let mut all = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    for _ in 0..count {
        all.push(read(cursor)?);
    }
    Ok(all)
}

/// Refuses two of the same name.
fn unique<T>(all: &[T], name: impl Fn(&T) -> &str) -> Result<(), Problem> {
    let mut names: Vec<&str> = all.iter().map(name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Problem::new("unique names", format!("two of `{}`", shown(pair[0])))),
        None => Ok(()),
    }
}

/// Whether a file starts as a GGUF file does.
pub(super) fn recognises(source: &dyn Source) -> bool {
    let mut magic = [0; 4];
    source.size() >= 4 && source.read_at(0, &mut magic).is_ok() && &magic == MAGIC
}

/// Reads a file's header.
pub(super) fn find(source: &dyn Source) -> Result<(Vec<Entry>, Vec<KeyValue>), Problem> {
    let mut cursor = Cursor::new(source);
    cursor.array::<4>()?;
    let version = cursor.u32()?;
    if version != VERSION {
        let got = if version.swap_bytes() == VERSION { "a big-endian file".to_owned() } else { version.to_string() };
        return Err(Problem::new(format!("version {VERSION} of GGUF"), got));
    }
    let (tensors, entries) = (cursor.u64()?, cursor.u64()?);
    let metadata = list(&mut cursor, "entries of metadata", entries, 14, |cursor| cursor.key_value())?;
    unique(&metadata, |entry| &entry.key)?;
    let infos = list(&mut cursor, "tensors", tensors, 33, info)?;
    unique(&infos, |info| &info.name)?;
    let alignment = match metadata.iter().find(|entry| entry.key == "general.alignment") {
        None => ALIGNMENT,
        Some(entry) => match entry.as_u32() {
            Some(n) if n.is_power_of_two() && n <= 1 << 20 => u64::from(n),
            _ => return Err(Problem::new("a power of two as general.alignment", entry.describe())),
        },
    };
    let data = cursor.at.next_multiple_of(alignment);
    let mut found = Vec::with_capacity(infos.len());
    for info in infos {
        let name = info.name.clone();
        found.push(entry(info, data, alignment, source.size()).map_err(|problem| problem.of(&name))?);
    }
    let mut places: Vec<(Span, &str)> = found.iter().filter_map(|e| Some((e.span()?, e.name.as_str()))).collect();
    places.sort_unstable_by_key(|(span, _)| (span.offset, span.bytes));
    for pair in places.windows(2) {
        if pair[0].0.end().is_none_or(|end| end > pair[1].0.offset) {
            return Err(Problem::new("bytes of its own", format!("those of `{}`", shown(pair[0].1))).of(pair[1].1));
        }
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    factors(&mut found);
    Ok((found, metadata))
}

fn entry(info: Info, data: u64, alignment: u64, size: u64) -> Result<Entry, Problem> {
    let Info { name, shape, kind, offset } = info;
    if !offset.is_multiple_of(alignment) {
        return Err(Problem::new(format!("an offset that is a multiple of {alignment}"), offset));
    }
    let offset = data.saturating_add(offset);
    let uncountable = || Problem::new("a shape whose bytes can be counted", format!("{shape:?}"));
    let count = elements(&shape).ok_or_else(uncountable)?;
    let block = Block::ALL.into_iter().find(|block| block.layout().0 == kind);
    let plain = PLAIN.into_iter().find(|(number, _)| *number == kind).map(|(_, dtype)| dtype);
    let foreign = FOREIGN.into_iter().find(|(number, ..)| *number == kind);
    let bytes = match (block.map(Block::layout).or(foreign), plain) {
        // Of unknown size.
        (Some((_, kind, 0, _)), _) => return Ok(Entry { name, shape, content: Content::Foreign(kind, None) }),
        (Some((_, name, values, bytes)), _) => {
            if count == 0 || !shape.last().is_some_and(|cols| cols.is_multiple_of(values)) {
                return Err(Problem::new(format!("rows of a multiple of {values} for {name}"), format!("{shape:?}")));
            }
            (count / values).checked_mul(bytes)
        }
        (_, Some(dtype)) => count.checked_mul(dtype.bytes() as usize),
        (None, None) => return Err(Problem::new("one of ggml's types", format!("number {kind}"))),
    };
    let span = Span { offset, bytes: bytes.ok_or_else(uncountable)? as u64 };
    if span.end().is_none_or(|end| end > size) {
        return Err(Problem::new(format!("{} bytes at {offset}", span.bytes), format!("the file's end at {size}")));
    }
    let content = match (block, plain) {
        (Some(block), _) => {
            let (rows, cols) = rows_and_cols(&shape);
            let parts = Parts::Gguf { block, data: span, factor: None };
            let format = block.encoding();
            Content::Packed(Box::new(Packed { format, dtype: Dtype::F32, matrix: [rows, cols], parts }))
        }
        (_, Some(dtype)) => Content::Plain { dtype, span },
        (None, None) => Content::Foreign(foreign.map_or("", |(_, kind, ..)| kind), Some(span)),
    };
    Ok(Entry { name, shape, content })
}

/// The name of the tensor that holds the scale of a whole NVFP4 tensor.
fn factor_name(name: &str) -> Option<String> {
    name.strip_suffix(".weight").map(|layer| format!("{layer}.scale"))
}

/// Whether a tensor of that name is such a scale. Any other is a tensor like all.
fn is_factor(dtype: Dtype, shape: &[usize]) -> bool {
    dtype == Dtype::F32 && elements(shape) == Some(1)
}

/// Gives NVFP4 tensors the scale that stands beside them.
fn factors(entries: &mut Vec<Entry>) {
    let mut taken = Vec::new();
    for number in 0..entries.len() {
        let Content::Packed(packed) = &entries[number].content else { continue };
        let Parts::Gguf { block: Block::Nvfp4, data, .. } = packed.parts else { continue };
        let Some(name) = factor_name(&entries[number].name) else { continue };
        let Ok(beside) = entries.binary_search_by(|entry| entry.name.cmp(&name)) else { continue };
        let Content::Plain { dtype, span } = entries[beside].content else { continue };
        if !is_factor(dtype, &entries[beside].shape) {
            continue;
        }
        let format = Format { ties: Ties::Zero, ..Format::NVFP4 };
        let parts = Parts::Gguf { block: Block::Nvfp4, data, factor: Some(span) };
        let packed = Packed { format, parts, dtype: packed.dtype, matrix: packed.matrix };
        entries[number].content = Content::Packed(Box::new(packed));
        taken.push(beside);
    }
    taken.sort_unstable();
    let mut number = 0;
    entries.retain(|_| {
        number += 1;
        taken.binary_search(&(number - 1)).is_err()
    });
}

pub(super) fn read(
    source: &dyn Source,
    packed: &Packed,
    block: Block,
    data: Span,
    factor: Option<Span>,
) -> Result<PackedMatrix, Problem> {
    let [rows, cols] = packed.matrix;
    let mut matrix = PackedMatrix::zeros(packed.format, rows, cols)?;
    if let Some(span) = factor {
        let bytes = span.read(source)?;
        let value = f32::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default());
        if !(value.is_finite() && value > 0.0) {
            return Err(Problem::new("a positive scale of the tensor", value));
        }
        matrix.set_header(Side::Factor, value);
    }
    let (_, _, values, bytes) = block.layout();
    let data = data.read(source)?;
    let mut codes = vec![0; cols];
    for (row, blocks) in data.chunks(cols / values * bytes).enumerate() {
        for (number, (bytes, codes)) in blocks.chunks(bytes).zip(codes.chunks_mut(values)).enumerate() {
            let mut scale = |i: usize, bits: u32| {
                matrix.set_scale_bits(row, number * (values / packed.format.group(cols)) + i, bits)
            };
            match block {
                Block::Q4_0 => {
                    scale(0, u16::from_le_bytes([bytes[0], bytes[1]]).into());
                    halves(&bytes[2..], codes);
                }
                Block::Q8_0 => {
                    scale(0, u16::from_le_bytes([bytes[0], bytes[1]]).into());
                    for (code, byte) in codes.iter_mut().zip(&bytes[2..]) {
                        *code = byte ^ 0x80;
                    }
                }
                Block::Tq2_0 => {
                    scale(0, u16::from_le_bytes([bytes[64], bytes[65]]).into());
                    for (i, code) in codes.iter_mut().enumerate() {
                        let (half, line, j) = (i / 128, i / 32 % 4, i % 32);
                        *code = (bytes[half * 32 + j] >> (2 * line) & 3) + 1;
                        if *code == 4 {
                            return Err(Problem::new(format!("ternary codes (row {row})"), "3"));
                        }
                    }
                }
                Block::Mxfp4 => {
                    scale(0, bytes[0].into());
                    halves(&bytes[1..], codes);
                }
                Block::Nvfp4 => {
                    for (i, codes) in codes.chunks_mut(16).enumerate() {
                        // ggml reads the code that is NaN elsewhere as zero.
                        match bytes[i] {
                            0x80.. => return Err(Problem::new(format!("scales without a sign (row {row})"), bytes[i])),
                            0x7F => scale(i, 0),
                            bits => scale(i, bits.into()),
                        }
                        halves(&bytes[4 + 8 * i..12 + 8 * i], codes);
                    }
                }
            }
        }
        matrix.set_row_codes(row, &codes);
    }
    check_scales(&matrix)?;
    matrix.set_norm();
    Ok(matrix)
}

/// Codes of bytes that hold those of the first half low and those of the second half high.
fn halves(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(codes.len() / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// The inverse of [`halves`].
fn join(codes: &[u8]) -> impl Iterator<Item = u8> {
    let (low, high) = codes.split_at(codes.len() / 2);
    low.iter().zip(high).map(|(low, high)| low | high << 4)
}

/// The bytes of a tensor's blocks, and its scale as another tensor.
pub(super) fn encode(tensor: &PackedTensor) -> Result<Vec<Vec<u8>>, String> {
    let matrix = &tensor.matrix;
    let (format, layout) = (matrix.format(), matrix.layout());
    let block = Block::of(&format)?;
    let (_, _, values, bytes) = block.layout();
    let mut out = Vec::with_capacity(layout.rows * (layout.cols / values) * bytes);
    let mut codes = vec![0; layout.cols];
    for row in 0..layout.rows {
        matrix.row_codes(row, &mut codes);
        for (number, codes) in codes.chunks(values).enumerate() {
            let scale = |i: usize| matrix.scale_bits(row, number * (values / layout.group) + i);
            let half = (scale(0) as u16).to_le_bytes();
            match block {
                Block::Q4_0 => {
                    out.extend(half);
                    out.extend(join(codes));
                }
                Block::Q8_0 => {
                    out.extend(half);
                    out.extend(codes.iter().map(|code| code ^ 0x80));
                }
                Block::Tq2_0 => {
                    if codes.contains(&0) {
                        return Err(format!("ternary codes in row {row}, and no -2"));
                    }
                    for codes in codes.chunks(128) {
                        out.extend(
                            (0..32).map(|j| (0..4).fold(0, |byte, l| byte | (codes[32 * l + j] - 1) << (2 * l))),
                        );
                    }
                    out.extend(half);
                }
                Block::Mxfp4 => {
                    out.push(scale(0) as u8);
                    out.extend(join(codes));
                }
                Block::Nvfp4 => {
                    out.extend((0..4).map(|i| scale(i) as u8));
                    out.extend(codes.chunks(16).flat_map(join));
                }
            }
        }
    }
    let factor = (format.store() == Store::E4M3).then(|| matrix.header(Side::Factor).to_le_bytes().to_vec());
    Ok([Some(out), factor].into_iter().flatten().collect())
}

/// Name, shape, type and bytes of what a file holds.
struct Written {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    bytes: u64,
}

fn written(item: &Item) -> Result<Vec<Written>, String> {
    let count = elements(&item.shape).ok_or("a shape whose elements can be counted")? as u64;
    let mut all = Vec::new();
    match item.content {
        ItemContent::Plain(dtype) => {
            let kind = PLAIN.into_iter().find(|(_, d)| *d == dtype).map(|(kind, _)| kind);
            let kind = kind.ok_or_else(|| format!("it has no tensors of {}", dtype.name()))?;
            if item.shape.len() > 4 {
                return Err("its tensors have at most four dimensions".into());
            }
            // A number alone is an array of one.
            let shape = if item.shape.is_empty() { vec![1] } else { item.shape.clone() };
            all.push(Written { name: item.name.clone(), shape, kind, bytes: count.saturating_mul(dtype.bytes()) });
        }
        ItemContent::Packed { format, permuted, .. } => {
            supports(&format, &item.shape)?;
            if permuted {
                return Err("its columns are in their own order".into());
            }
            let (kind, _, values, bytes) = Block::of(&format)?.layout();
            let bytes = (count / values as u64).saturating_mul(bytes as u64);
            all.push(Written { name: item.name.clone(), shape: item.shape.clone(), kind, bytes });
            if format.store() == Store::E4M3 {
                let name = factor_name(&item.name)
                    .ok_or("it has a scale of the whole tensor for `..weight` alone; nvfp4:ue4m3 needs none")?;
                all.push(Written { name, shape: vec![1], kind: 0, bytes: 4 });
            }
        }
    }
    match all.iter().find(|w| w.name.len() >= MAX_NAME || w.name.is_empty()) {
        Some(w) => Err(format!("names have 1 to {} bytes, and `{}` {}", MAX_NAME - 1, shown(&w.name), w.name.len())),
        None => Ok(all),
    }
}

/// A file's header, where the bytes of each part of each item go, and the file's length.
pub(super) type Layout = (Vec<u8>, Vec<Vec<Span>>, u64);

/// The layout of a file of these items. The error is the number of the item that the container cannot hold, and the reason.
pub(super) fn layout(items: &[Item], metadata: &[KeyValue]) -> Result<Layout, (usize, String)> {
    let mut header = MAGIC.to_vec();
    let all = items.iter().enumerate().map(|(number, item)| written(item).map_err(|reason| (number, reason)));
    let all: Vec<Vec<Written>> = all.collect::<Result<_, _>>()?;
    let mut names: Vec<(&str, usize)> = all
        .iter()
        .enumerate()
        .flat_map(|(number, parts)| parts.iter().map(move |w| (w.name.as_str(), number)))
        .collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err((pair[1].1, format!("names are unique, and `{}` is taken", shown(pair[0].0))));
    }
    // Reading would multiply a tensor by it, and lose it. Those with a scale of their own have taken its name above.
    for item in items {
        let ItemContent::Packed { format, .. } = item.content else { continue };
        let Some(name) = factor_name(&item.name).filter(|_| Block::of(&format) == Ok(Block::Nvfp4)) else { continue };
        let Ok(at) = names.binary_search_by(|(other, _)| (*other).cmp(&name)) else { continue };
        let beside = names[at].1;
        if matches!(items[beside].content, ItemContent::Plain(dtype) if is_factor(dtype, &items[beside].shape)) {
            let weight = shown(&item.name);
            return Err((beside, format!("one f32 of this name is the scale of `{weight}`, which is in {format}")));
        }
    }
    let alignment = metadata.iter().find(|e| e.key == "general.alignment").and_then(KeyValue::as_u32);
    let alignment = alignment.map_or(ALIGNMENT, u64::from).max(1);
    header.extend(VERSION.to_le_bytes());
    header.extend((names.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    let text = |header: &mut Vec<u8>, text: &str| {
        header.extend((text.len() as u64).to_le_bytes());
        header.extend(text.bytes());
    };
    for entry in metadata {
        text(&mut header, &entry.key);
        header.extend(entry.kind.to_le_bytes());
        header.extend(&entry.bytes);
    }
    let mut offset = 0u64;
    let mut spans: Vec<Vec<Span>> = Vec::new();
    for parts in &all {
        spans.push(Vec::new());
        for part in parts {
            text(&mut header, &part.name);
            header.extend((part.shape.len() as u32).to_le_bytes());
            part.shape.iter().rev().for_each(|n| header.extend((*n as u64).to_le_bytes()));
            header.extend(part.kind.to_le_bytes());
            header.extend(offset.to_le_bytes());
            if let Some(spans) = spans.last_mut() {
                spans.push(Span { offset, bytes: part.bytes });
            }
            offset = offset.saturating_add(part.bytes).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        }
    }
    header.resize(header.len().next_multiple_of(alignment as usize), 0);
    for span in spans.iter_mut().flatten() {
        span.offset = span.offset.saturating_add(header.len() as u64);
    }
    // The last tensor is padded too: ggml reads whole multiples of the alignment.
    let end = offset.saturating_add(header.len() as u64);
    Ok((header, spans, end))
}

/// The metadata of a file that comes from another container.
pub(super) fn metadata() -> Vec<KeyValue> {
    vec![
        KeyValue::from_text("general.architecture", "walsh"),
        KeyValue::from_u32("general.quantization_version", 2),
        KeyValue::from_u32("general.alignment", ALIGNMENT as u32),
    ]
}
