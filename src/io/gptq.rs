//! GPTQ in safetensors, as AutoGPTQ and its successors write it, and the configuration that it shares with AWQ.
//!
//! For a layer `P` whose weight is `[N, K]`: `P.qweight` i32 `[K * bits / 32, N]`, codes of a column packed along K, lowest bits first;
//! `P.qzeros` i32 `[groups, N * bits / 32]`, zero points along N, less one in version 1; `P.scales` f16 `[groups, N]`; `P.g_idx` i32 `[K]`, the group
//! of each row. Where quantization went through columns in another order (act-order), groups are not contiguous: the matrix that is read has
//! its columns sorted by group, and says which they were.

use super::safetensors::{Header, Part};
use super::source::{Problem, Source, Span, shown};
use super::tensor::{Dtype, PackedTensor, check_scales, halves, word_bytes, words};
use super::{Claims, Content, Entry, Packed, Parts};
use crate::format::{Format, Grid, PackedMatrix, Rule, Span as Sharing, Store, Ties};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// Whether the container can hold `format` in tensors of this shape; the reason if not.
///
/// # Errors
/// The reason.
pub fn supports(format: &Format, shape: &[usize]) -> Result<(), String> {
    let bits = format.bits() as usize;
    layer_format(format)?;
    if !matches!(bits, 2 | 3 | 4 | 8) {
        return Err("its codes have 2, 3, 4 or 8 bits".into());
    }
    let [rows, cols] = shape else { return Err("its tensors have two dimensions".into()) };
    let unit = if bits == 3 { 32 } else { 32 / bits };
    if !rows.is_multiple_of(unit) || !cols.is_multiple_of(unit) {
        return Err(format!(
            "{rows} rows and {cols} columns are no multiples of the {unit} codes that it packs together"
        ));
    }
    Ok(())
}

/// What GPTQ and AWQ have in common.
pub(super) fn layer_format(format: &Format) -> Result<(), String> {
    match format.grid() {
        Grid::Int { .. } | Grid::ZeroPoint { .. } => {}
        Grid::Centred { .. } => return Err("its zero points are integers, and this grid's levels half-integers".into()),
        _ => return Err("its codes are integers".into()),
    }
    if format.store() != Store::F16 {
        return Err("its scales are f16".into());
    }
    if format.span() == Sharing::Tensor {
        return Err("it has a scale per row or group".into());
    }
    Ok(())
}

/// The layer's name. The containers name what belongs to a layer's weight, not the weight.
pub(super) fn layer(name: &str) -> Result<&str, String> {
    name.strip_suffix(".weight")
        .filter(|layer| !layer.is_empty())
        .ok_or("it names layers, so weights must be called `..weight`".into())
}

pub(super) fn parts(name: &str, shape: &[usize], format: &Format) -> Result<Vec<Part>, String> {
    let layer = layer(name)?;
    let &[rows, cols] = shape else { return Err("its tensors have two dimensions".into()) };
    let bits = format.bits() as usize;
    let groups = cols.div_ceil(format.group(cols));
    Ok(vec![
        Part::new(format!("{layer}.qweight"), Dtype::I32, &[cols * bits / 32, rows]),
        Part::new(format!("{layer}.qzeros"), Dtype::I32, &[groups, rows * bits / 32]),
        Part::new(format!("{layer}.scales"), Dtype::F16, &[groups, rows]),
        Part::new(format!("{layer}.g_idx"), Dtype::I32, &[cols]),
    ])
}

/// Zero point of a group, as the container has it: grids around zero have one in the middle.
pub(super) fn zero(matrix: &PackedMatrix, row: usize, group: usize) -> Result<u32, String> {
    let bits = matrix.format().bits();
    match matrix.format().grid() {
        Grid::ZeroPoint { .. } if matrix.zero(row, group) >> bits != 0 => {
            Err(format!("a zero point of {} in row {row}, where {bits} bits are all there is", matrix.zero(row, group)))
        }
        Grid::ZeroPoint { .. } => Ok(matrix.zero(row, group)),
        _ => Ok(1 << (bits - 1)),
    }
}

/// A number of `bits` at place `i` of numbers that are packed without gaps, lowest bits first; `word` reads the words.
fn get(i: usize, bits: usize, word: impl Fn(usize) -> u32) -> u32 {
    let (at, shift) = (i * bits / 32, i * bits % 32);
    let mut value = u64::from(word(at));
    if shift + bits > 32 {
        value |= u64::from(word(at + 1)) << 32;
    }
    (value >> shift) as u32 & ((1 << bits) - 1)
}

