//! Files of quantized tensors: reading and writing them in the containers that other programs use.
//!
//! A [`Container`] is a file's way of holding a [`Format`]. An [`Archive`] is an open file; whatever its container, a quantized tensor comes out of it
//! as a [`PackedTensor`], codes and scales bit for bit, and goes into a [`Writer`] as one. Readers take ranges of a file, tensor by tensor. They
//! refuse what is malformed with the tensor's name, and never take more memory than 64 KiB and 16 times the size of the file, with that of the
//! configuration beside it.
//!
//! [`convert`] has what the commands `walsh quantize` and `walsh dequantize` do.

mod awq;
mod bitsandbytes;
pub mod convert;
pub mod gguf;
mod gpt_oss;
mod gptq;
mod safetensors;
mod source;
mod tensor;
mod walsh;

pub use crate::train::files::{Abandoned, abandon};
pub use tensor::{Dtype, PackedTensor, floats};

use crate::format::Format;
use crate::train::files;
use crate::{Error, Result};
use safetensors::{Header, Part, Stored};
use source::{FileSource, Problem, Source, Span, shown};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file's way of holding quantized tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// walsh's own, in safetensors: every format.
    Walsh,
    /// bitsandbytes' NF4 and FP4, in safetensors.
    Bitsandbytes,
    /// gpt-oss' MXFP4, in safetensors.
    GptOss,
    /// GPTQ as AutoGPTQ writes it, in safetensors.
    Gptq,
    /// GPTQ's second version, whose zero points are stored as they are.
    GptqV2,
    /// AWQ's GEMM layout, in safetensors.
    Awq,
    /// GGUF.
    Gguf,
}

impl Container {
    /// Every one.
    pub const ALL: [Self; 7] =
        [Self::Walsh, Self::Bitsandbytes, Self::GptOss, Self::Gptq, Self::GptqV2, Self::Awq, Self::Gguf];

