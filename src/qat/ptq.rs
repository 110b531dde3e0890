//! Quantization after training, round to nearest: the baseline of every method that trains with quantized operands.

use super::{Asked, Coding, Operand, Rule, as_asked};
use crate::Result;
use crate::format::Format;
use std::fmt;

/// Training in full precision; evaluation and sampling quantize. Any format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ptq;

impl Rule for Ptq {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ptq")
    }

    fn format(&self, _: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        Ok(as_asked(asked))
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        Coding::new(format, hadamard)
    }

    fn trains_quantized(&self) -> bool {
        false
    }
}
