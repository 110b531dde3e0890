//! Operations on tensors: one file each with shape rule, forward and backward side by side. They call kernels and nothing else.

mod attention;
mod binary;
mod dropout;
mod embedding;
mod linear;
mod loss;
mod matmul;
mod norm;
mod reduce;
mod rope;
mod shape;
mod softmax;
mod unary;

pub use linear::{LinearOptions, linear};
pub use loss::LossOptions;
