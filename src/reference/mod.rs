//! Float64 definitions of every kernel: plain loops, nothing shared with the shaders. Only tests use them.

pub mod attention;
pub mod dropout;
pub mod matmul;