    /// As it is spelled everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Walsh => "walsh",
            Self::Bitsandbytes => "bitsandbytes",
            Self::GptOss => "gpt-oss",
            Self::Gptq => "gptq",
            Self::GptqV2 => "gptq-v2",
            Self::Awq => "awq",
            Self::Gguf => "gguf",
        }
    }

    /// From its spelling.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the names that there are.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid("container", format!("one of {names}"), format!("`{name}`"))
        })
    }

    /// Whether it can hold `format` in tensors of this shape.
    ///
    /// # Errors
    /// The reason why not.
    pub fn supports(self, format: &Format, shape: &[usize]) -> Result<(), String> {
        match self {
            Self::Walsh => walsh::supports(format, shape),
            Self::Bitsandbytes => bitsandbytes::supports(format, shape),
            Self::GptOss => gpt_oss::supports(format, shape),
            Self::Gptq | Self::GptqV2 => gptq::supports(format, shape),
            Self::Awq => awq::supports(format, shape),
            Self::Gguf => gguf::supports(format, shape),
        }
    }

    /// [`Container::supports`] as an error that names what else can hold it.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(self, what: &str, format: &Format, shape: &[usize]) -> Result<()> {
        self.supports(format, shape).map_err(|reason| {
            let others: Vec<_> =
                Self::ALL.iter().filter(|c| c.supports(format, shape).is_ok()).map(|c| c.name()).collect();
            let others = if others.is_empty() { "no container".to_owned() } else { others.join(", ") };
            let got = format!("{format} in the shape {shape:?}, which {others} can hold");
            Error::invalid(what, format!("what {} can hold: {reason}", self.name()), got)
        })
    }

    /// Names of formats that the container has an encoding of its own for, with that encoding.
    #[must_use]
    pub fn encodings(self) -> Vec<(&'static str, Format)> {
        let [int2, int3, int4, int8] =
            [("int2", 2), ("int3", 3), ("int4", 4), ("int8", 8)].map(|(name, bits)| (name, Format::asymmetric(bits)));
        match self {
            Self::Walsh => Vec::new(),
            Self::Bitsandbytes => vec![("nf4", Format::NF4), ("fp4", Format::FP4)],
            Self::GptOss => vec![("mxfp4", Format::MXFP4)],
            Self::Gptq | Self::GptqV2 => vec![int2, int3, int4, int8],
            Self::Awq => vec![int4],
            Self::Gguf => gguf::encodings().collect(),
        }
    }

    /// A format as it is spelled; a name without options is the container's own encoding of it, where it has one.
    ///
    /// # Errors
    /// As [`Format::from_str`](std::str::FromStr::from_str).
    pub fn format(self, text: &str) -> Result<Format> {
        let own = self.encodings().into_iter().find(|(name, _)| *name == text);
        own.map_or_else(|| text.parse(), |(_, encoding)| Ok(encoding))
    }

    /// Rows and columns of the matrix that holds a tensor of this shape.
    #[must_use]
    pub fn matrix_shape(self, format: &Format, shape: &[usize]) -> (usize, usize) {
        match self {
            Self::Bitsandbytes => bitsandbytes::matrix_shape(format, shape),
            _ => tensor::rows_and_cols(shape),
        }
    }

    fn parts(self, item: &Item) -> Result<Vec<Part>, String> {
        let (name, shape) = (item.name.as_str(), item.shape.as_slice());
        let ItemContent::Packed { format, permuted, .. } = &item.content else {
            let ItemContent::Plain(dtype) = item.content else { return Ok(Vec::new()) };
            return Ok(vec![Part::new(name, dtype, shape)]);
        };
        self.supports(format, shape)?;
        match self {
            Self::Walsh => walsh::parts(name, shape, format, *permuted),
            Self::Gptq | Self::GptqV2 => gptq::parts(name, shape, format),
            _ if *permuted => Err("its columns are in their own order".into()),
            Self::Bitsandbytes => Ok(bitsandbytes::parts(name, shape, format)),
            Self::GptOss => Ok(gpt_oss::parts(name, shape)),
            Self::Awq => awq::parts(name, shape, format),
            Self::Gguf => Ok(Vec::new()),
        }
    }

    /// Whether a reader of a file in this container, none being one without quantized tensors, would take a plain tensor for a part of a quantized
    /// one, or the file for one of another container. `packed` says which tensors are quantized, `header` what is to be written. GGUF's rule is in
    /// its own layout.
    fn mistakes(container: Option<Self>, packed: &HashSet<&str>, plain: &Stored, header: &Header) -> bool {
        let name = plain.name.as_str();
        // A file without quantized tensors is read as none of a container, but by walsh's own mark.
        let container = container.filter(|c| matches!(c, Self::Walsh | Self::Gguf) || !packed.is_empty());
        match container {
            Some(Self::Gguf) => false,
            Some(Self::Walsh) => walsh::is_order(name, packed),
            // In the order in which the reader asks: whose mark comes first has the file.
            Some(Self::Bitsandbytes) => bitsandbytes::is_part(name),
            _ if bitsandbytes::recognises(name) => true,
            Some(Self::Gptq | Self::GptqV2 | Self::Awq) => gptq::is_part(name),
            Some(Self::GptOss) | None => gptq::recognises(name) || gpt_oss::recognises(plain, header),
        }
    }

    fn encode(self, tensor: &PackedTensor) -> Result<Vec<Vec<u8>>, String> {
        tensor::check_scales(&tensor.matrix).map_err(|_| "finite scales".to_owned())?;
        match self {
            Self::Walsh => Ok(walsh::encode(tensor)),
            Self::Bitsandbytes => bitsandbytes::encode(tensor),
            Self::GptOss => Ok(gpt_oss::encode(tensor)),
            Self::Gptq => gptq::encode(tensor, false),
            Self::GptqV2 => gptq::encode(tensor, true),
            Self::Awq => awq::encode(tensor),
            Self::Gguf => gguf::encode(tensor),
        }
    }
}

impl std::fmt::Display for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a file holds beside its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// safetensors: texts.
    Texts(Vec<(String, String)>),
    /// GGUF: typed values.
    Gguf(Vec<gguf::KeyValue>),
}

/// A tensor of a file.
#[derive(Debug)]
pub struct Entry {
    name: String,
    shape: Vec<usize>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Plain {
        dtype: Dtype,
        span: Span,
    },
    Packed(Box<Packed>),
    /// Of a type that walsh does not read: its name, and where the bytes are, unless nobody can tell how many.
    Foreign(&'static str, Option<Span>),
}

/// A quantized tensor's matrix and where its parts are.
#[derive(Debug)]
struct Packed {
    format: Format,
    dtype: Dtype,
    matrix: [usize; 2],
    parts: Parts,
}

/// Where the parts are; `described` counts the bytes of those that are read with the header.
#[derive(Debug)]
enum Parts {
    Walsh { codes: Span, side: Span, order: Option<Span> },
    Bitsandbytes { codes: Span, absmax: Span, nested: Option<(Span, Span, f32)>, described: u64 },
    GptOss { blocks: Span, scales: Span },
    Gptq { codes: Span, zeros: Span, scales: Span, g_idx: Option<Span>, v2: bool },
    Awq { codes: Span, zeros: Span, scales: Span },
    Gguf { block: gguf::Block, data: Span, factor: Option<Span> },
}

impl Entry {
    /// The tensor's name, without what the container adds for its parts.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its format, if it is quantized.
    #[must_use]
    pub fn format(&self) -> Option<Format> {
        match &self.content {
            Content::Packed(packed) => Some(packed.format),
            _ => None,
        }
    }

