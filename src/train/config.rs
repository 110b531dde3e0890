//! What a run is made of: model and training settings, presets, the learning-rate schedule, and what may change when a run is resumed.

use super::sweep::{Combination, one_or_many};
use crate::format::Format;
use crate::nn::GptConfig;
use crate::optim::Optimizer;
use crate::qat::{Asked, Method, Quantizer, Rotation, Settings, Ste};
use crate::{Context, Error, Result, Tier};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A named set of defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// 2 layers, 2 heads, width 64, context 64: for software adapters.
    Nano,
    /// nanoGPT's Shakespeare configuration for CPUs, with twice its learning rate: 4 layers, 4 heads, width 128, context 64.
    Cpu,
    /// nanoGPT's Shakespeare configuration for GPUs: 6 layers, 6 heads, width 384, context 256.
    Baby,
    /// GPT-2 small: 12 layers, 12 heads, width 768, context 1024.
    Gpt2,
}

impl Preset {
    /// Every preset, smallest first.
    pub const ALL: [Self; 4] = [Self::Nano, Self::Cpu, Self::Baby, Self::Gpt2];

    /// The name used by flags and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nano => "nano",
            Self::Cpu => "cpu",
            Self::Baby => "baby",
            Self::Gpt2 => "gpt2",
        }
    }

    /// The one for a kind of adapter: what it trains within minutes.
    #[must_use]
    pub fn suiting(device: wgpu::DeviceType) -> Self {
        match device {
            wgpu::DeviceType::Cpu => Self::Nano,
            wgpu::DeviceType::DiscreteGpu => Self::Baby,
            _ => Self::Cpu,
        }
    }

    /// Its settings.
    #[must_use]
    pub fn config(self) -> TrainConfig {
        // What the two Shakespeare configurations share.
        let base = TrainConfig {
            preset: self,
            text: None,
            teacher: None,
            layers: 4,
            heads: 4,
            embd: 128,
            block: 64,
            bias: false,
            batch: 12,
            accumulate: 1,
            dropout: 0.0,
            lr: 1e-3,
            min_lr: 1e-4,
            warmup: 100,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            clip: 1.0,
            steps: 2000,
            eval_every: 250,
            eval_batches: None,
            checkpoint_every: 250,
            keep: 3,
            log_every: 10,
            diagnostics: None,
            seed: 1337,
            precision: Precision::Auto,
            method: Method::None,
            weights: None,
            activations: None,
            hadamard: None,
            optimizer: Optimizer::AdamW,
            adapter: None,
            max_tier: None,
        };
        match self {
            // So small a model takes a higher rate: 0.95 nats per character of the built-in corpus at the end, 1.24 with the others' rate.
            Self::Nano => {
                TrainConfig { layers: 2, heads: 2, embd: 64, batch: 16, lr: 4e-3, min_lr: 4e-4, steps: 1500, ..base }
            }
            // Its whole validation split takes a software adapter as long as some fifty steps. nanoGPT's learning rate, 1e-3, ends at about 1.91
            // over that split, there as here; twice as much ends at about 1.82.
            Self::Cpu => TrainConfig { lr: 2e-3, min_lr: 2e-4, eval_every: 500, ..base },
            Self::Baby => {
                TrainConfig { layers: 6, heads: 6, embd: 384, block: 256, batch: 64, dropout: 0.2, steps: 5000, ..base }
            }
            Self::Gpt2 => TrainConfig {
                layers: 12,
                heads: 12,
                embd: 768,
                block: 1024,
                batch: 12,
                accumulate: 40,
                lr: 6e-4,
                min_lr: 6e-5,
                warmup: 2000,
                beta2: 0.95,
                steps: 600_000,
                eval_every: 1000,
                checkpoint_every: 1000,
                ..base
            },
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|preset| preset.name() == name)
            .ok_or_else(|| Error::invalid("--preset", "one of nano, cpu, baby, gpt2", format!("`{name}`")))
    }
}

/// The type of the operands of matrix products and of stored activations. Weights, optimizer state and accumulators are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f16 where it is faster, else f32.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
}

impl Precision {
    /// The name used by flags and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// [`Precision::F32`] or [`Precision::F16`], whichever `self` means on this context.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is f16 and shaders have none.
    pub fn resolve(self, context: &Context) -> Result<Self> {
        match self {
            // Cooperative matrices take f16 operands; elsewhere the conversions cost what the smaller operands save.
            Self::Auto if context.tier() == Tier::Coop => Ok(Self::F16),
            Self::Auto | Self::F32 => Ok(Self::F32),
            Self::F16 if context.capabilities().f16 => Ok(Self::F16),
            Self::F16 => Err(Error::Unsupported {
                what: "--precision f16".into(),
                why: format!("{} has no SHADER_F16 feature", context.capabilities().adapter.name),
            }),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Auto, Self::F32, Self::F16]
            .into_iter()
            .find(|precision| precision.name() == name)
            .ok_or_else(|| Error::invalid("--precision", "one of auto, f32, f16", format!("`{name}`")))
    }
}

