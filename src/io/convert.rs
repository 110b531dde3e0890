//! From files of floats to files of quantized tensors and back.

use super::source::shown;
use super::tensor::{Dtype, PackedTensor, floats};
use super::{Archive, Container, Entry, Item, ItemContent, Metadata, Writer};
use crate::format::{Format, Layout, PackedMatrix, Rounding, Store};
use crate::kernel::dequantize::dequantize;
use crate::kernel::packed::Packed;
use crate::kernel::quantize::{Options, quantize};
use crate::train::checkpoint;
use crate::{Context, DType, Error, Result};
use std::path::Path;

/// Bytes of a plain tensor that are copied at once.
const CHUNK: u64 = 1 << 22;

/// Quantizes a matrix `[rows, cols]`: on the device where there is one, the matrix fits it and its kernels have the format, else on the host.
///
/// # Errors
/// As [`quantize`] and [`PackedMatrix::quantize`].
pub fn quantize_tensor(
    context: Option<&Context>,
    format: Format,
    x: &[f32],
    rows: usize,
    cols: usize,
) -> Result<PackedMatrix> {
    let on_device = |context: &Context| {
        let values = context.alloc(x.len(), DType::F32)?;
        context.upload(&values, bytemuck::cast_slice(x))?;
        let packed = Packed::empty(context, format, rows, cols)?;
        quantize(context, &values, &packed, Options::default())?;
        packed.to_host(context)
    };
    match context.map(on_device) {
        None | Some(Err(Error::Limit { .. } | Error::Unsupported { .. })) => {
            PackedMatrix::quantize(format, x, rows, cols, Rounding::Nearest)
        }
        Some(matrix) => matrix,
    }
}

/// The values of a quantized tensor, in the tensor's order: on the device where there is one and the tensor fits it, else on the host.
///
/// # Errors
/// As [`dequantize`].
pub fn dequantize_tensor(context: Option<&Context>, tensor: &PackedTensor) -> Result<Vec<f32>> {
    let on_device = |context: &Context| -> Result<Vec<f32>> {
        let Layout { rows, cols, .. } = *tensor.matrix.layout();
        let packed = Packed::from_host(context, &tensor.matrix)?;
        let out = context.alloc(rows * cols, DType::F32)?;
        dequantize(context, &packed, &out)?;
        Ok(bytemuck::pod_collect_to_vec(&context.readback(&out)?.wait()?))
    };
    let values = match context.map(on_device) {
        Some(Err(Error::Limit { .. })) | None => on_host(&tensor.matrix),
        Some(values) => values?,
    };
    Ok(tensor.in_order(values))
}

/// The definition in float64, with levels looked up.
#[expect(clippy::cast_possible_truncation, reason = "values are rounded to f32 once")]
fn on_host(matrix: &PackedMatrix) -> Vec<f32> {
    let Layout { rows, cols, .. } = *matrix.layout();
    let (mut codes, mut wide) = (vec![0; cols], vec![0.0; cols]);
    let mut values = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        matrix.row_values(row, &mut codes, &mut wide);
        values.extend(wide.iter().map(|value| *value as f32));
    }
    values
}

/// Which tensors to quantize.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Patterns of names, each of which must match some that can be quantized; without any, all that have two dimensions.
    pub include: Vec<String>,
    /// Patterns of names that are left as they are; each must match some, too.
    pub exclude: Vec<String>,
}

/// Whether any of the patterns matches.
fn any(patterns: &[String], entry: &Entry) -> bool {
    patterns.iter().any(|pattern| matches(pattern, entry.name()))
}

impl Selection {
    fn takes(&self, entry: &Entry) -> bool {
        let asked = if self.include.is_empty() { entry.shape().len() == 2 } else { any(&self.include, entry) };
        asked && self.obstacle(entry).is_none()
    }