    /// Its element type, if it is not.
    #[must_use]
    pub fn dtype(&self) -> Option<Dtype> {
        match self.content {
            Content::Plain { dtype, .. } => Some(dtype),
            _ => None,
        }
    }

    /// Whether walsh reads its type.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        !matches!(self.content, Content::Foreign(..))
    }

    /// Its type as text: a format, an element type, or a type of ggml that walsh does not read.
    #[must_use]
    pub fn kind(&self) -> String {
        match &self.content {
            Content::Plain { dtype, .. } => dtype.name().to_owned(),
            Content::Packed(packed) => packed.format.to_string(),
            Content::Foreign(name, _) => (*name).to_owned(),
        }
    }

    /// How many elements it has.
    #[must_use]
    pub fn elements(&self) -> usize {
        tensor::elements(&self.shape).unwrap_or(0)
    }

    /// All bytes of it in the file: codes, scales and what else its container needs, as [`Writer::packed`] counts them; none where walsh does
    /// not know how many the type takes.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        let packed = match &self.content {
            Content::Plain { span, .. } => return Some(span.bytes),
            Content::Foreign(_, span) => return span.map(|span| span.bytes),
            Content::Packed(packed) => packed,
        };
        Some(match &packed.parts {
            Parts::Walsh { codes, side, order } => codes.bytes + side.bytes + order.map_or(0, |s| s.bytes),
            Parts::Bitsandbytes { codes, absmax, nested, described } => {
                codes.bytes + absmax.bytes + nested.map_or(0, |(scales, map, _)| scales.bytes + map.bytes) + described
            }
            Parts::GptOss { blocks, scales } => blocks.bytes + scales.bytes,
            Parts::Gptq { codes, zeros, scales, g_idx, .. } => {
                codes.bytes + zeros.bytes + scales.bytes + g_idx.map_or(0, |s| s.bytes)
            }
            Parts::Awq { codes, zeros, scales } => codes.bytes + zeros.bytes + scales.bytes,
            Parts::Gguf { data, factor, .. } => data.bytes + factor.map_or(0, |s| s.bytes),
        })
    }
}

/// Tensors of a safetensors file that belong to quantized ones.
struct Claims<'h> {
    header: &'h Header,
    used: Vec<bool>,
}

impl Claims<'_> {
    fn number(&self, name: &str) -> Result<usize, Problem> {
        self.header.find(name).ok_or_else(|| Problem::new(format!("`{}` beside it", shown(name)), "no such tensor"))
    }

    /// Where a tensor is that has to have this type and shape.
    fn take(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Span, Problem> {
        let number = self.number(name)?;
        let stored = &self.header.tensors[number];
        if stored.dtype != dtype || stored.shape != shape {
            return Err(Problem::new(
                format!("{} {shape:?} as `{}`", dtype.name(), shown(name)),
                format!("{} {:?}", stored.dtype.name(), stored.shape),
            ));
        }
        self.used[number] = true;
        Ok(stored.span)
    }

    /// The same where only the number of bytes is known.
    fn take_any_shape(&mut self, name: &str, dtype: Dtype, elements: usize) -> Result<Span, Problem> {
        let number = self.number(name)?;
        let shape = &self.header.tensors[number].shape;
        if tensor::elements(shape) != Some(elements) {
            return Err(Problem::new(format!("{elements} elements as `{}`", shown(name)), format!("{shape:?}")));
        }
        self.take(name, dtype, shape)
    }
}

/// An open file of tensors.
pub struct Archive<'s> {
    path: PathBuf,
    source: Box<dyn Source + 's>,
    container: Option<Container>,
    entries: Vec<Entry>,
    metadata: Metadata,
}

impl std::fmt::Debug for Archive<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("path", &self.path).field("container", &self.container).finish_non_exhaustive()
    }
}

/// The files beside a model that may say how it is quantized, in the order in which they are asked.
const SIDECARS: [&str; 3] = ["quantize_config.json", "quant_config.json", gptq::MODEL_CONFIG];

/// The files beside a model that may say how it is quantized, whether they are there or not.
pub fn configurations(model: &Path) -> impl Iterator<Item = PathBuf> {
    SIDECARS.into_iter().map(|name| model.with_file_name(name))
}

/// The largest of these that is read.
const SIDECAR_BYTES: u64 = 1 << 20;

