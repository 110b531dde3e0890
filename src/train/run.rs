//! The directory of a run: `run.json`, checkpoints, metrics; what is found there, and whether a run may go on.

use super::checkpoint::{self, Checkpoint};
use super::config::{Overrides, Preset, TrainConfig, no_teacher, resumed};
use super::data::{CharVocab, Dataset};
use super::{Precision, Teacher, files};
use crate::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The device that a run uses, as reports and checkpoints name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// The adapter's name.
    pub adapter: String,
    /// The driver's name and version.
    pub driver: String,
    /// The graphics interface, in lower case.
    pub backend: String,
    /// The kernel tier.
    pub tier: String,
    /// The type of matrix operands: f32 or f16.
    pub precision: Precision,
    /// Which variant each kernel of the run uses, where there is a choice.
    #[serde(default)]
    pub kernels: BTreeMap<String, String>,
}

/// What tells one set of kernels from another: a digest of all shaders, and the version that chooses among them.
fn kernels() -> BTreeMap<String, String> {
    let mut digest = super::data::Digest::default();
    for kernel in crate::kernel::ALL {
        digest.add(kernel.name.as_bytes());
        digest.add(kernel.source.as_bytes());
    }
    BTreeMap::from([
        ("shaders".to_owned(), digest.finish()),
        ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ])
}

impl DeviceInfo {
    /// What `context` is, with a precision that was [resolved](Precision::resolve).
    #[must_use]
    pub fn new(context: &Context, precision: Precision) -> Self {
        let adapter = &context.capabilities().adapter;
        Self {
            adapter: adapter.name.clone(),
            driver: format!("{} {}", adapter.driver, adapter.driver_info).trim().to_owned(),
            backend: adapter.backend.to_str().to_owned(),
            tier: context.tier().name().to_owned(),
            precision,
            kernels: kernels(),
        }
    }
}

/// A loss over the validation split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done before it.
    pub step: u64,
    /// Nats per token.
    pub loss: f64,
}

/// What changes from step to step, beside the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done.
    pub step: u64,
    /// Loss of the last step.
    pub train_loss: Option<f64>,
    /// The last evaluation.
    pub last_val: Option<Evaluation>,
    /// The best one.
    pub best_val: Option<Evaluation>,
}

/// What does not change from step to step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// The settings.
    pub config: TrainConfig,
    /// The tokens.
    pub vocab: CharVocab,
    /// Identifies the text.
    pub text_digest: String,
    /// What it runs on.
    pub device: DeviceInfo,
    /// Identifies the weights of its teacher, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_digest: Option<String>,
}

impl RunInfo {
    /// The run's text and the one asked for, for messages, where `data`, which is the latter, is another text. `config` may be the run's own or
    /// that of a run planned beside it.
    pub(super) fn other_text(
        &self,
        data: &Dataset,
        config: &TrainConfig,
        overrides: &Overrides,
    ) -> Option<(String, String)> {
        if self.text_digest == data.digest() && self.vocab == *data.vocab() {
            return None;
        }
        let name =
            |path: Option<&PathBuf>| path.map_or("the built-in corpus".to_owned(), |path| path.display().to_string());
        let (own, asked) = (self.config.text.as_ref(), overrides.text.as_ref().or(config.text.as_ref()));
        // Settings have absolute paths, flags those that were typed.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let changed = own.map(absolute) == asked.map(absolute);
        let with = if changed { " with other content" } else { "" };
        Some((name(own), format!("{}{with}", name(asked))))
    }
}

/// What an output directory holds.
#[derive(Debug)]
pub enum Found {
    /// No run: a new one starts.
    Nothing,
    /// A run that was stopped before its first checkpoint: it starts afresh with its settings.
    Settings(Box<RunInfo>),
    /// A run that goes on.
    Checkpoint(Box<Checkpoint>),
}