    /// Why a tensor cannot be quantized, if so.
    fn obstacle(&self, entry: &Entry) -> Option<String> {
        if any(&self.exclude, entry) {
            Some("which --exclude matches too".into())
        } else if !entry.dtype().is_some_and(Dtype::is_float) {
            Some(format!("of {}", entry.kind()))
        } else if entry.shape().len() < 2 || entry.elements() == 0 {
            Some(format!("of the shape {:?}", entry.shape()))
        } else {
            None
        }
    }

    /// Refuses patterns that match nothing: misspelt, they would quantize, or leave, what nobody asked for. So they would where nothing that
    /// `include` matches can be quantized.
    fn check(&self, archive: &Archive<'_>, input: &Path) -> Result<()> {
        for (flag, patterns) in [("--include", &self.include), ("--exclude", &self.exclude)] {
            let unknown = |pattern: &&String| !archive.entries().iter().any(|entry| matches(pattern, entry.name()));
            if let Some(pattern) = patterns.iter().find(unknown) {
                let expected = format!("a pattern that matches a tensor of {}", input.display());
                let got = format!("`{pattern}`, which matches none of {}", archive.entries().len());
                return Err(Error::invalid(flag, expected, got));
            }
        }
        for pattern in &self.include {
            let mut obstacles = Vec::new();
            for entry in archive.entries().iter().filter(|entry| matches(pattern, entry.name())) {
                obstacles.push(self.obstacle(entry).map(|why| format!("`{}` {why}", shown(entry.name()))));
            }
            // The first will do as an example.
            let [Some(first), others @ ..] = obstacles.as_slice() else { continue };
            if others.iter().all(Option::is_some) {
                let expected = "a pattern of a tensor of f32, f16 or bf16 with two dimensions or more";
                let others = if others.is_empty() { String::new() } else { format!(" and {} others", others.len()) };
                let got = format!("`{pattern}`, which matches {first}{others}, in {}", input.display());
                return Err(Error::invalid("--include", expected, got));
            }
        }
        Ok(())
    }

    /// The error where no tensor is taken. What `exclude` took out would be taken without it.
    fn nothing(&self, archive: &Archive<'_>, input: &Path) -> Error {
        let mut expected =
            "a tensor of f32, f16 or bf16 with two dimensions or a name that --include matches".to_owned();
        let mut got = format!("{} others", archive.entries().len());
        let others = Self { include: self.include.clone(), exclude: Vec::new() };
        let excluded = archive.entries().iter().filter(|entry| others.takes(entry)).count();
        if excluded > 0 {
            expected.push_str(", and none that --exclude matches");
            got = format!("{excluded} that --exclude matches and {} others", archive.entries().len() - excluded);
        }
        Error::file(input, expected, got)
    }
}

