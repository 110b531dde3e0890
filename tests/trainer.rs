//! The loop around a model on the host: logging, evaluation, checkpoints, resuming to the bit, an orderly stop, failures. No GPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use walsh::train::{
    Checkpoint, Dataset, DeviceInfo, Found, IGNORE, Model, Options, Overrides, PendingStats, Precision, Preset,
    Progress, Run, RunInfo, RunState, Status, StepStats, Summary, TensorData, TrainConfig, checkpoint, metrics, train,
};
use walsh::{DType, Error, Result};

/// Logits of the next token by the one before, trained by gradient descent with momentum.
struct Bigram {
    vocab: usize,
    weights: Vec<f32>,
    momentum: Vec<f32>,
    step: u64,
    loss: f64,
    /// The step whose loss is not a number.
    bad: Option<u64>,
    /// Its warnings fail.
    mute: bool,
    /// The readbacks that never arrive unless waited for.
    slow: bool,
    lr: f32,
    exports: usize,
}

struct Readback(StepStats, bool);

impl PendingStats for Readback {
    fn poll(&mut self) -> Result<Option<StepStats>> {
        Ok((!self.1).then_some(self.0))
    }

    fn wait(self) -> Result<StepStats> {
        Ok(self.0)
    }
}

impl Bigram {
    fn new(vocab: usize, lr: f64) -> Self {
        let size = vocab * vocab;
        Self {
            vocab,
            weights: vec![0.0; size],
            momentum: vec![0.0; size],
            step: 0,
            loss: 0.0,
            bad: None,
            mute: false,
            slow: false,
            lr: lr as f32 * 100.0,
            exports: 0,
        }
    }

    /// Sum of losses and count; adds the gradient of the sum.
    fn run(&self, inputs: &[u32], targets: &[u32], mut gradient: Option<&mut [f32]>) -> (f64, u64) {
        let (mut sum, mut count) = (0.0, 0);
        for (&input, &target) in inputs.iter().zip(targets).filter(|(_, t)| **t != IGNORE) {
            let row = &self.weights[input as usize * self.vocab..][..self.vocab];
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = row.iter().map(|w| (w - top).exp()).sum();
            sum += f64::from(total.ln() + top - row[target as usize]);
            count += 1;
            if let Some(gradient) = &mut gradient {
                let own = &mut gradient[input as usize * self.vocab..][..self.vocab];
                for (g, w) in own.iter_mut().zip(row) {
                    *g += (w - top).exp() / total;
                }
                own[target as usize] -= 1.0;
            }
        }
        (sum, count)
    }
}

impl Model for Bigram {
    type Pending = Readback;

    fn train_step(&mut self, inputs: &[u32], targets: &[u32]) -> Result<()> {
        let mut gradient = vec![0.0; self.weights.len()];
        let (sum, count) = self.run(inputs, targets, Some(&mut gradient));
        for ((w, m), g) in self.weights.iter_mut().zip(&mut self.momentum).zip(&gradient) {
            *m = 0.9 * *m + g / count as f32;
            *w -= self.lr * *m;
        }
        self.step += 1;
        self.loss = if self.bad == Some(self.step) { f64::NAN } else { sum / count as f64 };
        Ok(())
    }

    fn stats(&mut self) -> Result<Readback> {
        let stats = StepStats {
            step: self.step,
            loss: self.loss,
            lr: self.lr.into(),
            grad_norm: 1.0,
            loss_scale: 1.0,
            skipped: 0,
            finite: self.loss.is_finite(),
        };
        Ok(Readback(stats, self.slow))
    }

