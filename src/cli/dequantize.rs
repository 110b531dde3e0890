//! `walsh dequantize`: packed weights in, a safetensors file of f32 out.

use super::{context_or_host, job, progress_bar, say};
use std::path::PathBuf;
use walsh::Result;
use walsh::io::Archive;
use walsh::io::convert::dequantize_file;

/// Flags of `walsh dequantize`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to read, in any of walsh's containers
    input: PathBuf,
    /// The safetensors file to write, which must be none of walsh's checkpoints or runs and not the input's configuration
    output: PathBuf,
    /// Adapter by a part of its name, or #N
    #[arg(long)]
    adapter: Option<String>,
    /// The highest tier to use: baseline, subgroup or coop
    #[arg(long)]
    max_tier: Option<String>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    super::may_be_written(&args.input, &args.output)?;
    super::warn_of_guessed_version(&Archive::open(&args.input)?, &args.input);
    let context = context_or_host(args.adapter.as_deref(), args.max_tier.as_deref())?;
    job::stop_writing_on_ctrl_c()?;
    let (bar, step) = progress_bar(&args.output);
    let summary = dequantize_file(context.as_ref(), &args.input, &args.output, step);
    bar.finish_and_clear();
    let summary = summary?;
    say(&format!("{}: {} tensors as F32; {} copied", args.output.display(), summary.converted, summary.copied));
    Ok(())
}
