//! A GPT with its optimizer, as the training loop and the sampler see it.

use super::checkpoint::{TensorData, find};
use super::diagnostics::{Diagnostics, Masks, diagnose};
use super::sample::Decoder;
use super::trainer::{Model, PendingStats, StepStats};
use crate::nn::{Gpt, GptConfig, KvCache, TrainPass};
use crate::op::LossOptions;
use crate::optim::{AdamW, AdamWOptions, StepState};
use crate::qat::Distillation;
use crate::{Context, DType, Error, Readback, Result, Tensor, kernel};
use std::sync::Arc;

/// Sizes of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Sequences per micro-batch.
    pub batch: usize,
    /// Tokens per sequence.
    pub block: usize,
    /// Micro-batches per step.
    pub accumulate: usize,
}

/// A GPT under training.
#[derive(Debug)]
pub struct GptRun {
    context: Context,
    gpt: Arc<Gpt>,
    optimizer: AdamW,
    shape: BatchShape,
    seed: u64,
    /// Tokens and targets of each micro-batch.
    batches: Vec<[Tensor; 2]>,
    /// Mean loss of the last step.
    loss: Tensor,
    /// Whether scales that are learned are still to be set by the first batch.
    fresh: bool,
    /// Of the last diagnostics.
    masks: Masks,
    teacher: Option<(Gpt, Distillation)>,
}

/// Loss scale that f16 training starts with.
const LOSS_SCALE: f32 = 65536.0;

impl GptRun {
    /// A fresh model on `context`. `seed` draws the initial parameters and the dropout masks. In f16 the loss scale is dynamic.
    ///
    /// # Errors
    /// As [`Gpt::new`] and [`AdamW::new`].
    pub fn new(
        context: &Context,
        config: GptConfig,
        shape: BatchShape,
        options: AdamWOptions,
        seed: u64,
        dtype: DType,
    ) -> Result<Self> {
        let gpt = Arc::new(Gpt::new(context, config, seed, dtype)?);
        let loss_scale = if dtype == DType::F16 { LOSS_SCALE } else { 1.0 };
        let optimizer = AdamW::new(gpt.parameters(), AdamWOptions { loss_scale, ..options })?;
        let tokens = || Tensor::zeros(context, &[shape.batch, shape.block], DType::U32);
        let batches = (0..shape.accumulate).map(|_| Ok([tokens()?, tokens()?])).collect::<Result<_>>()?;
        let loss = Tensor::zeros(context, &[], DType::F32)?;
        let (context, masks) = (context.clone(), Masks::default());
        Ok(Self { context, gpt, optimizer, shape, seed, batches, loss, fresh: true, masks, teacher: None })
    }

    /// Starts from a teacher in full precision with the same shape, and learns from it: its parameters as `model.*`. From now on the loss of a
    /// step is that of the method's distillation; the teacher's forward pass is part of each step.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a method that learns from no teacher, and naming a tensor that is missing or of another shape; [`Error::Limit`],
    /// [`Error::OutOfMemory`].
    pub fn learn_from(&mut self, tensors: &[(String, TensorData)]) -> Result<()> {
        let config = self.gpt.config();
        let Some(distillation) = config.quantizer.and_then(|quantizer| quantizer.method.distillation()) else {
            return Err(Error::invalid("teacher", "a method that learns from one", "another"));
        };
        let teacher = Gpt::new(&self.context, GptConfig { quantizer: None, ..config.clone() }, 0, self.gpt.dtype())?;
        let values = |name: &str, shape: &[usize]| {
            let data = find(tensors, &format!("model.{name}"), DType::F32, shape)?;
            Ok(data.to_f32().unwrap_or_default())
        };
        teacher.start_from(values)?;
        self.gpt.start_from(values)?;
        self.teacher = Some((teacher, distillation));
        Ok(())
    }

    /// The loss of a micro-batch against the teacher.
    fn distil(&self, teacher: &Gpt, tokens: &Tensor, pass: TrainPass<'_>, weight: f32, hidden: f32) -> Result<Tensor> {
        let options = LossOptions {
            classes: Some(self.gpt.config().vocab),
            weight,
            state: Some(pass.state),
            grad: self.gpt.dtype(),
        };
        let (wanted, theirs) = self.context.no_grad(|| teacher.logits_and_hidden(tokens, None))?;
        let (logits, own) = self.gpt.logits_and_hidden(tokens, Some(pass))?;
        let mut loss = logits.soft_cross_entropy(&wanted, options)?;
        if hidden > 0.0 {
            let options = LossOptions { weight: weight * hidden, ..options };
            for (own, theirs) in own.iter().zip(&theirs) {
                loss = loss.add(&own.hidden_distance(theirs, options)?)?;
            }
        }
        Ok(loss)
    }

