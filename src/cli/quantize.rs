//! `walsh quantize`: a safetensors file of floats in, packed weights out.

use super::{context_or_host, job, mebibytes, progress_bar, say};
use std::path::PathBuf;
use walsh::io::Container;
use walsh::io::convert::{Selection, quantize_file};
use walsh::{Error, Result};

/// Flags of `walsh quantize`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The safetensors file to read
    input: PathBuf,
    /// The file to write, which must be none of walsh's checkpoints or runs and not the input's configuration
    output: PathBuf,
    /// Name of the format, with options: int4, nf4:dq, mxfp4:roundup, int4:g64:asym, ..
    #[arg(long)]
    format: String,
    /// How the file holds it: walsh, bitsandbytes, gpt-oss, gptq, gptq-v2, awq or gguf [default: gguf for FILE.gguf, else walsh]
    #[arg(long)]
    container: Option<String>,
    /// Quantize tensors whose name matches, in which * stands for any characters and ? for one; else all that have two dimensions.
    /// A pattern that matches no tensor, or none that can be quantized, is refused
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Copy tensors whose name matches. A pattern that matches no tensor is refused
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Adapter by a part of its name, or #N
    #[arg(long)]
    adapter: Option<String>,
    /// The highest tier to use: baseline, subgroup or coop
    #[arg(long)]
    max_tier: Option<String>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let container = match &args.container {
        Some(name) => Container::parse(name).map_err(|e| named("--container", e))?,
        None if super::is_gguf(&args.output) => Container::Gguf,
        None => Container::Walsh,
    };
    let format = container.format(&args.format).map_err(|e| named("--format", e))?;
    let selection = Selection { include: args.include.clone(), exclude: args.exclude.clone() };
    super::may_be_written(&args.input, &args.output)?;
    let context = context_or_host(args.adapter.as_deref(), args.max_tier.as_deref())?;
    job::stop_writing_on_ctrl_c()?;
    let (bar, step) = progress_bar(&args.output);
    let summary = quantize_file(context.as_ref(), &args.input, &args.output, format, container, &selection, step);
    bar.finish_and_clear();
    let summary = summary?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let bits = summary.bytes as f64 * 8.0 / summary.elements as f64;
    say(&format!(
        "{}: {} tensors as {format} in {container}, {} ({bits:.3} bits per weight); {} copied",
        args.output.display(),
        summary.converted,
        mebibytes(summary.bytes),
        summary.copied
    ));
    Ok(())
}

/// An error of an argument, with its flag.
fn named(flag: &str, error: Error) -> Error {
    match error {
        Error::Invalid { what, expected, got } => Error::invalid(format!("{flag}: {what}"), expected, got),
        other => other,
    }
}