/// Every setting of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Where the defaults came from.
    pub preset: Preset,
    /// A text file; the built-in corpus if there is none.
    pub text: Option<PathBuf>,
    /// The directory of the run that this one learns from, for methods that do so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<PathBuf>,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads; they divide `embd`.
    pub heads: usize,
    /// Width of the residual stream.
    pub embd: usize,
    /// Context in tokens.
    pub block: usize,
    /// Whether linear layers and norms have a bias.
    pub bias: bool,
    /// Sequences in a micro-batch.
    pub batch: usize,
    /// Micro-batches whose gradients make one step.
    pub accumulate: usize,
    /// Probability that dropout zeroes an element.
    pub dropout: f64,
    /// Highest learning rate, reached after the warm-up.
    pub lr: f64,
    /// Learning rate of the last step.
    pub min_lr: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Decoupled weight decay, on parameters of two or more dimensions.
    pub weight_decay: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// AdamW's epsilon, added to the root of the second moment.
    pub epsilon: f64,
    /// Largest global norm of the gradient; 0 leaves it as it is.
    pub clip: f64,
    /// Optimizer steps; the schedule ends there.
    pub steps: u64,
    /// Steps between evaluations; one more comes at the end.
    pub eval_every: u64,
    /// Evaluate that many batches, spread evenly over the validation split, instead of all of it.
    pub eval_batches: Option<usize>,
    /// Steps between checkpoints; one more comes at the end.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints to keep, beside the best.
    pub keep: usize,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between diagnostics of the quantized layers; one more comes at the end. 0, or none: no diagnostics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnostics: Option<u64>,
    /// Seed of the initial weights, of dropout and of the order of the data.
    pub seed: u64,
    /// Type of matrix operands and stored activations.
    pub precision: Precision,
    /// How quantizers pass gradients on.
    #[serde(default)]
    pub method: Method,
    /// Format of the weights of linear layers; dense if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Format>,
    /// Format of the inputs of linear layers; dense if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<Format>,
    /// Block of the Walsh-Hadamard transform that both go through first; none if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hadamard: Option<u32>,
    /// How parameters are updated.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Part of the adapter's name.
    pub adapter: Option<String>,
    /// Use no tier above this one.
    pub max_tier: Option<String>,
}

impl TrainConfig {
    /// The model's shape for a vocabulary of that size.
    #[must_use]
    pub fn gpt(&self, vocab: usize) -> GptConfig {
        GptConfig {
            layers: self.layers,
            heads: self.heads,
            embd: self.embd,
            block: self.block,
            vocab,
            dropout: self.dropout,
            bias: self.bias,
            quantizer: self.weights.map(|weights| Quantizer {
                method: self.method,
                weights,
                activations: self.activations,
                hadamard: self.hadamard,
            }),
        }
    }

    /// Formats and rotation, as they are.
    fn settings(&self) -> Settings {
        Settings {
            weights: Some(self.weights.into()),
            activations: Some(self.activations.into()),
            hadamard: Some(Rotation(self.hadamard)),
            widths: self.gpt(1).widths(),
        }
    }

