//! The pull of quantized parameters toward the grid.

use crate::{Error, Result, Tensor};

/// CAGE (Tabesh et al., arXiv 2510.18784): quantized parameters `x` are pulled toward their values on the grid, `Q(x)`, so that training looks
/// for a balance between the loss and the distance to the grid.
///
/// In step `n`, counted from 1, the strength is `lambda_n = 0` while `n / steps <= silence`, and from there grows in a straight line to `lambda`
/// at step `steps`, where it stays; or, `constant`, is `lambda` at once. With `e = x - Q(x)`, where `x` is what the step's forward pass
/// quantized, before any part of the update:
///
/// - decoupled: `x <- (1 - lr wd) x`, then `x <- x - lr (m / (sqrt(v) + eps) + lambda_n e)`, with Adam's moments as they are without it;
/// - `coupled`: `lambda_n e` joins the gradient, and with it the moments, after loss scale and clipping. The global norm, by which gradients are
///   clipped and which is reported, is that of the loss.
///
/// Steps are those of [`StepState::step`](super::StepState::step), as for the learning rate: one that is skipped, because a gradient was not finite,
/// counts but pulls nothing.
///
/// The authors' code is another discretisation of it: it pulls in a step of its own after AdamW's, with the error of the weights that AdamW
/// arrived at, and with the learning rate of the step to come. The two differ in the second order of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    /// The strength at its end. Decoupled, `lr lambda` is the share of the distance to the grid by which a step shortens it; it is below 1.
    pub lambda: f64,
    /// The part of the steps, from the first, that have none: at least 0 and below 1.
    pub silence: f64,
    /// Steps in all, at which the strength is `lambda`.
    pub steps: u32,
    /// Whether it joins the gradient instead of the update.
    pub coupled: bool,
    /// Whether the strength is `lambda` as soon as it is not 0, instead of growing.
    pub constant: bool,
}

impl Correction {
    /// CAGE as its authors recommend it: lambda 10, none in the first 0.8 of `steps`, decoupled, growing.
    #[must_use]
    pub fn cage(steps: u32) -> Self {
        Self { lambda: 10.0, silence: 0.8, steps, coupled: false, constant: false }
    }

    /// Plain error feedback: as strong from the first step on, decoupled.
    #[must_use]
    pub fn feedback(lambda: f64) -> Self {
        Self { lambda, silence: 0.0, steps: 1, coupled: false, constant: true }
    }

    /// Whether steps at the learning rate `lr` come nearer to the grid without passing it: `lr lambda < 1`. Coupled, Adam's normalisation bounds
    /// the step, whatever lambda is.
    #[must_use]
    pub fn is_stable(&self, lr: f64) -> bool {
        self.coupled || lr * self.lambda < 1.0
    }

    pub(super) fn validate(&self, lr: f64) -> Result<()> {
        let fail = |name, expected, got: String| Err(Error::invalid(format!("optimizer: {name}"), expected, got));
        if !((self.lambda as f32).is_finite() && self.lambda as f32 > 0.0) {
            return fail("lambda", "above 0 and finite in f32", self.lambda.to_string());
        }
        if !(0.0..1.0).contains(&self.silence) {
            return fail("silence", "at least 0 and below 1", self.silence.to_string());
        }
        if self.steps == 0 {
            return fail("steps of the correction", "at least 1", "0".to_owned());
        }
        if !self.is_stable(lr) {
            return fail("lambda", "below 1 / lr, or coupled", format!("{} at lr {lr}", self.lambda));
        }
        Ok(())
    }

    /// The ramp as the device takes it.
    pub(super) fn ramp(&self) -> Ramp {
        let steps = f64::from(self.steps);
        let start = self.silence * steps;
        // The rule compares n / steps, whose rounding may differ from that of the product.
        let is_silent = |n: f64| n / steps <= self.silence;
        let near = start.round();
        let silent = [near + 1.0, near, near - 1.0].into_iter().find(|n| is_silent(*n)).unwrap_or(0.0).max(0.0);
        Ramp {
            silent: silent as u32,
            full: if self.constant { silent as u32 + 1 } else { self.steps },
            slope: (self.lambda / (steps - start)) as f32,
            offset: (silent - start).clamp(-1.0, 0.0) as f32,
        }
    }
}

/// The strength over the steps: 0 through step `silent`, `slope (n - silent + offset)` before step `full`, lambda from there on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ramp {
    pub silent: u32,
    pub full: u32,
    pub slope: f32,
    pub offset: f32,
}

/// What has quantized parameters, and can say where on the grid they are. [`crate::nn::Gpt`] does; implement it for a model of your own to train it
/// by [`AdamW::step_toward`](super::AdamW::step_toward).
///
/// ```no_run
/// use walsh::optim::{Parameters, Quantized};
/// use walsh::qat::Quantizer;
/// use walsh::{Result, Tensor};
///
/// struct Model {
///     parameters: Parameters,
///     quantizer: Quantizer,
///     /// Of the weights that the forward pass gives to `linear` together with `quantizer`.
///     weights: Vec<usize>,
/// }
///
/// impl Quantized for Model {
///     fn quantized(&self) -> Vec<usize> {
///         self.weights.clone()
///     }
///
///     fn nearest(&self, index: usize, out: &Tensor) -> Result<()> {
///         let packed = self.quantizer.weight(&self.parameters[index])?;
///         self.quantizer.dequantize(&packed, out)
///     }
/// }
/// ```
pub trait Quantized {
    /// The parameters that the forward pass quantizes, by their indices, each once.
    fn quantized(&self) -> Vec<usize>;

    /// Writes `Q(x)` to `out`, all of it: the values that parameter `index` has in the forward pass as the parameters are now, rotated back where it
    /// rotates, so that `x - Q(x)` is the error.
    ///
    /// # Shapes
    /// `out` f32, of the parameter's shape.
    ///
    /// # Errors
    /// The implementation's; they end the step.
    fn nearest(&self, index: usize, out: &Tensor) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_steps_are_those_of_the_rule_whatever_the_product_rounds_to() {
        for steps in (1..400).chain([1500, 5000, 600_000, u32::MAX]) {
            for silence in [0.0, 0.1, 0.29, 0.3, 1.0 / 3.0, 0.5, 0.57, 0.7, 0.8, 0.9, 0.95, 0.999, 1.0 - f64::EPSILON] {
                let ramp = Correction { silence, ..Correction::cage(steps) }.ramp();
                let is_silent = |n: u32| f64::from(n) / f64::from(steps) <= silence;
                assert!(ramp.silent == 0 || is_silent(ramp.silent), "{steps} {silence}: {ramp:?}");
                assert!(ramp.silent < steps && !is_silent(ramp.silent + 1), "{steps} {silence}: {ramp:?}");
                assert!((-1.0..=0.0).contains(&ramp.offset) && ramp.full == steps, "{steps} {silence}: {ramp:?}");
                let constant = Correction { silence, constant: true, ..Correction::cage(steps) }.ramp();
                assert_eq!((constant.silent, constant.full), (ramp.silent, ramp.silent + 1));
            }
        }
        assert_eq!(Correction::feedback(1.0).ramp().silent, 0);
        // 0.29 * 100 is 28.999999999999996.
        assert_eq!(Correction { silence: 0.29, ..Correction::cage(100) }.ramp().silent, 29);
    }
}
