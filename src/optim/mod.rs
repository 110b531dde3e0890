//! Parameters in an arena, and AdamW over it.
//!
//! A [`ParameterBuilder`] collects names, shapes and initial values; [`ParameterBuilder::build`] lays all of them out in one buffer (chunks of it,
//! where the device's limit on bindings asks for that), with a second one of the same layout for gradients. So [`AdamW::step`] takes a few
//! dispatches whatever the number of parameters, backward passes write gradients into their place, and clipping by the global norm needs no
//! readback. Step number, learning rate and loss scale are in a [`StepState`] on the device.
//!
//! [`AdamW::step_toward`] also pulls quantized parameters toward the grid, by a [`Correction`]: CAGE, or plain error feedback. [`Optimizer`] names them.

mod adamw;
mod correction;
mod optimizer;
mod parameters;

pub use crate::kernel::optimizer_step::StepState;
pub use adamw::{AdamW, AdamWOptions, Schedule};
pub use correction::{Correction, Quantized};
pub use optimizer::{Cage, Feedback, Optimizer, SPELLINGS};
pub(crate) use parameters::padded_len;
pub use parameters::{Init, ParameterBuilder, ParameterInfo, Parameters};
