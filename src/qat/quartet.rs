//! Quartet (Castro et al., arXiv 2505.14669, version 4): training in MXFP4, forward and backward.
//!
//! Forward, QuEST's way: inputs and weights are rotated by blocks of 32 along the width, scaled by the power of two at or below the least
//! squares for normal data (`mxfp4:mse`), rounded to nearest; gradients pass where the magnitude is below 6 scales. Backward: G and W
//! along the outputs, G and X along the tokens, are rotated by blocks of 32 with fresh random signs before the transform, scaled by their
//! largest magnitude, and 3/4 of each is rounded, which nothing saturates; products are multiplied by 16/9. The published code puts the
//! signs after the transform, where they do nothing; here they are where the paper has them.
//!
//! Another difference: the forward scale comes from the root mean square of a group, as QuEST's; the published code subtracts the mean of the
//! group first. Of 32 normal values that makes the scale before its rounding to a power of two 1.6 % smaller: about one group in 40 has
//! another one then.

use super::{Asked, Backward, Coding, Operand, Quantizer, Rule};
use crate::format::{Format, Grid, Minifloat, Power, Rule as ScaleRule, Span, Store};
use crate::{Error, Result};
use std::fmt;

/// How the operands of the backward pass are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quartet {
    /// To nearest: the paper's from version 4 on.
    #[default]
    Nearest,
    /// Stochastically: its first version's, and its code's default.
    Stochastic,
    /// To nearest, times 1.009276, which takes back by how much rounding shrinks normal data.
    Aligned,
}

/// What takes back the mean shrinkage of rounding to nearest, from the authors' code.
const ALIGNED: f32 = 1.009_276;
/// Headroom without which values between 6 and 8 scales saturate.
const HEADROOM: f32 = 0.75;
const BLOCK: u32 = 32;

impl Quartet {
    pub(super) fn parse(options: &[&str]) -> Option<Self> {
        match options {
            [] => Some(Self::Nearest),
            ["sr"] => Some(Self::Stochastic),
            ["aligned"] => Some(Self::Aligned),
            _ => None,
        }
    }
}

impl Rule for Quartet {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nearest => "quartet",
            Self::Stochastic => "quartet:sr",
            Self::Aligned => "quartet:aligned",
        })
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        let (own, expected) =
            (mxfp4(ScaleRule::Gaussian), "mxfp4 (mxfp4:mse), or mxfp4 with options, beside --method quartet");
        let format = match asked {
            None => own,
            Some(Asked::Named(format)) if format == mxfp4(ScaleRule::AbsMax) => own,
            Some(Asked::Named(format) | Asked::Spelled(format)) => format,
            Some(Asked::Dense) => return Err(Error::invalid(operand.flag(), expected, "`dense`")),
        };
        if matches!((format.grid(), format.store()), (Grid::Float(Minifloat::E2M1), Store::E8M0(_))) {
            return Ok(Some(format));
        }
        Err(Error::invalid(operand.flag(), expected, format!("`{format}`")))
    }

    fn blocks(&self) -> &'static [u32] {
        &[BLOCK]
    }

    fn rotates(&self) -> bool {
        true
    }

    fn check(&self, quantizer: &Quantizer) -> Result<()> {
        if quantizer.hadamard == Some(BLOCK) {
            return Ok(());
        }
        let got = quantizer.hadamard.map_or("off".into(), |block| block.to_string());
        Err(Error::invalid("--hadamard", "32 beside --method quartet", got))
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        // Strictly below the largest level.
        Coding { bound: Some(6f32.next_down()), ..Coding::new(format, hadamard) }
    }

    fn backward(&self) -> Option<Backward> {
        let stochastic = *self == Self::Stochastic;
        Some(Backward {
            format: mxfp4(ScaleRule::AbsMax),
            stochastic_gradient: stochastic,
            stochastic_operands: stochastic,
            headroom: HEADROOM,
            gain: if *self == Self::Aligned { ALIGNED } else { 1.0 },
            across: Some(BLOCK),
            tokens: BLOCK,
            fresh_signs: true,
            from_codes: true,
        })
    }
}

/// MXFP4 with scales rounded down, by this rule.
fn mxfp4(rule: ScaleRule) -> Format {
    Format {
        grid: Grid::Float(Minifloat::E2M1),
        span: Span::Group(BLOCK),
        store: Store::E8M0(Power::Floor),
        rule,
        ties: crate::format::Ties::Even,
        exact: false,
    }
}