/// Whether a name matches a pattern, in which `*` stands for any characters and `?` for one.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star is, and how far what it stands for reaches.
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, reach)) => {
                    star = Some((at, reach + 1));
                    (p, n) = (at + 1, reach + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// What a conversion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tensors that were quantized, or whose values were computed.
    pub converted: usize,
    /// Tensors that were copied.
    pub copied: usize,
    /// Elements of the former.
    pub elements: u64,
    /// Bytes that the former take where they are quantized: codes, scales and what else the container needs.
    pub bytes: u64,
}

/// What a file of converted tensors has of the input's metadata: all but what would make it a checkpoint of walsh, which it is not.
fn kept(metadata: &Metadata) -> Metadata {
    let mut metadata = metadata.clone();
    if let Metadata::Texts(texts) = &mut metadata {
        texts.retain(|(key, _)| key != checkpoint::KEY);
    }
    metadata
}

/// Quantizes tensors of a safetensors file into another one; the rest is copied. `progress` is called before each tensor, after each piece of one
/// that is copied, and after the last tensor, with its number, how many there are, and its name; an error from it ends the work and leaves no
/// output.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for a malformed input, values that are not finite, or such as need larger scales than the format stores or
/// are so small that all of a tensor's scales would be zeros; [`Error::Invalid`] with the tensor's name where the container cannot hold it or
/// its reader would take it for a part of another one, or with a pattern that matches no tensor or only such as cannot be quantized; those
/// of `progress`.
pub fn quantize_file(
    context: Option<&Context>,
    input: &Path,
    output: &Path,
    format: Format,
    container: Container,
    selection: &Selection,
    mut progress: impl FnMut(usize, usize, &str) -> Result<()>,
) -> Result<Summary> {
    let archive = Archive::open(input)?;
    if let Some(found) = archive.container() {
        return Err(Error::file(input, "tensors that are not quantized", format!("a file of {found}")));
    }
    selection.check(&archive, input)?;
    let mut items = Vec::new();
    let mut taken = Vec::new();
    for entry in archive.entries() {
        let Some(dtype) = entry.dtype() else { continue };
        let takes = selection.takes(entry);
        if takes {
            container.check(
                &format!("{}: tensor `{}`", input.display(), shown(entry.name())),
                &format,
                entry.shape(),
            )?;
        }
        taken.push(takes);
        let content =
            if takes { ItemContent::Packed { format, dtype, permuted: false } } else { ItemContent::Plain(dtype) };
        items.push(Item { name: entry.name().to_owned(), shape: entry.shape().to_vec(), content });
    }
    if !taken.contains(&true) {
        return Err(selection.nothing(&archive, input));
    }
    Writer::write(output, Some(container), items, &kept(archive.metadata()), |writer| {
        let mut summary = Summary::default();
        let count = archive.entries().len();
        for (number, (entry, takes)) in archive.entries().iter().zip(taken).enumerate() {
            let mut progress = || progress(number, count, entry.name());
            progress()?;
            if !takes {
                copy(&archive, entry, writer, number, progress)?;
                summary.copied += 1;
                continue;
            }
            let Some(dtype) = entry.dtype() else { continue };
            let x = floats(dtype, &archive.plain(entry, 0, u64::MAX)?).unwrap_or_default();
            if let Some(i) = x.iter().position(|v| !v.is_finite()) {
                let expected = format!("finite values in tensor `{}`", shown(entry.name()));
                return Err(Error::file(input, expected, format!("{} at element {i}", x[i])));
            }
            let (rows, cols) = container.matrix_shape(&format, entry.shape());
            if let Some(scale) = format.saturated_scale(&x, rows, cols)? {
                let (expected, got) = saturated(entry.name(), format, scale);
                return Err(Error::file(input, expected, got));
            }
            let matrix = quantize_tensor(context, format, &x, rows, cols)?;
            if let Some(largest) = vanished(&x, &matrix) {
                let (stored, other) = stored(format);
                let expected =
                    format!("values whose scales {stored} can hold in tensor `{}` for {format}", shown(entry.name()));
                let got = format!(
                    "none above {largest:e}, all of which would become zeros; {other} in the container walsh has scales for them"
                );
                return Err(Error::file(input, expected, got));
            }
            let tensor = PackedTensor { matrix, shape: entry.shape().to_vec(), dtype, order: None };
            summary.bytes += writer.packed(number, &tensor)?;
            summary.converted += 1;
            summary.elements += x.len() as u64;
        }
        // Once more, so that who stops during the last one is heard.
        if let Some(entry) = archive.entries().last() {
            progress(count - 1, count, entry.name())?;
        }
        Ok(summary)
    })
}

/// Writes the values of all tensors of a file as safetensors: f32 where they are quantized, as they are where they are not. `progress` is as for
/// [`quantize_file`].
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] with the tensor's name where the input is malformed or of a type that walsh does not read; those of
/// `progress`.
pub fn dequantize_file(
    context: Option<&Context>,
    input: &Path,
    output: &Path,
    mut progress: impl FnMut(usize, usize, &str) -> Result<()>,
) -> Result<Summary> {
    let archive = Archive::open(input)?;
    let items = archive.entries().iter().map(|entry| Item {
        name: entry.name().to_owned(),
        shape: entry.shape().to_vec(),
        content: ItemContent::Plain(entry.dtype().unwrap_or(Dtype::F32)),
    });
    if let Some(entry) = archive.entries().iter().find(|e| e.format().is_none() && e.dtype().is_none()) {
        // The error that says so.
        archive.packed(entry)?;
    }
    Writer::write(output, None, items.collect(), &kept(archive.metadata()), |writer| {
        let mut summary = Summary::default();
        let count = archive.entries().len();
        for (number, entry) in archive.entries().iter().enumerate() {
            let mut progress = || progress(number, count, entry.name());
            progress()?;
            if entry.format().is_none() {
                copy(&archive, entry, writer, number, progress)?;
                summary.copied += 1;
                continue;
            }
            let values = dequantize_tensor(context, &archive.packed(entry)?)?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            writer.plain(number, 0, &bytes)?;
            summary.converted += 1;
            summary.elements += values.len() as u64;
            summary.bytes += entry.bytes().unwrap_or(0);
        }
        // Once more, so that who stops during the last one is heard.
        if let Some(entry) = archive.entries().last() {
            progress(count - 1, count, entry.name())?;
        }
        Ok(summary)
    })
}

