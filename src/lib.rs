//! Low-bit training on any GPU.

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
pub mod shader;
mod tensor;
pub mod train;

pub use autograd::{Gradients, checkpoint};
pub use buffer::{Buffer, Readback};
pub use capabilities::{Capabilities, Tier, recommended_features};
pub use context::{Context, ContextOptions, Counts};
pub use error::{Error, Result};
pub use kernel::cross_entropy::IGNORE;
pub use tensor::{DType, Tensor};
pub use wgpu;
