//! Models, composed of operations: [`Gpt`], which trains through [`Gpt::logits`] and is sampled from through [`Gpt::decode`] and a [`KvCache`].
//!
//! A model holds [`crate::optim::Parameters`] and the indices of its own in them; it names no kernel.

mod gpt;

pub use gpt::{Gpt, GptConfig, InputProbe, KvCache, LAYER_NORM_EPSILON, Probe, ProbedInput, TrainPass};

use crate::{Buffer, kernel};

/// A dropout of a model: where it is, and what its mask depends on.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability of dropping an element, in [0, 1).
    pub p: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// Which dropout of the model this is.
    pub op: u32,
    /// Which micro-batch of the step.
    pub micro: u32,
    /// The optimizer's state, whose step number changes the mask.
    pub state: Buffer,
}

impl Dropout {
    pub(crate) fn kernel(&self) -> kernel::Dropout<'_> {
        kernel::Dropout { p: self.p, seed: self.seed, op: self.op, micro: self.micro, state: &self.state }
    }
}
