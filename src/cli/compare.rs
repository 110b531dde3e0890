//! `walsh compare`: methods, formats and seeds with one budget.

use super::job::{self, Setup};
use super::progress::{Bar, message};
use super::{context, mebibytes, put, say};
use indicatif::HumanDuration;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use walsh::train::compare::{Record, Records, Row, check_same, rows};
use walsh::train::teachers;
use walsh::train::{Dataset, DeviceInfo, Found, Planned, Preset, Progress, Run, Status, Sweep, plot};
use walsh::{Error, Result};

/// Flags of `walsh compare`.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct Args {
    /// TOML file with settings by these flags' names (_ for -), and rows as [[run]]; flags go over it, --lr over rows' own rates too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    sweep: Sweep,
    /// Directory of the comparison, with one of each run in it; what it holds already is not done again [default: a
    /// fresh one under runs/]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print one JSON object per row on standard output instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let mut told = BTreeSet::new();
    let mut warn = |message: String| {
        // Each once, however many runs it holds for.
        if told.insert(message.clone()) {
            say(&format!("warning: {message}"));
        }
    };
    let mut sweep = args.sweep.clone();
    if let Some(path) = &args.config {
        sweep = sweep.over_file(read(path)?);
    }
    // Bad flags are told before a device is made, unless the preset, hence what they mean, depends on the device.
    if let Some(preset) = sweep.preset {
        sweep.plan(preset)?;
    }
    let context = context(sweep.adapter.as_deref(), sweep.max_tier.as_deref())?;
    let preset = sweep.preset.unwrap_or_else(|| Preset::suiting(context.capabilities().adapter.device_type));
    // One for all runs, those of earlier sittings too.
    let precision = sweep.precision.unwrap_or(preset.config().precision).resolve(&context)?;
    sweep.precision = Some(precision);
    let device = DeviceInfo::new(&context, precision);
    // Each run has a context of its own, so that the memory it takes is its own too.
    drop(context);
    let plan = sweep.plan(preset)?;
    let Some(first) = plan.first() else { return Ok(()) };
    let data = Found::Nothing.dataset(&first.config, &first.overrides)?;
    let dir = match &args.out {
        Some(dir) => dir.clone(),
        None => Run::fresh_dir(Path::new("runs"), "compare")?,
    };
    let mut records = Records::read(&dir)?;
    let done = check(&plan, &dir, &records, &data, &device, &mut warn)?;
    let finished = plan.iter().filter(|planned| records.get(&planned.name).is_some()).count();
    say(&format!("{} runs, {finished} of them done; output: {}", plan.len(), dir.display()));

    records.start()?;
    job::stop_on_ctrl_c()?;
    let mut display = Display::new(&plan, done);
    let result = train_missing(&plan, &dir, &mut records, &mut display, &mut warn);
    display.bar.finish();
    result?;

    // Also where all was done before: the plan may have other rows than it had then.
    let rows = draw(&plan, &dir, &records)?;
    if args.json {
        for row in &rows {
            let line = serde_json::to_string(row).map_err(|e| Error::invalid("--json", "numbers", e.to_string()))?;
            put(&format!("{line}\n"))?;
        }
    } else {
        put(&table(&rows))?;
    }
    say(&format!("records, plot and runs in {}", dir.display()));
    Ok(())
}

fn read(path: &Path) -> Result<Sweep> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), action: "read", source })?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let byte = e.as_bytes().get(at).copied().unwrap_or_default();
        let (expected, got) = ("UTF-8 text", format!("the byte 0x{byte:02x} at offset {at}, which is not"));
        Error::File { path: path.into(), expected: expected.to_owned(), got }
    })?;
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(0, |span| text.as_bytes()[..span.start].iter().filter(|b| **b == b'\n').count());
        let (expected, got) =
            ("the settings of a comparison".to_owned(), format!("line {}: {}", line + 1, e.message()));
        Error::File { path: path.into(), expected, got }
    })
}

