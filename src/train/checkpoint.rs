//! Checkpoints: safetensors files that hold a run at one step, whole or not at all.
//!
//! Parameters are named `model.*`, AdamW's moments `optimizer.m.*` and `optimizer.v.*`, the step's state `state.*`. Everything else (settings,
//! vocabulary, adapter, losses, a digest of the tensors) is one JSON object under the metadata key `walsh`.

use super::data::Digest;
use super::files;
use super::run::{RunInfo, RunState};
use crate::{DType, Error, Result};
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The version of the layout that is written and read.
const FORMAT: u32 = 1;
/// The metadata key.
pub(crate) const KEY: &str = "walsh";
/// The longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// What a file should have been, for messages.
const WHOLE: &str = "a whole checkpoint of walsh";

/// A tensor on the host, row-major, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// Element type.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The elements' bytes.
    pub bytes: Vec<u8>,
}

impl TensorData {
    /// A tensor of f32.
    #[must_use]
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Self {
        Self { dtype: DType::F32, shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// A tensor of u32.
    #[must_use]
    pub fn from_u32(values: &[u32], shape: &[usize]) -> Self {
        Self { dtype: DType::U32, shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// Its elements, if they are f32.
    #[must_use]
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.dtype == DType::F32).then(|| self.words().map(f32::from_le_bytes).collect())
    }

    /// Its elements, if they are u32.
    #[must_use]
    pub fn to_u32(&self) -> Option<Vec<u32>> {
        (self.dtype == DType::U32).then(|| self.words().map(u32::from_le_bytes).collect())
    }

    fn words(&self) -> impl Iterator<Item = [u8; 4]> {
        self.bytes.as_chunks::<4>().0.iter().copied()
    }
}

impl View for &TensorData {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::U32 => Dtype::U32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A run at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What does not change from step to step.
    pub info: RunInfo,
    /// Step and losses.
    pub state: RunState,
    /// Parameters, moments and state words, in ascending order of names.
    pub tensors: Vec<(String, TensorData)>,
}

/// What stands in the metadata.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    info: RunInfo,
    state: RunState,
    /// Digest of names, shapes and bytes of all tensors.
    digest: String,
}

pub(super) fn tensors_digest(tensors: &[(String, TensorData)]) -> String {
    let mut sorted: Vec<&(String, TensorData)> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut digest = Digest::default();
    for (name, tensor) in sorted {
        digest.add(format!("{name} {} {:?}", tensor.dtype, tensor.shape).as_bytes());
        digest.add(&tensor.bytes);
    }
    digest.finish()
}

impl Checkpoint {
    /// Writes it beside `path` and renames it. Equal runs write equal bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] if the tensors do not fit the format.
    pub fn save(&self, path: &Path) -> Result<()> {
        let header = Header {
            format: FORMAT,
            info: self.info.clone(),
            state: self.state.clone(),
            digest: tensors_digest(&self.tensors),
        };
        let json = serde_json::to_string(&header)
            .map_err(|e| Error::file(path, "settings that JSON can hold", e.to_string()))?;
        // One key only: the order in which several are written is not the same twice.
        let metadata = HashMap::from([(KEY.to_owned(), json)]);
        files::replace(path, |partial, _| {
            let tensors = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
            safetensors::serialize_to_file(tensors, Some(metadata), partial).map_err(|e| match e {
                safetensors::SafeTensorError::IoError(source) => Error::io(path, "write")(source),
                other => Error::file(path, "tensors that fit the format", other.to_string()),
            })
        })
    }

    /// Reads and checks all of a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::File`] if it is truncated, damaged or not one of walsh's checkpoints.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let fail = |got: String| Error::file(path, WHOLE, got);
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|e| fail(format!("a truncated or foreign file ({e})")))?;
        let json = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(KEY))
            .ok_or_else(|| fail("a safetensors file that walsh did not write".to_owned()))?;
        // The version first: another version's other fields may be anything.
        let format = serde_json::from_str::<serde_json::Value>(json)
            .ok()
            .and_then(|v| v.get("format").and_then(serde_json::Value::as_u64));
        if format != Some(u64::from(FORMAT)) {
            let found = format.map_or("none".to_owned(), |f| f.to_string());
            return Err(Error::file(path, format!("a checkpoint of format {FORMAT}"), format!("format {found}")));
        }
        let header: Header =
            serde_json::from_str(json).map_err(|e| fail(format!("settings that it cannot read ({e})")))?;
        header.info.config.validate().map_err(|e| fail(format!("bad settings ({e})")))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(format!("a truncated or damaged file ({e})")))?;
        let mut tensors = Vec::with_capacity(file.len());
        for (name, view) in file.iter() {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::U32 => DType::U32,
                other => return Err(fail(format!("tensor `{name}` of type {other:?}"))),
            };
            tensors.push((
                name.to_owned(),
                TensorData { dtype, shape: view.shape().to_vec(), bytes: view.data().to_vec() },
            ));
        }
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        if tensors_digest(&tensors) != header.digest {
            return Err(fail("tensors that do not match their digest".to_owned()));
        }
        Ok(Self { info: header.info, state: header.state, tensors })
    }

    /// The tensor of a name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorData> {
        let at = self.tensors.binary_search_by(|(own, _)| own.as_str().cmp(name)).ok()?;
        Some(&self.tensors[at].1)
    }
}

