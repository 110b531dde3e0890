//! Clipped straight-through estimation: no gradient where the magnitude exceeds the largest level, as in BinaryConnect (Courbariaux et al.,
//! arXiv 1511.00363) and in CAGE's quantizer (arXiv 2510.18784).

use super::{Asked, Coding, Operand, Rule, gaussian_rows, number, refuse_without_bound};
use crate::Result;
use crate::format::Format;
use std::fmt;

/// Gradients pass up to `bound` times the largest level. Formats with a symmetric range; integers by name have one scale per row, the least
/// squares for normal data, and no zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clipped {
    /// In units of the largest level; 1 by default.
    pub bound: f32,
}

impl Default for Clipped {
    fn default() -> Self {
        Self { bound: 1.0 }
    }
}

impl Clipped {
    pub(super) fn parse(options: &[&str]) -> Option<Self> {
        match options {
            [] => Some(Self::default()),
            [bound] => Some(Self { bound: number(bound, None)? }),
            _ => None,
        }
    }
}

impl Rule for Clipped {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("clipped")?;
        if *self == Self::default() { Ok(()) } else { write!(f, ":{}", self.bound) }
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        let format = gaussian_rows(asked);
        if let Some(format) = format {
            refuse_without_bound("clipped", operand, format)?;
        }
        Ok(format)
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        let bound = (f64::from(self.bound) * format.grid().max()) as f32;
        Coding { bound: Some(bound), ..Coding::new(format, hadamard) }
    }
}
