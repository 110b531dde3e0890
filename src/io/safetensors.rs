//! The safetensors container: a JSON header of names, types, shapes and places, then the bytes.

use super::source::{Problem, Source, Span, in_tensor, shown};
use super::tensor::{Dtype, elements};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// The longest header that readers of this container accept.
const LONGEST: u64 = 100_000_000;
/// The most dimensions that are read.
pub(super) const DIMENSIONS: usize = 8;
/// The most entries of metadata that are read.
const METADATA: usize = 1000;

/// The name among those of tensors under which the metadata stand.
const METADATA_NAME: &str = "__metadata__";

/// A tensor of a file.
#[derive(Debug)]
pub(crate) struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub span: Span,
}

/// A file's header: tensors in ascending order of names, and the metadata.
#[derive(Debug)]
pub(crate) struct Header {
    pub tensors: Vec<Stored>,
    pub metadata: Vec<(String, String)>,
}

impl Header {
    /// The value of a metadata key.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A tensor's number.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()
    }

    /// That of a file with these tensors, which are nowhere yet.
    pub fn of(parts: &[Part]) -> Self {
        let stored = |part: &Part| Stored {
            name: part.name.clone(),
            dtype: part.dtype,
            shape: part.shape.clone(),
            span: Span { offset: 0, bytes: 0 },
        };
        let mut tensors: Vec<Stored> = parts.iter().map(stored).collect();
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Self { tensors, metadata: Vec::new() }
    }

    /// Reads and checks it: names are unique, and the tensors' bytes follow one another up to the file's end.
    pub fn read(source: &dyn Source) -> Result<Self, Problem> {
        let size = source.size();
        let mut length = [0; 8];
        if size < 8 {
            return Err(Problem::new("a safetensors or GGUF file", format!("{size} bytes")));
        }
        source.read_at(0, &mut length)?;
        let start = length;
        let foreign =
            || Problem::new("a safetensors or GGUF file", format!("one that starts with `{}`", start.escape_ascii()));
        let length = u64::from_le_bytes(length);
        if length > LONGEST.min(size - 8) {
            // A file that was cut off has a length that could be one and, if anything, a header's start behind it.
            let mut first = [b'{'];
            source.read_at(8, &mut first[..usize::from(size > 8)])?;
            if length > LONGEST.max(size - 8) || first != *b"{" {
                return Err(foreign());
            }
            return Err(Problem::new(
                format!("a safetensors header of at most {} bytes", LONGEST.min(size - 8)),
                format!("{length}"),
            ));
        }
        let json = Span { offset: 8, bytes: length }.read(source)?;
        let mut raw: Raw = serde_json::from_slice(&json).map_err(|e| match json.first() {
            Some(b'{') | None => Problem::new("a safetensors header", e),
            Some(_) => foreign(),
        })?;
        drop(json);
        let data = 8 + length;
        raw.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = raw.tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Problem::new("unique names", "another tensor of the same name").of(&pair[0].name));
        }
        for tensor in &mut raw.tensors {
            let bytes = elements(&tensor.shape).and_then(|n| (n as u64).checked_mul(tensor.dtype.bytes()));
            if bytes != Some(tensor.span.bytes) {
                let bytes = bytes.map_or("countable".to_owned(), |b| b.to_string());
                return Err(Problem::new(format!("{bytes} bytes"), format!("{}", tensor.span.bytes)).of(&tensor.name));
            }
            tensor.span.offset = tensor.span.offset.saturating_add(data);
        }
        let mut order: Vec<&Stored> = raw.tensors.iter().collect();
        order.sort_unstable_by_key(|t| (t.span.offset, t.span.bytes));
        let mut end = data;
        for tensor in order {
            if tensor.span.offset != end {
                return Err(Problem::new(format!("bytes from {end} on"), format!("from {} on", tensor.span.offset))
                    .of(&tensor.name));
            }
            end = tensor.span.end().filter(|end| *end <= size).ok_or_else(|| {
                Problem::new(
                    format!("{} bytes at {}", tensor.span.bytes, tensor.span.offset),
                    format!("the file's end at {size}"),
                )
                .of(&tensor.name)
            })?;
        }
        if end != size {
            return Err(Problem::new(format!("the last tensor's end at the file's end, {size}"), end));
        }
        Ok(Self { tensors: raw.tensors, metadata: raw.metadata })
    }
}

