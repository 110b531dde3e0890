//! AdamW with clipping, schedule and loss scale, all of whose state lives on the device.

use super::correction::Ramp;
use super::{Correction, Parameters, Quantized};
use crate::buffer::elements;
use crate::kernel::adamw::{AdamwParams, Chunk, adamw};
use crate::kernel::clamp::clamp;
use crate::kernel::dim;
use crate::kernel::optimizer_step::{StepParams, StepState, grad_norm, optimizer_step};
use crate::{Buffer, Context, DType, Error, Readback, Result, Tensor};
use std::ops::Range;

/// Learning rate over the steps: linear warm-up, then a cosine from `lr` to `min_lr` at step `decay`, constant afterwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub lr: f64,
    /// The learning rate from step `decay` on.
    pub min_lr: f64,
    /// Steps of warm-up: step `i`, from 0, has `lr (i + 1) / (warmup + 1)`.
    pub warmup: u32,
    /// The step at which the cosine ends; 0: no decay, `lr` stays.
    pub decay: u32,
}

impl Schedule {
    /// The same learning rate throughout.
    #[must_use]
    pub fn constant(lr: f64) -> Self {
        Self { lr, min_lr: lr, warmup: 0, decay: 0 }
    }
}

/// Constants of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// The learning rate.
    pub schedule: Schedule,
    /// Decay of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of parameters with two or more dimensions.
    pub weight_decay: f64,
    /// Largest global norm of the gradients; 0: no clipping.
    pub clip: f64,
    /// Initial factor on the loss, for gradients in f16; 1 and constant in f32.
    pub loss_scale: f32,
    /// The pull of quantized parameters toward the grid, with [`AdamW::step_toward`].
    pub correction: Option<Correction>,
}

impl Default for AdamWOptions {
    /// PyTorch's defaults: lr 1e-3, betas (0.9, 0.999), eps 1e-8, weight decay 0.01, no clipping; no correction.
    fn default() -> Self {
        Self {
            schedule: Schedule::constant(1e-3),
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
            clip: 0.0,
            loss_scale: 1.0,
            correction: None,
        }
    }
}

impl AdamWOptions {
    /// Checks the values as the device gets them: a finite f64 may be infinite in f32, and a decay below 1 may round to 1.
    fn validate(&self) -> Result<()> {
        let decays = [("beta1", self.betas.0), ("beta2", self.betas.1)];
        let rates = [
            ("lr", self.schedule.lr),
            ("min_lr", self.schedule.min_lr),
            ("weight decay", self.weight_decay),
            ("clip", self.clip),
            ("eps", self.eps),
        ];
        let fail = |name, expected, got: String| Err(Error::invalid(format!("optimizer: {name}"), expected, got));
        for (name, value) in decays {
            if !(0.0..1.0).contains(&(value as f32)) || value < 0.0 {
                return fail(name, "at least 0 and below 1 in f32", value.to_string());
            }
        }
        for (name, value) in rates {
            if !(value as f32).is_finite() || value < 0.0 {
                return fail(name, "at least 0 and finite in f32", value.to_string());
            }
        }
        // Gradients are multiplied by it and by its inverse.
        if !(self.loss_scale > 0.0 && self.loss_scale.is_normal() && self.loss_scale.recip().is_normal()) {
            return fail("loss scale", "above 0 and finite, and so its inverse", self.loss_scale.to_string());
        }
        // The device counts to one more.
        if self.schedule.warmup == u32::MAX {
            return fail("warmup", "fewer than 2^32 - 1 steps", self.schedule.warmup.to_string());
        }
        self.correction.map_or(Ok(()), |correction| correction.validate(self.schedule.lr.max(self.schedule.min_lr)))
    }
}

/// Finite steps after which a loss scale that is not 1 doubles.
const GROWTH_INTERVAL: u32 = 1000;
/// The largest loss scale: beyond it the scaled loss itself would lose nothing by being larger.
const MAX_LOSS_SCALE: f32 = 16_777_216.0;

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101), in PyTorch's order, with global-norm clipping.
///
/// A step whose gradients hold a NaN or an infinity changes no parameter; with a loss scale it halves the scale.
#[derive(Debug)]
pub struct AdamW {
    context: Context,
    options: AdamWOptions,
    state: Buffer,
    partials: Buffer,
    /// First and second moments, laid out like the parameters.
    pub(crate) moments: Vec<[Buffer; 2]>,
}

