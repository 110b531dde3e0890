//! Comparisons: the records of finished runs, and the rows that they come to.

use super::config::Difference;
use super::metrics::{self, Record as Metric};
use super::run::{DeviceInfo, Evaluation, Run, RunInfo, holds_run};
use super::trainer::Summary;
use super::{Dataset, Planned, Precision, TrainConfig, files};
use crate::format::Format;
use crate::optim::Optimizer;
use crate::qat::Method;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The name of the file with the records.
pub const FILE: &str = "compare.jsonl";

/// What a finished run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The run, as its directory is named.
    pub name: String,
    /// Its settings, vocabulary, text and device.
    pub info: RunInfo,
    /// Lowest loss of any evaluation; none if the run diverged.
    pub best_val_loss: Option<f64>,
    /// Loss that no model can beat on average, where it is known.
    pub entropy_floor: Option<f64>,
    /// Median milliseconds of a step.
    pub ms_per_step: Option<f64>,
    /// The most device memory held, in bytes; none if the last sitting had no step to do.
    pub peak_gpu_bytes: Option<u64>,
    /// The validation losses.
    pub curve: Vec<Evaluation>,
    /// Why the run ended before its last step.
    pub diverged: Option<String>,
}

impl Record {
    /// Of a run whose last step is done.
    ///
    /// # Errors
    /// [`Error::Io`] if its metrics cannot be read.
    pub fn finished(name: &str, run: &Run, summary: &Summary) -> Result<Self> {
        let metrics = metrics::read(&run.dir)?;
        let curve = metrics.iter().filter_map(|m| Some(Evaluation { step: m.step, loss: m.val_loss? })).collect();
        Ok(Self {
            name: name.to_owned(),
            info: run.info.clone(),
            best_val_loss: summary.best_val_loss,
            entropy_floor: summary.entropy_floor,
            // A sitting of few steps has no median of its own.
            ms_per_step: summary.ms_per_step.or_else(|| median(metrics.iter().filter_map(|m: &Metric| m.ms))),
            peak_gpu_bytes: summary.first_step_s.is_some().then_some(summary.peak_gpu_bytes),
            curve,
            diverged: None,
        })
    }

    /// Of a run whose loss is not finite any more.
    #[must_use]
    pub fn diverged(name: &str, run: &Run, error: &Error) -> Self {
        Self {
            name: name.to_owned(),
            info: run.info.clone(),
            best_val_loss: None,
            entropy_floor: None,
            ms_per_step: None,
            peak_gpu_bytes: None,
            curve: Vec::new(),
            diverged: Some(error.to_string()),
        }
    }

    /// Whether both may be in one comparison.
    fn is_comparable(&self, other: &Self) -> bool {
        let (own, other) = (&self.info, &other.info);
        own.config.incomparable(&other.config).is_none()
            && (&own.text_digest, &own.vocab) == (&other.text_digest, &other.vocab)
            && own.device.precision == other.device.precision
    }

    /// The loss that the run is compared by: its best one. Of a model that is quantized after training that of the trained one, since rounding
    /// costs least before training is over, and nobody quantizes a model of which half is still to be learned.
    fn loss(&self) -> Option<f64> {
        let best = self.best_val_loss?;
        let method = self.info.config.method;
        let after = method != Method::None && !method.trains_quantized();
        if after { self.curve.last().map(|end| end.loss) } else { Some(best) }
    }
}

/// Refuses settings, a text or a precision with which `planned` would not come to the losses of `own`, which is this run as an earlier sitting had it.
///
/// # Errors
/// [`Error::Invalid`], naming the flag and the run.
pub fn check_same(planned: &Planned, own: &RunInfo, data: &Dataset, device: &DeviceInfo) -> Result<()> {
    check(planned, &planned.name, own, planned.config.other_losses(&own.config), data, device)
}

/// Refuses what differs, and another text or precision than those of `own`, the run with that name.
fn check(
    planned: &Planned,
    name: &str,
    own: &RunInfo,
    difference: Option<Difference>,
    data: &Dataset,
    device: &DeviceInfo,
) -> Result<()> {
    let text = || {
        let (own, got) = own.other_text(data, &planned.config, &planned.overrides)?;
        Some(Difference { flag: "--text", own, got })
    };
    let precision = || {
        let (own, got) = (own.device.precision, device.precision);
        (own != got).then(|| Difference { flag: "--precision", own: own.to_string(), got: got.to_string() })
    };
    match difference.or_else(text).or_else(precision) {
        Some(Difference { flag, own, got }) => {
            let expected =
                format!("{own}, as {name} in --out has it (what shapes all runs is the same in a comparison)");
            Err(Error::invalid(flag, expected, got))
        }
        None => Ok(()),
    }
}