/// Whether a file says of itself that it is a checkpoint of walsh, whole or not, of whatever version. False where there is none.
///
/// # Errors
/// [`Error::Io`].
pub fn is_checkpoint(path: &Path) -> Result<bool> {
    #[derive(Deserialize)]
    struct Names {
        #[serde(rename = "__metadata__")]
        metadata: Option<HashMap<String, String>>,
    }
    // A pipe would be waited for.
    if !std::fs::metadata(path).is_ok_and(|found| found.is_file()) {
        return Ok(false);
    }
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut length = [0; 8];
    let mut json = Vec::new();
    // Of a file that is damaged or cut off further on the header may be whole.
    match file.read_exact(&mut length) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(false),
        read => read.map_err(Error::io(path, "read"))?,
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Ok(false);
    }
    file.take(length).read_to_end(&mut json).map_err(Error::io(path, "read"))?;
    let names = serde_json::from_slice::<Names>(&json).ok();
    Ok(names.and_then(|names| names.metadata).is_some_and(|metadata| metadata.contains_key(KEY)))
}

/// The tensor of a name among those of a checkpoint, if it has the type and shape that a model expects.
///
/// # Errors
/// [`Error::Invalid`], naming the tensor.
pub fn find<'a>(
    tensors: &'a [(String, TensorData)],
    name: &str,
    dtype: DType,
    shape: &[usize],
) -> Result<&'a TensorData> {
    let expected = || format!("a tensor of {dtype}, shape {shape:?}");
    let what = || format!("checkpoint tensor `{name}`");
    match tensors.iter().find(|(own, _)| own == name) {
        None => Err(Error::invalid(what(), expected(), "none")),
        Some((_, tensor)) if tensor.dtype != dtype || tensor.shape != shape => {
            Err(Error::invalid(what(), expected(), format!("{}, shape {:?}", tensor.dtype, tensor.shape)))
        }
        Some((_, tensor)) => Ok(tensor),
    }
}

/// Where the checkpoint of a step is.
#[must_use]
pub fn path_of(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("step-{step:06}.safetensors"))
}