impl Archive<'static> {
    /// Opens a file and reads its header. The container is found out from the file. Version and symmetry of GPTQ are told by the configuration beside
    /// it, else version 1 is taken for granted; where the only one is of AWQ, or of GPTQ beside a file of AWQ, the file is refused. Of
    /// `quantize_config.json`, `quant_config.json` and `config.json`, in this order, the first counts that names the file's method, else the
    /// first that names none, as AutoGPTQ's older ones. Each that is asked must be readable: one that is not might have been the one. A method or
    /// a layout that the one that counts names and walsh does not read is refused.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] with the tensor's name, or the configuration's, where something is malformed.
    pub fn open(path: &Path) -> Result<Self> {
        let source = FileSource::open(path)?;
        let sidecar = |awq| {
            let dir = path.parent().unwrap_or(Path::new(""));
            let read = |name: &'static str| -> Result<Option<gptq::Config>> {
                let path = dir.join(name);
                let file = match File::open(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    file => file.map_err(Error::io(&path, "open"))?,
                };
                let mut json = Vec::new();
                file.take(SIDECAR_BYTES + 1).read_to_end(&mut json).map_err(Error::io(&path, "read"))?;
                if json.len() as u64 > SIDECAR_BYTES {
                    return Err(Error::file(
                        &path,
                        format!("a configuration of at most {SIDECAR_BYTES} bytes"),
                        "more",
                    ));
                }
                gptq::Config::parse(&json, name).map_err(|problem| problem.at(&path))
            };
            gptq::Config::suiting(awq, SIDECARS.into_iter().filter_map(|name| read(name).transpose()))
        };
        Self::read_header(path, Box::new(source), sidecar)
    }
}