/// Refuses runs in `dir` that are not what the plan has under their names, or not to be compared with the rest of it; returns how many steps are done.
fn check(
    plan: &[Planned],
    dir: &Path,
    records: &Records,
    data: &Dataset,
    device: &DeviceInfo,
    warn: &mut dyn FnMut(String),
) -> Result<u64> {
    let mut done = 0;
    for planned in plan {
        let record = records.get(&planned.name);
        let found = match record {
            Some(record) => Found::Settings(Box::new(record.info.clone())),
            None => Found::look(&dir.join(&planned.name), true, warn)?,
        };
        done += match (&found, record) {
            (_, Some(_)) => planned.config.steps,
            (Found::Checkpoint(checkpoint), None) => checkpoint.state.step,
            (Found::Settings(_) | Found::Nothing, None) => 0,
        };
        if let Some(info) = found.info() {
            check_same(planned, info, data, device)?;
            found.check_device(device, &planned.overrides, warn)?;
            if planned.config.teacher.is_some() {
                found.teacher(&planned.config, &planned.overrides, data.vocab(), warn)?;
            }
        }
    }
    records.check_comparable(plan, data, device)?;
    Ok(done)
}

/// Does the runs that have no record yet.
fn train_missing(
    plan: &[Planned],
    dir: &Path,
    records: &mut Records,
    display: &mut Display,
    warn: &mut dyn FnMut(String),
) -> Result<()> {
    for (number, planned) in plan.iter().enumerate() {
        if records.get(&planned.name).is_none() {
            display.label = format!("{}/{} {}", number + 1, plan.len(), planned.name);
            let teacher = teacher(plan, planned, dir, records)?;
            if let Some(teacher) = teacher {
                // Of an earlier sitting there may be no more than its record, or part of the run that is done again for that.
                let found = Found::look(&dir.join(&teacher.name), true, warn)?;
                if !matches!(found, Found::Checkpoint(ref last) if last.state.step >= teacher.config.steps) {
                    train(teacher, None, dir, display, warn)?;
                }
            }
            let teacher = teacher.map(|teacher| dir.join(&teacher.name));
            records.push(train(planned, teacher, dir, display, warn)?)?;
            draw(plan, dir, records)?;
        }
    }
    Ok(())
}

/// The run that teaches `planned`, where it learns from one and none was named: the one that it began with, or of those in full precision with its
/// steps and seed the one that ended lowest.
fn teacher<'a>(plan: &'a [Planned], planned: &Planned, dir: &Path, records: &Records) -> Result<Option<&'a Planned>> {
    if planned.config.method.distillation().is_none() || planned.config.teacher.is_some() {
        return Ok(None);
    }
    // Warnings are told when the run itself is looked at.
    let begun = Found::look(&dir.join(&planned.name), true, &mut |_| {})?;
    let own = begun.info().and_then(|info| Some(info.config.teacher.as_ref()?.file_name()?.to_owned()));
    if let Some(own) = teachers(plan, planned).find(|other| own.as_ref().is_some_and(|own| *own == *other.name)) {
        return Ok(Some(own));
    }
    let loss = |other: &&Planned| records.get(&other.name).and_then(|record| record.best_val_loss);
    let best = teachers(plan, planned)
        .filter(|other| loss(other).is_some())
        .min_by(|a, b| loss(a).unwrap_or(f64::INFINITY).total_cmp(&loss(b).unwrap_or(f64::INFINITY)));
    best.map(Some).ok_or_else(|| {
        let expected = "a run in full precision of the comparison with its steps and seed that did not diverge";
        Error::invalid(format!("the teacher of {}", planned.name), expected, "none")
    })
}