    /// The model.
    #[must_use]
    pub fn gpt(&self) -> &Gpt {
        &self.gpt
    }

    /// The mean loss of the last step, a scalar that keeps its place in memory: a host can bind it in a shader of its own.
    #[must_use]
    pub fn loss(&self) -> &Tensor {
        &self.loss
    }

    /// A sampler that shares the model's parameters.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn decoder(&self) -> Result<GptDecoder> {
        GptDecoder::new(self.gpt.clone())
    }

    /// Device memory of training, in bytes, estimated from the shapes: parameters with gradients and moments, what the forward pass keeps for
    /// the backward pass, the widest point of the backward pass, and the staging memory through which parameters come and checkpoints go.
    #[must_use]
    pub fn estimate(config: &GptConfig, shape: BatchShape, dtype: DType) -> u64 {
        let (c, elem) = (config.embd as u64, dtype.size() as u64);
        let half_copy = if dtype == DType::F16 { 2 } else { 0 };
        // Four arenas; up once, and down three of them at a checkpoint. A teacher has weights and the room for their gradients.
        let taught = config.quantizer.is_some_and(|quantizer| quantizer.method.distillation().is_some());
        let teacher = if taught { 8 + half_copy } else { 0 };
        let weights = config.parameters() * (16 + half_copy + 4 + 12 + teacher);
        let tokens = (shape.batch as u64).saturating_mul(shape.block as u64);
        // Two norms, q k v, attention, the MLP before and after its activation; two points of the residual stream.
        // Of inputs of linear layers that are quantized, codes stay, and the inputs too where their scale is learned; attention keeps its
        // result besides.
        let inputs = match config.quantizer.and_then(|q| q.activations) {
            Some(format) => {
                let codes = 7 * c * u64::from(format.bits() + 1).div_ceil(8);
                let learned = config.quantizer.is_some_and(|q| q.learned().is_some());
                codes + if learned { 6 * c * elem } else { 0 }
            }
            None => 6 * c * elem,
        };
        // Layers of signs and values keep scaled inputs and sums of products; those onto the residual stream their results, before and after
        // dropout; the loss, the teacher's hidden state.
        let valued = if taught { (7 + 9) * c * elem + (2 + 2 + 1) * c * 4 } else { 0 };
        let layer = 8 * c * elem + inputs + 2 * c * 4 + valued;
        let head = 2 * c * elem + config.vocab as u64 * (4 + elem);
        let backward = 9 * c * elem + 2 * c * 4;
        let activations = tokens.saturating_mul(config.layers as u64 * layer + c * 4 + head + backward);
        // Buffers come in eight sizes per power of two, which wastes a sixteenth on average.
        activations.saturating_add(activations / 16).saturating_add(weights)
    }

    fn named_tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let parameters = self.gpt.parameters();
        let mut all = Vec::new();
        for (index, (info, tensor)) in parameters.iter().enumerate() {
            let [m, v] = self.optimizer.moments(parameters, index)?;
            all.push((format!("model.{}", info.name), tensor.clone()));
            all.push((format!("optimizer.m.{}", info.name), m));
            all.push((format!("optimizer.v.{}", info.name), v));
        }
        Ok(all)
    }

    fn upload(&self, what: &'static str, tensor: &Tensor, tokens: &[u32]) -> Result<()> {
        if tokens.len() != tensor.len() {
            return Err(Error::shape("train_step", format!("{} {what}", tensor.len()), format!("{}", tokens.len())));
        }
        tensor.write(bytemuck::cast_slice(tokens))
    }
}

impl Model for GptRun {
    type Pending = Pending;

    fn train_step(&mut self, inputs: &[u32], targets: &[u32]) -> Result<()> {
        let size = self.shape.batch * self.shape.block;
        // All copies first: the dispatches of all micro-batches then share one pass.
        for (i, [tokens, wanted]) in self.batches.iter().enumerate() {
            let part = i * size..(i + 1) * size;
            self.upload("input tokens", tokens, inputs.get(part.clone()).unwrap_or_default())?;
            self.upload("target tokens", wanted, targets.get(part).unwrap_or_default())?;
        }
        if std::mem::take(&mut self.fresh)
            && let Some([tokens, _]) = self.batches.first()
        {
            self.gpt.initialize_scales(tokens)?;
        }
        let weight = 1.0 / self.shape.accumulate as f32;
        for (micro, [tokens, wanted]) in (0u32..).zip(&self.batches) {
            let state = self.optimizer.state();
            let pass = TrainPass { state, seed: self.seed, micro };
            let loss = match &self.teacher {
                Some((teacher, distillation)) => self.distil(teacher, tokens, pass, weight, distillation.hidden)?,
                None => {
                    let logits = self.gpt.logits(tokens, Some(pass))?;
                    let options = LossOptions {
                        classes: Some(self.gpt.config().vocab),
                        weight,
                        state: Some(state),
                        grad: self.gpt.dtype(),
                    };
                    logits.cross_entropy(wanted, options)?
                }
            };
            kernel::accumulate::accumulate(&self.context, loss.buffer(), self.loss.buffer(), micro > 0)?;
            loss.backward()?;
        }
        self.optimizer.step_toward(self.gpt.parameters(), &*self.gpt)?;
        self.context.submit()
    }