struct Raw {
    tensors: Vec<Stored>,
    metadata: Vec<(String, String)>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Raw, M::Error> {
                let mut raw = Raw { tensors: Vec::new(), metadata: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    let named = |e| in_tensor(&name, e);
                    if name == METADATA_NAME {
                        raw.metadata = map.next_value::<Pairs>()?.0;
                        continue;
                    }
                    let info = map.next_value::<Info>().map_err(named)?;
                    let Some(bytes) = info.data_offsets.1.checked_sub(info.data_offsets.0) else {
                        return Err(named(M::Error::custom("the end is before the start")));
                    };
                    let span = Span { offset: info.data_offsets.0, bytes };
                    raw.tensors.push(Stored { dtype: info.dtype.0, shape: info.shape.0, span, name });
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(serde::Deserialize)]
struct Info {
    dtype: Named,
    shape: Dimensions,
    data_offsets: (u64, u64),
}

struct Named(Dtype);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <Cow<'de, str>>::deserialize(deserializer)?;
        Dtype::parse(&name).map(Self).ok_or_else(|| {
            let names: Vec<_> = Dtype::ALL.iter().map(|d| d.name()).collect();
            D::Error::custom(format!("expected a type of {}, found `{}`", names.join(", "), shown(&name)))
        })
    }
}

/// At most [`DIMENSIONS`] of them.
pub(crate) struct Dimensions(pub Vec<usize>);

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Few;
        impl<'de> Visitor<'de> for Few {
            type Value = Vec<usize>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {DIMENSIONS} dimensions")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Vec<usize>, S::Error> {
                let (mut shape, mut len) = ([0; DIMENSIONS], 0);
                while let Some(n) = seq.next_element()? {
                    *shape.get_mut(len).ok_or_else(|| S::Error::invalid_length(len + 1, &self))? = n;
                    len += 1;
                }
                Ok(shape[..len].to_vec())
            }
        }
        deserializer.deserialize_seq(Few).map(Self)
    }
}

struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Vec<(String, String)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "metadata of at most {METADATA} strings")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut pairs: Vec<(String, String)> = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    if pairs.len() == METADATA {
                        return Err(M::Error::invalid_length(METADATA + 1, &self));
                    }
                    pairs.push(pair);
                }
                Ok(pairs)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Vec::new())
            }
        }
        deserializer.deserialize_any(Strings).map(Self)
    }
}

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Part {
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec() }
    }

    pub fn bytes(&self) -> u64 {
        elements(&self.shape).map_or(u64::MAX, |n| (n as u64).saturating_mul(self.dtype.bytes()))
    }
}

/// Refuses what [`Header::read`] would: a tensor by the name of the metadata, too many dimensions, too many entries of metadata.
pub(crate) fn check(parts: &[Part], metadata: &[(String, String)]) -> Result<(), Problem> {
    if metadata.len() > METADATA {
        return Err(Problem::new(format!("metadata of at most {METADATA} strings"), metadata.len()));
    }
    for part in parts {
        if part.name == METADATA_NAME {
            return Err(Problem::new("another name than that of the metadata", "that").of(&part.name));
        }
        if part.shape.len() > DIMENSIONS {
            return Err(Problem::new(format!("at most {DIMENSIONS} dimensions"), part.shape.len()).of(&part.name));
        }
    }
    Ok(())
}

/// The header's bytes, its length included, and where each part's bytes go. Wide types come first, so that all are aligned.
pub(crate) fn layout(parts: &[Part], metadata: &[(String, String)]) -> (Vec<u8>, Vec<Span>) {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by(|a, b| {
        let key = |i: &usize| (std::cmp::Reverse(parts[*i].dtype.bytes()), parts[*i].name.as_str());
        key(a).cmp(&key(b))
    });
    let mut spans = vec![Span { offset: 0, bytes: 0 }; parts.len()];
    let mut end = 0u64;
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        let object: serde_json::Map<_, _> = metadata.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        entries.push(format!("\"{METADATA_NAME}\":{}", serde_json::Value::Object(object)));
    }
    for i in order {
        let part = &parts[i];
        spans[i] = Span { offset: end, bytes: part.bytes() };
        entries.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{end},{}]}}",
            serde_json::Value::from(part.name.as_str()),
            part.dtype.name(),
            part.shape,
            end.saturating_add(part.bytes())
        ));
        end = end.saturating_add(part.bytes());
    }
    let mut json = format!("{{{}}}", entries.join(",")).into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    for span in &mut spans {
        span.offset = span.offset.saturating_add(header.len() as u64);
    }
    (header, spans)
}