impl<'s> Archive<'s> {
    /// The same for a file in memory, with the content of the configuration beside it if there is one. `path` is for messages.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn from_bytes(path: impl AsRef<Path>, bytes: &'s [u8], sidecar: Option<&[u8]>) -> Result<Self> {
        let path = path.as_ref();
        let config = |_| match sidecar {
            Some(json) => gptq::Config::parse(json, "the configuration").map_err(|problem| problem.at(path)),
            None => Ok(None),
        };
        Self::read_header(path, Box::new(bytes), config)
    }

    fn read_header(
        path: &Path,
        source: Box<dyn Source + 's>,
        config: impl FnOnce(bool) -> Result<Option<gptq::Config>>,
    ) -> Result<Self> {
        let at = |problem: Problem| problem.at(path);
        if gguf::recognises(&*source) {
            let (entries, metadata) = gguf::find(&*source).map_err(at)?;
            let metadata = Metadata::Gguf(metadata);
            return Ok(Self { path: path.to_owned(), source, container: Some(Container::Gguf), entries, metadata });
        }
        let header = Header::read(&*source).map_err(at)?;
        let mut claims = Claims { header: &header, used: vec![false; header.tensors.len()] };
        let names = || header.tensors.iter().map(|t| t.name.as_str());
        let (container, mut entries) = if let Some(json) = header.value(walsh::KEY) {
            (Some(Container::Walsh), walsh::find(json, &header, &mut claims).map_err(at)?)
        } else if names().any(bitsandbytes::recognises) {
            (Some(Container::Bitsandbytes), bitsandbytes::find(&*source, &mut claims).map_err(at)?)
        } else if names().any(gptq::recognises) {
            let entries = gptq::find(&mut claims, config(gptq::is_awq(&header))?).map_err(at)?;
            let container = entries.iter().find_map(|entry| match &entry.content {
                Content::Packed(packed) => match packed.parts {
                    Parts::Awq { .. } => Some(Container::Awq),
                    Parts::Gptq { v2: true, .. } => Some(Container::GptqV2),
                    _ => Some(Container::Gptq),
                },
                _ => None,
            });
            (container, entries)
        } else if header.tensors.iter().any(|stored| gpt_oss::recognises(stored, &header)) {
            // After GPTQ, which has scales of the same name.
            (Some(Container::GptOss), gpt_oss::find(&mut claims).map_err(at)?)
        } else {
            (None, Vec::new())
        };
        walsh::check_rest(&claims).map_err(at)?;
        let used = claims.used;
        let Header { tensors, metadata } = header;
        entries.reserve_exact(used.iter().filter(|used| !**used).count());
        for (stored, used) in tensors.into_iter().zip(used) {
            if !used {
                let content = Content::Plain { dtype: stored.dtype, span: stored.span };
                entries.push(Entry { name: stored.name, shape: stored.shape, content });
            }
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(at(Problem::new("unique names", "another tensor of the same name").of(&pair[0].name)));
        }
        Ok(Self { path: path.to_owned(), source, container, entries, metadata: Metadata::Texts(metadata) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its container; none where nothing in it is quantized.
    #[must_use]
    pub fn container(&self) -> Option<Container> {
        self.container
    }

    /// Its tensors, in ascending order of names.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// A tensor by its name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok().map(|i| &self.entries[i])
    }

    /// What it holds beside them.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Bytes `from..` of a tensor that is not quantized, at most `limit` of them; none after its end.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] where the tensor is quantized.
    pub fn plain(&self, entry: &Entry, from: u64, limit: u64) -> Result<Vec<u8>> {
        let Content::Plain { span, .. } = entry.content else {
            let what = named(&self.path, &entry.name);
            return Err(Error::invalid(what, "a tensor that is not quantized", entry.kind()));
        };
        let bytes = span.bytes.saturating_sub(from).min(limit);
        let part = Span { offset: span.offset.saturating_add(from.min(span.bytes)), bytes };
        part.read(&*self.source).map_err(|problem| problem.of(&entry.name).at(&self.path))
    }

    /// Reads a quantized tensor: its codes and scales bit for bit.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] where scales are not finite, a code stands for nothing, columns are not in whole groups, or the type is one of
    /// ggml's that walsh does not read; [`Error::Invalid`] where the tensor is not quantized.
    pub fn packed(&self, entry: &Entry) -> Result<PackedTensor> {
        let at = |problem: Problem| problem.of(&entry.name).at(&self.path);
        let packed = match &entry.content {
            Content::Packed(packed) => packed,
            Content::Foreign(name, _) => {
                let known = gguf::Block::ALL.map(|block| format!("{block:?}").to_uppercase()).join(", ");
                return Err(at(Problem::new(format!("one of the types {known}"), name)));
            }
            Content::Plain { dtype, .. } => {
                let what = named(&self.path, &entry.name);
                return Err(Error::invalid(what, "a quantized tensor", dtype.name()));
            }
        };
        let source = &*self.source;
        let (matrix, order) = match packed.parts {
            Parts::Walsh { codes, side, order } => {
                let order = order.map(|span| walsh::read_order(source, span)).transpose().map_err(at)?;
                (walsh::read(source, packed, [codes, side]), order)
            }
            Parts::Bitsandbytes { codes, absmax, nested, .. } => {
                (bitsandbytes::read(source, packed, [codes, absmax], nested), None)
            }
            Parts::GptOss { blocks, scales } => (gpt_oss::read(source, packed, [blocks, scales]), None),
            Parts::Gptq { codes, zeros, scales, g_idx, v2 } => {
                let (matrix, order) = gptq::read(source, packed, [codes, zeros, scales], g_idx, v2).map_err(at)?;
                (Ok(matrix), order)
            }
            Parts::Awq { codes, zeros, scales } => (awq::read(source, packed, [codes, zeros, scales]), None),
            Parts::Gguf { block, data, factor } => (gguf::read(source, packed, block, data, factor), None),
        };
        Ok(PackedTensor { matrix: matrix.map_err(at)?, shape: entry.shape.clone(), dtype: packed.dtype, order })
    }
}

impl Archive<'_> {
    /// As [`Archive::packed`], in a format that differs from the entry's in how values are encoded only: GGUF does not say how its codes and
    /// scales were chosen.
    ///
    /// # Errors
    /// As [`Archive::packed`]; [`Error::File`] where the entry's codes and scales are not those of such a format.
    pub fn packed_as(&self, entry: &Entry, format: Format) -> Result<PackedTensor> {
        let PackedTensor { matrix, shape, dtype, order } = self.packed(entry)?;
        let got = matrix.format();
        match matrix.with_format(format) {
            Some(matrix) => Ok(PackedTensor { matrix, shape, dtype, order }),
            None => Err(Problem::new(format, got).of(&entry.name).at(&self.path)),
        }
    }
}

/// A tensor of a file, for messages.
fn named(path: &Path, tensor: &str) -> String {
    format!("{}: tensor `{}`", path.display(), shown(tensor))
}

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What it is.
    pub content: ItemContent,
}

impl Item {
    const fn is_packed(&self) -> bool {
        matches!(self.content, ItemContent::Packed { .. })
    }
}

/// Whether a tensor is quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ItemContent {
    /// It is not.
    Plain(Dtype),
    /// It is.
    Packed {
        /// Its format.
        format: Format,
        /// What it was before.
        dtype: Dtype,
        /// Whether its columns are permuted.
        permuted: bool,
    },
}

/// Writes a file, tensor by tensor in any order. Sizes and places are known before the first one.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    container: Option<Container>,
    items: Vec<Item>,
    spans: Vec<Vec<Span>>,
    /// Bytes that each item still lacks.
    missing: Vec<u64>,
}