    fn eval(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(f64, u64)> {
        assert_eq!(inputs.len(), 4 * 64, "every batch has the same shape");
        Ok(self.run(inputs, targets, None))
    }

    fn warnings(&self, tensors: &[(String, TensorData)]) -> Result<Vec<String>> {
        if self.mute {
            return Err(Error::Device("no warnings".into()));
        }
        Ok(vec![format!("{} is no GPU's", tensors[0].0)])
    }

    fn export(&mut self) -> Result<Vec<(String, TensorData)>> {
        self.exports += 1;
        let shape = [self.vocab, self.vocab];
        Ok(vec![
            ("model.weights".into(), TensorData::from_f32(&self.weights, &shape)),
            ("optimizer.m.weights".into(), TensorData::from_f32(&self.momentum, &shape)),
            ("state.step".into(), TensorData::from_u32(&[self.step as u32], &[1])),
        ])
    }

    fn import(&mut self, tensors: &[(String, TensorData)]) -> Result<()> {
        let shape = [self.vocab, self.vocab];
        let find = |name: &str| checkpoint::find(tensors, name, DType::F32, &shape).map(|t| t.to_f32().unwrap());
        (self.weights, self.momentum) = (find("model.weights")?, find("optimizer.m.weights")?);
        let step = checkpoint::find(tensors, "state.step", DType::U32, &[1])?;
        self.step = step.to_u32().unwrap()[0].into();
        Ok(())
    }

    fn estimated_bytes(&self) -> u64 {
        8 * self.weights.len() as u64
    }

    fn peak_bytes(&self) -> u64 {
        self.estimated_bytes()
    }

    fn first_non_finite(&mut self) -> Result<String> {
        Ok("model.weights".into())
    }
}

/// Counts what it is told, and asks the loop to stop after a step.
struct Watch<'a> {
    stop: &'a AtomicBool,
    stop_at: Option<u64>,
    steps: u64,
    evaluations: u64,
    warnings: Vec<String>,
}

impl Progress for Watch<'_> {
    fn step(&mut self, status: &Status) {
        self.steps += 1;
        assert!(status.step <= status.steps);
        if self.stop_at == Some(status.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }

    fn evaluated(&mut self, status: &Status, floor: Option<f64>) {
        self.evaluations += 1;
        assert!(status.val_loss.is_some());
        assert!(floor.is_none());
    }
}

struct Job {
    dir: PathBuf,
    overrides: Overrides,
    resume: bool,
    stop_at: Option<u64>,
    bad: Option<u64>,
    mute: bool,
    slow: bool,
}

impl Job {
    fn new(root: &Path, dir: &str) -> Self {
        let text = root.join("text.txt");
        if !text.exists() {
            let words = ["walsh ", "hadamard ", "transform\n", "of ", "low ", "bits "];
            let text_of: String = (0..2000usize).map(|i| words[(i * i + i / 3) % words.len()]).collect();
            std::fs::write(&text, text_of).unwrap();
        }
        let overrides = Overrides {
            text: Some(text),
            batch: Some(4),
            steps: Some(60),
            eval_every: Some(20),
            checkpoint_every: Some(10),
            log_every: Some(5),
            ..Overrides::default()
        };
        Self { dir: root.join(dir), overrides, resume: false, stop_at: None, bad: None, slow: false, mute: false }
    }

    fn run(&self) -> Result<Summary> {
        let found = Found::look(&self.dir, self.resume, &mut |_| {})?;
        let config = found.config(&self.overrides, Preset::Nano)?;
        let data = found.dataset(&config, &self.overrides)?;
        let mut model = Bigram::new(data.vocab().len(), config.lr);
        let device = DeviceInfo {
            adapter: "none".into(),
            driver: String::new(),
            backend: "host".into(),
            tier: "baseline".into(),
            precision: Precision::F32,
            kernels: BTreeMap::new(),
        };
        found.check_device(&device, &self.overrides, &mut |w| panic!("{w}"))?;
        let info = RunInfo {
            config,
            vocab: data.vocab().clone(),
            text_digest: data.digest().to_owned(),
            device,
            teacher_digest: None,
        };
        let state = match &found {
            Found::Checkpoint(checkpoint) => {
                model.import(&checkpoint.tensors)?;
                checkpoint.state.clone()
            }
            _ => RunState::default(),
        };
        (model.bad, model.slow, model.mute) = (self.bad, self.slow, self.mute);
        let mut run = Run::start(&self.dir, info, state)?;
        let stop = AtomicBool::new(self.stop_at == Some(0));
        let mut watch = Watch { stop: &stop, stop_at: self.stop_at, steps: 0, evaluations: 0, warnings: Vec::new() };
        let options = Options { stop: &stop, started: Instant::now(), progress: &mut watch };
        let result = train(&mut model, &data, &mut run, options);
        // At the first checkpoint, if there is one, and not again.
        assert_eq!(watch.warnings, vec!["model.weights is no GPU's"; if self.mute { 0 } else { model.exports.min(1) }]);
        result
    }

    fn resumed(mut self) -> Self {
        (self.resume, self.stop_at, self.bad, self.mute) = (true, None, None, false);
        self
    }

    fn steps(&self) -> Vec<u64> {
        checkpoint::list(&self.dir).unwrap().iter().map(|c| c.0).collect()
    }

