//! The loop: steps, logging without waiting, evaluation, checkpoints, an orderly stop.

use super::checkpoint::TensorData;
use super::diagnostics::Diagnostics;
use super::metrics::{Metrics, Record};
use super::run::{Evaluation, Run};
use super::{Dataset, IGNORE, Windows};
use crate::format::Format;
use crate::optim::Optimizer;
use crate::qat::Method;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Readbacks that may be under way before the loop waits for the oldest.
const RING: usize = 4;

/// What is read back about a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean loss over all micro-batches, in nats per token.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient before clipping, without the loss scale.
    pub grad_norm: f64,
    /// Factor by which the loss was scaled.
    pub loss_scale: f64,
    /// Steps so far whose update was left out because a gradient overflowed.
    pub skipped: u64,
    /// False once any loss was NaN or infinite.
    pub finite: bool,
}

/// A readback under way.
pub trait PendingStats {
    /// The values, if they have arrived.
    ///
    /// # Errors
    /// Of the device.
    fn poll(&mut self) -> Result<Option<StepStats>>;

    /// Waits for the values.
    ///
    /// # Errors
    /// Of the device.
    fn wait(self) -> Result<StepStats>;
}

/// What the loop trains: a model with its optimizer.
pub trait Model {
    /// What [`Model::stats`] returns.
    type Pending: PendingStats;

    /// Queues one optimizer step over all micro-batches, `[accumulate, batch, block]` tokens each. Nothing is read back.
    ///
    /// # Errors
    /// Of the device.
    fn train_step(&mut self, inputs: &[u32], targets: &[u32]) -> Result<()>;

    /// Starts reading back what there is to say about the last step queued, without waiting.
    ///
    /// # Errors
    /// Of the device.
    fn stats(&mut self) -> Result<Self::Pending>;

    /// Sum of the losses, in nats, over the targets that are not [`IGNORE`], and their number; `[batch, block]` tokens each. Without dropout.
    ///
    /// # Errors
    /// Of the device.
    fn eval(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(f64, u64)>;

    /// What quantization does to each layer, on one micro-batch `[batch, block]`, with the parameters as they are; training is not disturbed.
    /// Nothing where nothing is quantized. Waits for the device.
    ///
    /// # Errors
    /// Of the device.
    fn diagnose(&mut self, inputs: &[u32], targets: &[u32]) -> Result<Diagnostics> {
        let _ = (inputs, targets);
        Ok(Diagnostics::new())
    }

    /// Everything that a run needs to go on: parameters as `model.*`, moments as `optimizer.m.*` and `optimizer.v.*`, the step's state
    /// (step, loss scale, counters) as `state.*`. Waits for the steps queued.
    ///
    /// # Errors
    /// Of the device.
    fn export(&mut self) -> Result<Vec<(String, TensorData)>>;

    /// What training goes on with but people should know of tensors that [`Model::export`] gave: a sentence each, the same for the same tensor
    /// at any step.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Shape`] for tensors of another model.
    fn warnings(&self, tensors: &[(String, TensorData)]) -> Result<Vec<String>> {
        let _ = tensors;
        Ok(Vec::new())
    }

    /// Takes over what [`Model::export`] gave.
    ///
    /// # Errors
    /// [`Error::Invalid`] for tensors that are missing or of another shape; of the device.
    fn import(&mut self, tensors: &[(String, TensorData)]) -> Result<()>;

    /// Device memory that training will take, in bytes, as it can be known before the first step.
    fn estimated_bytes(&self) -> u64;

    /// The most device memory held so far, in bytes.
    fn peak_bytes(&self) -> u64;

    /// The first tensor that holds a NaN or an infinity, after a step whose loss was not finite.
    ///
    /// # Errors
    /// Of the device.
    fn first_non_finite(&mut self) -> Result<String> {
        Ok("the loss".to_owned())
    }
}

/// Where the loop is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Status {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// The newest training loss that is known.
    pub train_loss: Option<f64>,
    /// The newest validation loss.
    pub val_loss: Option<f64>,
    /// Tokens learned from per second.
    pub tokens_per_s: Option<f64>,
}