impl AdamW {
    /// An optimizer for `parameters`, with moments of zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Invalid`] for options out of range.
    pub fn new(parameters: &Parameters, options: AdamWOptions) -> Result<Self> {
        options.validate()?;
        let context = parameters.context().clone();
        let mut moments = Vec::new();
        for chunk in &parameters.chunks {
            let zeros = || -> Result<Buffer> {
                let buffer = context.alloc(chunk.weights.len(), DType::F32)?;
                context.clear(&buffer)?;
                Ok(buffer)
            };
            moments.push([zeros()?, zeros()?]);
        }
        let state = context.alloc(std::mem::size_of::<StepState>() / 4, DType::U32)?;
        let initial = StepState { loss_scale: options.loss_scale, finite: 1, ..StepState::default() };
        context.upload(&state, bytemuck::bytes_of(&initial))?;
        let partials = context.alloc(parameters.partials(), DType::F32)?;
        Ok(Self { context, options, state, partials, moments })
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &AdamWOptions {
        &self.options
    }

    /// The device's [`StepState`]: kernels read the step number and the loss scale from it.
    #[must_use]
    pub fn state(&self) -> &Buffer {
        &self.state
    }

    /// Starts reading the step state.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn read_state(&self) -> Result<Readback> {
        self.context.readback(&self.state)
    }

