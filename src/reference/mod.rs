//! Float64 definitions of every kernel: plain loops, nothing shared with the shaders. Only tests use them.

pub mod attention;
pub mod attention_cached;
pub mod binary;
pub mod dropout;
pub mod matmul;
pub mod rope;
pub mod softmax;
pub mod swiglu;
pub mod unary;
