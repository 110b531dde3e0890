//! A run from its settings to its last step, for every command that trains.

use super::{context, model, say};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use walsh::nn::GptConfig;
use walsh::train::{
    Dataset, DeviceInfo, Found, GptRun, Model, Options, Overrides, Preset, Progress, Run, RunInfo, RunState, Summary,
    Teacher, TrainConfig, train,
};
use walsh::{Context, Error, Result};

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C ends training after the step under way.
pub fn stop_on_ctrl_c() -> Result<()> {
    on_ctrl_c("step")
}

/// From now on Ctrl-C ends writing a file after the tensor under way, where [`unless_stopped`] is asked before each of them.
pub fn stop_writing_on_ctrl_c() -> Result<()> {
    on_ctrl_c("tensor")
}

/// The first Ctrl-C asks to stop after what is under way, the second ends the process and leaves nothing half-written.
fn on_ctrl_c(under_way: &'static str) -> Result<()> {
    ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::Relaxed) {
            let _until_the_end = walsh::io::abandon();
            std::process::exit(1);
        }
        say(&format!("stopping after this {under_way} (again: at once)"));
    })
    .map_err(|e| Error::Io { path: "Ctrl-C".into(), action: "listen for", source: std::io::Error::other(e) })
}

/// Whether Ctrl-C came.
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// An error where Ctrl-C came before `output` was whole.
pub fn unless_stopped(output: &Path) -> Result<()> {
    if stopped() {
        return Err(Error::Interrupted(format!("{} was not written", output.display())));
    }
    Ok(())
}

/// What a run needs, checked against the flags, the text and the device.
pub struct Setup {
    found: Found,
    config: TrainConfig,
    gpt: GptConfig,
    data: Dataset,
    context: Context,
    device: DeviceInfo,
    teacher: Option<Teacher>,
}

impl Setup {
    /// Of the run that was found, or of a new one.
    pub fn new(found: Found, overrides: &Overrides, warn: &mut dyn FnMut(String)) -> Result<Self> {
        // Bad flags and texts are told before a device is made, unless the preset, hence what they mean, depends on the device.
        let mut teacher = None;
        let mut look = |config: &TrainConfig, data: &Dataset, warn: &mut dyn FnMut(String)| {
            teacher = found.teacher(config, overrides, data.vocab(), warn)?;
            Ok::<_, Error>(())
        };
        let (config, data, context) = if found.info().is_none() && overrides.preset.is_none() {
            let context = context(overrides.adapter.as_deref(), overrides.max_tier.as_deref())?;
            let config = found.config(overrides, Preset::suiting(context.capabilities().adapter.device_type))?;
            let data = found.dataset(&config, overrides)?;
            look(&config, &data, warn)?;
            (config, data, context)
        } else {
            let config = found.config(overrides, overrides.preset.unwrap_or(Preset::Nano))?;
            let data = found.dataset(&config, overrides)?;
            look(&config, &data, warn)?;
            let adapter = overrides.adapter.as_deref().or(config.adapter.as_deref());
            let context = context(adapter, config.max_tier.as_deref())?;
            (config, data, context)
        };
        let precision = found.precision(&config, overrides, &context)?;
        let device = DeviceInfo::new(&context, precision);
        found.check_device(&device, overrides, warn)?;
        let gpt = config.gpt(data.vocab().len());
        gpt.validate()?;
        Ok(Self { found, config, gpt, data, context, device, teacher })
    }

    /// What is trained, on what text and on which device.
    pub fn describe(&self) -> [String; 3] {
        let Self { config, data, device, .. } = self;
        let text = config.text.as_ref().map_or("the built-in corpus".to_owned(), |p| p.display().to_string());
        let DeviceInfo { adapter, backend, tier, .. } = device;
        [
            format!(
                "{}, {} parameters; {} steps of {} tokens",
                config.describe(),
                self.gpt.parameters(),
                config.steps,
                config.tokens_per_step()
            ),
            format!(
                "text: {text}: {} characters to learn from, {} to validate with, {} different ones",
                data.train_len(),
                data.validation_len(),
                data.vocab().len()
            ),
            format!("device: {adapter} ({backend}, tier {tier}, {})", device.precision.name()),
        ]
    }

    /// All settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// What it learns from beside the text.
    pub fn teacher(&self) -> Option<&Teacher> {
        self.teacher.as_ref()
    }

    /// The model's shape.
    pub fn gpt(&self) -> &GptConfig {
        &self.gpt
    }

    /// Makes the model as it was left, or a fresh one, and the run's files in the directory that `dir` makes.
    pub fn start(self, dir: impl FnOnce(&TrainConfig) -> Result<PathBuf>) -> Result<Job> {
        let Self { found, config, gpt, data, context, device, teacher } = self;
        let mut model = model::build_model(&context, &config, &gpt, device.precision)?;
        if let Some(teacher) = &teacher {
            model.learn_from(&teacher.tensors)?;
        }
        let state = match &found {
            Found::Checkpoint(checkpoint) => {
                model.import(&checkpoint.tensors)?;
                checkpoint.state.clone()
            }
            Found::Settings(_) | Found::Nothing => RunState::default(),
        };
        let fresh = !matches!(found, Found::Checkpoint(_));
        let dir = dir(&config)?;
        let (text_digest, teacher_digest) = (data.digest().to_owned(), teacher.map(|teacher| teacher.digest));
        let info = RunInfo { config, vocab: data.vocab().clone(), text_digest, device, teacher_digest };
        let run = Run::start(&dir, info, state)?;
        Ok(Job { model, data, run, fresh })
    }
}

/// A run with all that it needs for its next step.
pub struct Job {
    pub model: GptRun,
    pub data: Dataset,
    pub run: Run,
    /// Whether it starts with its first step.
    fresh: bool,
}

impl Job {
    /// Trains up to the last step or Ctrl-C. `started` is when the work on it began.
    pub fn train(&mut self, started: Instant, progress: &mut dyn Progress) -> Result<Summary> {
        let options = Options { stop: &STOP, started, progress };
        let result = train(&mut self.model, &self.data, &mut self.run, options);
        if self.fresh && result.as_ref().is_err_and(|e| !matches!(e, Error::Interrupted(_))) {
            // A run that failed before its first checkpoint holds nothing to go on with and would be in the way of the next one.
            self.run.discard_if_empty();
        }
        result
    }
}