    fn stats(&mut self) -> Result<Pending> {
        Ok(Pending { loss: Waiting::On(self.loss.read()?), state: Waiting::On(self.optimizer.read_state()?) })
    }

    fn eval(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(f64, u64)> {
        let block = self.shape.block;
        let rows = inputs.len() / block;
        let count = targets.iter().filter(|t| **t != super::IGNORE).count() as u64;
        let losses = self.context.no_grad(|| {
            let tokens = Tensor::from_u32(&self.context, inputs, &[rows, block])?;
            let wanted = Tensor::from_u32(&self.context, targets, &[rows, block])?;
            self.gpt.logits(&tokens, None)?.token_losses(&wanted, Some(self.gpt.config().vocab))
        })?;
        let sum = losses.to_vec()?.into_iter().map(f64::from).sum();
        Ok((sum, count))
    }

    fn diagnose(&mut self, inputs: &[u32], targets: &[u32]) -> Result<Diagnostics> {
        let Some([tokens, wanted]) = self.batches.first() else { return Ok(Diagnostics::new()) };
        self.upload("input tokens", tokens, inputs)?;
        self.upload("target tokens", wanted, targets)?;
        let options = LossOptions {
            classes: Some(self.gpt.config().vocab),
            weight: 1.0,
            state: Some(self.optimizer.state()),
            grad: self.gpt.dtype(),
        };
        // The random numbers that the first micro-batch of the next step draws again: taking them here changes none there.
        let rounding = TrainPass { state: self.optimizer.state(), seed: self.seed, micro: 0 };
        diagnose(&self.gpt, tokens, wanted, options, Some(rounding), &mut self.masks)
    }

    fn export(&mut self) -> Result<Vec<(String, TensorData)>> {
        let mut reads = Vec::new();
        for (name, tensor) in self.named_tensors()? {
            reads.push((name, tensor.shape().to_vec(), tensor.dtype(), tensor.read()?));
        }
        let state = self.optimizer.read_state()?;
        let mut all = Vec::with_capacity(reads.len() + 1);
        for (name, shape, dtype, read) in reads {
            all.push((name, TensorData { dtype, shape, bytes: read.wait()? }));
        }
        let bytes = state.wait()?;
        all.push(("state.step".to_owned(), TensorData { dtype: DType::U32, shape: vec![bytes.len() / 4], bytes }));
        Ok(all)
    }

    /// Of weights whose scales saturate. At checkpoints, whose values are on the host anyway: to ask in each step would take a readback, and
    /// training may come back from it.
    fn warnings(&self, tensors: &[(String, TensorData)]) -> Result<Vec<String>> {
        let Some(quantizer) = self.gpt.config().quantizer.filter(|q| q.weights.saturates()) else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for (index, (info, tensor)) in self.gpt.parameters().iter().enumerate() {
            if !self.gpt.is_quantized(index) {
                continue;
            }
            let data = find(tensors, &format!("model.{}", info.name), DType::F32, tensor.shape())?;
            if self.gpt.saturated_scale(index, &data.to_f32().unwrap_or_default())?.is_some() {
                let (name, format) = (&info.name, quantizer.weights);
                all.push(format!(
                    "scales of `{name}` are beyond what {format} stores and saturate: `walsh export` refuses such a checkpoint"
                ));
            }
        }
        Ok(all)
    }

    fn import(&mut self, tensors: &[(String, TensorData)]) -> Result<()> {
        for (name, tensor) in self.named_tensors()? {
            let data = find(tensors, &name, tensor.dtype(), tensor.shape())?;
            tensor.write(&data.bytes)?;
        }
        let words = std::mem::size_of::<StepState>() / 4;
        let state = find(tensors, "state.step", DType::U32, &[words])?;
        let state: StepState = bytemuck::pod_read_unaligned(&state.bytes);
        self.optimizer.write_state(&state)?;
        self.fresh = state.step == 0;
        self.context.synchronize()
    }

    fn estimated_bytes(&self) -> u64 {
        Self::estimate(self.gpt.config(), self.shape, self.gpt.dtype())
    }

    fn peak_bytes(&self) -> u64 {
        self.context.held_bytes()
    }

    fn first_non_finite(&mut self) -> Result<String> {
        let state: StepState = bytemuck::pod_read_unaligned(&self.optimizer.read_state()?.wait()?);
        Ok(if state.bad_step > 0 {
            format!("the gradient of {}", self.gpt.parameters().name_of_partial(state.bad_chunk as usize))
        } else {
            "the loss".to_owned()
        })
    }
}

/// Loss and step state on their way.
#[derive(Debug)]
pub struct Pending {
    loss: Waiting,
    state: Waiting,
}

#[derive(Debug)]
enum Waiting {
    On(Readback),
    Done(Vec<u8>),
}

impl Waiting {
    fn poll(&mut self) -> Result<Option<&[u8]>> {
        if let Self::On(read) = self {
            let Some(bytes) = read.poll()? else { return Ok(None) };
            *self = Self::Done(bytes);
        }
        match self {
            Self::Done(bytes) => Ok(Some(bytes)),
            Self::On(_) => Ok(None),
        }
    }

