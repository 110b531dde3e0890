//! `walsh sample`.

use super::{context, model, put, say};
use std::io::Read;
use std::path::{Path, PathBuf};
use walsh::io::Archive;
use walsh::train::export::{self, Exported};
use walsh::train::{CharVocab, Checkpoint, GptDecoder, Precision, Sampling, checkpoint, generate};
use walsh::{Context, Error, Result};

/// Flags of `walsh sample`.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct Args {
    /// Directory of a run, whose newest whole checkpoint is taken, a checkpoint, or a file of walsh export
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
    let source = Source::open(&args.dir)?;
    let vocab = source.vocab();
    let prompt = match args.prompt.as_deref() {
        None => vec![default_prompt(vocab)],
        Some("") => return Err(Error::invalid("--prompt", "at least one character", "none")),
        Some(text) => vocab.encode("--prompt", text)?,
    };
    let context = context(args.adapter.as_deref(), args.max_tier.as_deref())?;
    let mut decoder = source.decoder(&context)?;
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

/// Where the model comes from.
enum Source {
    Checkpoint(Box<Checkpoint>),
    Exported(Box<Exported<'static>>),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let meta =
            std::fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), action: "open", source })?;
        if !meta.is_dir() {
            let archive = match Archive::open(path) {
                Err(error) if is_gguf(path) => return Err(error),
                archive => archive.ok(),
            };
            if let Some(exported) = archive.map(Exported::from_archive).transpose()?.flatten() {
                return Ok(Self::Exported(Box::new(exported)));
            }
            if is_gguf(path) {
                let expected = format!("a model that walsh export wrote, with the metadata key {}", export::KEY);
                return Err(Error::File { path: path.to_owned(), expected, got: "a GGUF file without it".to_owned() });
            }
            // This says what is wrong with other files, too.
            return Checkpoint::load(path).map(|checkpoint| Self::Checkpoint(Box::new(checkpoint)));
        }
        let (newest, skipped) = checkpoint::newest_whole(path)?;
        for error in skipped {
            say(&format!("warning: skipped: {error}"));
        }
        let newest = newest.ok_or_else(|| Error::File {
            path: path.to_owned(),
            expected: "a directory with a whole checkpoint of walsh".to_owned(),
            got: "none".to_owned(),
        })?;
        Ok(Self::Checkpoint(Box::new(newest)))
    }

    fn vocab(&self) -> &CharVocab {
        match self {
            Self::Checkpoint(checkpoint) => &checkpoint.info.vocab,
            Self::Exported(exported) => &exported.info().vocab,
        }
    }

    /// The model with an empty cache. Another machine than the one that trained may lack f16; the weights are f32, or codes, in any case.
    fn decoder(&self, context: &Context) -> Result<GptDecoder> {
        let possible = |precision: Precision| precision.resolve(context).unwrap_or(Precision::F32);
        match self {
            Self::Checkpoint(checkpoint) => {
                let info = &checkpoint.info;
                let gpt = info.config.gpt(info.vocab.len());
                gpt.validate()?;
                model::build_decoder(context, &gpt, possible(info.device.precision), &checkpoint.tensors)
            }
            Self::Exported(exported) => model::load_decoder(context, exported, possible(exported.info().precision)),
        }
    }
}

fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"GGUF"
}

/// What sampling starts from by default: a line break, or the first character where the text had none.
pub fn default_prompt(vocab: &CharVocab) -> u32 {
    vocab.token('\n').unwrap_or(0)
}