/// Who is told how the loop gets on.
pub trait Progress {
    /// A step was queued.
    fn step(&mut self, status: &Status) {
        let _ = status;
    }

    /// Something came up that does not end the run; each of it once.
    fn warn(&mut self, message: &str) {
        let _ = message;
    }

    /// The validation loss was measured.
    fn evaluated(&mut self, status: &Status, entropy_floor: Option<f64>) {
        let _ = (status, entropy_floor);
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}

/// What the loop is given beside model, data and run.
pub struct Options<'a> {
    /// Set it from elsewhere to end the loop after the step under way.
    pub stop: &'a AtomicBool,
    /// When the process started, for [`Summary::first_step_s`].
    pub started: Instant,
    /// Who is told.
    pub progress: &'a mut dyn Progress,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Steps done.
    pub steps: u64,
    /// Loss of the last step, in nats per token.
    pub train_loss: Option<f64>,
    /// Loss of the last evaluation.
    pub val_loss: Option<f64>,
    /// Lowest loss of any evaluation.
    pub best_val_loss: Option<f64>,
    /// Loss that no model can beat on average, where it is known.
    pub entropy_floor: Option<f64>,
    /// Tokens learned from per second, by the median step.
    pub tokens_per_s: Option<f64>,
    /// Median over the steps of this process, the first two left out.
    pub ms_per_step: Option<f64>,
    /// Seconds from the start of the process to the end of its first step.
    pub first_step_s: Option<f64>,
    /// The most device memory held, in bytes.
    pub peak_gpu_bytes: u64,
    /// The adapter's name.
    pub adapter: String,
    /// The graphics interface.
    pub backend: String,
    /// The kernel tier.
    pub tier: String,
    /// The type of matrix operands.
    pub precision: String,
    /// How quantizers pass gradients on.
    pub method: Method,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Format of weights; dense if there is none.
    pub weights: Option<Format>,
    /// Format of inputs; dense if there is none.
    pub activations: Option<Format>,
    /// Rotation block; none without rotation.
    pub hadamard: Option<u32>,
    /// The seed.
    pub seed: u64,
}

/// Trains until the run's last step, from the step that its state says; `model` is in that state already.
///
/// # Errors
/// [`Error::Interrupted`] after [`Options::stop`], when a checkpoint is written; [`Error::NonFinite`]; of the device; [`Error::Io`].
pub fn train<M: Model>(model: &mut M, data: &Dataset, run: &mut Run, options: Options<'_>) -> Result<Summary> {
    let config = &run.info.config;
    let limit = config.eval_batches.map(|batches| batches.saturating_mul(config.batch));
    let windows = data.eval_windows(config.block, limit);
    let metrics = Metrics::open(&run.dir, run.state.step)?;
    let mut trainer = Trainer {
        model,
        data,
        windows,
        metrics,
        options,
        pending: VecDeque::new(),
        laps: Vec::new(),
        since_record: (0, 0.0),
        first_step_s: None,
        warned: Vec::new(),
        run,
    };
    let result = trainer.all();
    // The curve of what was done, also where the run ended early; the first error is the one to report.
    let drawn = trainer.draw();
    result?;
    drawn?;
    Ok(trainer.summary())
}

/// A readback and what its record needs beside it.
struct Pending<P> {
    stats: P,
    /// Whether the step is one of those in `metrics.jsonl`.
    log: bool,
    /// Milliseconds per step since the record before.
    ms: Option<f64>,
}

struct Trainer<'a, 'o, M: Model> {
    model: &'a mut M,
    data: &'a Dataset,
    run: &'a mut Run,
    windows: Windows,
    metrics: Metrics,
    options: Options<'o>,
    pending: VecDeque<Pending<M::Pending>>,
    /// Seconds of each step.
    laps: Vec<f64>,
    /// Steps and seconds since the last record.
    since_record: (u32, f64),
    first_step_s: Option<f64>,
    warned: Vec<String>,
}

