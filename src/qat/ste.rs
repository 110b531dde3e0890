//! Straight-through estimation (Bengio, Leonard and Courville, arXiv 1308.3432): gradients pass quantizers as if these were not there,
//! clipped or not. Scales are computed from the data, as the format says.

use super::{Asked, Coding, Operand, Rule, as_asked};
use crate::Result;
use crate::format::Format;
use std::fmt;

/// Straight-through estimation; any format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ste;

impl Rule for Ste {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ste")
    }

    fn format(&self, _: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        Ok(as_asked(asked))
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        Coding::new(format, hadamard)
    }
}
