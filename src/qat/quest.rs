//! QuEST (Panferov et al., arXiv 2502.05003): rotate, scale by the root mean square of a row, round to the grid of least squared error for
//! normal data; in the backward pass trust what was rounded by at most half a step.

use super::{Asked, Coding, Operand, Rule, gaussian_rows, number};
use crate::format::{Format, Grid, Minifloat, Rule as ScaleRule, Span, Store};
use crate::{Error, Result};
use std::fmt;

/// QuEST with 1 to 8 bits, or E2M1, and one scale per row; weights alone, or weights and inputs. Rotated by blocks of up to 128 where nothing
/// else is said.
///
/// Trusted are, with T half the largest step, elements whose error is at most T: those up to T beyond the largest level, since no error within
/// the grid is larger. With one bit that is replaced by a bound of 1.30 times the level, 1.25 without rotation, as published; `trust` sets such a
/// factor on the largest level for other widths too.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quest {
    /// Trust magnitudes up to this factor on the largest level, instead of those with an error of at most half a step.
    pub trust: Option<f32>,
}

impl Quest {
    pub(super) fn parse(options: &[&str]) -> Option<Self> {
        match options {
            [] => Some(Self::default()),
            [trust] => Some(Self { trust: Some(number(trust, Some("trust"))?) }),
            _ => None,
        }
    }
}

impl Rule for Quest {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("quest")?;
        self.trust.map_or(Ok(()), |trust| write!(f, ":trust={trust}"))
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        let Some(format) = gaussian_rows(asked) else { return Ok(None) };
        let grid = matches!(format.grid(), Grid::Centred { .. } | Grid::Float(Minifloat::E2M1));
        let scales = (format.span(), format.store(), format.rule()) == (Span::Row, Store::F32, ScaleRule::Gaussian);
        if grid && scales {
            return Ok(Some(format));
        }
        Err(Error::invalid(
            operand.flag(),
            "int2 to int8, binary or e2m1 beside --method quest, with one f32 scale per row fitted to normal data, as in \
             int4:row:f32:centred:mse (ste takes all formats)",
            format!("`{format}`"),
        ))
    }

    fn rotates(&self) -> bool {
        true
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        let max = format.grid().max();
        // Half the largest step, in units of the scale: integers are 1 apart, E2M1's two largest levels 4 and 6.
        let half = if matches!(format.grid(), Grid::Float(_)) { 1.0 } else { 0.5 };
        let bound = match (self.trust, format.bits()) {
            (Some(trust), _) => f64::from(trust) * max,
            (None, 1) => {
                if hadamard.is_some() {
                    1.30 * max
                } else {
                    1.25 * max
                }
            }
            (None, _) => max + half,
        };
        Coding { bound: Some(bound as f32), ..Coding::new(format, hadamard) }
    }
}