/// The records of a comparison, and their file.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    all: Vec<Record>,
}

impl Records {
    /// Reads those in `dir`; none if there is no file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`], naming the line, if the file holds anything else, or the directory, if it is that of a run.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        if holds_run(dir)? {
            return Err(Error::file(dir, "a directory of a comparison (--out)", "that of a run"));
        }
        let all = Self::written(&path)?;
        Ok(Self { path, all })
    }

    fn written(path: &Path) -> Result<Vec<Record>> {
        let text = match fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.map_err(Error::io(path, "read"))?,
        };
        let record = |(number, line): (usize, &str)| {
            serde_json::from_str(line)
                .map_err(|e| Error::file(path, "records of finished runs", format!("line {}: {e}", number + 1)))
        };
        text.lines().enumerate().map(record).collect()
    }

    /// The record of a run.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Record> {
        self.all.iter().find(|record| record.name == name)
    }

    /// Refuses runs still to be done that could not be compared with those that are. Where some of the plan are, they say what the others must be:
    /// records that differ from them came from an earlier version, which did not look, and are left aside.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag and the run that has another value.
    pub fn check_comparable(&self, plan: &[Planned], data: &Dataset, device: &DeviceInfo) -> Result<()> {
        let shown: Vec<&Record> = plan.iter().filter_map(|planned| self.get(&planned.name)).collect();
        let left_aside = |record: &&Record| !shown.iter().all(|own| own.is_comparable(record));
        let others: Vec<&Record> = self.all.iter().filter(|record| !left_aside(record)).collect();
        for planned in plan.iter().filter(|planned| self.get(&planned.name).is_none()) {
            for record in &others {
                let difference = planned.config.incomparable(&record.info.config);
                check(planned, &record.name, &record.info, difference, data, device)?;
            }
        }
        Ok(())
    }

    /// Adds a record and writes the file anew, with its directory if that is not there. What another process has added meanwhile stays.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] as [`Records::read`].
    pub fn push(&mut self, record: Record) -> Result<()> {
        for other in Self::written(&self.path)? {
            if other.name != record.name && self.get(&other.name).is_none() {
                self.all.push(other);
            }
        }
        self.all.push(record);
        self.save()
    }

    /// Writes the file without records where there is none yet: it tells the directory of a comparison from that of a run. Removes what a killed
    /// process left half-written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn start(&self) -> Result<()> {
        if let Some(dir) = self.path.parent() {
            files::remove_partial(dir);
        }
        if self.path.exists() { Ok(()) } else { self.save() }
    }

    fn save(&self) -> Result<()> {
        let mut text = String::new();
        for record in &self.all {
            let line = serde_json::to_string(record)
                .map_err(|e| Error::file(&self.path, "numbers that JSON can hold", e.to_string()))?;
            text.push_str(&line);
            text.push('\n');
        }
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
        }
        files::replace_with(&self.path, text.as_bytes())
    }
}

/// A method with its formats and number of steps, at the learning rate that ends lowest: a line of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
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
    /// Highest learning rate of the runs below: among those that were tried the one with the lowest mean loss, over the seeds that all have.
    pub lr: f64,
    /// Steps.
    pub steps: u64,
    /// Seeds of the runs.
    pub seeds: Vec<u64>,
    /// Mean over the seeds of the best validation loss, in nats per token (of a model quantized after training: of the last one); none if a run
    /// diverged at every learning rate.
    pub best_val_loss_mean: Option<f64>,
    /// Sample standard deviation over the seeds; none for one seed.
    pub best_val_loss_spread: Option<f64>,
    /// Mean loss above that of full precision after as many steps.
    pub gap_to_full: Option<f64>,
    /// Mean loss above the entropy floor, where that is known.
    pub gap_to_floor: Option<f64>,
    /// Bits that a weight of the linear layers takes, scales included.
    pub bits_per_weight: f64,
    /// Median over the seeds of the median step.
    pub ms_per_step: Option<f64>,
    /// The most device memory that any of the runs held, in bytes.
    pub peak_gpu_bytes: Option<u64>,
    /// Mean validation losses by step, as far as every seed has them.
    #[serde(skip)]
    pub curve: Vec<Evaluation>,
}