/// Its inverse, for words that are zero.
fn put(i: usize, bits: usize, value: u32, mut or: impl FnMut(usize, u32)) {
    let (at, shift) = (i * bits / 32, i * bits % 32);
    let value = u64::from(value) << shift;
    or(at, value as u32);
    if shift + bits > 32 {
        or(at + 1, (value >> 32) as u32);
    }
}

pub(super) fn encode(tensor: &PackedTensor, v2: bool) -> Result<Vec<Vec<u8>>, String> {
    let matrix = &tensor.matrix;
    let layout = matrix.layout();
    let (rows, cols, groups) = (layout.rows, layout.cols, layout.groups);
    let bits = matrix.format().bits() as usize;
    let place = |col: usize| tensor.order.as_ref().map_or(col, |order| order[col] as usize);
    let mut qweight = vec![0u32; cols * bits / 32 * rows];
    let mut qzeros = vec![0u32; groups * (rows * bits / 32)];
    let mut scales = vec![0u16; groups * rows];
    let mut codes = vec![0; cols];
    for row in 0..rows {
        matrix.row_codes(row, &mut codes);
        for (col, code) in codes.iter().enumerate() {
            put(place(col), bits, (*code).into(), |at, value| qweight[at * rows + row] |= value);
        }
        for group in 0..groups {
            let stored = zero(matrix, row, group)?.wrapping_sub(u32::from(!v2)) & ((1 << bits) - 1);
            put(row, bits, stored, |at, value| qzeros[group * (rows * bits / 32) + at] |= value);
            scales[group * rows + row] = matrix.scale_bits(row, group) as u16;
        }
    }
    let mut g_idx = vec![0u32; cols];
    for col in 0..cols {
        g_idx[place(col)] = (col / layout.group) as u32;
    }
    let scales = scales.into_iter().flat_map(u16::to_le_bytes).collect();
    Ok(vec![word_bytes(&qweight), word_bytes(&qzeros), scales, word_bytes(&g_idx)])
}

/// What a model's configuration says of its quantization: `quantize_config.json`, `quant_config.json`, or `quantization_config` in `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    bits: Option<u64>,
    group: Option<i64>,
    symmetric: bool,
    /// `quant_method`, in small letters as are the others.
    method: Option<String>,
    /// What says which layout of the method it is, under which key.
    layouts: [(&'static str, Option<String>); 3],
    /// AutoGPTQ's way to say so, before it had `checkpoint_format`.
    marlin: bool,
    /// The name of its file.
    file: &'static str,
}

/// The model's own configuration, most of which is not about quantization.
pub(super) const MODEL_CONFIG: &str = "config.json";

/// What `quant_method` calls AWQ, or else GPTQ.
const fn method(awq: bool) -> &'static str {
    if awq { "awq" } else { "gptq" }
}

/// The layouts that are read of AWQ, or else of GPTQ, as configurations call them.
const fn layouts(awq: bool) -> &'static [&'static str] {
    if awq { &["gemm"] } else { &["gptq", GPTQ_V2] }
}

const GPTQ_V2: &str = "gptq_v2";

