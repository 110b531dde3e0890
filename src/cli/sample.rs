//! `walsh sample`.

use super::{context, model, put, say};
use std::path::PathBuf;
use walsh::train::{CharVocab, Checkpoint, Sampling, checkpoint, generate};
use walsh::{Error, Result};

/// Flags of `walsh sample`.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct Args {
    /// Directory of a run, whose newest whole checkpoint is taken, or a checkpoint
    dir: PathBuf,
    /// Text to go on from [default: a line break]
    #[arg(long)]
    prompt: Option<String>,
    /// Number of tokens to generate
    #[arg(long, default_value_t = 500)]
    tokens: usize,
    /// Divides the logits: lower is safer, 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Draw from that many of the likeliest tokens only
    #[arg(long)]
    top_k: Option<usize>,
    /// Seed of the draws
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    /// Part of the adapter's name, or #N
    #[arg(long)]
    adapter: Option<String>,
    /// Use no kernels above this tier: baseline, subgroup or coop
    #[arg(long)]
    max_tier: Option<String>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, seed: args.seed };
    sampling.validate()?;
    let meta =
        std::fs::metadata(&args.dir).map_err(|source| Error::Io { path: args.dir.clone(), action: "open", source })?;
    let checkpoint = if meta.is_dir() {
        let (newest, skipped) = checkpoint::newest_whole(&args.dir)?;
        for error in skipped {
            say(&format!("warning: skipped: {error}"));
        }
        newest.ok_or_else(|| Error::File {
            path: args.dir.clone(),
            expected: "a directory with a whole checkpoint of walsh".to_owned(),
            got: "none".to_owned(),
        })?
    } else {
        Checkpoint::load(&args.dir)?
    };
    let info = &checkpoint.info;
    let vocab = &info.vocab;
    let prompt = match args.prompt.as_deref() {
        None => vec![default_prompt(vocab)],
        Some("") => return Err(Error::invalid("--prompt", "at least one character", "none")),
        Some(text) => vocab.encode("--prompt", text)?,
    };
    let gpt = info.config.gpt(vocab.len());
    gpt.validate()?;
    let context = context(args.adapter.as_deref(), args.max_tier.as_deref())?;
    // Another machine than the one that trained may lack f16; the weights are f32 in any case.
    let precision = info.device.precision.resolve(&context).unwrap_or(walsh::train::Precision::F32);
    let mut decoder = model::build_decoder(&context, &gpt, precision, &checkpoint.tensors)?;
    if !put(args.prompt.as_deref().unwrap_or_default())? {
        return Ok(());
    }
    // Each token as it comes; a reader that went away ends it.
    let mut written = Ok(true);
    generate(&mut decoder, &prompt, args.tokens, &sampling, &mut |token| {
        written = put(&vocab.decode(&[token]));
        matches!(written, Ok(true))
    })?;
    if written? {
        put("\n")?;
    }
    Ok(())
}

/// What sampling starts from by default: a line break, or the first character where the text had none.
pub fn default_prompt(vocab: &CharVocab) -> u32 {
    vocab.token('\n').unwrap_or(0)
}