impl Writer {
    /// Writes a file beside `path` with `write`, and renames it when every item has been written. `container` none: safetensors without quantized
    /// tensors. GPTQ and AWQ have a configuration beside the file, which is written too, just before the file takes its place: where the
    /// process ends between the two, it stays alone.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] with the tensor's name where the container cannot hold an item; what `write` returns.
    pub fn write<T>(
        path: &Path,
        container: Option<Container>,
        items: Vec<Item>,
        metadata: &Metadata,
        write: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let sidecar = Self::sidecar(path, container, &items)?;
        let (mut result, mut configured) = (None, None);
        let replaced = files::replace(path, |_, file| {
            let mut writer = Self::create(path, file, container, items, metadata)?;
            result = Some(write(&mut writer)?);
            if let Some(number) = writer.missing.iter().position(|bytes| *bytes > 0) {
                let what = named(path, &writer.items[number].name);
                let missing = format!("{} bytes less", writer.missing[number]);
                return Err(Error::invalid(what, "all of its bytes", missing));
            }
            let Some((sidecar, content)) = sidecar else { return Ok(()) };
            // Before the file has its name: without its configuration it would be read as something else. But after all that takes long:
            // what ends the process between the two leaves a configuration of nothing.
            writer.file.sync_all().map_err(Error::io(path, "write"))?;
            let new = !sidecar.exists();
            files::replace_with(&sidecar, content.as_bytes())?;
            configured = new.then_some(sidecar);
            Ok(())
        });
        if let (Err(_), Some(sidecar)) = (&replaced, configured) {
            // The first error is the one to report.
            let _ = std::fs::remove_file(sidecar);
        }
        replaced?;
        result.ok_or_else(|| Error::file(path, "something to write", "nothing"))
    }

