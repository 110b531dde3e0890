//! NVIDIA's recipe for pre-training in NVFP4 (arXiv 2509.25149): weights in squares of 16 x 16, inputs and gradients in groups of 16,
//! forward and backward; stochastic rounding for gradients alone; a random Hadamard transform of blocks of 16, with one sign vector for
//! the whole run, for the two operands of the weight's gradient alone; the last blocks in full precision.

use super::{Asked, Backward, Coding, Operand, Quantizer, Rule};
use crate::format::{Format, Grid, Minifloat, Rule as ScaleRule, Span, Store, Ties};
use crate::{Error, Result};
use std::fmt;

/// The recipe.
///
/// A block's scale is rounded to E4M3, by up to 1/17 down; elements that are beyond the grid then saturate, so that stochastic rounding of
/// gradients has a bias toward zero, of 6 % for the worst element. That is the recipe as published; [`Self::unbiased`] leaves room for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nvfp4 {
    /// How many of the last blocks stay in full precision, fewer than there are. By default 15 % of them, rounded, and one at least: the
    /// share in the paper, where it is the first two and the last eight of 62 blocks.
    pub dense: Option<u32>,
    /// Rounds 16/17 of the backward pass's operands, and multiplies products by 17/16 for each: nothing saturates where scales are normal
    /// numbers of E4M3 (blocks down to a 28672nd of the largest one), and the gradient of the inputs has no bias there (as Quartet II, arXiv
    /// 2601.22813, says of stochastic rounding in NVFP4).
    pub unbiased: bool,
}

/// The headroom of [`Nvfp4::unbiased`].
const HEADROOM: f32 = 16.0 / 17.0;

const FORMAT: Format = Format {
    grid: Grid::Float(Minifloat::E2M1),
    span: Span::Group(16),
    store: Store::E4M3,
    rule: ScaleRule::AbsMax,
    ties: Ties::Even,
    exact: false,
};

impl Nvfp4 {
    pub(super) fn parse(options: &[&str]) -> Option<Self> {
        let mut all = Self::default();
        for option in options {
            match option.strip_prefix("dense=") {
                Some(dense) if all.dense.is_none() => all.dense = Some(dense.parse().ok()?),
                None if *option == "unbiased" && !all.unbiased => all.unbiased = true,
                _ => return None,
            }
        }
        Some(all)
    }
}

impl Rule for Nvfp4 {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nvfp4")?;
        self.dense.map_or(Ok(()), |dense| write!(f, ":dense={dense}"))?;
        f.write_str(if self.unbiased { ":unbiased" } else { "" })
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        let got = match asked.map(Asked::format) {
            None => return Ok(Some(FORMAT)),
            Some(Some(format)) if format == FORMAT => return Ok(Some(format)),
            Some(format) => format.map_or("`dense`".into(), |format| format!("`{format}`")),
        };
        Err(Error::invalid(operand.flag(), "nvfp4 beside --method nvfp4 (ste takes all formats)", got))
    }

    fn check(&self, quantizer: &Quantizer) -> Result<()> {
        let Some(block) = quantizer.hadamard else { return Ok(()) };
        let expected = "off beside --method nvfp4, which rotates for the gradients of weights alone";
        Err(Error::invalid("--hadamard", expected, block.to_string()))
    }

    fn coding(&self, operand: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        Coding { square: operand == Operand::Weights, ..Coding::new(format, hadamard) }
    }

    fn backward(&self) -> Option<Backward> {
        Some(Backward {
            format: FORMAT,
            stochastic_gradient: true,
            stochastic_operands: false,
            headroom: if self.unbiased { HEADROOM } else { 1.0 },
            gain: 1.0,
            across: None,
            tokens: 16,
            fresh_signs: false,
            from_codes: false,
        })
    }

    fn dense_blocks(&self, blocks: usize) -> usize {
        // Rounded, without floats.
        self.dense.map_or_else(|| ((15 * blocks + 50) / 100).max(1), |dense| dense as usize).min(blocks)
    }
}
