//! Low-bit training on any GPU.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod autograd;
mod buffer;
mod capabilities;
mod context;
mod error;
pub mod kernel;
pub mod nn;
pub mod op;
pub mod optim;
pub mod random;
#[doc(hidden)]
pub mod reference;
mod self_test;
pub mod shader;
mod tensor;
pub mod train;

pub use autograd::{Gradients, checkpoint};
pub use buffer::{Buffer, Readback};
pub use capabilities::{Capabilities, Tier, recommended_features};
pub use context::{Context, ContextOptions, Counts};
pub use error::{Error, Result};
pub use kernel::cross_entropy::IGNORE;
pub use self_test::{Case, SelfTest};
pub use tensor::{DType, Tensor};
pub use wgpu;