    fn sidecar(path: &Path, container: Option<Container>, items: &[Item]) -> Result<Option<(PathBuf, String)>> {
        let Some(container @ (Container::Gptq | Container::GptqV2 | Container::Awq)) = container else {
            return Ok(None);
        };
        let mut packed = items.iter().filter_map(|item| match item.content {
            ItemContent::Packed { format, permuted, .. } => Some((item, format, permuted)),
            ItemContent::Plain(_) => None,
        });
        let Some((_, format, _)) = packed.clone().next() else { return Ok(None) };
        let alike = |other: &Format| {
            (other.bits(), other.span(), std::mem::discriminant(&other.grid()))
                == (format.bits(), format.span(), std::mem::discriminant(&format.grid()))
        };
        if let Some((item, other, _)) = packed.clone().find(|(_, other, _)| !alike(other)) {
            return Err(Error::invalid(
                named(path, &item.name),
                format!("{format}: {container} has one format for all tensors"),
                other.to_string(),
            ));
        }
        // One of these names is the configuration itself, or is asked for it before that.
        if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| SIDECARS.contains(name)) {
            let expected =
                format!("another name for a file of {container}: of this one is the configuration beside it");
            return Err(Error::file(path, expected, format!("`{name}`")));
        }
        let permuted = packed.any(|(_, _, permuted)| permuted);
        let (name, content) =
            gptq::Config::write(&format, container == Container::Awq, container == Container::GptqV2, permuted);
        let path = path.with_file_name(name);
        match std::fs::read(&path) {
            Ok(old) if old != content.as_bytes() => {
                Err(Error::file(&path, "no configuration of another model beside the output", "one"))
            }
            _ => Ok(Some((path, content))),
        }
    }

    fn create(
        path: &Path,
        mut file: File,
        container: Option<Container>,
        items: Vec<Item>,
        metadata: &Metadata,
    ) -> Result<Self> {
        let refused = |number: usize, reason: String| {
            let item: &Item = &items[number];
            let what = named(path, &item.name);
            match (&item.content, container) {
                (ItemContent::Packed { format, .. }, Some(container)) => {
                    container.check(&what, format, &item.shape).err().unwrap_or_else(|| {
                        Error::invalid(what, format!("what {container} can hold: {reason}"), format.to_string())
                    })
                }
                (ItemContent::Plain(dtype), Some(container)) => {
                    let got = format!("{} {:?}", dtype.name(), item.shape);
                    Error::invalid(what, format!("what {container} can hold: {reason}"), got)
                }
                _ => Error::invalid(what, format!("what the file can hold: {reason}"), "another tensor"),
            }
        };
        let (header, spans, end) = if container == Some(Container::Gguf) {
            let own = gguf::metadata();
            let metadata = match metadata {
                Metadata::Gguf(metadata) => metadata,
                Metadata::Texts(_) => &own,
            };
            gguf::layout(&items, metadata).map_err(|(number, reason)| refused(number, reason))?
        } else {
            let mut texts = match metadata {
                Metadata::Texts(texts) => texts.clone(),
                Metadata::Gguf(_) => Vec::new(),
            };
            texts.retain(|(key, _)| key != walsh::KEY);
            match container {
                Some(Container::Walsh) => texts.push(walsh::metadata(&items)),
                _ if texts.iter().all(|(key, _)| key != "format") => texts.push(("format".into(), "pt".into())),
                _ => {}
            }
            let parts = items.iter().enumerate().map(|(number, item)| {
                let parts = match container {
                    Some(container) => container.parts(item),
                    None => match item.content {
                        ItemContent::Plain(dtype) => Ok(vec![Part::new(item.name.as_str(), dtype, &item.shape)]),
                        ItemContent::Packed { .. } => Err("it has no quantized tensors".into()),
                    },
                };
                parts.map_err(|reason| refused(number, reason))
            });
            let parts: Vec<Vec<Part>> = parts.collect::<Result<_>>()?;
            let mut names: Vec<(&str, usize)> = Vec::new();
            for (number, (item, parts)) in items.iter().zip(&parts).enumerate() {
                names.extend(parts.iter().map(|part| (part.name.as_str(), number)));
                // By its own name a reader lists it, whether or not a part has it.
                if parts.iter().all(|part| part.name != item.name) {
                    names.push((item.name.as_str(), number));
                }
            }
            names.sort_unstable();
            if let Some(pair) = names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(refused(pair[1].1, format!("names are unique, and `{}` is taken", shown(pair[0].0))));
            }
            let packed: HashSet<&str> = items.iter().filter(|i| i.is_packed()).map(|i| i.name.as_str()).collect();
            let flat = parts.concat();
            let header = Header::of(&flat);
            let mut claims = Claims { header: &header, used: vec![true; flat.len()] };
            for item in items.iter().filter(|item| !item.is_packed()) {
                if let Some(number) = header.find(&item.name) {
                    claims.used[number] = false;
                }
            }
            let lost = walsh::lost_description(&claims).map(|name| format!("{name}.codes"));
            for (number, item) in items.iter().enumerate().filter(|(_, item)| !item.is_packed()) {
                let Some(stored) = header.find(&item.name).map(|number| &header.tensors[number]) else { continue };
                if lost.as_ref() == Some(&item.name) || Container::mistakes(container, &packed, stored, &header) {
                    let reason = "readers take one of this name for a part of a quantized tensor";
                    let advice = "; leave it out of the input, or choose another container";
                    let reason = format!("{reason}{}", if container.is_some() { advice } else { "" });
                    return Err(refused(number, reason));
                }
            }
            safetensors::check(&flat, &texts).map_err(|problem| problem.at(path))?;
            let (header, all) = safetensors::layout(&flat, &texts);
            let end = all.iter().filter_map(|span| span.end()).max().unwrap_or(header.len() as u64);
            let mut all = all.into_iter();
            let spans: Vec<Vec<Span>> = parts.iter().map(|parts| all.by_ref().take(parts.len()).collect()).collect();
            (header, spans, end)
        };
        let write = |e| Error::io(path, "write")(e);
        file.write_all(&header).map_err(write)?;
        file.set_len(end).map_err(write)?;
        let missing = spans.iter().map(|spans| spans.iter().map(|span| span.bytes).sum()).collect();
        Ok(Self { path: path.to_owned(), file, container, items, spans, missing })
    }

    fn put(&mut self, number: usize, span: Span, from: u64, bytes: &[u8]) -> Result<()> {
        if from.checked_add(bytes.len() as u64).is_none_or(|end| end > span.bytes) {
            let what = named(&self.path, &self.items[number].name);
            let got = format!("{} at {from}", bytes.len());
            return Err(Error::invalid(what, format!("at most {} bytes", span.bytes), got));
        }
        let write = |e| Error::io(&self.path, "write")(e);
        self.file.seek(SeekFrom::Start(span.offset + from)).map_err(write)?;
        self.file.write_all(bytes).map_err(write)?;
        self.missing[number] = self.missing[number].saturating_sub(bytes.len() as u64);
        Ok(())
    }

    /// Bytes `from..` of an item that is not quantized.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] where there are more than the item has.
    pub fn plain(&mut self, number: usize, from: u64, bytes: &[u8]) -> Result<()> {
        match (self.spans.get(number).map(Vec::as_slice), self.items.get(number).map(|item| item.content)) {
            (Some([span]), Some(ItemContent::Plain(_))) => self.put(number, *span, from, bytes),
            _ => {
                let what = format!("{}: item {number}", self.path.display());
                Err(Error::invalid(what, "a tensor that is not quantized", "another"))
            }
        }
    }

    /// All of a quantized item; returns how many bytes it takes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] where the tensor is not what the item announced, or holds something that the container has no bits for.
    pub fn packed(&mut self, number: usize, tensor: &PackedTensor) -> Result<u64> {
        let Some(item) = self.items.get(number) else {
            let items = format!("one of {} items", self.items.len());
            return Err(Error::invalid(format!("{}: item {number}", self.path.display()), items, "none"));
        };
        let what = || named(&self.path, &item.name);
        let given = ItemContent::Packed {
            format: tensor.matrix.format(),
            dtype: tensor.dtype,
            permuted: tensor.order.is_some(),
        };
        let Some(container) = self.container else {
            return Err(Error::invalid(what(), "a container of quantized tensors", "none"));
        };
        let layout = tensor.matrix.layout();
        let matrix = container.matrix_shape(&tensor.matrix.format(), &item.shape);
        if item.content != given || item.shape != tensor.shape || (layout.rows, layout.cols) != matrix {
            let expected = format!("{:?} {:?} as a matrix {matrix:?}", item.content, item.shape);
            let got = format!("{given:?} {:?} as {:?}", tensor.shape, (layout.rows, layout.cols));
            return Err(Error::invalid(what(), expected, got));
        }
        let parts = container.encode(tensor).map_err(|reason| Error::invalid(what(), reason, "another tensor"))?;
        for (span, bytes) in self.spans[number].clone().into_iter().zip(parts) {
            self.put(number, span, 0, &bytes)?;
        }
        Ok(self.spans[number].iter().map(|span| span.bytes).sum())
    }
}

