//! Sizes whose product no integer holds are refused with a typed error, and never wrap around to the length of some buffer.

use walsh::kernel::attention::{AttentionDims, attention};
use walsh::kernel::attention_backward::{AttentionGrads, attention_backward};
use walsh::kernel::attention_cached::{CacheDims, KvCache, attention_cached, kv_append};
use walsh::kernel::binary::{Binary, binary, sum_to};
use walsh::kernel::column_sum::column_sum;
use walsh::kernel::cross_entropy::cross_entropy;
use walsh::kernel::embedding::{embedding, embedding_backward};
use walsh::kernel::hidden_distance::{hidden_distance, hidden_distance_backward};
use walsh::kernel::layer_norm::{ParameterGradients, layer_norm, layer_norm_backward};
use walsh::kernel::mask::{mask, words};
use walsh::kernel::matmul::{Dims, Epilogue, Form, Matmul, matmul};
use walsh::kernel::packed::Packed;
use walsh::kernel::packed_matmul::{Operand, PackedMatmul, packed_matmul};
use walsh::kernel::pad_rows::pad_rows;
use walsh::kernel::rms_norm::{rms_norm, rms_norm_backward};
use walsh::kernel::rope::{Lane, Rope, RopePairs, rope};
use walsh::kernel::row_sum::row_sum;
use walsh::kernel::scale_columns::{column_dot, scale_columns};
use walsh::kernel::soft_cross_entropy::{Factors, soft_cross_entropy};
use walsh::kernel::softmax::{softmax, softmax_backward};
use walsh::kernel::swiglu::{swiglu, swiglu_backward};
use walsh::kernel::value_norm::{self, value_norm, value_norm_backward};
use walsh::{Context, DType, Error, Result, Tensor};

/// Its square is 2^64, which wraps around to the length of an empty buffer.
const HALF: usize = 1 << (usize::BITS / 2);

#[test]
fn products_of_sizes_that_overflow_are_refused() {
    let context = &Context::new().unwrap();
    let [empty, indices] = [DType::F32, DType::U32].map(|dtype| Tensor::zeros(context, &[0], dtype).unwrap());
    let (x, u, shape) = (empty.buffer(), indices.buffer(), [HALF, HALF]);
    let attend = AttentionDims { batch: HALF, seq: HALF, heads: 1, head_dim: 64, causal: true };
    let cached = CacheDims { batch: HALF, heads: 1, head_dim: 64, max_seq: HALF };
    let cache = KvCache { keys: x, values: x, length: u };
    let grads = AttentionGrads { qkv: x, out: x, dout: x, lse: x, dqkv: x };
    let factors = Factors { factor: 1.0, state: None };
    let gradients = ParameterGradients { weight: x, bias: None, accumulate: false };
    let values = value_norm::Statistics { mean: x, rstd: x };
    let product = Matmul {
        form: Form::Nt,
        dims: Dims::new(HALF, 1, HALF),
        a: x,
        b: x,
        out: x,
        alpha: 1.0,
        bias: None,
        epilogue: Epilogue::None,
        accumulate: false,
    };
    let packed = &Packed::empty(context, "int4".parse().unwrap(), 0, HALF / 2).unwrap();
    let packed_product = PackedMatmul {
        form: Form::Nt,
        m: 4 * HALF,
        n: 0,
        k: HALF / 2,
        a: Operand::Dense(x),
        b: packed,
        out: x,
        alpha: 1.0,
        bias: None,
        epilogue: Epilogue::None,
        accumulate: false,
        mask: None,
    };
    let lane = Lane { stride: HALF, offset: 0 };
    let turn = |heads: usize| Rope {
        rows: HALF,
        seq: 1,
        heads,
        head_dim: 8,
        pairs: RopePairs::Interleaved,
        inverse: false,
        frequencies: x,
        position_offset: None,
    };
    let refused: Vec<(&str, Result<()>)> = vec![
        ("attention", attention(context, x, x, x, attend, None)),
        ("attention_backward", attention_backward(context, grads, attend, None)),
        ("attention_cached", attention_cached(context, x, cache, x, cached)),
        ("kv_append", kv_append(context, x, cache, cached)),
        ("binary", binary(context, Binary::Add, (x, &[HALF, 1]), (x, &[1, HALF]), x)),
        ("sum_to", sum_to(context, x, &shape, x, &[1], false)),
        ("column_sum", column_sum(context, x, x, shape, 1.0, false)),
        ("cross_entropy", cross_entropy(context, x, u, x, x, shape, 1, None)),
        ("hidden_distance_backward", hidden_distance_backward(context, x, x, x, shape, factors, false)),
        ("layer_norm", layer_norm(context, x, x, None, x, x, x, shape, 1e-5)),
        ("layer_norm_backward", layer_norm_backward(context, x, x, x, x, x, x, false, gradients, shape)),
        ("mask", mask(context, x, u, x, shape, false)),
        ("pad_rows", pad_rows(context, x, shape, x, [1, 1])),
        ("pad_rows", pad_rows(context, x, [0, 0], x, shape)),
        ("rms_norm", rms_norm(context, x, x, x, x, shape, 1e-5)),
        ("rms_norm_backward", rms_norm_backward(context, x, x, x, x, x, false, x, false, shape)),
        ("rope", rope(context, turn(usize::MAX / 4), None, x, lane)),
        ("row_sum", row_sum(context, x, x, shape, 1.0, false)),
        ("scale_columns", scale_columns(context, x, x, x, shape, false)),
        ("column_dot", column_dot(context, x, x, x, shape, false)),
        ("soft_cross_entropy", soft_cross_entropy(context, x, x, x, x, x, shape, 1, factors)),
        ("softmax", softmax(context, x, x, HALF, HALF)),
        ("softmax_backward", softmax_backward(context, x, x, x, HALF, HALF, false)),
        ("swiglu", swiglu(context, x, x, HALF, HALF)),
        ("swiglu_backward", swiglu_backward(context, x, x, x, HALF, HALF)),
        ("value_norm", value_norm(context, x, x, None, x, values, shape, 1e-5)),
        ("value_norm_backward", value_norm_backward(context, x, x, x, values, x, false, x, false, shape)),
        ("matmul", matmul(context, &product)),
        ("packed_matmul", packed_matmul(context, &packed_product)),
    ];
    for (name, result) in refused {
        assert!(matches!(result, Err(Error::Limit { needed: u64::MAX, .. })), "{name}: {result:?}");
    }
    // What has one element per row is looked at first, and the end of a lane before its rows.
    for (name, result) in [
        ("embedding", embedding(context, u, x, None, None, x, shape)),
        ("embedding_backward", embedding_backward(context, x, u, x, false, None, None, shape)),
        ("hidden_distance", hidden_distance(context, x, x, x, x, shape, 1.0)),
        ("rope", rope(context, turn(1), None, x, lane)),
    ] {
        assert!(matches!(result, Err(Error::Shape { .. })), "{name}: {result:?}");
    }
    assert_eq!((words(HALF, HALF), words(usize::MAX, 64)), (HALF * (HALF / 32), usize::MAX));
    assert_eq!((attend.out_len(), attend.rows()), (usize::MAX, usize::MAX));
}
