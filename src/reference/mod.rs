//! Float64 definitions of every kernel: plain loops, nothing shared with the shaders. Only tests use them.

pub mod adamw;
pub mod attention;
pub mod attention_cached;
pub mod binary;
pub mod column_sum;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod fully_quantized;
pub mod gpt;
pub mod hadamard;
pub mod layer_norm;
pub mod learned_scale_backward;
pub mod linear;
pub mod mask;
pub mod matmul;
pub mod multiply_peak;
pub mod pad_rows;
pub mod quantize;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod row_sum;
pub mod softmax;
pub mod swiglu;
pub mod unary;