/// What was expected of a tensor whose values are too large for the format's scales, and what was found: by
/// [`Format::saturated_scale`] its row, group and scale.
pub(crate) fn saturated(tensor: &str, format: Format, (row, group, scale): (usize, usize, f64)) -> (String, String) {
    let (stored, other) = stored(format);
    let end = if format.store() == Store::Ue4m3 { "448" } else { "65504" };
    let expected = format!("scales of at most {end} ({stored}) in tensor `{}` for {format}", shown(tensor));
    let got = format!("{scale:.5e} in row {row}, group {group}; {other} in the container walsh has scales for it");
    (expected, got)
}

/// What a format of few scales stores them in, and the format like it that has them all.
const fn stored(format: Format) -> (&'static str, Format) {
    match format.store() {
        Store::Ue4m3 => ("ue4m3", Format { store: Store::E4M3, ..format }),
        _ => ("f16", Format { store: Store::F32, exact: false, ..format }),
    }
}

/// The largest magnitude of values of which nothing is left: some are not zero, but all scales of the matrix are, since the format rounds what is at
/// most half its smallest one to zero, 2^-25 in f16 and short of 2^-10 in ue4m3.
///
/// A group that becomes zeros among others that do not is rounding like any other: it changes values by at most the largest level times that
/// half, beside values that are larger. Numbers below f32's smallest normal one count as zeros, as they do for all formats, so that those whose
/// scales are f32 or have a factor of the tensor lose nothing here.
fn vanished(x: &[f32], matrix: &PackedMatrix) -> Option<f32> {
    let layout = matrix.layout();
    if !matches!(matrix.format().store(), Store::F16 | Store::Ue4m3) {
        return None;
    }
    // One for all rows where the span is the tensor.
    let rows = if layout.scale_stride == 0 { 1 } else { layout.rows };
    let places = || (0..rows).flat_map(|row| (0..layout.groups).map(move |group| (row, group)));
    let scaled = |(row, group)| [false, true].iter().any(|negative| matrix.scale(row, group, *negative) != 0.0);
    if places().any(scaled) {
        return None;
    }
    let largest = x.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    (largest >= f32::MIN_POSITIVE).then_some(largest)
}

fn copy(
    archive: &Archive<'_>,
    entry: &Entry,
    writer: &mut Writer,
    number: usize,
    mut progress: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut from = 0;
    loop {
        let bytes = archive.plain(entry, from, CHUNK)?;
        if bytes.is_empty() {
            return Ok(());
        }
        writer.plain(number, from, &bytes)?;
        from += bytes.len() as u64;
        progress()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*.weight", "a.weight", true),
            ("*.weight", "a.weights", false),
            ("h.?.mlp.*", "h.1.mlp.c_fc.weight", true),
            ("h.?.mlp.*", "h.11.mlp.c_fc.weight", false),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbx", false),
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
