//! Float64 definitions of every kernel: plain loops, nothing shared with the shaders. Only tests use them.

pub mod column_sum;
pub mod cross_entropy;
pub mod embedding;
pub mod layer_norm;
pub mod attention;
pub mod dropout;
pub mod gpt;
pub mod matmul;
pub mod reduce;
pub mod rms_norm;
pub mod row_sum;
