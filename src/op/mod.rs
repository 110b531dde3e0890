//! Operations on tensors: one file each with shape rule, forward and backward side by side. They call kernels and nothing else.

mod attention;
mod embedding;
mod linear;
mod loss;
mod norm;

pub use linear::{LinearOptions, linear};
pub use loss::LossOptions;
