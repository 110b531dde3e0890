//! `walsh train`.

use super::{context, mebibytes, model, put, say};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use walsh::train::{
    CharVocab, Decoder, DeviceInfo, Found, Model, Options, Overrides, Preset, Progress, Run, RunInfo, RunState,
    Sampling, Status, Summary, generate, train,
};
use walsh::{Error, Result};

/// Flags of `walsh train`.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    overrides: Overrides,
    /// Directory for checkpoints, metrics and the loss curve [default: a fresh one under runs/]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on from the newest whole checkpoint in --out; start afresh where there is none
    #[arg(long)]
    resume: bool,
    /// Print one JSON object on standard output at the end
    #[arg(long)]
    json: bool,
}

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// Runs it. `started` is when the process started.
pub fn run(args: &Args, started: Instant) -> Result<()> {
    let overrides = &args.overrides;
    let mut warn = |message: String| say(&format!("warning: {message}"));
    let found = match &args.out {
        Some(dir) => Found::look(dir, args.resume, &mut warn)?,
        None if args.resume => return Err(Error::invalid("--resume", "--out with the run's directory", "no --out")),
        None => Found::Nothing,
    };

    // Bad flags and texts are told before a device is made, unless the preset, hence what they mean, depends on the device.
    let (config, data, context) = if found.info().is_none() && overrides.preset.is_none() {
        let context = context(overrides.adapter.as_deref(), overrides.max_tier.as_deref())?;
        let config = found.config(overrides, Preset::suiting(context.capabilities().adapter.device_type))?;
        let data = found.dataset(&config, overrides)?;
        (config, data, context)
    } else {
        let config = found.config(overrides, overrides.preset.unwrap_or(Preset::Nano))?;
        let data = found.dataset(&config, overrides)?;
        let adapter = overrides.adapter.as_deref().or(config.adapter.as_deref());
        let context = context(adapter, config.max_tier.as_deref())?;
        (config, data, context)
    };
    let precision = found.precision(&config, overrides, &context)?;
    let device = DeviceInfo::new(&context, precision);
    found.check_device(&device, overrides, &mut warn)?;

    let gpt = config.gpt(data.vocab().len());
    gpt.validate()?;
    say(&format!(
        "{}: {} layers, {} heads, width {}, context {}, {} parameters; {} steps of {} tokens",
        config.preset,
        config.layers,
        config.heads,
        config.embd,
        config.block,
        gpt.parameters(),
        config.steps,
        config.tokens_per_step()
    ));
    let text = config.text.as_ref().map_or("the built-in corpus".to_owned(), |p| p.display().to_string());
    say(&format!(
        "text: {text}: {} characters to learn from, {} to validate with, {} different ones",
        data.train_len(),
        data.validation_len(),
        data.vocab().len()
    ));
    say(&format!("device: {} ({}, tier {}, {})", device.adapter, device.backend, device.tier, device.precision.name()));
    if let Some(quantizer) = gpt.quantizer {
        say(&format!("linear layers: {quantizer}"));
    }
    let mut model = model::build_model(&context, &config, &gpt, precision)?;
    say(&format!("memory: about {} on the device", mebibytes(model.estimated_bytes())));

    let state = match &found {
        Found::Checkpoint(checkpoint) => {
            model.import(&checkpoint.tensors)?;
            say(&format!("resuming after step {}", checkpoint.state.step));
            checkpoint.state.clone()
        }
        Found::Settings(_) => {
            say("the run had no checkpoint yet: starting afresh with its settings");
            RunState::default()
        }
        Found::Nothing => RunState::default(),
    };
    let fresh = !matches!(found, Found::Checkpoint(_));
    let dir = match &args.out {
        Some(dir) => dir.clone(),
        None => Run::fresh_dir(Path::new("runs"), config.preset.name())?,
    };
    let seed = config.seed;
    let info = RunInfo { config, vocab: data.vocab().clone(), text_digest: data.digest().to_owned(), device };
    let mut run = Run::start(&dir, info, state)?;
    say(&format!("output: {}", dir.display()));

    stop_on_ctrl_c()?;
    let mut progress = Display::new(run.info.config.steps, run.state.step);
    let options = Options { stop: &STOP, started, progress: &mut progress };
    let result = train(&mut model, &data, &mut run, options);
    progress.finish();
    if fresh && result.as_ref().is_err_and(|e| !matches!(e, Error::Interrupted(_))) {
        // A run that failed before its first checkpoint holds nothing to go on with and would be in the way of the next one.
        run.discard_if_empty();
    }
    let summary = result?;
    show_sample(&mut model.decoder()?, data.vocab(), seed)?;
    say(&closing(&summary, &dir));
    if args.json {
        let line = serde_json::to_string(&summary).map_err(|e| Error::invalid("--json", "numbers", e.to_string()))?;
        put(&format!("{line}\n"))?;
    }
    Ok(())
}

