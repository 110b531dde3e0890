//! A finished run in full precision that another run learns from.

use super::checkpoint::{self, Checkpoint, TensorData};
use super::config::TrainConfig;
use super::data::CharVocab;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A teacher's weights.
#[derive(Clone, Debug)]
pub struct Teacher {
    /// The directory of its run.
    pub dir: PathBuf,
    /// Steps done at the checkpoint that is taken.
    pub step: u64,
    /// Identifies its weights.
    pub digest: String,
    /// Its parameters, as `model.*`.
    pub tensors: Vec<(String, TensorData)>,
}

impl Teacher {
    /// The best checkpoint of the run in `dir`, which must be finished, in full precision, and of the shape and vocabulary of `config` and
    /// `vocab`. Where there is none of the best evaluation's step the last one is taken, with a warning.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming `--teacher`, for another kind of run; [`Error::File`] for a damaged one; [`Error::Io`].
    pub fn find(dir: &Path, config: &TrainConfig, vocab: &CharVocab, warn: &mut dyn FnMut(String)) -> Result<Self> {
        let refuse = |expected: String, got: String| {
            Err(Error::invalid("--teacher", expected, format!("{got} in {}", dir.display())))
        };
        let kind = "the directory of a finished run in full precision";
        if !dir.is_dir() {
            return refuse(kind.to_owned(), "no directory".to_owned());
        }
        let (newest, skipped) = checkpoint::newest_whole(dir)?;
        for error in skipped {
            warn(format!("skipped: {error}"));
        }
        let Some(last) = newest else { return refuse(kind.to_owned(), "no checkpoint".to_owned()) };
        let own = &last.info.config;
        if own.weights.is_some() {
            return refuse(kind.to_owned(), format!("one by --method {}", own.method));
        }
        if last.state.step != own.steps {
            return refuse(kind.to_owned(), format!("step {} of {}", last.state.step, own.steps));
        }
        let shape = |c: &TrainConfig| (c.layers, c.heads, c.embd, c.block, c.bias);
        if shape(own) != shape(config) {
            return refuse(
                format!("a model of the same shape ({})", config.describe()),
                format!("one of {}", own.describe()),
            );
        }
        if last.info.vocab != *vocab {
            return refuse("a model of the same characters".to_owned(), "one of a text with others".to_owned());
        }
        let best = last.state.best_val.map_or(last.state.step, |best| best.step);
        let checkpoint = match checkpoint::path_of(dir, best) {
            path if best != last.state.step && path.exists() => Checkpoint::load(&path)?,
            _ => {
                if best != last.state.step {
                    warn(format!(
                        "the teacher in {} has no checkpoint of step {best}, its best: its last is taken",
                        dir.display()
                    ));
                }
                last
            }
        };
        let mut tensors = checkpoint.tensors;
        tensors.retain(|(name, _)| name.starts_with("model."));
        let digest = checkpoint::tensors_digest(&tensors);
        Ok(Self { dir: dir.to_path_buf(), step: checkpoint.state.step, digest, tensors })
    }
}
