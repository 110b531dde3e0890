//! Operations on tensors: one file each with shape rule, forward and backward side by side. They call kernels and nothing else.

mod linear;

pub use linear::{LinearOptions, linear};