    /// The model's shape for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { preset, layers, heads, embd, block, .. } = self;
        format!("{preset}: {layers} layers, {heads} heads, width {embd}, context {block}")
    }

    /// Tokens that one step learns from.
    #[must_use]
    pub fn tokens_per_step(&self) -> usize {
        self.batch * self.accumulate * self.block
    }

    /// Checks that every field makes sense by itself and beside the others.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag.
    pub fn validate(&self) -> Result<()> {
        self.gpt(1).validate()?;
        if let Some(quantizer) = self.method.quantizer(&self.settings())? {
            quantizer.validate_tokens(self.batch.saturating_mul(self.block))?;
        }
        if let (Some(dir), None) = (&self.teacher, self.method.distillation()) {
            return Err(no_teacher(self.method, dir));
        }
        at_least_one("--batch", self.batch as u64)?;
        at_least_one("--accumulate", self.accumulate as u64)?;
        // Each micro-batch keeps tokens of its own on the device.
        if self.accumulate > 1 << 14 {
            return Err(Error::invalid("--accumulate", format!("at most {}", 1 << 14), self.accumulate.to_string()));
        }
        at_least_one("--steps", self.steps)?;
        at_least_one("--eval-every", self.eval_every)?;
        at_least_one("--checkpoint-every", self.checkpoint_every)?;
        at_least_one("--keep", self.keep as u64)?;
        at_least_one("--log-every", self.log_every)?;
        if let Some(batches) = self.eval_batches {
            at_least_one("--eval-batches", batches as u64)?;
        }
        let tokens = [self.batch, self.accumulate, self.block].iter().try_fold(1usize, |n, &k| n.checked_mul(k));
        if tokens.is_none_or(|n| u32::try_from(n).is_err()) {
            return Err(Error::invalid(
                "--batch",
                format!("--batch x --accumulate x --block below {}", 1u64 << 32),
                format!("{} x {} x {}", self.batch, self.accumulate, self.block),
            ));
        }
        if u32::try_from(self.steps).is_err() {
            return Err(Error::invalid("--steps", format!("below {}", 1u64 << 32), self.steps.to_string()));
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(Error::invalid("--lr", "a number above 0", self.lr.to_string()));
        }
        if !(0.0..=self.lr).contains(&self.min_lr) {
            return Err(Error::invalid("--min-lr", format!("from 0 to --lr ({})", self.lr), self.min_lr.to_string()));
        }
        self.check_optimizer()?;
        if self.warmup > self.steps {
            return Err(Error::invalid(
                "--warmup",
                format!("at most --steps ({})", self.steps),
                self.warmup.to_string(),
            ));
        }
        for (flag, value) in [("--weight-decay", self.weight_decay), ("--clip", self.clip)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::invalid(flag, "a number of at least 0", value.to_string()));
            }
        }
        for (flag, value) in [("--beta1", self.beta1), ("--beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::invalid(flag, "a number of at least 0 and below 1", value.to_string()));
            }
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            return Err(Error::invalid("epsilon", "a number above 0", self.epsilon.to_string()));
        }
        if let Some(tier) = &self.max_tier {
            Tier::parse(tier)
                .map_err(|_| Error::invalid("--max-tier", "one of baseline, subgroup, coop", format!("`{tier}`")))?;
        }
        Ok(())
    }

    /// Refuses a correction toward a grid that training does not have, or by more than the distance to it.
    fn check_optimizer(&self) -> Result<()> {
        // Beyond 2^32 steps there are none.
        let Some(correction) = self.optimizer.correction(u32::try_from(self.steps).unwrap_or(u32::MAX)) else {
            return Ok(());
        };
        if self.weights.is_none() || !self.method.trains_quantized() {
            let methods = format!("adamw beside --method {}, which trains in full precision", self.method);
            return Err(Error::invalid("--optimizer", methods, self.optimizer.to_string()));
        }
        if !self.method.takes_correction() {
            let expected = format!(
                "adamw beside --method {}, whose signs, of one size whatever the weights', are no grid for the weights behind them \
                 (bwn and bitnet take a correction)",
                self.method
            );
            return Err(Error::invalid("--optimizer", expected, self.optimizer.to_string()));
        }
        if !correction.is_stable(self.lr) {
            let expected = format!(
                "lambda below 1 / --lr = {}, as lr * lambda of the distance to the grid is taken in a step, or cage:coupled",
                self.lr.recip()
            );
            return Err(Error::invalid("--optimizer", expected, self.optimizer.to_string()));
        }
        Ok(())
    }

    /// The first setting with which a run would not come to the losses of `run`, which is this run as an earlier sitting had it.
    pub(super) fn other_losses(&self, run: &Self) -> Option<Difference> {
        self.difference(run, |_, rule| matches!(rule, Rule::Fixed | Rule::Measured))
    }

    /// The first setting that keeps this run from being compared with `run`. Rows, rates, seeds and numbers of steps do not; nor do a warm-up and
    /// a last rate where both runs have what follows from their own steps and rate.
    pub(super) fn incomparable(&self, run: &Self) -> Option<Difference> {
        let defaults = self.preset.config();
        let follows = |flag: &str| match flag {
            "--min-lr" => [self, run].iter().all(|own| {
                let ratio = (own.min_lr / own.lr) / (defaults.min_lr / defaults.lr);
                // Products and quotients are rounded.
                (ratio - 1.0).abs() < 1e-9
            }),
            "--warmup" => [self, run].iter().all(|own| own.warmup == defaults.warmup.min(own.steps / 10)),
            _ => false,
        };
        self.difference(run, |flag, rule| {
            matches!(rule, Rule::Fixed | Rule::Measured) && Sweep::SHARED.contains(&flag) && !follows(flag)
        })
    }

    /// Refuses settings that shape the run where `run`, which is this run as it was, has others.
    fn check_fixed(&self, run: &Self) -> Result<()> {
        match self.difference(run, |_, rule| rule == Rule::Fixed) {
            Some(Difference { flag, own, got }) => Err(resumed(flag, &own, &got)),
            None => Ok(()),
        }
    }

    /// The learning rate of step `step`, counted from 1: linear warm-up, then half a cosine down to `min_lr`.
    ///
    /// Source: nanoGPT's `get_lr`, whose iterations count from 0 and whose decay here ends with the run.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "step numbers are below 2^32")]
    pub fn learning_rate(&self, step: u64) -> f64 {
        let iteration = step.saturating_sub(1);
        if iteration < self.warmup {
            return self.lr * (iteration + 1) as f64 / (self.warmup + 1) as f64;
        }
        if iteration >= self.steps {
            return self.min_lr;
        }
        let done = (iteration - self.warmup) as f64 / (self.steps - self.warmup) as f64;
        self.min_lr + 0.5 * (1.0 + (std::f64::consts::PI * done).cos()) * (self.lr - self.min_lr)
    }
}

fn at_least_one(flag: &str, value: u64) -> Result<()> {
    if value == 0 { Err(Error::invalid(flag, "at least 1", "0")) } else { Ok(()) }
}

/// Whether a setting of a run may differ when the run goes on.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// It shapes the weights or the reported losses.
    Fixed,
    /// It shapes at which steps losses are reported.
    Measured,
    /// It does neither.
    Free,
    /// Whoever resumes looks at it more closely: the file's content, the adapter found, the precision chosen.
    Examined,
}