    fn last(&self) -> Vec<u8> {
        std::fs::read(checkpoint::path_of(&self.dir, 60)).unwrap()
    }

    /// (step, training loss, validation loss) of each line.
    fn losses(&self) -> Vec<(u64, Option<f64>, Option<f64>)> {
        metrics::read(&self.dir).unwrap().iter().map(|r| (r.step, r.train_loss, r.val_loss)).collect()
    }
}

#[test]
fn a_whole_run() {
    let root = tempfile::tempdir().unwrap();
    for slow in [false, true] {
        let mut job = Job::new(root.path(), if slow { "slow" } else { "fast" });
        job.slow = slow;
        let summary = job.run().unwrap();
        assert_eq!(summary.steps, 60);
        let val = summary.val_loss.unwrap();
        assert!(val < 2.0 && summary.best_val_loss.unwrap() <= val, "{summary:?}");
        assert!(summary.ms_per_step.unwrap() > 0.0 && summary.first_step_s.unwrap() > 0.0);
        assert_eq!((summary.entropy_floor, summary.peak_gpu_bytes > 0, summary.seed), (None, true, 1337));
        let losses = job.losses();
        let steps: Vec<u64> = losses.iter().map(|l| l.0).collect();
        assert_eq!(steps, [1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60]);
        assert!(losses.iter().all(|l| l.1.is_some() && l.2.is_some() == l.0.is_multiple_of(20)));
        assert_eq!(losses[12], (60, summary.train_loss, summary.val_loss));
        assert_eq!(job.steps(), [40, 50, 60]);
        let saved = Checkpoint::load(&checkpoint::path_of(&job.dir, 60)).unwrap();
        assert_eq!((saved.state.last_val.unwrap().loss, saved.state.step), (val, 60));
        #[cfg(feature = "cli")]
        assert!(job.dir.join("loss.svg").exists());
        // Nothing but what belongs there.
        assert!(std::fs::read_dir(&job.dir).unwrap().all(|e| e.unwrap().path().extension().unwrap() != "partial"));
    }
    let [fast, slow] = ["fast", "slow"].map(|name| Job::new(root.path(), name));
    assert_eq!(fast.last(), slow.last(), "the same bits whenever readbacks arrive");
    assert_eq!(fast.losses(), slow.losses());
}

#[test]
fn a_resumed_run_gives_the_same_bits() {
    let root = tempfile::tempdir().unwrap();
    let whole = Job::new(root.path(), "whole");
    let summary = whole.run().unwrap();
    // Stopped at a step like any other, at one with an evaluation, at one with a checkpoint, at the first and the last.
    for stop_at in [13, 20, 30, 1, 60] {
        let mut job = Job::new(root.path(), &format!("stopped-{stop_at}"));
        job.stop_at = Some(stop_at);
        let error = job.run().unwrap_err();
        assert!(matches!(error, Error::Interrupted(_)) && error.is_failure(), "{error}");
        assert!(error.to_string().contains("--resume --out"), "{error}");
        assert!(job.steps().contains(&stop_at));
        let mut job = job.resumed();
        if stop_at == 60 {
            // Stopped again while the last evaluation is made up for, it has not ended either.
            job.stop_at = Some(0);
            assert!(matches!(job.run().unwrap_err(), Error::Interrupted(_)));
            job.stop_at = None;
        }
        let resumed = job.run().unwrap();
        assert_eq!((resumed.val_loss, resumed.best_val_loss), (summary.val_loss, summary.best_val_loss));
        assert!(job.last() == whole.last(), "stopped at {stop_at}: the last checkpoint differs");
        let missing: Vec<_> = whole.losses().into_iter().filter(|l| l.2.is_some() && l.0 != stop_at).collect();
        assert!(missing.iter().all(|l| job.losses().contains(l)), "{:?}", job.losses());
        assert!(job.losses().iter().any(|l| l.2 == summary.val_loss));
    }
}

