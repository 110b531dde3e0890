//! Operations on tensors: one file each with shape rule, forward and backward side by side. They call kernels and nothing else.
//!
//! Most are methods of [`crate::Tensor`]: `linear`, `layer_norm`, `rms_norm`, `attention`, `embedding`, `cross_entropy`, `token_losses`,
//! `soft_cross_entropy`, `hidden_distance`, `hadamard`. What takes options is here: [`linear()`] fuses bias, activation, dropout and
//! residual into the product, [`normed_linear`] a layer norm into its input's quantization, and [`LossOptions`] are those of the loss.
//!
//! Each checks its shapes before it takes memory, and records; see [`crate::Context::submit`].

mod attention;
mod binary;
mod distillation;
mod dropout;
mod embedding;
mod hadamard;
mod linear;
mod loss;
mod matmul;
mod norm;
mod reduce;
mod rope;
mod shape;
mod softmax;
mod unary;
mod values;

pub use crate::kernel::matmul::Activation;
pub use hadamard::HadamardOptions;
pub(crate) use linear::coding_of_norms;
pub use linear::{LinearOptions, linear, normed_linear};
pub use loss::LossOptions;
pub use norm::LayerNorm;
