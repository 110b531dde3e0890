//! Training: corpus, data, settings, checkpoints, metrics, the loop, and sampling from what it trained.
//!
//! - [`corpus`]: text from a grammar whose entropy is known, so that a loss has an absolute scale; [`Dataset`] cuts it, or a file, into batches.
//! - [`TrainConfig`] and its [`Preset`]s: everything that shapes a run, as plain data.
//! - [`train()`]: the loop. It knows the model only by the trait [`Model`], which [`GptRun`] implements.
//! - [`Run`], [`Checkpoint`]: the output directory, from which a run goes on to the bit. [`metrics`]: its `metrics.jsonl`.
//! - [`diagnostics`]: what quantization does to each layer of a model under training.
//! - [`export`]: a trained model in one file, its quantized weights as codes.
//! - [`Sweep`]: a comparison, and the runs that it takes. [`compare`]: what these come to.
//! - [`generate`]: sampling with a [`Decoder`], which [`GptDecoder`] implements.

pub mod checkpoint;
pub mod compare;
mod config;
pub mod corpus;
mod data;
pub mod diagnostics;
pub mod export;
pub(crate) mod files;
mod gpt_run;
pub mod metrics;
#[cfg(feature = "cli")]
pub mod plot;
mod run;
mod sample;
mod sweep;
mod teacher;
mod trainer;

pub use checkpoint::{Checkpoint, TensorData};
pub use config::{Overrides, Precision, Preset, Sweep, TrainConfig};
pub use data::{CharVocab, Dataset, IGNORE, Windows};
pub use diagnostics::{Diagnostics, LayerDiagnostics};
pub use gpt_run::{BatchShape, GptDecoder, GptRun, gpt_from_tensors};
pub use run::{DeviceInfo, Evaluation, Found, Run, RunInfo, RunState, is_run_file};
pub use sample::{Decoder, Sampling, generate};
pub use sweep::{Combination, Planned, teachers};
pub use teacher::Teacher;
pub use trainer::{Model, Options, PendingStats, Progress, Silent, Status, StepStats, Summary, train};