/// The table of formats and containers, and of the containers' own encodings, for `docs/formats.md`.
#[must_use]
pub fn table() -> String {
    // A shape that every block divides, so that only the format matters.
    const SHAPE: [usize; 2] = [4096, 4096];
    let mut text = String::from("| format |");
    let names = Container::ALL.map(Container::name);
    text += &names.iter().map(|name| format!(" {name} |")).collect::<String>();
    text += "\n|---|";
    text += &"---|".repeat(names.len());
    text.push('\n');
    let mut formats = Format::all();
    for (_, encoding) in Container::ALL.into_iter().flat_map(Container::encodings) {
        if !formats.contains(&encoding) {
            formats.push(encoding);
        }
    }
    let mut reasons: Vec<(Container, String, Vec<String>)> = Vec::new();
    for format in &formats {
        text += &format!("| `{format}` |");
        for container in Container::ALL {
            match container.supports(format, &SHAPE) {
                Ok(()) => text += " yes |",
                Err(reason) => {
                    // By its name alone it is asked for in the container's own encoding.
                    let name = format.to_string();
                    let own = container.encodings().into_iter().any(|(own, _)| own == name);
                    text += if own { " by name |" } else { " |" };
                    match reasons.iter_mut().find(|(c, r, _)| *c == container && *r == reason) {
                        Some((_, _, formats)) => formats.push(format!("`{format}`")),
                        None => reasons.push((container, reason, vec![format!("`{format}`")])),
                    }
                }
            }
        }
        text.push('\n');
    }
    text += "\n## Why not\n\n";
    reasons.sort_by_key(|(container, ..)| Container::ALL.iter().position(|c| c == container));
    for (container, reason, formats) in reasons {
        // Version 2 of GPTQ differs in the zero points' bytes alone.
        if container != Container::GptqV2 {
            text += &format!("- **{container}**: {reason}: {}.\n", formats.join(", "));
        }
    }
    text += "\n## The containers' own encodings\n\n| container | `--format` | stands for |\n|---|---|---|\n";
    for container in Container::ALL {
        for (name, encoding) in container.encodings() {
            text += &format!("| {container} | `{name}` | `{encoding}` |\n");
        }
    }
    text
}

/// Reads everything that a file of these bytes holds, as fuzzing does it: the number of tensors, or what is wrong.
///
/// # Errors
/// As [`Archive::open`], [`Archive::packed`] and [`Archive::plain`].
#[doc(hidden)]
pub fn fuzz_bytes(bytes: &[u8], sidecar: Option<&[u8]>) -> Result<usize> {
    let archive = Archive::from_bytes("fuzz", bytes, sidecar)?;
    for entry in archive.entries() {
        match entry.content {
            Content::Plain { .. } => drop(archive.plain(entry, 0, u64::MAX)?),
            _ => drop(archive.packed(entry)?),
        }
    }
    Ok(archive.entries().len())
}