impl<M: Model> Trainer<'_, '_, M> {
    fn all(&mut self) -> Result<()> {
        let config = self.run.info.config.clone();
        // A run that was stopped during an evaluation makes up for it.
        if self.evaluation_due() {
            self.evaluate(None)?;
            if self.run.state.step == config.steps {
                // With it, the last checkpoint is that of a run never stopped.
                self.save()?;
            }
        }
        while self.run.state.step < config.steps {
            let step = self.run.state.step + 1;
            let start = Instant::now();
            self.step(step)?;
            let first = self.first_step_s.is_none();
            let stop = self.options.stop.load(Ordering::Relaxed);
            let every = |n: u64| step.is_multiple_of(n) || step == config.steps;
            let (evaluate, save) = (every(config.eval_every), every(config.checkpoint_every) || stop);
            let diagnose = config.diagnostics.is_some_and(|n| n > 0 && every(n));
            let log = every(config.log_every) || evaluate || diagnose || step == 1;
            let mut record = None;
            self.since_record.0 += 1;
            if log || save || first {
                let stats = self.model.stats()?;
                let counted = start.elapsed().as_secs_f64();
                let (steps, seconds) = self.since_record;
                let ms = (!first).then(|| (seconds + counted) * 1e3 / f64::from(steps));
                self.pending.push_back(Pending { stats, log, ms });
                if log {
                    self.since_record = (0, -counted);
                }
            }
            if evaluate || save || first || diagnose {
                record = self.drain(evaluate || diagnose)?;
            } else {
                self.receive(RING)?;
            }
            // What was waited for after the record counts for the next one.
            let lap = start.elapsed().as_secs_f64();
            self.since_record.1 += lap;
            if first {
                // It makes what the others reuse, so it counts for none.
                self.since_record = (0, 0.0);
                self.first_step_s = Some(self.options.started.elapsed().as_secs_f64());
            }
            self.laps.push(lap);
            let status = self.status();
            self.options.progress.step(&status);
            if let Some(record) = record.as_mut().filter(|_| diagnose) {
                record.diagnostics = self.diagnose(step)?;
            }
            if evaluate {
                self.evaluate(record)?;
            } else if let Some(record) = record {
                self.metrics.write(&record)?;
            }
            if save {
                self.save()?;
            }
            if stop || self.stopped() {
                if !save {
                    self.save()?;
                }
                return Err(self.interrupted());
            }
        }
        if self.run.state.last_val.is_none_or(|v| v.step != config.steps) {
            self.evaluate(None)?;
            self.save()?;
        }
        match self.run.state.last_val {
            Some(last) if last.step == config.steps => Ok(()),
            // Stopped within that evaluation.
            _ => Err(self.interrupted()),
        }
    }

    /// Queues a step.
    fn step(&mut self, step: u64) -> Result<()> {
        let config = &self.run.info.config;
        let mut inputs = Vec::with_capacity(config.tokens_per_step());
        let mut targets = Vec::with_capacity(config.tokens_per_step());
        for micro in 0..config.accumulate {
            let micro = u32::try_from(micro).unwrap_or(u32::MAX);
            let (i, t) = self.data.train_batch(step, micro, config.batch, config.block);
            inputs.extend(i);
            targets.extend(t);
        }
        self.model.train_step(&inputs, &targets)?;
        self.run.state.step = step;
        Ok(())
    }

    /// Diagnoses the first micro-batch of the step to come: what was learned from the last one was fitted to it.
    fn diagnose(&mut self, step: u64) -> Result<Option<Diagnostics>> {
        let config = &self.run.info.config;
        let (inputs, targets) = self.data.train_batch(step + 1, 0, config.batch, config.block);
        Ok(Some(self.model.diagnose(&inputs, &targets)?).filter(|layers| !layers.is_empty()))
    }