impl Found {
    /// Looks into `dir`. Checkpoints that are not whole are passed over, with a warning each, where there is another one.
    ///
    /// # Errors
    /// [`Error::File`] if it holds a run and `resume` is false, if nothing of a run or none of its checkpoints can be read, or if it is that
    /// of a comparison;
    /// [`Error::Io`].
    pub fn look(dir: &Path, resume: bool, warn: &mut dyn FnMut(String)) -> Result<Self> {
        match fs::metadata(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::Nothing),
            Err(e) => return Err(Error::io(dir, "open")(e)),
            Ok(meta) if !meta.is_dir() => return Err(Error::file(dir, "a directory (--out)", "a file")),
            Ok(_) => {}
        }
        if dir.join(super::compare::FILE).exists() {
            return Err(Error::file(dir, "a directory of a run of its own (--out)", "that of a comparison"));
        }
        let settings = dir.join(RUN_FILE);
        if !resume {
            if holds_run(dir)? {
                let expected = "a directory without a run (--out); go on with the run by --resume";
                return Err(Error::file(dir, expected, "a run"));
            }
            return Ok(Self::Nothing);
        }
        let (newest, skipped) = checkpoint::newest_whole(dir)?;
        let Some(checkpoint) = newest else { return Self::without_checkpoint(dir, &settings, skipped) };
        for error in skipped {
            warn(format!("skipped: {error}"));
        }
        Ok(Self::Checkpoint(Box::new(checkpoint)))
    }

    /// What there is of a run beside its checkpoints. Where none of those can be read, which may pass, nothing begins in their place.
    fn without_checkpoint(dir: &Path, settings: &Path, unread: Vec<Error>) -> Result<Self> {
        if let Some(newest) = unread.into_iter().next() {
            let expected = "a checkpoint that can be read; without its checkpoints, the run starts afresh";
            return Err(Error::file(dir, expected, newest.to_string()));
        }
        match fs::read(settings) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::Nothing),
            Err(e) => Err(Error::io(settings, "read")(e)),
            Ok(bytes) => match serde_json::from_slice::<RunInfo>(&bytes) {
                Ok(info) if info.config.validate().is_ok() => Ok(Self::Settings(Box::new(info))),
                Ok(_) => Err(Error::file(settings, "the settings of a run", "settings that make no sense")),
                Err(e) => Err(Error::file(settings, "the settings of a run", e.to_string())),
            },
        }
    }

    /// The run's own settings, if there is a run.
    #[must_use]
    pub fn info(&self) -> Option<&RunInfo> {
        match self {
            Self::Nothing => None,
            Self::Settings(info) => Some(info),
            Self::Checkpoint(checkpoint) => Some(&checkpoint.info),
        }
    }

    /// The settings to run with: those found, or new ones.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag that is wrong or that a resumed run does not take.
    pub fn config(&self, overrides: &Overrides, preset: Preset) -> Result<TrainConfig> {
        match self.info() {
            None => overrides.fresh(preset),
            Some(info) => overrides.resumed(&info.config),
        }
    }

    /// Opens the text that `config`, or for a resumed run `--text`, names, and checks that it is still the run's.
    ///
    /// # Errors
    /// As [`Dataset::from_file`] and [`Dataset::built_in`]; [`Error::Invalid`] for another text than the run's.
    pub fn dataset(&self, config: &TrainConfig, overrides: &Overrides) -> Result<Dataset> {
        let data = match overrides.text.as_ref().or(config.text.as_ref()) {
            Some(path) => Dataset::from_file(path, config.block, config.seed)?,
            None => Dataset::built_in(config.block, config.seed)?,
        };
        self.check_text(&data, config, overrides)?;
        Ok(data)
    }

    /// Checks that the text is the run's, if there is a run.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another text.
    fn check_text(&self, data: &Dataset, config: &TrainConfig, overrides: &Overrides) -> Result<()> {
        match self.info().and_then(|info| info.other_text(data, config, overrides)) {
            Some((own, got)) => Err(resumed("--text", &own, &got)),
            None => Ok(()),
        }
    }

    /// The teacher that `config`, or for a resumed run `--teacher`, names, checked to be still the run's; none for methods that learn from
    /// none.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag, where one is missing or not wanted or another than the run's; as [`Teacher::find`].
    pub fn teacher(
        &self,
        config: &TrainConfig,
        overrides: &Overrides,
        vocab: &CharVocab,
        warn: &mut dyn FnMut(String),
    ) -> Result<Option<Teacher>> {
        let asked = overrides.teacher.as_ref().or(config.teacher.as_ref());
        let method = config.method;
        if method.distillation().is_none() {
            return match asked {
                Some(dir) => Err(no_teacher(method, dir)),
                None => Ok(None),
            };
        }
        let Some(dir) = asked else {
            let expected = format!(
                "beside --method {method} the directory of a finished run in full precision of the same shape and \
                 text (walsh train --out DIR makes one)"
            );
            return Err(Error::invalid("--teacher", expected, "none"));
        };
        let teacher = Teacher::find(dir, config, vocab, warn)?;
        match self.info() {
            Some(info) if info.teacher_digest.as_ref() != Some(&teacher.digest) => {
                let own = info.config.teacher.as_ref().map_or("none".to_owned(), |dir| dir.display().to_string());
                Err(resumed("--teacher", &own, &format!("{} with other weights", dir.display())))
            }
            _ => Ok(Some(teacher)),
        }
    }

    /// Checks the device against the run's own: another precision or, where it was asked for, another adapter is refused; where the machine
    /// has changed, the run goes on with a warning.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag.
    pub fn check_device(&self, device: &DeviceInfo, overrides: &Overrides, warn: &mut dyn FnMut(String)) -> Result<()> {
        let Some(own) = self.info().map(|info| &info.device) else { return Ok(()) };
        if device.precision != own.precision {
            return Err(resumed("--precision", own.precision.name(), device.precision.name()));
        }
        let name = |d: &DeviceInfo| format!("{} ({})", d.adapter, d.backend);
        if name(device) != name(own) {
            if overrides.adapter.is_some() {
                return Err(resumed("--adapter", &name(own), &name(device)));
            }
            warn(format!(
                "the run began on {}, now it is on {}: its numbers will differ in the last bits",
                name(own),
                name(device)
            ));
        } else if (&device.tier, &device.driver, &device.kernels) != (&own.tier, &own.driver, &own.kernels) {
            warn(
                "driver or kernels have changed since the run began: its numbers may differ in the last bits"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// The precision that the flags and the run ask for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the adapter has it not.
    pub fn precision(&self, config: &TrainConfig, overrides: &Overrides, context: &Context) -> Result<Precision> {
        match (overrides.precision, self.info()) {
            // What `auto` meant when the run began holds for all of it.
            (None | Some(Precision::Auto), Some(info)) => info.device.precision.resolve(context),
            (Some(asked), _) => asked.resolve(context),
            (None, None) => config.precision.resolve(context),
        }
    }
}

/// Whether a directory has files of a run.
pub(super) fn holds_run(dir: &Path) -> Result<bool> {
    let named = [RUN_FILE, super::metrics::FILE].iter().any(|name| dir.join(name).exists());
    Ok(named || (dir.exists() && !checkpoint::list(dir)?.is_empty()))
}

/// The name of the file with a run's settings.
const RUN_FILE: &str = "run.json";

/// Whether a file is the settings or the metrics of a run, or the records of a comparison: it has their name, and their content or what was
/// theirs in another version. False where there is none.
#[must_use]
pub fn is_run_file(path: &Path) -> bool {
    let keys: &[&str] = match path.file_name().and_then(|name| name.to_str()) {
        Some(RUN_FILE) => &["config", "vocab"],
        Some(super::metrics::FILE) => &["step"],
        Some(super::compare::FILE) => &["name", "info"],
        _ => return false,
    };
    // A pipe would be waited for.
    if !fs::metadata(path).is_ok_and(|found| found.is_file()) {
        return false;
    }
    // The only value, or the first of the lines.
    let Ok(json) = fs::read(path) else { return false };
    let value = serde_json::Deserializer::from_slice(&json).into_iter::<serde_json::Value>().next();
    value.is_some_and(|value| value.is_ok_and(|value| keys.iter().all(|key| value.get(key).is_some())))
}

/// A run and its directory.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where its files are.
    pub dir: PathBuf,
    /// Its settings.
    pub info: RunInfo,
    /// How far it is.
    pub state: RunState,
}

impl Run {
    /// Makes the directory if it is not there, and writes the settings. Metrics of steps after `state` are removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn start(dir: &Path, info: RunInfo, state: RunState) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
        files::remove_partial(dir);
        let path = dir.join(RUN_FILE);
        let mut json = serde_json::to_string_pretty(&info)
            .map_err(|e| Error::file(&path, "settings that JSON can hold", e.to_string()))?;
        json.push('\n');
        files::replace_with(&path, json.as_bytes())?;
        Ok(Self { dir: dir.to_path_buf(), info, state })
    }

    /// Removes the files of a run that has no checkpoint, and its directory if nothing else is in it.
    pub fn discard_if_empty(&self) {
        if super::checkpoint::list(&self.dir).is_ok_and(|found| found.is_empty()) {
            for name in ["run.json", "metrics.jsonl", "loss.svg", "diagnostics.svg"] {
                let _ = std::fs::remove_file(self.dir.join(name));
            }
            // Fails, as it should, where something else is there.
            let _ = std::fs::remove_dir(&self.dir);
        }
    }

    /// Writes a checkpoint of the current step, then removes the ones that are too many.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn checkpoint(&self, tensors: Vec<(String, super::TensorData)>) -> Result<PathBuf> {
        let path = checkpoint::path_of(&self.dir, self.state.step);
        Checkpoint { info: self.info.clone(), state: self.state.clone(), tensors }.save(&path)?;
        checkpoint::prune(&self.dir, self.state.step, self.info.config.keep, self.state.best_val.map(|v| v.step))?;
        Ok(path)
    }

    /// Makes a directory that was not there, under `root`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn fresh_dir(root: &Path, name: &str) -> Result<PathBuf> {
        fs::create_dir_all(root).map_err(Error::io(root, "create"))?;
        for number in 1u32.. {
            let dir = root.join(format!("{name}-{number}"));
            match fs::create_dir(&dir) {
                Ok(()) => return Ok(dir),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(&dir, "create")(e)),
            }
        }
        Err(Error::file(root, "room for another run", "none"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::train::TensorData;

    pub(crate) fn info() -> RunInfo {
        RunInfo {
            config: Preset::Nano.config(),
            vocab: CharVocab::of("ab\n\u{e9}\"\\"),
            text_digest: "0".into(),
            device: DeviceInfo {
                adapter: "a".into(),
                driver: "d".into(),
                backend: "vulkan".into(),
                tier: "baseline".into(),
                precision: Precision::F32,
                kernels: BTreeMap::new(),
            },
            teacher_digest: None,
        }
    }

    fn look(dir: &Path, resume: bool) -> (Result<Found>, Vec<String>) {
        let mut warnings = Vec::new();
        let found = Found::look(dir, resume, &mut |w| warnings.push(w));
        (found, warnings)
    }

    #[test]
    fn a_directory_is_what_it_holds() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        for resume in [false, true] {
            assert!(matches!(look(&dir, resume).0, Ok(Found::Nothing)));
            assert!(matches!(look(root.path(), resume).0, Ok(Found::Nothing)));
        }
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(look(&file, true).0.unwrap_err().to_string().contains("expected a directory"));

        let mut run = Run::start(&dir, info(), RunState::default()).unwrap();
        let refused = look(&dir, false).0.unwrap_err();
        assert!(!refused.is_failure() && refused.to_string().contains("--resume"), "{refused}");
        assert!(matches!(look(&dir, true).0, Ok(Found::Settings(own)) if *own == info()));

        let tensors = vec![("model.a".to_owned(), TensorData::from_f32(&[1.0], &[1]))];
        for step in 1..=5 {
            run.state.step = step;
            run.state.best_val = Some(Evaluation { step: step.min(1), loss: 1.0 });
            run.checkpoint(tensors.clone()).unwrap();
        }
        let steps: Vec<u64> = checkpoint::list(&dir).unwrap().iter().map(|c| c.0).collect();
        assert_eq!(steps, [1, 3, 4, 5]);
        fs::write(checkpoint::path_of(&dir, 5), "{}").unwrap();
        let (found, warnings) = look(&dir, true);
        assert!(matches!(found, Ok(Found::Checkpoint(c)) if c.state.step == 4));
        assert!(warnings.len() == 1 && warnings[0].contains("step-000005.safetensors: expected"), "{warnings:?}");

        for (_, path) in checkpoint::list(&dir).unwrap() {
            fs::write(path, "{}").unwrap();
        }
        let (found, warnings) = look(&dir, true);
        let message = found.unwrap_err().to_string();
        assert!(message.contains("a checkpoint that can be read") && message.contains("step-000005"), "{message}");
        assert!(warnings.is_empty());

        for (_, path) in checkpoint::list(&dir).unwrap() {
            fs::remove_file(path).unwrap();
        }
        fs::write(dir.join(RUN_FILE), "{").unwrap();
        assert!(look(&dir, true).0.unwrap_err().to_string().contains("run.json: expected the settings"));
    }

    #[test]
    fn another_device_is_refused_where_it_was_asked_for() {
        let found = Found::Settings(Box::new(info()));
        let mut warnings = Vec::new();
        let mut check = |device: &DeviceInfo, overrides: &Overrides| {
            warnings.clear();
            found.check_device(device, overrides, &mut |w| warnings.push(w)).map(|()| warnings.len())
        };
        let own = info().device;
        assert_eq!(check(&own, &Overrides::default()).unwrap(), 0);
        let other = DeviceInfo { adapter: "b".into(), ..own.clone() };
        assert_eq!(check(&other, &Overrides::default()).unwrap(), 1);
        let asked = Overrides { adapter: Some("b".into()), ..Overrides::default() };
        assert!(check(&other, &asked).unwrap_err().to_string().starts_with("--adapter: expected a (vulkan)"));
        let half = DeviceInfo { precision: Precision::F16, ..own };
        assert!(check(&half, &Overrides::default()).unwrap_err().to_string().starts_with("--precision"));
    }

    #[test]
    fn another_text_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("t.txt");
        fs::write(&path, "abc\n".repeat(100)).unwrap();
        let overrides = Overrides { text: Some(path.clone()), ..Overrides::default() };
        let config = overrides.fresh(Preset::Nano).unwrap();
        let data = Found::Nothing.dataset(&config, &overrides).unwrap();
        let own = RunInfo {
            config: config.clone(),
            vocab: data.vocab().clone(),
            text_digest: data.digest().into(),
            ..info()
        };
        let found = Found::Settings(Box::new(own));
        assert!(found.dataset(&config, &Overrides::default()).is_ok());
        // The same text elsewhere is the same text.
        let copy = root.path().join("copy.txt");
        fs::copy(&path, &copy).unwrap();
        assert!(found.dataset(&config, &Overrides { text: Some(copy), ..Overrides::default() }).is_ok());
        fs::write(&path, "abd\n".repeat(100)).unwrap();
        let error = found.dataset(&config, &Overrides::default()).unwrap_err().to_string();
        assert!(error.starts_with("--text: expected") && error.contains("other content"), "{error}");
    }

    #[test]
    fn fresh_directories_do_not_meet() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join("runs");
        let [a, b] = [Run::fresh_dir(&runs, "nano").unwrap(), Run::fresh_dir(&runs, "nano").unwrap()];
        assert_eq!((a, b), (runs.join("nano-1"), runs.join("nano-2")));
    }
}
