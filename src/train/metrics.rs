//! `metrics.jsonl`: one JSON object per logged step.

use super::diagnostics::Diagnostics;
use super::files;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file's name.
pub const FILE: &str = "metrics.jsonl";

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done.
    pub step: u64,
    /// Loss of the step, in nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Loss over the validation split, where it was evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Learning rate of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Global norm of the gradient before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Milliseconds per step since the line before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<f64>,
    /// Tokens learned from per second, since the line before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Factor by which the loss is scaled in the backward pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Steps so far whose update was left out because a gradient overflowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<u64>,
    /// What quantization does to each layer, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnostics: Option<Diagnostics>,
}

/// The file of a run, open for more lines.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file in `dir`, without lines of steps after `step`: those will come again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(dir: &Path, step: u64) -> Result<Self> {
        let path = dir.join(FILE);
        let mut kept = String::new();
        for record in read(dir)?.iter().filter(|r| r.step <= step && step > 0) {
            kept.push_str(&line(record));
        }
        files::replace_with(&path, kept.as_bytes())?;
        let file = File::options().append(true).open(&path).map_err(Error::io(&path, "open"))?;
        Ok(Self { path, file })
    }

    /// Appends a line, and hands it to the system at once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, record: &Record) -> Result<()> {
        self.file.write_all(line(record).as_bytes()).map_err(Error::io(&self.path, "write"))
    }
}

fn line(record: &Record) -> String {
    // Numbers that are not finite become null; nothing else can go wrong with plain fields.
    let mut line = serde_json::to_string(record).unwrap_or_default();
    line.push('\n');
    line
}

/// The lines of the file in `dir`, none if there is no file. Lines that are cut off or make no sense are left out.
///
/// # Errors
/// [`Error::Io`] if it is there and cannot be read.
pub fn read(dir: &Path) -> Result<Vec<Record>> {
    let path = dir.join(FILE);
    match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io(&path, "read")(e)),
        Ok(bytes) => Ok(bytes.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_the_checkpoint_and_cut_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0).unwrap();
        for step in 1..=6 {
            metrics.write(&Record { step, train_loss: Some(0.1 * 3.0), ..Record::default() }).unwrap();
        }
        drop(metrics);
        let path = dir.path().join(FILE);
        let mut text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().next().unwrap(), r#"{"step":1,"train_loss":0.30000000000000004}"#);
        text.push_str("{\"step\":2,\"tra");
        fs::write(&path, text).unwrap();
        let mut metrics = Metrics::open(dir.path(), 4).unwrap();
        metrics.write(&Record { step: 5, val_loss: Some(2.0), ..Record::default() }).unwrap();
        let records = read(dir.path()).unwrap();
        assert_eq!(records.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!((records[4].val_loss, records[4].train_loss), (Some(2.0), None));
        // A run that starts afresh has no past.
        Metrics::open(dir.path(), 0).unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
    }
}