    fn stopped(&self) -> bool {
        self.options.stop.load(Ordering::Relaxed)
    }

    fn interrupted(&self) -> Error {
        Error::Interrupted(format!(
            "stopped after step {}, which is saved; go on with `walsh train --resume --out {}`",
            self.run.state.step,
            self.run.dir.display()
        ))
    }

    /// Writes the records that have arrived; waits where more than `most` are under way.
    fn receive(&mut self, most: usize) -> Result<()> {
        while let Some(mut oldest) = self.pending.pop_front() {
            let stats = match oldest.stats.poll()? {
                Some(stats) => stats,
                None if self.pending.len() < most => {
                    self.pending.push_front(oldest);
                    return Ok(());
                }
                None => oldest.stats.wait()?,
            };
            let record = self.record(&stats, oldest.ms)?;
            if oldest.log {
                self.metrics.write(&record)?;
            }
        }
        Ok(())
    }

    /// Waits for all readbacks. With `hold`, the last record is returned instead of written, for the validation loss to be added.
    fn drain(&mut self, hold: bool) -> Result<Option<Record>> {
        while let Some(oldest) = self.pending.pop_front() {
            let stats = oldest.stats.wait()?;
            let record = self.record(&stats, oldest.ms)?;
            if hold && self.pending.is_empty() {
                return Ok(Some(record));
            }
            if oldest.log {
                self.metrics.write(&record)?;
            }
        }
        Ok(None)
    }