#[test]
fn a_killed_run_goes_on_from_the_newest_whole_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let whole = Job::new(root.path(), "whole");
    whole.run().unwrap();
    // What is there after a kill: checkpoints up to some step, a metrics file that is ahead of them and cut off, half a file.
    let mut job = Job::new(root.path(), "killed");
    job.stop_at = Some(27);
    job.run().unwrap_err();
    std::fs::remove_file(checkpoint::path_of(&job.dir, 27)).unwrap();
    std::fs::write(job.dir.join("step-000030.safetensors.71.0.partial"), "half").unwrap();
    let bytes = std::fs::read(checkpoint::path_of(&job.dir, 20)).unwrap();
    std::fs::write(checkpoint::path_of(&job.dir, 25), &bytes[..bytes.len() / 2]).unwrap();
    let lines = std::fs::read_to_string(job.dir.join("metrics.jsonl")).unwrap();
    std::fs::write(job.dir.join("metrics.jsonl"), &lines[..lines.len() - 9]).unwrap();
    let job = job.resumed();
    job.run().unwrap();
    assert_eq!(job.last(), whole.last());
    assert_eq!(job.losses(), whole.losses());
    assert!(!job.dir.join("step-000030.safetensors.71.0.partial").exists());

    // A finished run has nothing more to do, and says the same.
    let again = job.run().unwrap();
    assert_eq!((again.steps, again.ms_per_step), (60, None));
    assert_eq!(again.val_loss, whole.losses()[12].2);
    assert_eq!(job.losses(), whole.losses());
}

#[test]
fn afresh_where_there_is_nothing_to_resume() {
    let root = tempfile::tempdir().unwrap();
    let whole = Job::new(root.path(), "whole");
    whole.run().unwrap();
    let job = Job::new(root.path(), "fresh").resumed();
    job.run().unwrap();
    assert_eq!(job.last(), whole.last());
    // Killed before the first checkpoint: the settings are there, and hold without their flags.
    for (_, path) in checkpoint::list(&job.dir).unwrap() {
        std::fs::remove_file(path).unwrap();
    }
    let bare = Job { overrides: Overrides::default(), ..job };
    bare.run().unwrap();
    assert_eq!(bare.last(), whole.last());
    assert_eq!(bare.losses(), whole.losses());
}

#[test]
fn what_cannot_go_on_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut job = Job::new(root.path(), "run");
    job.run().unwrap();
    assert!(job.run().unwrap_err().to_string().contains("--resume"));
    job.resume = true;
    job.overrides.lr = Some(0.5);
    assert!(job.run().unwrap_err().to_string().starts_with("--lr: expected 0.004"));
    job.overrides.lr = None;
    job.overrides.keep = Some(1);
    job.run().unwrap();
}

#[test]
fn a_loss_that_is_not_finite_stops_before_it_is_saved() {
    let root = tempfile::tempdir().unwrap();
    for (slow, bad) in [(false, 25), (true, 25), (true, 30)] {
        let mut job = Job::new(root.path(), &format!("bad-{slow}-{bad}"));
        (job.bad, job.slow) = (Some(bad), slow);
        let error = job.run().unwrap_err();
        assert!(
            matches!(&error, Error::NonFinite { step, tensor } if *step == bad && tensor == "model.weights"),
            "{error}"
        );
        assert!(error.to_string().ends_with("training stopped: a lower --lr or a larger --warmup may help"), "{error}");
        assert_eq!(job.steps(), [10, 20]);
        assert_eq!(Found::look(&job.dir, true, &mut |w| panic!("{w}")).unwrap().info().unwrap().config.steps, 60);
    }
}

#[test]
fn a_failure_to_warn_does_not_cost_the_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let whole = Job::new(root.path(), "whole");
    whole.run().unwrap();
    let mut job = Job::new(root.path(), "mute");
    job.mute = true;
    let error = job.run().unwrap_err().to_string();
    assert!(error.contains("no warnings"), "{error}");
    assert_eq!(job.steps(), [10]);
    let job = job.resumed();
    job.run().unwrap();
    assert_eq!(job.last(), whole.last());
}

#[test]
fn fewer_evaluation_batches_are_a_part_of_the_split() {
    let root = tempfile::tempdir().unwrap();
    let job = Job::new(root.path(), "all");
    let config: TrainConfig = job.overrides.fresh(Preset::Nano).unwrap();
    let data = Dataset::from_file(config.text.as_ref().unwrap(), config.block, config.seed).unwrap();
    assert!(data.eval_windows(config.block, None).rows > 8);
    let mut few = Job::new(root.path(), "few");
    few.overrides.eval_batches = Some(2);
    let (all, few) = (job.run().unwrap(), few.run().unwrap());
    assert_eq!(all.train_loss, few.train_loss);
    assert_ne!(all.val_loss, few.val_loss);
    assert!((all.val_loss.unwrap() - few.val_loss.unwrap()).abs() < 0.2);
}