fn stop_on_ctrl_c() -> Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            // The second time means now; the last checkpoint is whole at any moment.
            std::process::exit(1);
        }
        say("stopping after this step (again: at once)");
    })
    .map_err(|e| Error::Io { path: "Ctrl-C".into(), action: "listen for", source: std::io::Error::other(e) })
}

fn show_sample(model: &mut impl Decoder, vocab: &CharVocab, seed: u64) -> Result<()> {
    let sampling = Sampling { temperature: 0.8, top_k: None, seed };
    let start = super::sample::default_prompt(vocab);
    let mut text = String::new();
    generate(model, &[start], 300, &sampling, &mut |token| {
        text.push_str(&vocab.decode(&[token]));
        !STOP.load(Ordering::Relaxed)
    })?;
    say("sample:");
    for line in text.lines() {
        say(&format!("  {line}"));
    }
    Ok(())
}

fn closing(summary: &Summary, dir: &Path) -> String {
    let loss = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.4}"));
    let mut line = format!(
        "done: {} steps, training loss {}, validation loss {} (best {}",
        summary.steps,
        loss(summary.train_loss),
        loss(summary.val_loss),
        loss(summary.best_val_loss)
    );
    if let (Some(floor), Some(best)) = (summary.entropy_floor, summary.best_val_loss) {
        line.push_str(&format!(", {:.4} above the entropy floor of {floor:.4}", best - floor));
    }
    line.push(')');
    if let (Some(ms), Some(rate)) = (summary.ms_per_step, summary.tokens_per_s) {
        line.push_str(&format!(", {ms:.1} ms per step, {rate:.0} tokens/s"));
    }
    line.push_str(&format!(
        ", {} held; curve, metrics and checkpoints in {}",
        mebibytes(summary.peak_gpu_bytes),
        dir.display()
    ));
    line
}

/// A bar on a terminal, a line now and then elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Display {
    fn new(steps: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(10));
            let template = "{bar:32} {pos}/{len}  {msg}  {eta} left";
            // The template is constant; with a bad one the default bar would do.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        Self { bar, last_line: Instant::now() }
    }

    fn line(&mut self, line: &str) {
        self.last_line = Instant::now();
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

impl Progress for Display {
    fn step(&mut self, status: &Status) {
        let loss = status.train_loss.map_or("-".to_owned(), |l| format!("{l:.4}"));
        let rate = status.tokens_per_s.map_or("-".to_owned(), |r| format!("{r:.0}"));
        let message = format!("loss {loss}  {rate} tokens/s");
        if let Some(bar) = &self.bar {
            bar.set_position(status.step);
            bar.set_message(message);
        } else if status.step == 1 || self.last_line.elapsed() >= LINE_EVERY {
            self.line(&format!("step {}/{}  {message}", status.step, status.steps));
        }
    }

    fn evaluated(&mut self, status: &Status, entropy_floor: Option<f64>) {
        let Some(val) = status.val_loss else { return };
        let train = status.train_loss.map_or("-".to_owned(), |l| format!("{l:.4}"));
        let floor = entropy_floor.map_or(String::new(), |f| format!(", {:.4} above the floor", val - f));
        self.line(&format!(
            "step {}/{}  training loss {train}, validation loss {val:.4}{floor}",
            status.step, status.steps
        ));
    }
}
