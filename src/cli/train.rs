//! `walsh train`.

use super::job::{self, Setup};
use super::progress::{Bar, message};
use super::{mebibytes, put, say};
use std::path::{Path, PathBuf};
use std::time::Instant;
use walsh::train::{CharVocab, Decoder, Found, Model, Overrides, Progress, Run, Sampling, Status, Summary, generate};
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

/// Runs it. `started` is when the process started.
pub fn run(args: &Args, started: Instant) -> Result<()> {
    let mut warn = |message: String| say(&format!("warning: {message}"));
    let found = match &args.out {
        Some(dir) => Found::look(dir, args.resume, &mut warn)?,
        None if args.resume => return Err(Error::invalid("--resume", "--out with the run's directory", "no --out")),
        None => Found::Nothing,
    };
    let (without_checkpoint, without_run) = (matches!(found, Found::Settings(_)), matches!(found, Found::Nothing));
    let setup = Setup::new(found, &args.overrides, &mut warn)?;
    for line in setup.describe() {
        say(&line);
    }
    if let Some(quantizer) = setup.gpt().quantizer {
        say(&format!("linear layers: {quantizer}; optimizer: {}", setup.config().optimizer));
    } else if args.overrides.diagnostics.is_some_and(|steps| steps > 0) {
        say("warning: --diagnostics: nothing is quantized, so there is nothing to diagnose");
    }
    if let Some(teacher) = setup.teacher() {
        say(&format!("teacher: {}, step {}", teacher.dir.display(), teacher.step));
    }
    let mut job = setup.start(|config| match &args.out {
        Some(dir) => Ok(dir.clone()),
        None => Run::fresh_dir(Path::new("runs"), config.preset.name()),
    })?;
    say(&format!("memory: about {} on the device", mebibytes(job.model.estimated_bytes())));
    if job.run.state.step > 0 {
        say(&format!("resuming after step {}", job.run.state.step));
    } else if without_checkpoint {
        say("the run had no checkpoint yet: starting afresh with its settings");
    } else if args.resume && without_run {
        say(&format!("no run in {}: starting afresh", job.run.dir.display()));
    }
    say(&format!("output: {}", job.run.dir.display()));

    job::stop_on_ctrl_c()?;
    let mut progress = Display(Bar::new(job.run.info.config.steps, job.run.state.step));
    let result = job.train(started, &mut progress);
    progress.0.finish();
    let summary = result?;
    show_sample(&mut job.model.decoder()?, job.data.vocab(), summary.seed)?;
    say(&closing(&summary, &job.run.dir));
    if args.json {
        let line = serde_json::to_string(&summary).map_err(|e| Error::invalid("--json", "numbers", e.to_string()))?;
        put(&format!("{line}\n"))?;
    }
    Ok(())
}

fn show_sample(model: &mut impl Decoder, vocab: &CharVocab, seed: u64) -> Result<()> {
    let sampling = Sampling { temperature: 0.8, top_k: None, seed };
    let start = super::sample::default_prompt(vocab);
    let mut text = String::new();
    generate(model, &[start], 300, &sampling, &mut |token| {
        text.push_str(&vocab.decode(&[token]));
        !job::stopped()
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

/// Shows each step and each evaluation.
struct Display(Bar);

impl Progress for Display {
    fn step(&mut self, status: &Status) {
        let Status { step, steps, .. } = status;
        self.0.update(*step, message(status), *step == 1, |message| format!("step {step}/{steps}  {message}"));
    }

    fn warn(&mut self, message: &str) {
        self.0.line(&format!("warning: {message}"));
    }

    fn evaluated(&mut self, status: &Status, entropy_floor: Option<f64>) {
        let Some(val) = status.val_loss else { return };
        let train = status.train_loss.map_or("-".to_owned(), |l| format!("{l:.4}"));
        let floor = entropy_floor.map_or(String::new(), |f| format!(", {:.4} above the floor", val - f));
        self.0.line(&format!(
            "step {}/{}  training loss {train}, validation loss {val:.4}{floor}",
            status.step, status.steps
        ));
    }
}