impl Row {
    /// Method, formats and optimizer for people.
    #[must_use]
    pub fn label(&self) -> String {
        let Some(weights) = self.weights else { return "full precision".to_owned() };
        let activations = self.activations.map_or(String::new(), |format| format!(" x {format}"));
        let rotation = self.hadamard.map_or(String::new(), |block| format!(", hadamard {block}"));
        let optimizer = match self.optimizer {
            Optimizer::AdamW => String::new(),
            optimizer => format!(", {optimizer}"),
        };
        format!("{} {weights}{activations}{rotation}{optimizer}", self.method)
    }
}

/// What is compared, all but learning rates and seeds.
fn key(config: &TrainConfig) -> (Method, Option<Format>, Option<Format>, Option<u32>, Optimizer, u64) {
    (config.method, config.weights, config.activations, config.hadamard, config.optimizer, config.steps)
}

/// The rows to which finished runs come, in the order of each one's first record.
#[must_use]
pub fn rows(records: &[&Record]) -> Vec<Row> {
    let mut rows: Vec<Row> =
        grouped(records, |record| key(&record.info.config)).iter().filter_map(|group| row(group)).collect();
    let full: Vec<(u64, f64)> = rows
        .iter()
        .filter(|row| row.method == Method::None)
        .filter_map(|row| Some((row.steps, row.best_val_loss_mean?)))
        .collect();
    for row in &mut rows {
        let full = full.iter().find(|(steps, _)| *steps == row.steps);
        row.gap_to_full = row.best_val_loss_mean.zip(full).map(|(own, (_, full))| own - full);
    }
    rows
}

