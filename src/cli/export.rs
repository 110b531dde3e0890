//! `walsh export`: a trained model in one file.

use super::{context, job, mebibytes, model, progress_bar, say};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use walsh::io::Container;
use walsh::train::export::{CONTAINERS, ModelInfo, export};
use walsh::train::{Checkpoint, DeviceInfo, checkpoint};
use walsh::{Error, Result};

/// Flags of `walsh export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a run, or a checkpoint
    run: PathBuf,
    /// The file to write, which must not be a checkpoint or the settings of a run
    output: PathBuf,
    /// How the file holds the model: walsh (safetensors, every format) or gguf [default: gguf where OUTPUT ends with .gguf, else walsh]
    #[arg(long)]
    container: Option<String>,
    /// Which checkpoint of the run: last, best (the lowest validation loss) or the number of a step
    #[arg(long, default_value = "last")]
    checkpoint: Which,
    /// Part of the adapter's name, or #N [default: the run's]
    #[arg(long)]
    adapter: Option<String>,
    /// Use no kernels above this tier: baseline, subgroup or coop [default: the run's]
    #[arg(long)]
    max_tier: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    Last,
    Best,
    Step(u64),
}

impl FromStr for Which {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "last" => Self::Last,
            "best" => Self::Best,
            _ => Self::Step(text.parse().map_err(|_| {
                Error::invalid("--checkpoint", "last, best or the number of a step", format!("`{text}`"))
            })?),
        })
    }
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let container = match &args.container {
        Some(name) => CONTAINERS.into_iter().find(|c| c.name() == name).ok_or_else(|| {
            let names = CONTAINERS.map(Container::name).join(" or ");
            Error::invalid("--container", format!("{names}, which hold a whole model"), format!("`{name}`"))
        })?,
        None if super::is_gguf(&args.output) => Container::Gguf,
        None => Container::Walsh,
    };
    super::may_be_written(&args.run, &args.output)?;
    let mut found = find(&args.run, args.checkpoint)?;
    // Moments are of no use here.
    found.tensors.retain(|(name, _)| name.starts_with("model."));
    let (config, vocab) = (&found.info.config, &found.info.vocab);
    let adapter = args.adapter.as_deref().or(config.adapter.as_deref());
    let context = context(adapter, args.max_tier.as_deref().or(config.max_tier.as_deref()))?;
    let (own, here) = (&found.info.device, DeviceInfo::new(&context, found.info.device.precision));
    if (&own.adapter, &own.backend) != (&here.adapter, &here.backend) {
        say(&format!(
            "warning: the run was on {} ({}), codes are made on {} ({}): a few may differ where a value is half-way between two",
            own.adapter, own.backend, here.adapter, here.backend
        ));
    }
    let info = ModelInfo {
        gpt: config.gpt(vocab.len()),
        vocab: vocab.clone(),
        precision: own.precision,
        step: found.state.step,
        val_loss: found.state.last_val.filter(|val| val.step == found.state.step).map(|val| val.loss),
    };
    let gpt = model::build_gpt(&context, &info.gpt, &found.tensors)?;
    found.tensors.clear();
    job::stop_writing_on_ctrl_c()?;
    let (bar, step) = progress_bar(&args.output);
    let summary = export(&gpt, &info, &args.output, container, step);
    bar.finish_and_clear();
    let summary = summary?;
    let mut line = format!("{}: step {} in {container}", args.output.display(), info.step);
    if let Some(quantizer) = info.gpt.quantizer {
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let bits = summary.bytes as f64 * 8.0 / summary.elements as f64;
        line.push_str(&format!(
            ", {} tensors of codes in {}, {} ({bits:.3} bits per weight)",
            summary.converted,
            quantizer.weights,
            mebibytes(summary.bytes)
        ));
        if let (Container::Gguf, Some(activations)) = (container, quantizer.activations) {
            say(&format!(
                "note: the model was trained with inputs in {activations}, which other programs that read GGUF do not quantize so"
            ));
        }
    }
    say(&format!("{line}, {} in f32", summary.copied));
    Ok(())
}

/// The checkpoint that was asked for.
fn find(run: &Path, which: Which) -> Result<Checkpoint> {
    let meta = std::fs::metadata(run).map_err(|source| Error::Io { path: run.to_owned(), action: "open", source })?;
    if !meta.is_dir() {
        return match which {
            Which::Last => Checkpoint::load(run),
            _ => Err(Error::invalid("--checkpoint", "a run's directory beside it", run.display().to_string())),
        };
    }
    let newest = || -> Result<Checkpoint> {
        let (newest, skipped) = checkpoint::newest_whole(run)?;
        for error in skipped {
            say(&format!("warning: skipped: {error}"));
        }
        newest.ok_or_else(|| Error::File {
            path: run.to_owned(),
            expected: "a directory with a whole checkpoint of walsh".to_owned(),
            got: "none".to_owned(),
        })
    };
    let step = match which {
        Which::Last => return newest(),
        Which::Step(step) => step,
        Which::Best => {
            let newest = newest()?;
            match newest.state.best_val {
                Some(best) if best.step == newest.state.step => return Ok(newest),
                Some(best) => best.step,
                None => {
                    return Err(Error::File {
                        path: run.to_owned(),
                        expected: "a run with an evaluation (--checkpoint best)".to_owned(),
                        got: "none so far".to_owned(),
                    });
                }
            }
        }
    };
    let steps: Vec<u64> = checkpoint::list(run)?.into_iter().map(|(step, _)| step).collect();
    if !steps.contains(&step) {
        let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
        return Err(Error::File {
            path: run.to_owned(),
            expected: format!("a checkpoint of step {step} (--checkpoint)"),
            got: if steps.is_empty() { "none".to_owned() } else { format!("those of {}", steps.join(", ")) },
        });
    }
    Checkpoint::load(&checkpoint::path_of(run, step))
}