    /// Replaces the step state, when training goes on from a checkpoint.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn write_state(&self, state: &StepState) -> Result<()> {
        self.context.upload(&self.state, bytemuck::bytes_of(state))
    }

    /// The moments of parameter `index`: first and second.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no such parameter, it is only codes and is not trained, or `parameters` are not laid out like those
    /// that the optimizer was made for; [`Error::ContextMismatch`].
    pub fn moments(&self, parameters: &Parameters, index: usize) -> Result<[Tensor; 2]> {
        self.check("moments", parameters)?;
        if index >= parameters.len() {
            return Err(Error::shape("moments", format!("one of {} parameters", parameters.len()), format!("{index}")));
        }
        let chunk = parameters.chunk_of(index);
        let shape = parameters[index].shape();
        if parameters[index].len() != elements(shape)? {
            return Err(Error::shape(
                "moments",
                "a parameter that is trained",
                format!("{index}, which is only codes"),
            ));
        }
        let part = |buffer: &Buffer| -> Result<Tensor> {
            let part = parameters.part(index, chunk, buffer)?;
            let part =
                part.ok_or_else(|| Error::shape("moments", "a parameter of this optimizer", format!("{index}")))?;
            Ok(Tensor::new(&self.context, part, shape))
        };
        let [m, v] = &self.moments[chunk];
        Ok([part(m)?, part(v)?])
    }

    /// Refuses parameters that the moments do not fit.
    fn check(&self, op: &'static str, parameters: &Parameters) -> Result<()> {
        if !self.context.same(parameters.context()) {
            return Err(Error::ContextMismatch { op });
        }
        let lengths = parameters.chunks.iter().map(|chunk| chunk.weights.len());
        if !lengths.clone().eq(self.moments.iter().map(|[m, _]| m.len())) {
            return Err(Error::shape(
                op,
                format!("parameters that fill {:?}", self.moments.iter().map(|[m, _]| m.len()).collect::<Vec<_>>()),
                format!("{:?}", lengths.collect::<Vec<_>>()),
            ));
        }
        Ok(())
    }

    /// Records one update from the gradients in the arena, then forgets them. Nothing is read back.
    ///
    /// # Errors
    /// [`Error::Shape`] if `parameters` are not laid out like those that the optimizer was made for; [`Error::Invalid`] with a correction, which
    /// [`AdamW::step_toward`] is for; [`Error::ContextMismatch`]; those of a failing device.
    pub fn step(&mut self, parameters: &Parameters) -> Result<()> {
        if self.options.correction.is_some() {
            return Err(Error::invalid("optimizer step", "step_toward where there is a correction", "step"));
        }
        self.check("optimizer step", parameters)?;
        self.begin(parameters)?;
        for (chunk, part) in parameters.chunks.iter().enumerate() {
            self.update(parameters, chunk, 0..part.weights.len(), None)?;
        }
        self.keep_within_one(parameters)?;
        parameters.zero_grad();
        Ok(())
    }

    /// Records one update as [`AdamW::step`] does, with the pull of the parameters that `quantized` names toward the grid by the options'
    /// [`Correction`]; without one it is [`AdamW::step`]. Parameters that are not quantized get AdamW's update alone.
    ///
    /// Every one that is quantized takes an update of its own, and all share the memory of the longest one's values on the grid. They come
    /// before the others, so that scales that are parameters too are still those of the forward pass.
    ///
    /// # Errors
    /// As [`AdamW::step`]; [`Error::Shape`] if `quantized` names a parameter twice or one that there is not; what
    /// [`Quantized::nearest`] returns, after which only a part of the parameters may be updated.
    pub fn step_toward(&mut self, parameters: &Parameters, quantized: &dyn Quantized) -> Result<()> {
        const OP: &str = "optimizer step";
        if self.options.correction.is_none() {
            return self.step(parameters);
        }
        self.check(OP, parameters)?;
        // By place in the arena.
        let mut places: Vec<(usize, Range<usize>, usize)> = Vec::new();
        for index in quantized.quantized() {
            if index >= parameters.len() {
                return Err(Error::shape(OP, format!("one of {} parameters", parameters.len()), format!("{index}")));
            }
            let (chunk, range) = parameters.place(index);
            places.push((chunk, range, index));
        }
        places.sort_by_key(|(chunk, range, index)| (*chunk, range.start, *index));
        if let Some(pair) = places.windows(2).find(|pair| pair[0].2 == pair[1].2) {
            return Err(Error::shape(OP, "quantized parameters named once", format!("{} twice", pair[0].2)));
        }
        let longest = places.iter().map(|(_, range, _)| range.len()).max().unwrap_or(0);

        self.begin(parameters)?;
        if longest > 0 {
            let values = self.context.alloc(longest, DType::F32)?;
            for (chunk, range, index) in &places {
                let parameter = &parameters[*index];
                let own = Tensor::new(&self.context, values.slice(0, parameter.len())?, parameter.shape());
                self.context.no_grad(|| quantized.nearest(*index, &own))?;
                // Behind the parameter is padding, for which there are no values.
                let pull = Some((values.slice(0, range.len())?, parameter.len()));
                self.update(parameters, *chunk, range.clone(), pull)?;
            }
        }
        for (chunk, part) in parameters.chunks.iter().enumerate() {
            let mut start = 0;
            for (_, range, _) in places.iter().filter(|(own, ..)| *own == chunk) {
                self.update(parameters, chunk, start..range.start, None)?;
                start = range.end;
            }
            self.update(parameters, chunk, start..part.weights.len(), None)?;
        }
        self.keep_within_one(parameters)?;
        parameters.zero_grad();
        Ok(())
    }

    /// Ends the gradient part of a step: the global norm, and all that the updates read from the state.
    fn begin(&self, parameters: &Parameters) -> Result<()> {
        let o = &self.options;
        parameters.clear_unwritten()?;
        for chunk in &parameters.chunks {
            grad_norm(&self.context, &chunk.grads, &self.partials, chunk.first_partial)?;
        }
        let constant = o.loss_scale == 1.0;
        let ramp = o.correction.map_or(Ramp::default(), |correction| correction.ramp());
        let params = StepParams {
            partials: dim(self.partials.len())?,
            clip: o.clip as f32,
            lr: o.schedule.lr as f32,
            min_lr: o.schedule.min_lr as f32,
            warmup: o.schedule.warmup,
            decay: o.schedule.decay,
            one_minus_beta1: (1.0 - o.betas.0) as f32,
            one_minus_beta2: (1.0 - o.betas.1) as f32,
            growth_interval: if constant { 0 } else { GROWTH_INTERVAL },
            max_loss_scale: MAX_LOSS_SCALE,
            lambda: o.correction.map_or(0.0, |correction| correction.lambda as f32),
            lambda_silent: ramp.silent,
            lambda_full: ramp.full,
            lambda_slope: ramp.slope,
            lambda_offset: ramp.offset,
        };
        optimizer_step(&self.context, &params, &self.partials, &self.state)
    }

    /// Moves the parameters that are to stay there back into [-1, 1].
    fn keep_within_one(&self, parameters: &Parameters) -> Result<()> {
        for chunk in parameters.chunks.iter().filter(|chunk| !chunk.within.is_empty()) {
            let part = |buffer: &Buffer| buffer.slice(chunk.within.start, chunk.within.len());
            let halves = chunk.halves.as_ref().map(part).transpose()?;
            clamp(&self.context, &part(&chunk.weights)?, halves.as_ref(), 1.0)?;
        }
        Ok(())
    }

    /// Updates the elements `range` of a chunk; with values toward which the first so many are pulled.
    fn update(
        &self,
        parameters: &Parameters,
        chunk: usize,
        range: Range<usize>,
        pull: Option<(Buffer, usize)>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let (o, arena, [moments1, moments2]) = (&self.options, &parameters.chunks[chunk], &self.moments[chunk]);
        let part = |buffer: &Buffer| buffer.slice(range.start, range.len());
        let halves = arena.halves.as_ref().map(part).transpose()?;
        let params = AdamwParams {
            len: dim(range.len())?,
            decay_end: dim(arena.decay_end.saturating_sub(range.start).min(range.len()))?,
            beta1: o.betas.0 as f32,
            beta2: o.betas.1 as f32,
            one_minus_beta1: (1.0 - o.betas.0) as f32,
            one_minus_beta2: (1.0 - o.betas.1) as f32,
            eps: o.eps as f32,
            weight_decay: o.weight_decay as f32,
            pull_end: dim(pull.as_ref().map_or(0, |(_, end)| *end))?,
            coupled: o.correction.is_some_and(|correction| correction.coupled).into(),
        };
        let buffers = Chunk {
            weights: &part(&arena.weights)?,
            grads: &part(&arena.grads)?,
            moments1: &part(moments1)?,
            moments2: &part(moments2)?,
            halves: halves.as_ref(),
            targets: pull.as_ref().map(|(values, _)| values),
        };
        adamw(&self.context, &params, buffers, &self.state)
    }
}