/// Records by a key, in the order of its first appearance.
fn grouped<'a, K: PartialEq>(records: &[&'a Record], key: impl Fn(&Record) -> K) -> Vec<Vec<&'a Record>> {
    let mut groups: Vec<(K, Vec<&Record>)> = Vec::new();
    for &record in records {
        let own = key(record);
        match groups.iter_mut().find(|(key, _)| *key == own) {
            Some((_, group)) => group.push(record),
            None => groups.push((own, vec![record])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// The row of runs that differ in learning rate and seed at most.
fn row(records: &[&Record]) -> Option<Row> {
    let rates = grouped(records, |record| record.info.config.lr.to_bits());
    // By the seeds that all of them have, while a sweep is under way: one seed may be luckier than the mean of three.
    let seeds = |group: &[&Record]| group.iter().map(|record| record.info.config.seed).collect::<BTreeSet<u64>>();
    let shared = rates.iter().map(|group| seeds(group)).reduce(|a, b| &a & &b).unwrap_or_default();
    // A rate at which some run diverged counts for nothing where there is another.
    let order = |group: &[&Record]| {
        let counts = |record: &&&Record| shared.is_empty() || shared.contains(&record.info.config.seed);
        let own: Vec<&Record> = group.iter().filter(counts).copied().collect();
        losses(group).and_then(|_| mean(&losses(&own)?)).unwrap_or(f64::INFINITY)
    };
    let best = rates.into_iter().min_by(|a, b| order(a).total_cmp(&order(b)))?;
    let loss = losses(&best).and_then(|losses| mean(&losses));
    let info = &best.first()?.info;
    let config = &info.config;
    let floor = best.iter().find_map(|record| record.entropy_floor);
    let dense = if info.device.precision == Precision::F16 { 16.0 } else { 32.0 };
    Some(Row {
        method: config.method,
        optimizer: config.optimizer,
        weights: config.weights,
        activations: config.activations,
        hadamard: config.hadamard,
        lr: config.lr,
        steps: config.steps,
        seeds: best.iter().map(|record| record.info.config.seed).collect(),
        best_val_loss_mean: loss,
        best_val_loss_spread: losses(&best).and_then(|losses| spread(&losses)),
        gap_to_full: None,
        gap_to_floor: loss.zip(floor).map(|(loss, floor)| loss - floor),
        bits_per_weight: config.gpt(info.vocab.len()).bits_per_weight(dense),
        ms_per_step: median(best.iter().filter_map(|record| record.ms_per_step)),
        peak_gpu_bytes: best.iter().filter_map(|record| record.peak_gpu_bytes).max(),
        curve: mean_curve(&best),
    })
}

/// The losses that runs are compared by, if every run has one.
fn losses(records: &[&Record]) -> Option<Vec<f64>> {
    records.iter().map(|record| record.loss()).collect()
}

fn mean_curve(records: &[&Record]) -> Vec<Evaluation> {
    let Some((first, others)) = records.split_first() else { return Vec::new() };
    let at = |record: &Record, step: u64| record.curve.iter().find(|e| e.step == step).map(|e| e.loss);
    let point = |first: &Evaluation| {
        let mut losses = vec![first.loss];
        for other in others {
            losses.push(at(other, first.step)?);
        }
        Some(Evaluation { step: first.step, loss: mean(&losses)? })
    };
    first.curve.iter().filter_map(point).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a number of runs")]
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation.
#[expect(clippy::cast_precision_loss, reason = "a number of runs")]
fn spread(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// The upper one of the two in the middle where there are two, as for a run's steps.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qat::Ste;
    use crate::train::run::tests::info;
    use crate::train::{Found, Preset, RunState, Sweep};

    /// A run in the formats named (`""`: full precision) that ended with that loss, or diverged.
    fn record(weights: &str, lr: f64, seed: u64, loss: Option<f64>) -> Record {
        let mut info = info();
        info.config.lr = lr;
        info.config.seed = seed;
        if !weights.is_empty() {
            info.config.method = Method::Ste(Ste);
            info.config.weights = Some(weights.parse().unwrap());
        }
        Record {
            name: format!("{weights} {lr} {seed}"),
            info,
            best_val_loss: loss,
            entropy_floor: loss.map(|_| 0.5),
            ms_per_step: loss,
            peak_gpu_bytes: loss.map(|_| 1000 + seed % 100),
            curve: loss.map(|loss| Evaluation { step: 10 * seed.min(2), loss }).into_iter().collect(),
            diverged: loss.is_none().then(|| "step 3".to_owned()),
        }
    }

    fn of(records: &[Record]) -> Vec<Row> {
        rows(&records.iter().collect::<Vec<_>>())
    }

    #[test]
    fn statistics_are_those_of_the_samples() {
        // Sums of powers of two: mean 2 and variance (1 + 0 + 1) / 2, to the bit.
        let rows = of(&[
            record("", 0.25, 1, Some(1.0)),
            record("", 0.25, 2, Some(2.0)),
            record("", 0.25, 3, Some(3.0)),
            record("int4:row", 0.25, 1, Some(2.5)),
        ]);
        let (full, four) = (&rows[0], &rows[1]);
        assert_eq!((full.best_val_loss_mean, full.best_val_loss_spread), (Some(2.0), Some(1.0)));
        assert_eq!((full.gap_to_full, full.gap_to_floor, &full.seeds[..]), (Some(0.0), Some(1.5), &[1, 2, 3][..]));
        assert_eq!((full.ms_per_step, full.peak_gpu_bytes), (Some(2.0), Some(1003)));
        assert_eq!((four.best_val_loss_mean, four.best_val_loss_spread), (Some(2.5), None));
        assert_eq!((four.gap_to_full, four.gap_to_floor), (Some(0.5), Some(2.0)));
        // Seed 1 was evaluated at another step than seeds 2 and 3.
        assert_eq!((full.curve.len(), four.curve.len()), (0, 1));
        let curve = of(&[record("", 1.0, 2, Some(1.0)), record("", 1.0, 3, Some(2.0))])[0].curve.clone();
        assert_eq!(curve, [Evaluation { step: 20, loss: 1.5 }]);
    }

    #[test]
    fn bits_per_weight_are_those_of_the_layers() {
        let mut half = record("", 1.0, 1, Some(1.0));
        half.info.device.precision = Precision::F16;
        half.info.config.steps = 7;
        let rows = of(&[
            record("", 1.0, 1, Some(1.0)),
            half,
            record("int4:row:f32", 1.0, 1, None),
            record("nf4", 1.0, 1, None),
        ]);
        let bits: Vec<f64> = rows.iter().map(|row| row.bits_per_weight).collect();
        // The preset's width is 64: 3 * 64 + 64 + 4 * 64 rows of 64 and 64 rows of 256, a scale of 32 bits for each; NF4 has a scale for 64.
        assert_eq!(bits, [32.0, 16.0, 4.0 + 32.0 * 576.0 / (512.0 * 64.0 + 64.0 * 256.0), 4.5]);
    }

    #[test]
    fn the_best_rate_is_reported_and_a_diverged_run_spoils_its_rate() {
        let rows = of(&[
            record("int4", 0.5, 1, Some(1.0)),
            record("int4", 0.5, 2, Some(3.0)),
            record("int4", 1.0, 1, Some(1.5)),
            record("int4", 1.0, 2, Some(2.0)),
            record("int4", 2.0, 1, Some(0.1)),
            record("int4", 2.0, 2, None),
            record("int2", 1.0, 1, None),
        ]);
        assert_eq!((rows[0].lr, rows[0].best_val_loss_mean), (1.0, Some(1.75)));
        // Nothing in full precision to compare with.
        assert_eq!(rows[0].gap_to_full, None);
        assert_eq!(
            (rows[1].best_val_loss_mean, rows[1].best_val_loss_spread, rows[1].gap_to_floor),
            (None, None, None)
        );
    }

    #[test]
    fn rates_are_ranked_by_the_seeds_that_all_have() {
        // The mean of three seeds is above the other rate's one, which is the worst of its kind.
        let rows = of(&[
            record("int4", 0.5, 1, Some(1.25)),
            record("int4", 1.0, 1, Some(1.0)),
            record("int4", 1.0, 2, Some(1.5)),
            record("int4", 1.0, 3, Some(2.0)),
        ]);
        assert_eq!((rows[0].lr, rows[0].best_val_loss_mean, rows[0].seeds.len()), (1.0, Some(1.5), 3));
        let apart = of(&[record("int4", 0.5, 1, Some(1.25)), record("int4", 1.0, 2, Some(1.5))]);
        assert_eq!((apart[0].lr, apart[0].best_val_loss_mean), (0.5, Some(1.25)));
    }

    #[test]
    fn what_is_quantized_after_training_is_told_at_its_end() {
        let curve = [(10, 1.0), (20, 1.5)].map(|(step, loss)| Evaluation { step, loss });
        let of_method = |method: &str| {
            let mut record = record("int4", 1.0, 1, Some(1.0));
            (record.info.config.method, record.curve) = (method.parse().unwrap(), curve.to_vec());
            of(&[record])[0].best_val_loss_mean
        };
        assert_eq!(["ptq", "ste"].map(of_method), [Some(1.5), Some(1.0)]);
    }

    #[test]
    fn optimizers_are_rows_of_their_own() {
        let mut cage = record("int4", 1.0, 1, Some(1.0));
        cage.info.config.optimizer = "cage:lambda=5".parse().unwrap();
        let rows = of(&[record("", 1.0, 1, Some(0.5)), record("int4", 1.0, 1, Some(2.0)), cage]);
        assert_eq!(rows.iter().map(|row| row.best_val_loss_mean).collect::<Vec<_>>(), [0.5, 2.0, 1.0].map(Some));
        assert_eq!(
            rows.iter().map(Row::label).collect::<Vec<_>>(),
            ["full precision", "ste int4", "ste int4, cage:lambda=5"]
        );
        let json: Vec<serde_json::Value> = rows.iter().map(|row| serde_json::to_value(row).unwrap()).collect();
        assert_eq!((&json[1]["optimizer"], &json[2]["optimizer"]), (&"adamw".into(), &"cage:lambda=5".into()));
    }

    #[test]
    fn budgets_are_compared_with_their_own() {
        let long = |weights: &str, loss: f64| {
            let mut record = record(weights, 1.0, 1, Some(loss));
            record.info.config.steps *= 2;
            record
        };
        let rows =
            of(&[record("", 1.0, 1, Some(2.0)), record("int4", 1.0, 1, Some(3.0)), long("", 1.0), long("int4", 1.5)]);
        assert_eq!(rows.iter().map(|row| row.gap_to_full).collect::<Vec<_>>(), [0.0, 1.0, 0.0, 0.5].map(Some));
    }

    #[test]
    fn what_is_to_be_done_must_be_comparable_with_what_is_shown() {
        let plan = |batch: usize, seeds: &[u64]| {
            let (batch, seeds, steps) = (Some(batch), seeds.to_vec(), vec![20]);
            Sweep { batch, seeds, steps, ..Sweep::default() }.plan(Preset::Nano).unwrap()
        };
        let data = Dataset::built_in(64, 1).unwrap();
        let done = |planned: &Planned| Record {
            name: planned.name.clone(),
            info: RunInfo {
                config: planned.config.clone(),
                vocab: data.vocab().clone(),
                text_digest: data.digest().to_owned(),
                ..info()
            },
            ..record("", 1.0, 1, Some(1.0))
        };
        let all: Vec<Record> = [plan(16, &[1, 2]), plan(8, &[3])].concat().iter().map(done).collect();
        let records = |range: std::ops::Range<usize>| Records { path: PathBuf::new(), all: all[range].to_vec() };
        let device = info().device;
        let check = |records: Records, plan: &[Planned]| records.check_comparable(plan, &data, &device);
        let refused = |records: Records, plan: &[Planned], own: &str, seed: u64, got: &str| {
            let message = check(records, plan).unwrap_err().to_string();
            let start = format!("--batch: expected {own}, as none,lr=0.004,steps=20,seed={seed} in --out has it");
            assert!(message.starts_with(&start) && message.ends_with(&format!("found {got}")), "{message}");
        };
        for seeds in [&[3][..], &[1, 3], &[2, 9]] {
            check(records(0..2), &plan(16, seeds)).unwrap();
            check(records(0..0), &plan(8, seeds)).unwrap();
            refused(records(0..2), &plan(8, seeds), "16", 1, "8");
        }
        // With the batch of the third record beside the others', from before anything looked.
        check(records(0..3), &plan(16, &[1, 2, 4])).unwrap();
        check(records(0..3), &plan(8, &[3, 4])).unwrap();
        check(records(0..3), &plan(8, &[3])).unwrap();
        refused(records(0..3), &plan(16, &[4]), "8", 3, "16");
        refused(records(0..3), &plan(8, &[4]), "16", 1, "8");

        let half = DeviceInfo { precision: Precision::F16, ..device.clone() };
        let message = records(0..2).check_comparable(&plan(16, &[3]), &data, &half).unwrap_err().to_string();
        assert!(message.starts_with("--precision: expected f32, as none,lr=0.004,steps=20,seed=1 in"), "{message}");
    }

    #[test]
    fn records_come_back_to_the_bit_and_damage_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("new");
        let mut records = Records::read(&dir).unwrap();
        records.start().unwrap();
        assert!(Records::read(&dir).unwrap().all.is_empty());
        let written = [record("int4:g32", 0.1 + 0.2, u64::MAX, Some(0.1 * 3.0)), record("", 1.0, 1, None)];
        for record in &written {
            records.push(record.clone()).unwrap();
        }
        let again = Records::read(&dir).unwrap();
        assert_eq!(again.all, written);
        assert_eq!(again.get(&written[1].name), Some(&written[1]));
        assert!(again.get("another").is_none());
        again.start().unwrap();
        assert_eq!(Records::read(&dir).unwrap().all, written);
        let path = dir.join(FILE);
        let mut text = fs::read_to_string(&path).unwrap();
        text.truncate(text.len() - 9);
        fs::write(&path, text).unwrap();
        let error = Records::read(&dir).unwrap_err();
        assert!(!error.is_failure() && error.to_string().contains("compare.jsonl: expected records"), "{error}");
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn a_comparison_and_a_run_do_not_take_each_others_directory() {
        let root = tempfile::tempdir().unwrap();
        let [run, comparison] = ["run", "comparison"].map(|name| root.path().join(name));
        Run::start(&run, info(), RunState::default()).unwrap();
        let refused = Records::read(&run).unwrap_err();
        assert!(refused.to_string().contains("run: expected a directory of a comparison (--out), found that of a run"));
        Records::read(&comparison).unwrap().start().unwrap();
        for resume in [false, true] {
            let refused = Found::look(&comparison, resume, &mut |_| {}).unwrap_err();
            assert!(!refused.is_failure() && refused.to_string().contains("found that of a comparison"), "{refused}");
        }
        // A run of the comparison is a run.
        let own = comparison.join("none,lr=1,steps=2,seed=3");
        Run::start(&own, info(), RunState::default()).unwrap();
        assert!(matches!(Found::look(&own, true, &mut |_| {}), Ok(Found::Settings(_))));
    }
}
