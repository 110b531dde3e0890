//! BitNet b1.58 (Ma et al., arXiv 2402.17764, with the recipe of its authors' training notes): ternary weights, activations in 8 bits.

use super::{Asked, Coding, Layer, Operand, Rule};
use crate::format::Format;
use crate::{Error, Result};
use std::fmt;

/// Weights `s clamp(round(w / s), -1, 1)` with `s = mean |w|` over the matrix, at least 1e-5; inputs int8 by the largest magnitude of a
/// token, which falls on 127; gradients pass both quantizers as if these were not there.
///
/// Each quantized layer has a norm right before it. Where the model has one there already, before the queries, keys and values and before
/// the MLP, that is it; the two projections onto the residual stream get an RMS norm without bias (`<module>.norm.weight`, first 1).
///
/// Queries, keys and values are one matrix here and have one scale, the mean magnitude of all three; the authors' code gives each its own. At the
/// same initialisation they start equal, and part as training goes. Formats have no [`Span`](crate::format::Span) of so many rows: a matrix has
/// one factor in its header, or each row or group has a scale, and every product takes it from there. Three matrices instead would be three
/// products, and three quantizations of their input. `--weights ternary:row` has finer scales than the authors'.
///
/// A token whose largest magnitude is below 1e-5 still has its own scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitNet;

impl Rule for BitNet {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bitnet")
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        match (operand, asked) {
            (Operand::Weights, None) => "ternary".parse().map(Some),
            (Operand::Activations, None) => "int8:row:f32".parse().map(Some),
            // A bare name of integers means the variant with one scale per token.
            (Operand::Activations, Some(Asked::Named(format))) if format.name().starts_with("int") => {
                format!("{}:row:f32", format.name()).parse().map(Some)
            }
            (Operand::Activations, Some(asked)) => Ok(asked.format()),
            (Operand::Weights, Some(asked)) => match asked.format() {
                Some(format) if format.name() == "ternary" => Ok(Some(format)),
                _ => {
                    let expected = "ternary, with or without options, beside --method bitnet (ste takes other formats)";
                    Err(Error::invalid(operand.flag(), expected, format!("`{asked}`")))
                }
            },
        }
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        Coding::new(format, hadamard)
    }

    fn layer(&self) -> Layer {
        Layer::Normed
    }
}