    fn wait(self) -> Result<Vec<u8>> {
        match self {
            Self::On(read) => read.wait(),
            Self::Done(bytes) => Ok(bytes),
        }
    }
}

fn stats(loss: &[u8], state: &[u8]) -> StepStats {
    let loss: f32 = bytemuck::pod_read_unaligned(loss);
    let state: StepState = bytemuck::pod_read_unaligned(state);
    StepStats {
        step: state.step.into(),
        loss: loss.into(),
        lr: state.lr.into(),
        grad_norm: state.grad_norm.into(),
        loss_scale: state.loss_scale.into(),
        skipped: state.skipped.into(),
        finite: loss.is_finite() && state.bad_step == 0,
    }
}

impl PendingStats for Pending {
    fn poll(&mut self) -> Result<Option<StepStats>> {
        let Some(loss) = self.loss.poll()?.map(<[u8]>::to_vec) else { return Ok(None) };
        Ok(self.state.poll()?.map(|state| stats(&loss, state)))
    }

    fn wait(self) -> Result<StepStats> {
        let (loss, state) = (self.loss.wait()?, self.state.wait()?);
        Ok(stats(&loss, &state))
    }
}

/// A GPT that is sampled from.
#[derive(Debug)]
pub struct GptDecoder {
    gpt: Arc<Gpt>,
    cache: KvCache,
}

impl GptDecoder {
    /// A decoder with an empty cache.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(gpt: Arc<Gpt>) -> Result<Self> {
        let cache = KvCache::new(&gpt)?;
        Ok(Self { gpt, cache })
    }

    /// A decoder with the `model.*` tensors of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the tensor that is missing or of another shape; as [`Gpt::new`].
    pub fn from_tensors(
        context: &Context,
        config: GptConfig,
        dtype: DType,
        tensors: &[(String, TensorData)],
    ) -> Result<Self> {
        Self::new(Arc::new(gpt_from_tensors(context, config, dtype, tensors)?))
    }
}

/// A GPT with the `model.*` tensors of a checkpoint.
///
/// # Errors
/// As [`GptDecoder::from_tensors`].
pub fn gpt_from_tensors(
    context: &Context,
    config: GptConfig,
    dtype: DType,
    tensors: &[(String, TensorData)],
) -> Result<Gpt> {
    let gpt = Gpt::new(context, config, 0, dtype)?;
    for (info, tensor) in gpt.parameters().iter() {
        tensor.write(&find(tensors, &format!("model.{}", info.name), tensor.dtype(), tensor.shape())?.bytes)?;
    }
    Ok(gpt)
}

impl Decoder for GptDecoder {
    fn capacity(&self) -> usize {
        self.gpt.config().block
    }

    fn start(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let Some((last, first)) = tokens.split_last() else {
            return Err(Error::invalid("prompt", "at least one token", "none"));
        };
        self.cache.clear();
        for token in first {
            self.gpt.decode(*token, &mut self.cache)?;
        }
        self.push(*last)
    }

    fn push(&mut self, token: u32) -> Result<Vec<f32>> {
        let mut logits = self.gpt.decode(token, &mut self.cache)?.to_vec()?;
        logits.truncate(self.gpt.config().vocab);
        Ok(logits)
    }
}
