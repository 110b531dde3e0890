//! Inverted dropout.

use crate::{Buffer, Error, Result};

/// What fixes the elements that a kernel drops: the same values give the same elements in the forward and the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Probability of dropping an element, at least 0 and below 1; the others are scaled by `1 / (1 - probability)`.
    pub probability: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// Number of the operation, so that no two of a step share random numbers.
    pub op: u32,
    /// Number of the micro-batch within the step.
    pub micro: u32,
    /// The step state, whose first word is the step's number.
    pub state: &'a Buffer,
}

impl Dropout<'_> {
    /// The threshold below which a random word drops its element, and the factor of the elements that stay.
    pub(crate) fn threshold_and_scale(&self, op: &'static str) -> Result<(u32, f32)> {
        if !(0.0..1.0).contains(&self.probability) {
            return Err(Error::invalid(op, "a dropout probability of at least 0 and below 1", self.probability.to_string()));
        }
        if self.state.is_empty() {
            return Err(Error::shape(op, "a step state", "an empty buffer"));
        }
        let p = f64::from(self.probability);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the product lies within 0 to 2^32 - 1")]
        let threshold = (p * 4_294_967_296.0).round().min(4_294_967_295.0) as u32;
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        Ok((threshold, (1.0 / (1.0 - p)) as f32))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the seed")]
    pub(crate) fn seed_words(&self) -> (u32, u32) {
        (self.seed as u32, (self.seed >> 32) as u32)
    }
}
