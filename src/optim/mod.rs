//! Parameters in an arena, and AdamW over it.

mod adamw;
mod parameters;

pub use crate::kernel::optimizer_step::StepState;
pub use adamw::{AdamW, AdamWOptions, Schedule};
pub use parameters::{Init, ParameterBuilder, ParameterInfo, Parameters};
