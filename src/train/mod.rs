//! Training: corpus, data, schedule, checkpoints, metrics and the loop.

pub mod checkpoint;
mod config;
pub mod corpus;
mod data;
mod files;
mod gpt_run;
pub mod metrics;
#[cfg(feature = "cli")]
pub mod plot;
mod run;
mod sample;
mod trainer;

pub use checkpoint::{Checkpoint, TensorData};
pub use config::{Overrides, Precision, Preset, TrainConfig};
pub use data::{CharVocab, Dataset, IGNORE, Windows};
pub use gpt_run::{BatchShape, GptDecoder, GptRun};
pub use run::{DeviceInfo, Evaluation, Found, Run, RunInfo, RunState};
pub use sample::{Decoder, Sampling, generate};
pub use trainer::{Model, Options, PendingStats, Progress, Silent, Status, StepStats, Summary, train};
