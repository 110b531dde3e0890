//! Where files are read from, and what readers say to what they find.

use crate::{Error, Result};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes that can be read at any place.
pub(crate) trait Source {
    /// How many there are.
    fn size(&self) -> u64;
    /// Fills `buffer` with those from `offset` on.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).ok().filter(|start| *start <= self.len());
        let bytes = start.and_then(|start| self[start..].get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A file, of which only the ranges that are asked for are read.
pub(crate) struct FileSource {
    file: File,
    size: u64,
}

impl FileSource {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let metadata = file.metadata().map_err(Error::io(path, "open"))?;
        if metadata.is_dir() {
            return Err(Error::io(path, "read")(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self { file, size: metadata.len() })
    }
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

/// Bytes of a file: where they start and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub offset: u64,
    pub bytes: u64,
}

impl Span {
    /// The first byte after it, if that can be a place in a file.
    pub fn end(self) -> Option<u64> {
        self.offset.checked_add(self.bytes)
    }

    /// Reads it. The readers have made sure that it lies within the file.
    pub fn read(self, source: &dyn Source) -> Result<Vec<u8>, Problem> {
        if self.end().is_none_or(|end| end > source.size()) {
            return Err(Problem::new(
                format!("bytes {} and the {} after it", self.offset, self.bytes),
                "the file's end",
            ));
        }
        let len = usize::try_from(self.bytes).map_err(|_| Problem::new("bytes that fit memory", self.bytes))?;
        let mut buffer = vec![0; len];
        source.read_at(self.offset, &mut buffer)?;
        Ok(buffer)
    }
}

/// What is wrong with a file.
#[derive(Debug)]
pub(crate) enum Problem {
    /// Its content.
    Content {
        /// What should be there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// It cannot be read.
    Io(io::Error),
    /// Anything else.
    Other(Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Problem {
    pub fn new(expected: impl ToString, got: impl ToString) -> Self {
        Self::Content { expected: expected.to_string(), got: got.to_string() }
    }

    /// Adds the name of the tensor.
    pub fn of(self, tensor: &str) -> Self {
        match self {
            Self::Content { expected, got } => {
                Self::Content { expected: format!("{expected} in tensor `{}`", shown(tensor)), got }
            }
            Self::Other(error) => Self::new(format!("a tensor `{}` that walsh can hold", shown(tensor)), error),
            Self::Io(error) => Self::Io(error),
        }
    }

    /// Adds the file.
    pub fn at(self, path: &Path) -> Error {
        match self {
            Self::Content { expected, got } => Error::file(path, expected, got),
            Self::Io(error) => Error::io(path, "read")(error),
            Self::Other(error) => error,
        }
    }
}

/// A name out of a file, for messages: no control characters, not too long.
pub(crate) fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(160).flat_map(char::escape_debug).collect();
    if name.chars().nth(160).is_some() {
        shown.push_str("..");
    }
    shown
}

/// Adds a tensor's name to what is wrong with its JSON: in front, because serde_json takes the place in the text from a message's end.
pub(crate) fn in_tensor<E: serde::de::Error>(name: &str, error: E) -> E {
    E::custom(format!("tensor `{}`: {error}", shown(name)))
}