/// Declares [`Overrides`] and what goes through its fields.
macro_rules! overrides {
    ($($(#[$doc:meta])* $field:ident: $type:ty, $flag:literal, $rule:ident;)*) => {
        /// Settings that were asked for, by flags say; the others come from a preset or from the run that is resumed.
        #[derive(Clone, Debug, Default, PartialEq)]
        #[cfg_attr(feature = "cli", derive(clap::Args))]
        pub struct Overrides {
            $($(#[$doc])* #[cfg_attr(feature = "cli", arg(long))] pub $field: Option<$type>,)*
        }

        impl Overrides {
            fn set(&self, config: &mut TrainConfig, wanted: impl Fn(Rule) -> bool) {
                $(if let (Some(value), true) = (&self.$field, wanted(Rule::$rule)) {
                    config.$field = value.clone().into();
                })*
            }
        }

        impl TrainConfig {
            /// The first setting of the wanted flags and kinds that `run` has with another value.
            fn difference(&self, run: &Self, wanted: impl Fn(&str, Rule) -> bool) -> Option<Difference> {
                $(if self.$field != run.$field && wanted($flag, Rule::$rule) {
                    return Some(Difference { flag: $flag, own: text(&run.$field), got: text(&self.$field) });
                })*
                None
            }
        }
    };
}

/// A setting that two runs have with different values.
pub(super) struct Difference {
    /// The setting.
    pub flag: &'static str,
    /// The value that is there.
    pub own: String,
    /// The value that was asked for.
    pub got: String,
}

/// A setting for messages.
fn text(value: &impl Serialize) -> String {
    match serde_json::to_string(value).unwrap_or_default() {
        null if null == "null" => "none".to_owned(),
        text => text,
    }
}

/// A value of a list on the command line, around whose commas there may be spaces.
#[cfg(feature = "cli")]
fn trimmed<T: FromStr>(text: &str) -> Result<T, T::Err> {
    text.trim().parse()
}

/// Declares [`Sweep`] and what goes through the fields that all its runs share.
macro_rules! sweep {
    ($($(#[$doc:meta])* $field:ident: $type:ty, $flag:literal, $rule:ident;)*) => {
        /// What a comparison is asked for: lists of what its runs differ in, and settings that all of them share.
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[cfg_attr(feature = "cli", derive(clap::Args))]
        pub struct Sweep {
            /// List of methods, as of walsh train [default: ste]
            #[serde(alias = "method", deserialize_with = "one_or_many")]
            #[cfg_attr(feature = "cli", arg(long, visible_alias = "method", value_delimiter = ',', value_parser = trimmed::<Method>))]
            pub methods: Vec<Method>,
            /// List of formats of the weights of linear layers, as in int4,int2:row
            #[serde(deserialize_with = "one_or_many")]
            #[cfg_attr(feature = "cli", arg(long, value_delimiter = ',', value_parser = trimmed::<Asked>))]
            pub weights: Vec<Asked>,
            /// List of formats of the inputs of linear layers, or dense [default: the method's; dense]
            #[serde(deserialize_with = "one_or_many")]
            #[cfg_attr(feature = "cli", arg(long, value_delimiter = ',', value_parser = trimmed::<Asked>))]
            pub activations: Vec<Asked>,
            /// List of blocks by which operands are rotated, or off [default: the method's]
            #[serde(deserialize_with = "one_or_many")]
            #[cfg_attr(feature = "cli", arg(long, value_delimiter = ',', value_parser = trimmed::<Rotation>))]
            pub hadamard: Vec<Rotation>,
            /// List of optimizers, as of walsh train; what is not trained with quantized operands has adamw [default: adamw]
            #[serde(alias = "optimizer", deserialize_with = "one_or_many")]
            #[cfg_attr(feature = "cli", arg(long, visible_alias = "optimizer", value_delimiter = ',', value_parser = trimmed::<Optimizer>))]
            pub optimizers: Vec<Optimizer>,
            /// List of highest learning rates; a row has the one that ends lowest [default: the preset's]
            #[serde(deserialize_with = "one_or_many")]
            #[cfg_attr(feature = "cli", arg(long, value_delimiter = ',', value_parser = trimmed::<f64>))]
            pub lr: Vec<f64>,
            /// List of numbers of optimizer steps, each with rows of its own [default: the preset's]
            #[serde(deserialize_with = "one_or_many")]
            #[cfg_attr(feature = "cli", arg(long, value_delimiter = ',', value_parser = trimmed::<u64>))]
            pub steps: Vec<u64>,
            /// List of seeds of weights, dropout and the order of the data; a row is a mean over them [default: the preset's]
            #[serde(alias = "seed", deserialize_with = "one_or_many")]
            #[cfg_attr(feature = "cli", arg(long, visible_alias = "seed", value_delimiter = ',', value_parser = trimmed::<u64>))]
            pub seeds: Vec<u64>,
            /// Leave out the runs in full precision to which the others are compared
            #[cfg_attr(feature = "cli", arg(long))]
            pub no_full: bool,
            /// Rows by name, instead of lists of methods and formats.
            #[cfg_attr(feature = "cli", arg(skip))]
            pub run: Vec<Combination>,
            $($(#[$doc])* #[cfg_attr(feature = "cli", arg(long))] pub $field: Option<$type>,)*
        }

        impl Sweep {
            /// These settings, and those of `other` where there are none here.
            #[must_use]
            pub fn over(self, other: Self) -> Self {
                fn list<T>(own: Vec<T>, other: Vec<T>) -> Vec<T> {
                    if own.is_empty() { other } else { own }
                }
                Self {
                    methods: list(self.methods, other.methods),
                    weights: list(self.weights, other.weights),
                    activations: list(self.activations, other.activations),
                    hadamard: list(self.hadamard, other.hadamard),
                    optimizers: list(self.optimizers, other.optimizers),
                    lr: list(self.lr, other.lr),
                    steps: list(self.steps, other.steps),
                    seeds: list(self.seeds, other.seeds),
                    no_full: self.no_full || other.no_full,
                    run: list(self.run, other.run),
                    $($field: self.$field.or(other.$field),)*
                }
            }

            /// The flags of the settings that all runs share.
            const SHARED: &[&str] = &[$($flag),*];

            /// What all runs share.
            pub(super) fn shared(&self) -> Overrides {
                Overrides { $($field: self.$field.clone(),)* ..Overrides::default() }
            }
        }
    };
}

/// Hands the fields to [`overrides!`], and those in which the runs of a comparison are alike to [`sweep!`].
macro_rules! settings {
    (shared { $($before:tt)* } lists { $($lists:tt)* } shared { $($after:tt)* }) => {
        overrides! { $($before)* $($lists)* $($after)* }
        sweep! { $($before)* $($after)* }
    };
}

settings! {
    shared {
        /// UTF-8 text to learn from, its last tenth for validation [default: the built-in corpus]
        text: PathBuf, "--text", Examined;
        /// Directory of a finished run in full precision to learn from; needed by --method onebit
        teacher: PathBuf, "--teacher", Examined;
        /// Where defaults come from: nano, cpu, baby or gpt2 [default: one that suits the adapter]
        preset: Preset, "--preset", Fixed;
        /// Transformer blocks
        layers: usize, "--layers", Fixed;
        /// Attention heads; they divide the width
        heads: usize, "--heads", Fixed;
        /// Width of the model
        embd: usize, "--embd", Fixed;
        /// Context in tokens
        block: usize, "--block", Fixed;
        /// Sequences in a micro-batch
        batch: usize, "--batch", Fixed;
        /// Micro-batches in a step
        accumulate: usize, "--accumulate", Fixed;
        /// Probability that dropout zeroes an element
        dropout: f64, "--dropout", Fixed;
    }
    lists {
        /// Optimizer steps
        steps: u64, "--steps", Fixed;
        /// Seed of weights, dropout and the order of the data
        seed: u64, "--seed", Fixed;
        /// How linear layers are quantized and what gradients make of it: none, ptq, ste, clipped, lsq, lsq:plus, learned, quest,
        /// binaryconnect, bwn, bitnet, onebit; quartet (MXFP4) and nvfp4, whose backward passes are quantized too [default: ste where there
        /// are --weights]
        method: Method, "--method", Fixed;
        /// Format of the weights of linear layers, as in int4 (the method's own variant) or int4:g128, or dense [default: dense]
        weights: Asked, "--weights", Fixed;
        /// Format of the inputs of linear layers; needs --weights [default: dense]
        activations: Asked, "--activations", Fixed;
        /// Block of the Hadamard transform by which both operands are rotated: 16 to 256, or off [default: the method's]
        hadamard: Rotation, "--hadamard", Fixed;
        /// How parameters are updated: adamw; cage, which pulls quantized weights toward the grid at the end of the run, with any of its options
        /// as in cage:lambda=10:silence=0.8:coupled:constant; feedback or feedback:lambda=1, which does so all along [default: adamw]
        optimizer: Optimizer, "--optimizer", Fixed;
        /// Highest learning rate
        lr: f64, "--lr", Fixed;
    }
    shared {
        /// Learning rate at the end [default: a tenth of the highest]
        min_lr: f64, "--min-lr", Fixed;
        /// Steps of linear warm-up
        warmup: u64, "--warmup", Fixed;
        /// Decoupled weight decay of matrices and embeddings
        weight_decay: f64, "--weight-decay", Fixed;
        /// Largest global norm of the gradient; 0 does not clip
        clip: f64, "--clip", Fixed;
        /// Steps between evaluations
        eval_every: u64, "--eval-every", Measured;
        /// Evaluate so many batches of the validation split [default: all of it]
        eval_batches: usize, "--eval-batches", Fixed;
        /// Steps between checkpoints
        checkpoint_every: u64, "--checkpoint-every", Free;
        /// Newest checkpoints to keep, beside the best
        keep: usize, "--keep", Free;
        /// Steps between lines of metrics.jsonl
        log_every: u64, "--log-every", Free;
        /// Steps between diagnostics of the quantized layers, in metrics.jsonl and diagnostics.svg; 0: none [default: none]
        diagnostics: u64, "--diagnostics", Free;
        /// Type of matrix operands and activations: auto, f32 or f16
        precision: Precision, "--precision", Examined;
        /// Part of the adapter's name, or #N
        adapter: String, "--adapter", Examined;
        /// Use no kernels above this tier: baseline, subgroup or coop
        max_tier: String, "--max-tier", Fixed;
    }
}

/// The error for a teacher where none is learned from.
pub(crate) fn no_teacher(method: Method, dir: &std::path::Path) -> Error {
    let expected = format!("none beside --method {method} (onebit learns from one)");
    Error::invalid("--teacher", expected, dir.display().to_string())
}

/// The error for a flag that a resumed run does not take.
pub(crate) fn resumed(flag: &str, own: &str, got: &str) -> Error {
    Error::invalid(
        flag,
        format!("{own}, as the run in --out has it (what shapes a run cannot change when it is resumed)"),
        got,
    )
}

impl Overrides {
    /// The settings of a new run. Where they were not given, the warm-up is at most a tenth of the steps and the last learning rate
    /// keeps its ratio to the highest.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag.
    pub fn fresh(&self, preset: Preset) -> Result<TrainConfig> {
        let defaults = preset.config();
        let mut config = defaults.clone();
        self.set(&mut config, |_| true);
        config.preset = preset;
        let quantized = |asked: Option<Asked>| asked.is_some_and(|asked| asked != Asked::Dense);
        if self.method.is_none() && (quantized(self.weights) || quantized(self.activations)) {
            config.method = Method::Ste(Ste);
        }
        self.resolve(&mut config, Settings::default())?;
        if self.min_lr.is_none() && self.lr.is_some() {
            config.min_lr = config.lr * (defaults.min_lr / defaults.lr);
        }
        if self.warmup.is_none() {
            config.warmup = config.warmup.min(config.steps / 10);
        }
        for path in [&mut config.text, &mut config.teacher].into_iter().flatten() {
            // Resuming from another directory must find it again.
            *path = std::path::absolute(&*path).map_err(Error::io(&*path, "find"))?;
        }
        config.validate()?;
        Ok(config)
    }

    /// Fills in what was left open of formats and rotation: with `run`'s, then with what the method makes of it.
    fn resolve(&self, config: &mut TrainConfig, run: Settings) -> Result<()> {
        let asked = Settings {
            weights: self.weights.or(run.weights),
            activations: self.activations.or(run.activations),
            hadamard: self.hadamard.or(run.hadamard),
            widths: config.gpt(1).widths(),
        };
        let quantizer = config.method.quantizer(&asked)?;
        config.weights = quantizer.map(|quantizer| quantizer.weights);
        config.activations = quantizer.and_then(|quantizer| quantizer.activations);
        config.hadamard = quantizer.and_then(|quantizer| quantizer.hadamard);
        Ok(())
    }

    /// The settings with which a run goes on.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the first flag that would change the run's mathematics.
    pub fn resumed(&self, run: &TrainConfig) -> Result<TrainConfig> {
        let mut asked = run.clone();
        self.set(&mut asked, |rule| rule == Rule::Fixed);
        // What does not fit the run's method is another setting than the run's, too.
        let filled = self.resolve(&mut asked, run.settings());
        asked.check_fixed(run)?;
        filled?;
        let mut config = run.clone();
        self.set(&mut config, |rule| matches!(rule, Rule::Measured | Rule::Free));
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "cli")]
    #[test]
    fn lists_on_the_command_line_may_have_spaces_around_their_commas() {
        use clap::{Args, Command, FromArgMatches};
        let parse = |flags: &[&str]| {
            let arguments = ["walsh"].iter().chain(flags);
            let matches = Sweep::augment_args(Command::new("walsh")).try_get_matches_from(arguments)?;
            Sweep::from_arg_matches(&matches)
        };
        let spaced = [
            ["--methods", "ste, quest"],
            ["--weights", "int4, int2:row"],
            ["--activations", "dense , int8:row"],
            ["--hadamard", "off, 16"],
            ["--optimizers", " adamw, cage"],
            ["--lr", "1e-3, 2e-3 "],
            ["--steps", "4, 3"],
            ["--seeds", "1 ,2"],
        ];
        let dense = spaced.map(|[flag, list]| [flag.to_owned(), list.replace(' ', "")]);
        let dense: Vec<&str> = dense.iter().flatten().map(String::as_str).collect();
        let sweep = parse(&spaced.concat()).unwrap();
        assert_eq!(sweep, parse(&dense).unwrap());
        assert_eq!((&sweep.steps[..], &sweep.lr[..], sweep.methods.len()), (&[4, 3][..], &[1e-3, 2e-3][..], 2));
        for [flag, list] in
            [["--steps", "4 3"], ["--seeds", "1,,2"], ["--lr", "1e-3, fast"], ["--weights", "int4, int99"]]
        {
            let message = parse(&[flag, list]).unwrap_err().to_string();
            assert!(message.contains(flag), "{message}");
        }
    }

    #[test]
    fn presets_are_valid_and_named() {
        for preset in Preset::ALL {
            preset.config().validate().unwrap();
            assert_eq!(preset.name().parse::<Preset>().unwrap(), preset);
        }
        assert!("giant".parse::<Preset>().unwrap_err().to_string().contains("`giant`"));
        // Counted by hand from nanoGPT's definition with tied weights and no biases.
        assert_eq!(
            Preset::Baby.config().gpt(65).parameters(),
            65 * 384 + 256 * 384 + 6 * (2 * 384 + 12 * 384 * 384) + 384
        );
    }

    #[test]
    fn schedule_is_that_of_nanogpt() {
        let config = TrainConfig { warmup: 100, steps: 2000, lr: 1e-3, min_lr: 1e-4, ..Preset::Cpu.config() };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-15, "{a} is not {b}");
        close(config.learning_rate(1), 1e-3 / 101.0);
        close(config.learning_rate(100), 1e-3 * 100.0 / 101.0);
        close(config.learning_rate(101), 1e-3);
        // Half way between iterations 100 and 2000.
        close(config.learning_rate(1051), (1e-3 + 1e-4) / 2.0);
        close(config.learning_rate(2001), 1e-4);
        close(config.learning_rate(u64::MAX), 1e-4);
        for step in 101..2000 {
            assert!(config.learning_rate(step) > config.learning_rate(step + 1));
        }
        // No warm-up, and nothing but warm-up.
        close(TrainConfig { warmup: 0, ..config.clone() }.learning_rate(1), 1e-3);
        close(TrainConfig { warmup: 2000, ..config }.learning_rate(2001), 1e-4);
    }

    #[test]
    fn bad_settings_are_refused_by_flag() {
        type Change = fn(&mut Overrides);
        let cases: [(&str, Change); 22] = [
            ("--heads", |o| o.heads = Some(3)),
            ("--heads", |o| o.heads = Some(0)),
            ("--layers", |o| o.layers = Some(0)),
            ("--embd", |o| o.embd = Some(0)),
            ("--embd", |o| o.embd = Some(1 << 40)),
            ("--block", |o| o.block = Some(0)),
            ("--batch", |o| o.batch = Some(0)),
            ("--batch", |o| o.batch = Some(usize::MAX)),
            ("--accumulate", |o| o.accumulate = Some(0)),
            ("--dropout", |o| o.dropout = Some(1.0)),
            ("--dropout", |o| o.dropout = Some(f64::NAN)),
            ("--lr", |o| o.lr = Some(0.0)),
            ("--lr", |o| o.lr = Some(f64::INFINITY)),
            ("--min-lr", |o| o.min_lr = Some(1.0)),
            ("--min-lr", |o| o.min_lr = Some(-1.0)),
            ("--warmup", |o| o.warmup = Some(10_000)),
            ("--clip", |o| o.clip = Some(-1.0)),
            ("--steps", |o| o.steps = Some(0)),
            ("--eval-every", |o| o.eval_every = Some(0)),
            ("--eval-batches", |o| o.eval_batches = Some(0)),
            ("--keep", |o| o.keep = Some(0)),
            ("--max-tier", |o| o.max_tier = Some("best".into())),
        ];
        for (flag, change) in cases {
            let mut overrides = Overrides::default();
            change(&mut overrides);
            let error = overrides.fresh(Preset::Nano).unwrap_err();
            assert!(!error.is_failure());
            let message = error.to_string();
            assert!(message.contains(flag) && message.contains(": expected "), "{flag}: {message}");
        }
    }

    #[test]
    fn defaults_follow_what_was_given() {
        let config = Overrides { lr: Some(2e-3), steps: Some(50), ..Overrides::default() }.fresh(Preset::Nano).unwrap();
        assert!((config.min_lr - 2e-4).abs() < 1e-12);
        assert_eq!(config.warmup, 5);
    }

    #[test]
    fn resuming_keeps_the_mathematics() {
        let run = Overrides { lr: Some(3e-3), ..Overrides::default() }.fresh(Preset::Nano).unwrap();
        assert_eq!(Overrides::default().resumed(&run).unwrap(), run);
        let same = Overrides { lr: Some(3e-3), preset: Some(Preset::Nano), ..Overrides::default() };
        assert_eq!(same.resumed(&run).unwrap(), run);
        let free = Overrides { eval_every: Some(7), keep: Some(1), ..Overrides::default() }.resumed(&run).unwrap();
        assert_eq!((free.eval_every, free.keep), (7, 1));
        for (flag, overrides) in [
            ("--lr", Overrides { lr: Some(1e-3), ..Overrides::default() }),
            ("--steps", Overrides { steps: Some(1501), ..Overrides::default() }),
            ("--preset", Overrides { preset: Some(Preset::Cpu), ..Overrides::default() }),
            ("--eval-batches", Overrides { eval_batches: Some(4), ..Overrides::default() }),
        ] {
            let message = overrides.resumed(&run).unwrap_err().to_string();
            assert!(message.starts_with(flag), "{message}");
        }
    }

    #[test]
    fn runs_of_a_comparison_differ_in_rows_rates_seeds_and_steps() {
        let of = |overrides: Overrides| overrides.fresh(Preset::Nano).unwrap();
        let run = of(Overrides { lr: Some(1e-3), steps: Some(300), ..Overrides::default() });
        let other = Overrides {
            lr: Some(3e-3),
            steps: Some(2000),
            seed: Some(7),
            method: Some("quest".parse().unwrap()),
            weights: Some("int4".parse().unwrap()),
            optimizer: Some("cage".parse().unwrap()),
            keep: Some(9),
            checkpoint_every: Some(5),
            ..Overrides::default()
        };
        assert!(of(other.clone()).incomparable(&run).is_none() && run.incomparable(&of(other.clone())).is_none());
        type Change = fn(&mut Overrides);
        let changes: [(&str, Change); 15] = [
            ("--layers", |o| o.layers = Some(1)),
            ("--heads", |o| o.heads = Some(1)),
            ("--embd", |o| o.embd = Some(128)),
            ("--block", |o| o.block = Some(32)),
            ("--batch", |o| o.batch = Some(8)),
            ("--accumulate", |o| o.accumulate = Some(2)),
            ("--dropout", |o| o.dropout = Some(0.1)),
            ("--min-lr", |o| o.min_lr = Some(0.0)),
            ("--warmup", |o| o.warmup = Some(31)),
            ("--weight-decay", |o| o.weight_decay = Some(0.0)),
            ("--clip", |o| o.clip = Some(0.0)),
            ("--eval-every", |o| o.eval_every = Some(7)),
            ("--eval-batches", |o| o.eval_batches = Some(7)),
            ("--max-tier", |o| o.max_tier = Some("baseline".into())),
            ("--preset", |o| o.preset = Some(Preset::Cpu)),
        ];
        for (flag, change) in changes {
            let mut overrides = other.clone();
            change(&mut overrides);
            let preset = overrides.preset.unwrap_or(Preset::Nano);
            let config = overrides.fresh(preset).unwrap();
            assert_eq!(config.incomparable(&run).map(|difference| difference.flag), Some(flag));
            // The same flags for all runs.
            let mut overrides = Overrides { lr: Some(1e-3), steps: Some(300), ..Overrides::default() };
            change(&mut overrides);
            assert!(config.incomparable(&overrides.fresh(preset).unwrap()).is_none(), "{flag}");
        }
    }

    #[test]
    fn a_correction_needs_a_grid_and_a_rate_that_does_not_pass_it() {
        let asked = |method: &str, weights: &str, optimizer: &str, lr: f64| Overrides {
            method: Some(method.parse().unwrap()),
            weights: Some(weights.parse().unwrap()),
            optimizer: Some(optimizer.parse().unwrap()),
            lr: Some(lr),
            ..Overrides::default()
        };
        let message = |o: Overrides| o.fresh(Preset::Nano).unwrap_err().to_string();
        let signs = "binary:tensor";
        for (method, weights) in [("none", "dense"), ("ptq", "int4"), ("onebit", signs), ("binaryconnect", signs)] {
            for optimizer in ["cage", "feedback"] {
                let got = message(asked(method, weights, optimizer, 1e-3));
                let start = format!("--optimizer: expected adamw beside --method {method}, ");
                assert!(got.starts_with(&start) && got.ends_with(&format!("found {optimizer}")), "{got}");
            }
            asked(method, weights, "adamw", 1e-3).fresh(Preset::Nano).unwrap();
        }
        let got = message(asked("ste", "int4", "cage:lambda=40", 0.025));
        assert!(got.starts_with("--optimizer: expected lambda below 1 / --lr = 40, "), "{got}");
        // What is on these grids approximates the weights.
        for (method, weights) in [("bwn", "binary"), ("bitnet", "ternary")] {
            asked(method, weights, "cage", 1e-3).fresh(Preset::Nano).unwrap();
        }
        for optimizer in ["cage:lambda=39", "feedback:lambda=39", "cage:lambda=40:coupled"] {
            asked("ste", "int4", optimizer, 0.025).fresh(Preset::Nano).unwrap();
        }
        let run = asked("quest", "int4", "cage", 1e-3).fresh(Preset::Nano).unwrap();
        let text = serde_json::to_string(&run).unwrap();
        assert_eq!(serde_json::from_str::<TrainConfig>(&text).unwrap(), run);
        // Records from before there was a choice.
        let older = text.replace(r#""optimizer":"cage","#, "");
        assert_eq!(serde_json::from_str::<TrainConfig>(&older).unwrap().optimizer, Optimizer::AdamW);
        let resumed = |optimizer: &str| {
            Overrides { optimizer: Some(optimizer.parse().unwrap()), ..Overrides::default() }.resumed(&run)
        };
        assert_eq!(resumed("cage:lambda=10").unwrap(), run);
        assert!(
            resumed("cage:lambda=5").unwrap_err().to_string().starts_with("--optimizer: expected \"cage\", as the run")
        );
    }

    #[test]
    fn json_keeps_every_bit() {
        let config = TrainConfig { lr: 0.1 + 0.2, seed: u64::MAX, ..Preset::Gpt2.config() };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TrainConfig>(&text).unwrap(), config);
    }
}