/// Starts a run or goes on with it.
fn train(
    planned: &Planned,
    teacher: Option<PathBuf>,
    root: &Path,
    display: &mut Display,
    warn: &mut dyn FnMut(String),
) -> Result<Record> {
    let go_on = format!("go on with the same settings and `--out {}`", root.display());
    if job::stopped() {
        return Err(Error::Interrupted(format!("stopped between runs; {go_on}")));
    }
    let dir = root.join(&planned.name);
    let mut overrides = planned.overrides.clone();
    overrides.teacher = teacher.or(overrides.teacher);
    let setup = Setup::new(Found::look(&dir, true, warn)?, &overrides, warn)?;
    if !std::mem::replace(&mut display.described, true) {
        for line in setup.describe() {
            display.bar.line(&line);
        }
    }
    let mut job = setup.start(|_| Ok(dir))?;
    display.step = job.run.state.step;
    if display.step > 0 {
        display.line(&format!("resuming after step {}", display.step));
    }
    match job.train(Instant::now(), display) {
        Ok(summary) => {
            let loss = summary.best_val_loss.map_or("-".to_owned(), |loss| format!("{loss:.4}"));
            display.end(planned.config.steps, &format!("best validation loss {loss}"));
            Record::finished(&planned.name, &job.run, &summary)
        }
        Err(error @ Error::NonFinite { .. }) => {
            display.end(planned.config.steps, &format!("diverged: {error}"));
            Ok(Record::diverged(&planned.name, &job.run, &error))
        }
        Err(Error::Interrupted(_)) => {
            let step = job.run.state.step;
            let message = format!("stopped after step {step} of {}, which is saved; {go_on}", planned.name);
            Err(Error::Interrupted(message))
        }
        Err(error) => {
            display.line("failed");
            Err(error)
        }
    }
}

/// Draws the rows as far as there are records, and returns them.
fn draw(plan: &[Planned], dir: &Path, records: &Records) -> Result<Vec<Row>> {
    let all: Vec<&Record> = plan.iter().filter_map(|planned| records.get(&planned.name)).collect();
    let rows = rows(&all);
    let title = plan.first().map_or(String::new(), |planned| planned.config.describe());
    let floor = all.iter().find_map(|record| record.entropy_floor);
    plot::comparison(&dir.join(plot::COMPARISON_FILE), &title, &rows, floor)?;
    Ok(rows)
}

/// Shows how far all runs are together.
struct Display {
    bar: Bar,
    /// The run under way.
    label: String,
    /// Whether model, text and device were told.
    described: bool,
    /// The step of the run under way.
    step: u64,
    /// Steps of all runs, those that are done, and those that were done before this sitting.
    steps: u64,
    done: u64,
    before: u64,
    started: Instant,
}

impl Display {
    fn new(plan: &[Planned], done: u64) -> Self {
        let steps = plan.iter().map(|planned| planned.config.steps).sum();
        Self {
            bar: Bar::new(steps, done),
            label: String::new(),
            described: false,
            step: 0,
            steps,
            done,
            before: done,
            started: Instant::now(),
        }
    }

    fn reached(&mut self, step: u64) {
        self.done += step.saturating_sub(self.step);
        self.step = step;
    }

    fn line(&mut self, line: &str) {
        self.bar.line(&format!("{}: {line}", self.label));
    }

    fn end(&mut self, steps: u64, outcome: &str) {
        self.reached(steps);
        let left = self.left();
        self.line(&format!("{outcome}{left}"));
    }

    /// Time left by the mean step of this sitting, for a line.
    fn left(&self) -> String {
        let (now, left) = (self.done.saturating_sub(self.before), self.steps.saturating_sub(self.done));
        if now == 0 || left == 0 {
            return String::new();
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = self.started.elapsed().as_secs_f64() * left as f64 / now as f64;
        Duration::try_from_secs_f64(seconds).map_or(String::new(), |left| format!("; {} left", HumanDuration(left)))
    }
}

impl Progress for Display {
    fn step(&mut self, status: &Status) {
        self.reached(status.step);
        let (label, left) = (&self.label, self.left());
        let message = format!("{label}  {}", message(status));
        self.bar.update(self.done, message, false, |message| format!("{message}  step {}{left}", status.step));
    }

