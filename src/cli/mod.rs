//! The command line: flags in, messages on standard error, results on standard output, exit codes 0, 1 and 2.

mod bench;
mod compare;
mod dequantize;
mod export;
mod info;
mod inspect;
mod job;
mod model;
mod progress;
mod quantize;
mod sample;
mod train;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};
use std::io::Write;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use walsh::io::{Archive, Container};
use walsh::train::{checkpoint, is_run_file};
use walsh::{Context, ContextOptions, Error, Result, Tier};

/// Training on any GPU: a small GPT, from text to samples.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the adapters, and what walsh uses of them
    Info(info::Args),
    /// Train a GPT on a text or on the built-in corpus
    Train(Box<train::Args>),
    /// Train by several methods and formats with one budget, and compare what they come to
    Compare(Box<compare::Args>),
    /// Generate text with a trained model
    Sample(sample::Args),
    /// Write a trained model into one file, its quantized weights as codes
    Export(export::Args),
    /// Time each kernel against what this adapter copies and multiplies at most
    Bench(bench::Args),
    /// Quantize the weights of a safetensors file
    Quantize(quantize::Args),
    /// Write the values of quantized weights as f32
    Dequantize(dequantize::Args),
    /// Show the tensors of a file: shapes, formats, bits per weight
    Inspect(inspect::Args),
}

/// Runs the command and turns its result into an exit code: 0, 1 for a failure while working, 2 for bad input.
pub fn main(started: Instant) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(message) = no_number(&error) {
                say(&format!("error: {message}"));
                return ExitCode::from(2);
            }
            // Help goes to standard output with code 0, complaints to standard error with code 2.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Info(args) => info::run(&args),
        Command::Train(args) => train::run(&args, started),
        Command::Compare(args) => compare::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Dequantize(args) => dequantize::run(&args),
        Command::Inspect(args) => inspect::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(if error.is_failure() { 1 } else { 2 })
        }
    }
}

/// What to say of a flag whose number is none, in place of what Rust's parsers say: that an invalid digit was found. It is here, and not with
/// the flags, so that it holds for all of them, lists included.
fn no_number(error: &clap::Error) -> Option<String> {
    let source = std::error::Error::source(error)?;
    let expected = if let Some(error) = source.downcast_ref::<ParseIntError>() {
        if *error.kind() == IntErrorKind::PosOverflow { "a smaller whole number" } else { "a whole number, 0 or above" }
    } else {
        source.downcast_ref::<ParseFloatError>().map(|_| "a number")?
    };
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    // `--steps <STEPS>`: the flag is what is typed.
    let flag = text(ContextKind::InvalidArg)?.split(' ').next()?;
    Some(format!("{flag}: expected {expected}, found `{}`", text(ContextKind::InvalidValue)?))
}

/// Writes a line to standard error. Nobody listening is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Writes to standard output; false if nobody reads it any more.
fn put(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(Error::Io { path: "standard output".into(), action: "write", source }),
    }
}

/// A context on the adapter and within the tier that the flags name.
fn context(adapter: Option<&str>, max_tier: Option<&str>) -> Result<Context> {
    let mut options = ContextOptions::default();
    if let Some(name) = adapter {
        options = options.adapter(name);
    }
    if let Some(tier) = max_tier {
        let tier = Tier::parse(tier)
            .map_err(|_| Error::invalid("--max-tier", "one of baseline, subgroup, coop", format!("`{tier}`")))?;
        options = options.max_tier(tier);
    }
    Context::with_options(&options)
}

/// The same for work that the host can do too: none where there is no adapter at all and none was asked for.
fn context_or_host(adapter: Option<&str>, max_tier: Option<&str>) -> Result<Option<Context>> {
    match context(adapter, max_tier) {
        Err(Error::NoAdapter(_)) if adapter.is_none() => {
            say("no GPU adapter found: working on the host");
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// Refuses an output in whose place something stands, or would be looked for, that is not to be lost: a checkpoint of whatever run, a run's
/// settings and metrics, a comparison's records, the input, and the configurations that may say how the input is to be read.
fn may_be_written(input: &Path, output: &Path) -> Result<()> {
    let refuse = |expected: &str| Err(Error::invalid("OUTPUT", expected, output.display().to_string()));
    if checkpoint::is_checkpoint(output)? {
        return refuse("a file that is no checkpoint of walsh");
    }
    if is_run_file(output) {
        return refuse("a file that is not of a run or a comparison (its settings, metrics or records)");
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(input, output) {
        return refuse("another file than the input");
    }
    // By names and directories: what is not there yet would be read as the input's configuration once it is.
    let directory = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let beside = input.is_file() && same(&directory(input), &directory(output));
    if beside && walsh::io::configurations(input).any(|path| path.file_name() == output.file_name()) {
        return refuse("another file than the input's configuration");
    }
    Ok(())
}

/// Whether a file is named as GGUF files are.
fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Says so where nothing tells which version of GPTQ a file has: values by the wrong one are off by a step of the grid.
fn warn_of_guessed_version(archive: &Archive<'_>, path: &Path) {
    if archive.container() == Some(Container::Gptq) && !walsh::io::configurations(path).any(|path| path.is_file()) {
        say(&format!(
            "warning: {}: no quantize_config.json beside it: read as version 1 of GPTQ, not 2 (gptq-v2)",
            path.display()
        ));
    }
}

/// A bar over the tensors of `output`, where standard error is a terminal, and what is called before each of them: an error after Ctrl-C.
fn progress_bar(output: &Path) -> (indicatif::ProgressBar, impl FnMut(usize, usize, &str) -> Result<()>) {
    let bar = indicatif::ProgressBar::new(0);
    let shown = bar.clone();
    (bar, move |number: usize, count: usize, name: &str| {
        job::unless_stopped(output)?;
        shown.set_length(count as u64);
        shown.set_position(number as u64);
        shown.set_message(name.to_owned());
        Ok(())
    })
}

/// Bytes for people.
#[expect(clippy::cast_precision_loss, reason = "rounded to a tenth of a MiB anyway")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