    /// Turns what was read back into a record; stops where the loss is not finite.
    fn record(&mut self, stats: &StepStats, ms: Option<f64>) -> Result<Record> {
        if !stats.finite || !stats.loss.is_finite() {
            let tensor = self.model.first_non_finite()?;
            return Err(Error::NonFinite { step: stats.step, tensor });
        }
        self.run.state.train_loss = Some(stats.loss);
        Ok(Record {
            step: stats.step,
            train_loss: Some(stats.loss),
            val_loss: None,
            lr: Some(stats.lr),
            grad_norm: Some(stats.grad_norm),
            ms,
            tokens_per_s: ms.map(|ms| self.tokens_per_s(ms)),
            loss_scale: Some(stats.loss_scale),
            skipped: Some(stats.skipped),
            diagnostics: None,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of tokens below 2^32")]
    fn tokens_per_s(&self, ms: f64) -> f64 {
        self.run.info.config.tokens_per_step() as f64 * 1e3 / ms.max(1e-6)
    }

    fn evaluation_due(&self) -> bool {
        let state = &self.run.state;
        state.step > 0
            && state.step.is_multiple_of(self.run.info.config.eval_every)
            && state.last_val.is_none_or(|v| v.step != state.step)
    }

    /// Measures the validation loss and writes it, with the step's `record` if there is one. Left out when the loop is to stop: it is made up
    /// for when the run goes on.
    fn evaluate(&mut self, record: Option<Record>) -> Result<()> {
        let step = self.run.state.step;
        let loss = self.validation_loss()?;
        if let Some(loss) = loss {
            let now = Evaluation { step, loss };
            self.run.state.last_val = Some(now);
            if self.run.state.best_val.is_none_or(|best| loss < best.loss) {
                self.run.state.best_val = Some(now);
            }
        }
        if loss.is_some() || record.is_some() {
            let record = record.unwrap_or(Record { step, ..Record::default() });
            self.metrics.write(&Record { val_loss: loss, ..record })?;
        }
        if loss.is_some() {
            let status = self.status();
            self.options.progress.evaluated(&status, self.windows.entropy_floor);
            self.draw()?;
        }
        Ok(())
    }

    fn validation_loss(&mut self) -> Result<Option<f64>> {
        let config = &self.run.info.config;
        let size = config.batch * config.block;
        let (mut sum, mut count) = (0.0, 0u64);
        let rows = self.windows.inputs.chunks(size).zip(self.windows.targets.chunks(size));
        for (inputs, targets) in rows {
            if self.options.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let (nats, counted) = if inputs.len() == size {
                self.model.eval(inputs, targets)?
            } else {
                // The last batch has the shape of the others, so that nothing new is made for it.
                let (mut inputs, mut targets) = (inputs.to_vec(), targets.to_vec());
                inputs.resize(size, 0);
                targets.resize(size, IGNORE);
                self.model.eval(&inputs, &targets)?
            };
            sum += nats;
            count += counted;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of characters")]
        let loss = sum / count.max(1) as f64;
        if !loss.is_finite() {
            return Err(Error::NonFinite { step: self.run.state.step, tensor: "the validation loss".to_owned() });
        }
        Ok(Some(loss))
    }

    /// Writes a checkpoint. All readbacks were waited for: a state that is not finite is never written.
    fn save(&mut self) -> Result<()> {
        self.drain(false)?;
        let tensors = self.model.export()?;
        let warnings = self.model.warnings(&tensors);
        // First what the steps were for: a run whose warnings fail goes on from here.
        self.run.checkpoint(tensors)?;
        for warning in warnings? {
            if !self.warned.contains(&warning) {
                self.options.progress.warn(&warning);
                self.warned.push(warning);
            }
        }
        Ok(())
    }

    /// Median seconds of a step, the first two of the process left out: they create what the others reuse.
    fn median(&self) -> Option<f64> {
        let mut laps = self.laps.get(2..).unwrap_or_default().to_vec();
        laps.sort_by(f64::total_cmp);
        laps.get(laps.len() / 2).copied()
    }

    fn status(&self) -> Status {
        let recent = &self.laps[self.laps.len().saturating_sub(16).max(self.laps.len().min(2))..];
        #[expect(clippy::cast_precision_loss, reason = "at most 16")]
        let ms = (!recent.is_empty()).then(|| recent.iter().sum::<f64>() * 1e3 / recent.len() as f64);
        let state = &self.run.state;
        Status {
            step: state.step,
            steps: self.run.info.config.steps,
            train_loss: state.train_loss,
            val_loss: state.last_val.map(|v| v.loss),
            tokens_per_s: ms.map(|ms| self.tokens_per_s(ms)),
        }
    }

    fn summary(&self) -> Summary {
        let (state, info) = (&self.run.state, &self.run.info);
        let ms = self.median().map(|s| s * 1e3);
        Summary {
            steps: state.step,
            train_loss: state.train_loss,
            val_loss: state.last_val.map(|v| v.loss),
            best_val_loss: state.best_val.map(|v| v.loss),
            entropy_floor: self.windows.entropy_floor,
            tokens_per_s: ms.map(|ms| self.tokens_per_s(ms)),
            ms_per_step: ms,
            first_step_s: self.first_step_s,
            peak_gpu_bytes: self.model.peak_bytes(),
            adapter: info.device.adapter.clone(),
            backend: info.device.backend.clone(),
            tier: info.device.tier.clone(),
            precision: info.device.precision.name().to_owned(),
            method: info.config.method,
            optimizer: info.config.optimizer,
            weights: info.config.weights,
            activations: info.config.activations,
            hadamard: info.config.hadamard,
            seed: info.config.seed,
        }
    }

    #[cfg(feature = "cli")]
    fn draw(&self) -> Result<()> {
        let records = super::metrics::read(&self.run.dir)?;
        if records.is_empty() {
            return Ok(());
        }
        let title = self.run.info.config.describe();
        let path = |name: &str| self.run.dir.join(name);
        super::plot::loss_curve(&path(super::plot::FILE), &title, &records, self.windows.entropy_floor)?;
        if records.iter().any(|record| record.diagnostics.is_some()) {
            super::plot::diagnostics(&path(super::plot::DIAGNOSTICS_FILE), &title, &records)?;
        }
        Ok(())
    }

    #[cfg(not(feature = "cli"))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "the twin of the function that draws")]
    fn draw(&self) -> Result<()> {
        Ok(())
    }
}