    fn warn(&mut self, message: &str) {
        self.line(&format!("warning: {message}"));
    }
}

/// Columns as wide as what they hold; words to the left, numbers to the right.
fn table(rows: &[Row]) -> String {
    const WORDS: usize = 5;
    let head = [
        "method",
        "optimizer",
        "weights",
        "activations",
        "hadamard",
        "lr",
        "steps",
        "seeds",
        "best loss",
        "spread",
        "to full",
        "to floor",
        "bits/weight",
        "ms/step",
        "memory",
    ];
    let number = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let mut lines = vec![head.map(str::to_owned)];
    for row in rows {
        let format = |format: Option<walsh::format::Format>| format.map_or("-".to_owned(), |format| format.to_string());
        lines.push([
            row.method.to_string(),
            row.optimizer.to_string(),
            format(row.weights),
            format(row.activations),
            row.hadamard.map_or("-".to_owned(), |block| block.to_string()),
            row.lr.to_string(),
            row.steps.to_string(),
            row.seeds.len().to_string(),
            row.best_val_loss_mean.map_or("diverged".to_owned(), |loss| format!("{loss:.4}")),
            number(row.best_val_loss_spread, 4),
            number(row.gap_to_full, 4),
            number(row.gap_to_floor, 4),
            number(Some(row.bits_per_weight), 2),
            number(row.ms_per_step, 1),
            row.peak_gpu_bytes.map_or("-".to_owned(), mebibytes),
        ]);
    }
    let widths: [usize; 15] =
        std::array::from_fn(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or_default());
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if column < WORDS { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        text.push_str(&cells.join("  "));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_comparison() {
        let sweep = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/compare.toml"))).unwrap();
        let plan = sweep.plan(sweep.preset.unwrap()).unwrap();
        assert!(plan.len() > 4 && plan.iter().any(|planned| planned.config.activations.is_some()), "{plan:?}");
    }

    #[test]
    fn a_file_is_what_flags_are_or_is_refused_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sweep.toml");
        let parse = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        let sweep = parse(
            "preset = 'nano'\nmethods = 'ste'\nweights = ['int4', 'int2:row']\nactivations = 'dense'\nlr = 1e-3\n\
             seeds = [1, 2]\nsteps = 30\nclip = 1\neval_batches = 4\nprecision = 'f32'\n",
        )
        .unwrap();
        assert_eq!((sweep.weights.len(), sweep.activations.len(), &sweep.lr[..]), (2, 1, &[1e-3][..]));
        assert_eq!((&sweep.seeds[..], &sweep.steps[..], sweep.clip), (&[1, 2][..], &[30][..], Some(1.0)));
        let named = parse("[[run]]\nweights = 'int4'\nlr = [1, 2.5]\n[[run]]\nmethod = 'none'\n").unwrap();
        assert_eq!((named.run.len(), &named.run[0].lr[..]), (2, &[1.0, 2.5][..]));
        for (text, parts) in [
            ("stesp = 3\n", ["line 1", "unknown field `stesp`"]),
            ("lr = 1\n\n[[run]]\nsteps = 3\n", ["line 4", "unknown field `steps`"]),
            ("weights = ['int4', 'int99']\n", ["line 1", "int99"]),
            ("methods = ['magic']\n", ["line 1", "magic"]),
            ("steps = [10, -3]\n", ["line 1", "-3"]),
            ("# no more\nlr = 'fast'\n", ["line 2", "fast"]),
            ("lr = [1,\n", ["line 1", "array"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.is_failure());
            let message = error.to_string();
            assert!(message.contains("sweep.toml: expected the settings of a comparison"), "{message}");
            assert!(parts.iter().all(|part| message.contains(part)) && !message.contains('\n'), "{text}: {message}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let row = Row {
            method: walsh::qat::Method::Ste(walsh::qat::Ste),
            optimizer: walsh::optim::Optimizer::AdamW,
            weights: Some("int4:row:centred".parse().unwrap()),
            activations: None,
            hadamard: Some(64),
            lr: 0.004,
            steps: 1500,
            seeds: vec![1, 2, 3],
            best_val_loss_mean: Some(1.0),
            best_val_loss_spread: None,
            gap_to_full: Some(-0.25),
            gap_to_floor: None,
            bits_per_weight: 4.125,
            ms_per_step: Some(12.34),
            peak_gpu_bytes: Some(3 << 20),
            curve: Vec::new(),
        };
        let diverged = Row { best_val_loss_mean: None, ..row.clone() };
        let text = table(&[row, diverged]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        let cells: Vec<&str> = lines[1].split_whitespace().collect();
        let expected = [
            "ste",
            "adamw",
            "int4:row:centred",
            "-",
            "64",
            "0.004",
            "1500",
            "3",
            "1.0000",
            "-",
            "-0.2500",
            "-",
            "4.12",
            "12.3",
        ];
        assert_eq!(cells[..14], expected);
        assert!(lines[2].contains("diverged"));
    }
}
