//! Attention by both paths, its backward pass, and attention of one token to a cache.

use super::{Case, Prepared, Size, Work, prepared, random, random_as, zeros, zeros_as};
use walsh::kernel::attention::{AttentionDims, AttentionPath, attention_on};
use walsh::kernel::attention_backward::{AttentionGrads, attention_backward_on};
use walsh::kernel::attention_cached::{CacheDims, KvCache, attention_cached, kv_append};
use walsh::kernel::rope::{Lane, Rope, RopePairs, frequencies, rope};
use walsh::{Context, DType, Result, Tensor, Tier};

pub const CASES: &[Case] = &[
    Case {
        name: "attention",
        kernels: &["attention"],
        needs: Tier::Baseline,
        prepare: |c, s| forward(c, s, AttentionPath::Tiles),
    },
    Case {
        name: "attention_rows",
        kernels: &["attention_rows"],
        needs: Tier::Baseline,
        prepare: |c, s| forward(c, s, AttentionPath::Rows),
    },
    Case {
        name: "attention_backward",
        kernels: &["attention_backward_query", "attention_backward_key"],
        needs: Tier::Baseline,
        prepare: |c, s| backward(c, s, AttentionPath::Tiles),
    },
    Case {
        name: "attention_rows_backward",
        kernels: &["attention_rows_backward_query", "attention_rows_backward_key"],
        needs: Tier::Baseline,
        prepare: |c, s| backward(c, s, AttentionPath::Rows),
    },
    Case {
        name: "attention_coop",
        kernels: &["attention_coop"],
        needs: Tier::Coop,
        prepare: |c, s| forward(c, s, AttentionPath::Coop),
    },
    Case {
        name: "attention_coop_backward",
        kernels: &["attention_coop_backward_query", "attention_coop_backward_key"],
        needs: Tier::Coop,
        prepare: |c, s| backward(c, s, AttentionPath::Coop),
    },
    Case { name: "kv_append", kernels: &["kv_append"], needs: Tier::Baseline, prepare: |c, s| cached(c, s, true) },
    Case {
        name: "attention_cached",
        kernels: &["attention_cached"],
        needs: Tier::Baseline,
        prepare: |c, s| cached(c, s, false),
    },
    Case { name: "rope", kernels: &["rope"], needs: Tier::Baseline, prepare: rotate },
];

fn dims(size: Size) -> AttentionDims {
    let Size { batch, seq, heads, width, .. } = size;
    AttentionDims { batch, seq, heads, head_dim: width / heads, causal: true }
}

/// What the path computes with.
fn dtype(path: AttentionPath) -> DType {
    if path == AttentionPath::Coop { DType::F16 } else { DType::F32 }
}

fn shape(size: Size) -> String {
    format!("{}x{}x{}x{}", size.batch, size.seq, size.heads, size.width / size.heads)
}

/// Two products over half of the pairs, since the others are masked: 2 x 2 T^2 C / 2 a sequence.
fn flops(size: Size) -> usize {
    2 * size.batch * size.seq * size.seq * size.width
}

fn forward(context: &Context, size: Size, path: AttentionPath) -> Result<Prepared> {
    let d = dims(size);
    let dtype = dtype(path);
    let (qkv, out) = (random_as(context, 3 * d.out_len(), dtype)?, zeros_as(context, d.out_len(), dtype)?);
    let lse = zeros(context, d.rows())?;
    let c = context.clone();
    prepared(shape(size), Work::Flops(flops(size)), &[&out.clone(), &lse.clone()], move || {
        attention_on(&c, qkv.buffer(), out.buffer(), lse.buffer(), d, None, path)
    })
}

fn backward(context: &Context, size: Size, path: AttentionPath) -> Result<Prepared> {
    let d = dims(size);
    let dtype = dtype(path);
    let (qkv, out) = (random_as(context, 3 * d.out_len(), dtype)?, zeros_as(context, d.out_len(), dtype)?);
    let lse = zeros(context, d.rows())?;
    attention_on(context, qkv.buffer(), out.buffer(), lse.buffer(), d, None, path)?;
    let (dout, dqkv) = (random_as(context, d.out_len(), dtype)?, zeros_as(context, 3 * d.out_len(), dtype)?);
    let c = context.clone();
    // Five products instead of two.
    prepared(shape(size), Work::Flops(flops(size) / 2 * 5), &[&dqkv.clone()], move || {
        let [qkv, out, dout, lse, dqkv] = [&qkv, &out, &dout, &lse, &dqkv].map(Tensor::buffer);
        attention_backward_on(&c, AttentionGrads { qkv, out, dout, lse, dqkv }, d, None, path)
    })
}

fn cached(context: &Context, size: Size, append: bool) -> Result<Prepared> {
    let dims = CacheDims { batch: 1, heads: size.heads, head_dim: size.width / size.heads, max_seq: size.seq };
    let room = size.width * size.seq;
    let (keys, values, qkv) = (random(context, room)?, random(context, room)?, random(context, 3 * size.width)?);
    let length = Tensor::from_u32(context, &[size.seq as u32 - 1], &[1])?;
    let (out, c) = (zeros(context, size.width)?, context.clone());
    let written = if append { keys.clone() } else { out.clone() };
    let bytes = if append { 4 * 4 * size.width } else { 4 * (2 * room + 2 * size.width) };
    prepared(format!("{}x{}", size.seq, size.width), Work::Bytes(bytes), &[&written], move || {
        let cache = KvCache { keys: keys.buffer(), values: values.buffer(), length: length.buffer() };
        if append {
            kv_append(&c, qkv.buffer(), cache, dims)
        } else {
            attention_cached(&c, qkv.buffer(), cache, out.buffer(), dims)
        }
    })
}

fn rotate(context: &Context, size: Size) -> Result<Prepared> {
    let head_dim = size.width / size.heads;
    let qkv = random(context, 3 * size.rows() * size.width)?;
    let angles = frequencies(10000.0, head_dim);
    let angles = Tensor::from_f32(context, &angles, &[angles.len()])?;
    let c = context.clone();
    // Queries and keys, read and written.
    let bytes = 4 * 2 * 2 * size.rows() * size.width;
    prepared(shape(size), Work::Bytes(bytes), &[&qkv.clone()], move || {
        let task = Rope {
            rows: size.rows(),
            seq: size.seq,
            heads: 2 * size.heads,
            head_dim,
            pairs: RopePairs::HalfSplit,
            inverse: false,
            frequencies: angles.buffer(),
            position_offset: None,
        };
        rope(&c, task, None, qkv.buffer(), Lane { stride: 3 * size.width, offset: 0 })
    })
}
