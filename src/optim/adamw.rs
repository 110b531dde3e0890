//! AdamW with clipping, schedule and loss scale, all of whose state lives on the device.

use super::Parameters;
use crate::kernel::adamw::{AdamwParams, Chunk, adamw};
use crate::kernel::clamp::clamp;
use crate::kernel::dim;
use crate::kernel::optimizer_step::{StepParams, StepState, grad_norm, optimizer_step};
use crate::{Buffer, Context, DType, Error, Readback, Result, Tensor};

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
}

impl Default for AdamWOptions {
    /// PyTorch's defaults: lr 1e-3, betas (0.9, 0.999), eps 1e-8, weight decay 0.01, no clipping.
    fn default() -> Self {
        Self {
            schedule: Schedule::constant(1e-3),
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
            clip: 0.0,
            loss_scale: 1.0,
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
        Ok(())
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
                context.clear(&buffer);
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
    /// [`Error::Shape`] if there is no such parameter, or `parameters` are not laid out like those that the optimizer was made for;
    /// [`Error::ContextMismatch`].
    pub fn moments(&self, parameters: &Parameters, index: usize) -> Result<[Tensor; 2]> {
        self.check("moments", parameters)?;
        if index >= parameters.len() {
            return Err(Error::shape("moments", format!("one of {} parameters", parameters.len()), format!("{index}")));
        }
        let chunk = parameters.chunk_of(index);
        let shape = parameters[index].shape();
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
    /// [`Error::Shape`] if `parameters` are not laid out like those that the optimizer was made for; [`Error::ContextMismatch`]; those of a
    /// failing device.
    pub fn step(&mut self, parameters: &Parameters) -> Result<()> {
        self.check("optimizer step", parameters)?;
        let o = &self.options;
        parameters.clear_unwritten();
        for chunk in &parameters.chunks {
            grad_norm(&self.context, &chunk.grads, &self.partials, chunk.first_partial)?;
        }
        let constant = o.loss_scale == 1.0;
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
        };
        optimizer_step(&self.context, &params, &self.partials, &self.state)?;
        for (chunk, [moments1, moments2]) in parameters.chunks.iter().zip(&self.moments) {
            let params = AdamwParams {
                len: dim(chunk.weights.len())?,
                decay_end: dim(chunk.decay_end)?,
                beta1: o.betas.0 as f32,
                beta2: o.betas.1 as f32,
                one_minus_beta1: (1.0 - o.betas.0) as f32,
                one_minus_beta2: (1.0 - o.betas.1) as f32,
                eps: o.eps as f32,
                weight_decay: o.weight_decay as f32,
            };
            let buffers = Chunk {
                weights: &chunk.weights,
                grads: &chunk.grads,
                moments1,
                moments2,
                halves: chunk.halves.as_ref(),
            };
            adamw(&self.context, &params, buffers, &self.state)?;
            if !chunk.within.is_empty() {
                let part = |buffer: &Buffer| buffer.slice(chunk.within.start, chunk.within.len());
                let halves = chunk.halves.as_ref().map(part).transpose()?;
                clamp(&self.context, &part(&chunk.weights)?, halves.as_ref(), 1.0)?;
            }
        }
        parameters.zero_grad();
        Ok(())
    }
}
