//! Inverted dropout.

use super::Dropout;
use crate::{Error, Result};

/// Refuses probabilities outside [0, 1) and a missing step state.
pub(crate) fn check(op: &'static str, dropout: &Dropout<'_>) -> Result<()> {
    if !(0.0..1.0).contains(&dropout.p) {
        return Err(Error::invalid(op, "a dropout probability of at least 0 and below 1", dropout.p.to_string()));
    }
    if dropout.state.bytes() < 64 {
        return Err(Error::shape(op, "a step state of 64 bytes", format!("{} bytes", dropout.state.bytes())));
    }
    Ok(())
}
