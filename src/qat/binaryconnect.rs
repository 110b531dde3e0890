//! BinaryConnect (Courbariaux, Bengio and David, arXiv 1511.00363): signs, with the weights behind them kept between -1 and 1.

use super::{Asked, Coding, Operand, Rule, Scale, only, weights_alone};
use crate::format::Format;
use crate::kernel::sign_gradient::Factor;
use crate::{Error, Result};
use std::fmt;

/// Weights `Sign(w)` with `Sign(0) = 1`, over the root of the layer's width; inputs stay dense. Gradients pass where `|w| <= 1`, and each
/// update ends with `w` moved back into `[-1, 1]`.
///
/// The paper's weights are -1 and 1 themselves ([`BinaryConnect::unit`]) and a batch norm after each layer takes their size away. A
/// transformer has none there: queries and keys grow with the width, attention saturates, and what the blocks add drowns the embedding. The
/// preset `nano` ends its first 300 steps at 2.73 nats with unit signs, at 1.98 with the factor `1 / sqrt(width)`, which keeps the size of
/// what goes through a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BinaryConnect {
    /// Without the factor: -1 and 1.
    pub unit: bool,
}

impl BinaryConnect {
    pub(super) fn parse(options: &[&str]) -> Option<Self> {
        match options {
            [] => Some(Self::default()),
            ["unit"] => Some(Self { unit: true }),
            _ => None,
        }
    }
}

impl Rule for BinaryConnect {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.unit { "binaryconnect:unit" } else { "binaryconnect" })
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        match operand {
            Operand::Weights => only("binaryconnect", "binary:tensor", asked),
            Operand::Activations => weights_alone("binaryconnect", asked),
        }
    }

    fn refuse_rotation(&self, block: u32) -> Option<Error> {
        Some(super::no_rotation("binaryconnect", block))
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        // Levels are half a scale from zero.
        let scale = if self.unit { Scale::Fixed(2.0) } else { Scale::ByWidth(2.0) };
        Coding { factor: Some(Factor::Clip), scale, ..Coding::new(format, hadamard) }
    }

    fn approximates_weights(&self) -> bool {
        // All signs have one size, whatever that of the weights.
        false
    }

    fn keeps_within_one(&self) -> bool {
        true
    }
}