/// The checkpoints in a directory, oldest first.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "read"))? {
        let path = entry.map_err(Error::io(dir, "read"))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let step = name.strip_prefix("step-").and_then(|n| n.strip_suffix(".safetensors"));
        if let Some(step) = step.and_then(|s| s.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint in a directory that is whole, and why newer ones are not.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read.
pub fn newest_whole(dir: &Path) -> Result<(Option<Checkpoint>, Vec<Error>)> {
    let mut skipped = Vec::new();
    for (step, path) in list(dir)?.into_iter().rev() {
        match Checkpoint::load(&path) {
            Ok(checkpoint) if checkpoint.state.step == step => return Ok((Some(checkpoint), skipped)),
            Ok(other) => {
                let got = format!("one of step {}", other.state.step);
                skipped.push(Error::file(&path, format!("the checkpoint of step {step}"), got));
            }
            Err(error) => skipped.push(error),
        }
    }
    Ok((None, skipped))
}

/// Removes all checkpoints up to `step` but the newest `keep` and the one of step `best`. Files of later steps, which were not whole when the
/// run was resumed, count for nothing.
///
/// # Errors
/// [`Error::Io`].
pub fn prune(dir: &Path, step: u64, keep: usize, best: Option<u64>) -> Result<()> {
    let mut all = list(dir)?;
    all.retain(|(own, _)| *own <= step);
    for (step, path) in &all[..all.len().saturating_sub(keep)] {
        if Some(*step) != best {
            std::fs::remove_file(path).map_err(Error::io(path, "remove"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::run::tests::info;
    use std::fs;

    fn checkpoint(step: u64) -> Checkpoint {
        Checkpoint {
            info: info(),
            state: RunState { step, train_loss: Some(0.1 + 0.2), ..RunState::default() },
            tensors: vec![
                ("model.a".into(), TensorData::from_f32(&[1.5, -0.0, f32::MIN_POSITIVE, 3.0], &[2, 2])),
                ("optimizer.m.a".into(), TensorData::from_f32(&[0.0; 4], &[2, 2])),
                ("state.words".into(), TensorData::from_u32(&[u32::MAX, 7, 9], &[3])),
            ],
        }
    }

    #[test]
    fn comes_back_to_the_bit_and_is_written_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        checkpoint(7).save(&a).unwrap();
        checkpoint(7).save(&b).unwrap();
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        let loaded = Checkpoint::load(&a).unwrap();
        assert_eq!(loaded, checkpoint(7));
        assert_eq!(loaded.tensor("state.words").unwrap().to_u32().unwrap(), [u32::MAX, 7, 9]);
        assert!(loaded.tensor("model.b").is_none());
    }

    #[test]
    fn damage_of_any_kind_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-000007.safetensors");
        checkpoint(7).save(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        let check = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Checkpoint::load(&path)
        };
        for len in 0..whole.len() {
            let error = check(&whole[..len]).unwrap_err();
            assert!(!error.is_failure() && error.to_string().contains("expected"), "{error}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            // A changed character may yield other settings that are valid; tensors never come back changed.
            if let Ok(loaded) = check(&changed) {
                assert_eq!(
                    loaded.tensors.iter().map(|t| &t.1).collect::<Vec<_>>(),
                    checkpoint(7).tensors.iter().map(|t| &t.1).collect::<Vec<_>>()
                );
            }
        }
        let foreign: [(&str, TensorData); 0] = [];
        safetensors::serialize_to_file(foreign.iter().map(|(n, t)| (*n, t)), None, &path).unwrap();
        assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("walsh did not write"));
        assert!(!is_checkpoint(&path).unwrap());
    }

    #[test]
    fn checkpoints_are_told_from_other_files_even_if_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("any name");
        assert!(!is_checkpoint(&path).unwrap() && !is_checkpoint(dir.path()).unwrap());
        checkpoint(7).save(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
        for len in [0, 7, 8, header / 2, header, whole.len() - 1, whole.len()] {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(is_checkpoint(&path).unwrap(), len >= header, "{len} bytes");
        }
        // Of another version, and metadata of another name.
        for (from, to, expected) in
            [(r#"\"format\":1"#, r#"\"format\":2"#, true), (r#""walsh":"#, r#""wolsh":"#, false)]
        {
            let (from, to) = (from.as_bytes(), to.as_bytes());
            let at = whole.windows(from.len()).position(|part| part == from).unwrap();
            fs::write(&path, [&whole[..at], to, &whole[at + from.len()..]].concat()).unwrap();
            assert!(Checkpoint::load(&path).is_err());
            assert_eq!(is_checkpoint(&path).unwrap(), expected);
        }
    }

    #[test]
    fn the_newest_whole_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest_whole(dir.path()).unwrap().0.is_none());
        for step in [10, 9, 1_000_000] {
            checkpoint(step).save(&path_of(dir.path(), step)).unwrap();
        }
        assert_eq!(newest_whole(dir.path()).unwrap().0.unwrap().state.step, 1_000_000);
        let newest = path_of(dir.path(), 1_000_000);
        let bytes = fs::read(&newest).unwrap();
        fs::write(&newest, &bytes[..bytes.len() - 1]).unwrap();
        fs::copy(path_of(dir.path(), 9), path_of(dir.path(), 11)).unwrap();
        let (found, skipped) = newest_whole(dir.path()).unwrap();
        assert_eq!((found.unwrap().state.step, skipped.len()), (10, 2));
        prune(dir.path(), 10, 1, None).unwrap();
        assert!(path_of(dir.path(), 10).exists() && newest.exists() && !path_of(dir.path(), 9).exists());
        checkpoint(9).save(&path_of(dir.path(), 9)).unwrap();
        prune(dir.path(), 1_000_000, 1, Some(9)).unwrap();
        assert_eq!(list(dir.path()).unwrap().iter().map(|c| c.0).collect::<Vec<_>>(), [9, 1_000_000]);
    }
}
