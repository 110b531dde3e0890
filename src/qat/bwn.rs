//! Binary weight networks (Rastegari et al., "XNOR-Net", arXiv 1603.05279): signs times the mean magnitude of their row.

use super::{Asked, Coding, Operand, Rule, only, weights_alone};
use crate::format::Format;
use crate::kernel::sign_gradient::Factor;
use crate::{Error, Result};
use std::fmt;

/// Weights `alpha Sign(w)` with `alpha = mean |w|` over a row, the least squares; inputs stay dense. Gradients pass where `|w| <= 1`, as in
/// XNOR-Net's rule for signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bwn {
    /// `dw = dq (1 / n + alpha [|w| <= 1])`, which counts what a weight does through `alpha`. That this is the paper's own gradient is from
    /// memory and was not compared with it.
    pub exact: bool,
}

impl Bwn {
    pub(super) fn parse(options: &[&str]) -> Option<Self> {
        match options {
            [] => Some(Self::default()),
            ["exact"] => Some(Self { exact: true }),
            _ => None,
        }
    }
}

impl Rule for Bwn {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.exact { "bwn:exact" } else { "bwn" })
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        match operand {
            Operand::Weights => only("bwn", "binary", asked),
            Operand::Activations => weights_alone("bwn", asked),
        }
    }

    fn refuse_rotation(&self, block: u32) -> Option<Error> {
        Some(super::no_rotation("bwn", block))
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        let factor = if self.exact { Factor::ThroughMean } else { Factor::Clip };
        Coding { factor: Some(factor), ..Coding::new(format, hadamard) }
    }
}