/// The fields that are read; whatever else there is takes no memory.
#[derive(Default, PartialEq)]
struct Settings {
    bits: [Option<u64>; 2],
    group: [Option<i64>; 2],
    symmetric: Option<bool>,
    method: Option<String>,
    checkpoint: Option<String>,
    format: Option<String>,
    version: Option<String>,
    marlin: Option<bool>,
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Settings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of settings")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Settings, M::Error> {
                let mut settings = Settings::default();
                while let Some(key) = map.next_key::<String>()? {
                    let named = |e| M::Error::custom(format!("`{key}`: {e}"));
                    match key.as_str() {
                        "bits" => settings.bits[0] = map.next_value().map_err(named)?,
                        "w_bit" => settings.bits[1] = map.next_value().map_err(named)?,
                        "group_size" => settings.group[0] = map.next_value().map_err(named)?,
                        "q_group_size" => settings.group[1] = map.next_value().map_err(named)?,
                        "sym" => settings.symmetric = map.next_value().map_err(named)?,
                        "quant_method" => settings.method = map.next_value().map_err(named)?,
                        "checkpoint_format" => settings.checkpoint = map.next_value().map_err(named)?,
                        "format" => settings.format = map.next_value().map_err(named)?,
                        "version" => settings.version = map.next_value().map_err(named)?,
                        "is_marlin_format" => settings.marlin = map.next_value().map_err(named)?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(settings)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A configuration whose settings are part of a larger one.
struct Outer(Option<Settings>);

impl<'de> Deserialize<'de> for Outer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Outer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of settings")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Outer, M::Error> {
                let mut settings = None;
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "quantization_config" => settings = map.next_value()?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Outer(settings))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl Config {
    /// From the content of a file of that name; none where it has nothing of it.
    pub fn parse(json: &[u8], file: &'static str) -> Result<Option<Self>, Problem> {
        let malformed = |e| Problem::new("a configuration as JSON", e);
        let settings = match serde_json::from_slice::<Outer>(json).map_err(malformed)?.0 {
            Some(settings) => settings,
            None if file == MODEL_CONFIG => return Ok(None),
            None => serde_json::from_slice(json).map_err(malformed)?,
        };
        if settings == Settings::default() {
            return Ok(None);
        }
        let Settings { bits, group, symmetric, method, checkpoint, format, version, marlin } = settings;
        let config = Self {
            bits: bits[0].or(bits[1]),
            group: group[0].or(group[1]),
            symmetric: symmetric.unwrap_or(false),
            // AutoAWQ's own files have GEMM where those of transformers have gemm.
            method: method.map(|text| text.to_ascii_lowercase()),
            layouts: [("checkpoint_format", checkpoint), ("format", format), ("version", version)]
                .map(|(key, text)| (key, text.map(|text| text.to_ascii_lowercase()))),
            marlin: marlin.unwrap_or(false),
            file,
        };
        Ok(Some(config))
    }

    /// The one for a file of AWQ or of GPTQ among the configurations beside it: the first that names the method, else the first that names none,
    /// else the first.
    pub fn suiting(awq: bool, configs: impl IntoIterator<Item = crate::Result<Self>>) -> crate::Result<Option<Self>> {
        let mut best: Option<Self> = None;
        for config in configs {
            let config = config?;
            if config.method.as_deref() == Some(method(awq)) {
                return Ok(Some(config));
            }
            if best.as_ref().is_none_or(|best| best.method.is_some() && config.method.is_none()) {
                best = Some(config);
            }
        }
        Ok(best)
    }

    /// Refuses a layer whose layout is not that of the method, and layouts that are not known.
    fn check(&self, awq: bool) -> Result<(), Problem> {
        let file = self.file;
        match self.method.as_deref() {
            Some(name) if name == method(!awq) => {
                let expected = format!("the layout of {name}, the quant_method of {file}");
                return Err(Problem::new(expected, format!("that of {}", method(awq))));
            }
            Some(name) if name != method(awq) => {
                return Err(Problem::new(format!("quant_method gptq or awq in {file}"), shown(name)));
            }
            _ => {}
        }
        for (key, layout) in &self.layouts {
            let Some(layout) = layout else { continue };
            // GPTQ's programs have no version of their layout by that key.
            if !layouts(awq).contains(&layout.as_str()) && (awq || *key != "version") {
                let expected = format!("{key} {} of {} in {file}", layouts(awq).join(" or "), method(awq));
                return Err(Problem::new(expected, shown(layout)));
            }
        }
        if self.marlin {
            return Err(Problem::new(format!("is_marlin_format false in {file}"), "true"));
        }
        Ok(())
    }

    /// Whether zero points are stored as they are.
    fn is_v2(&self) -> bool {
        self.layouts.iter().any(|(_, layout)| layout.as_deref() == Some(GPTQ_V2))
    }

    /// The file that goes with a model in `format`, by name and content.
    pub fn write(format: &Format, awq: bool, v2: bool, permuted: bool) -> (&'static str, String) {
        let group = match format.span() {
            Sharing::Group(n) => i64::from(n),
            Sharing::Row | Sharing::Tensor => -1,
        };
        let symmetric = matches!(format.grid(), Grid::Int { .. });
        let (name, value) = if awq {
            let value = serde_json::json!({
                "quant_method": method(awq), "version": layouts(awq)[0], "zero_point": true, "sym": symmetric,
                "w_bit": format.bits(), "q_group_size": group, "bits": format.bits(), "group_size": group,
            });
            ("quant_config.json", value)
        } else {
            let value = serde_json::json!({
                "quant_method": method(awq), "checkpoint_format": layouts(awq)[usize::from(v2)],
                "bits": format.bits(), "group_size": group, "sym": symmetric, "desc_act": permuted,
            });
            ("quantize_config.json", value)
        };
        (name, format!("{value:#}\n"))
    }

    /// How scales are shared along `cols` columns in so many groups.
    pub fn sharing(&self, cols: usize, groups: usize) -> Result<Sharing, Problem> {
        let counted = match self.group {
            Some(-1) => Sharing::Row,
            Some(n) => Sharing::Group(u32::try_from(n).unwrap_or(0)),
            None if groups == 1 => Sharing::Row,
            None => {
                let n = cols.div_ceil(groups.max(1)).next_power_of_two();
                Sharing::Group(u32::try_from(n).unwrap_or(0))
            }
        };
        let count = match counted {
            Sharing::Group(n) if !n.is_power_of_two() || !(16..=1 << 20).contains(&n) => {
                return Err(Problem::new("a group_size of 16, 32, 64, .. or -1", n));
            }
            Sharing::Group(n) => cols.div_ceil(n as usize),
            _ => 1,
        };
        if count == groups {
            Ok(counted)
        } else {
            Err(Problem::new(format!("{count} groups along {cols} columns"), groups))
        }
    }

    /// The format of tensors with so many bits.
    pub fn format(&self, bits: usize, span: Sharing) -> Result<Format, Problem> {
        if self.bits.is_some_and(|b| b != bits as u64) {
            return Err(Problem::new(format!("{} bits, as the configuration says", self.bits.unwrap_or(0)), bits));
        }
        let (grid, rule) = if self.symmetric {
            (Grid::Int { bits: bits as u32, full: true }, Rule::AbsMax)
        } else {
            (Grid::ZeroPoint { bits: bits as u32 }, Rule::MinMax)
        };
        Ok(Format { grid, span, store: Store::F16, rule, ties: Ties::Even, exact: false })
    }
}

/// The format with zero points, for a tensor that has others than a symmetric one would.
pub(super) fn asymmetric(format: Format) -> Format {
    Format { grid: Grid::ZeroPoint { bits: format.bits() }, rule: Rule::MinMax, ..format }
}

/// Whether a name belongs to this container or to AWQ's.
pub(super) fn recognises(name: &str) -> bool {
    name.ends_with(".qweight") || name.ends_with(".qzeros")
}

/// Whether a reader of either container takes a tensor for a part of a layer; it refuses those that belong to none.
pub(super) fn is_part(name: &str) -> bool {
    recognises(name) || name.ends_with(".g_idx")
}

/// Whether it is AWQ's: eight rows of the weight to a word of codes.
pub(super) fn is_awq(header: &Header) -> bool {
    let shape = |name: &str| header.find(name).map(|number| header.tensors[number].shape.as_slice());
    let layers =
        header.tensors.iter().filter_map(|stored| Some((stored.name.strip_suffix(".qweight")?, &stored.shape[..])));
    let mut awq = layers.filter_map(|(layer, codes)| match (codes, shape(&format!("{layer}.scales"))) {
        ([_, width], Some([_, rows])) => Some(packs_rows(*width, *rows)),
        _ => None,
    });
    awq.next().unwrap_or(false)
}

fn packs_rows(width: usize, rows: usize) -> bool {
    width == rows / 8 && rows.is_multiple_of(8)
}

pub(super) fn find(claims: &mut Claims<'_>, config: Option<Config>) -> Result<Vec<Entry>, Problem> {
    let config = config.unwrap_or_default();
    let mut entries = Vec::new();
    for stored in &claims.header.tensors {
        if let Some(layer) = stored.name.strip_suffix(".qweight") {
            let entry = entry(layer, &stored.shape, claims, &config);
            entries.push(entry.map_err(|problem| problem.of(&stored.name))?);
        }
    }
    for (stored, used) in claims.header.tensors.iter().zip(&claims.used) {
        if !used && (stored.name.ends_with(".qzeros") || stored.name.ends_with(".g_idx")) {
            return Err(Problem::new("a `.qweight` beside it", "no such tensor").of(&stored.name));
        }
    }
    Ok(entries)
}

fn entry(layer: &str, qweight: &[usize], claims: &mut Claims<'_>, config: &Config) -> Result<Entry, Problem> {
    let scales_name = format!("{layer}.scales");
    let missing = || Problem::new(format!("`{layer}.scales` [groups, rows]"), "no such tensor");
    let number = claims.header.find(&scales_name).ok_or_else(missing)?;
    let &[groups, rows] = claims.header.tensors[number].shape.as_slice() else {
        return Err(Problem::new("scales of two dimensions", format!("{:?}", claims.header.tensors[number].shape)));
    };
    let scales = claims.take(&scales_name, Dtype::F16, &[groups, rows])?;
    let &[height, width] = qweight else {
        return Err(Problem::new("a qweight of two dimensions", format!("{qweight:?}")));
    };
    if groups == 0 || rows == 0 || height == 0 {
        return Err(Problem::new("some rows, columns and groups", format!("{height} x {width} and {groups} x {rows}")));
    }
    let codes = claims.take(&format!("{layer}.qweight"), Dtype::I32, &[height, width])?;
    let zeros_name = format!("{layer}.qzeros");
    if packs_rows(width, rows) {
        config.check(true)?;
        let zeros = claims.take(&zeros_name, Dtype::I32, &[groups, width])?;
        let span = config.sharing(height, groups)?;
        let parts = Parts::Awq { codes, zeros, scales };
        let packed = Packed { format: config.format(4, span)?, dtype: Dtype::F16, matrix: [rows, height], parts };
        return Ok(Entry {
            name: format!("{layer}.weight"),
            shape: vec![rows, height],
            content: Content::Packed(Box::new(packed)),
        });
    }
    if width != rows {
        return Err(Problem::new(format!("a qweight of {rows} or {} columns", rows / 8), width));
    }
    config.check(false)?;
    // The width of the zero points tells the bits.
    let zeros = claims.header.find(&zeros_name).map(|i| claims.header.tensors[i].shape.as_slice());
    let bits = match zeros {
        Some(&[_, w]) => w.saturating_mul(32) / rows,
        _ => return Err(Problem::new(format!("`{zeros_name}` of two dimensions"), "none")),
    };
    if !matches!(bits, 2 | 3 | 4 | 8) || !(rows * bits).is_multiple_of(32) {
        return Err(Problem::new("qzeros for 2, 3, 4 or 8 bits", format!("{bits} bits")));
    }
    let zeros = claims.take(&zeros_name, Dtype::I32, &[groups, rows * bits / 32])?;
    if !height.is_multiple_of(if bits == 3 { 3 } else { 1 }) || height > usize::MAX / 32 {
        return Err(Problem::new(format!("a qweight of whole units of {bits} words"), height));
    }
    let cols = height * 32 / bits;
    let g_idx = format!("{layer}.g_idx");
    let g_idx = claims.header.find(&g_idx).map(|_| claims.take(&g_idx, Dtype::I32, &[cols])).transpose()?;
    let span = config.sharing(cols, groups)?;
    let parts = Parts::Gptq { codes, zeros, scales, g_idx, v2: config.is_v2() };
    let packed = Packed { format: config.format(bits, span)?, dtype: Dtype::F16, matrix: [rows, cols], parts };
    Ok(Entry { name: format!("{layer}.weight"), shape: vec![rows, cols], content: Content::Packed(Box::new(packed)) })
}

/// Where the matrix has its columns from: sorted by group, in their order within a group. None where they are sorted as they are.
fn order(g_idx: &[u32], group: usize, groups: usize) -> Result<Option<Vec<u32>>, Problem> {
    if g_idx.iter().enumerate().all(|(col, g)| *g as usize == col / group) {
        return Ok(None);
    }
    let mut order: Vec<u32> = (0..g_idx.len() as u32).collect();
    order.sort_by_key(|col| g_idx[*col as usize]);
    match order.iter().enumerate().find(|(place, col)| g_idx[**col as usize] as usize != place / group) {
        None => Ok(Some(order)),
        Some((_, col)) => {
            let expected = format!("g_idx with {groups} groups of {group} columns, the last one of the rest");
            Err(Problem::new(expected, format!("another number in group {}", g_idx[*col as usize].cast_signed())))
        }
    }
}

pub(super) fn read(
    source: &dyn Source,
    packed: &Packed,
    [codes, zeros, scales]: [Span; 3],
    g_idx: Option<Span>,
    v2: bool,
) -> Result<(PackedMatrix, Option<Vec<u32>>), Problem> {
    let [rows, cols] = packed.matrix;
    let bits = packed.format.bits() as usize;
    let group = packed.format.group(cols);
    let groups = cols.div_ceil(group);
    let zeros: Vec<u32> = words(&zeros.read(source)?).collect();
    let zero = |row: usize, group: usize| {
        let stored = get(row, bits, |at| zeros[group * (rows * bits / 32) + at]);
        stored.wrapping_add(u32::from(!v2)) & ((1 << bits) - 1)
    };
    let mut matrix = with_zeros(packed, zero)?;
    let order = match g_idx {
        Some(span) => order(&words(&span.read(source)?).collect::<Vec<u32>>(), group, groups)?,
        None => None,
    };
    let words: Vec<u32> = words(&codes.read(source)?).collect();
    let mut row_codes = vec![0; cols];
    for row in 0..rows {
        for (col, code) in row_codes.iter_mut().enumerate() {
            let place = order.as_ref().map_or(col, |order| order[col] as usize);
            *code = get(place, bits, |at| words[at * rows + row]) as u8;
        }
        matrix.set_row_codes(row, &row_codes);
    }
    read_scales(source, scales, &mut matrix)?;
    Ok((matrix, order))
}

/// A matrix with these zero points; without any where the format has none and all of them are in the middle.
pub(super) fn with_zeros(packed: &Packed, zero: impl Fn(usize, usize) -> u32) -> Result<PackedMatrix, Problem> {
    let [rows, cols] = packed.matrix;
    let groups = cols.div_ceil(packed.format.group(cols));
    let places = || (0..rows).flat_map(|row| (0..groups).map(move |group| (row, group)));
    let symmetric = matches!(packed.format.grid(), Grid::Int { .. });
    let middle = 1 << (packed.format.bits() - 1);
    if symmetric && places().all(|(row, group)| zero(row, group) == middle) {
        return Ok(PackedMatrix::zeros(packed.format, rows, cols)?);
    }
    let mut matrix = PackedMatrix::zeros(asymmetric(packed.format), rows, cols)?;
    for (row, group) in places() {
        matrix.set_zero(row, group, zero(row, group));
    }
    Ok(matrix)
}

/// Scales `[groups, rows]`.
pub(super) fn read_scales(source: &dyn Source, scales: Span, matrix: &mut PackedMatrix) -> Result<(), Problem> {
    let rows = matrix.layout().rows;
    for (number, bits) in halves(&scales.read(source)?).enumerate() {
        matrix.set_scale_bits(number % rows, number / rows, bits.into());
    }
    check_scales(matrix)?;
    matrix.set_norm();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_numbers_come_back_across_words() {
        for bits in [2usize, 3, 4, 8] {
            let mut words = vec![0u32; bits];
            let value = |i: usize| (i as u32 * 5 + 3) & ((1 << bits) - 1);
            for i in 0..32 {
                put(i, bits, value(i), |at, v| words[at] |= v);
            }
            for i in 0..32 {
                assert_eq!(get(i, bits, |at| words[at]), value(i), "{bits} bits, {i}");
            }
        }
        // Three bits: numbers 10 and 21 lie across words.
        let mut words = vec![0u32; 3];
        put(10, 3, 0b111, |at, v| words[at] |= v);
        put(21, 3, 0b101, |at, v| words[at] |= v);
        assert_eq!(words, [0b11 << 30, 0b1 | 1 << 31, 0b10]);
    }

    #[test]
    fn groups_are_sorted_and_must_be_whole() {
        assert_eq!(order(&[0, 0, 1, 1, 2], 2, 3).unwrap(), None);
        assert_eq!(order(&[1, 0, 2, 1, 0], 2, 3).unwrap(), Some(vec![1, 4, 0, 3, 2]));
        assert!(order(&[0, 0, 0, 1, 2], 2, 3).is_err());
        assert!(order(&[0, 0, 1, 1, 3], 2, 3).is_err());
        assert!(order(&[0, 0, 1, 1, u32::MAX], 2, 3).is_err());
    }
}
