//! Attention by both paths, its backward pass, and attention of one token to a cache.

use super::{Case, Prepared, Size, Work, prepared, random, random_as, zeros, zeros_as};
use crate::kernel::attention::{AttentionDims, AttentionPath, attention_on};
use crate::kernel::attention_backward::{AttentionGrads, attention_backward_on};
use crate::kernel::attention_cached::{CacheDims, KvCache, attention_cached, kv_append};
use crate::kernel::rope::{Lane, Rope, RopePairs, frequencies, rope};
use crate::{Context, DType, Result, Tensor, Tier};

pub fn cases(size: Size) -> Vec<Case> {
    let Size { seq, width, .. } = size;
    let mut all = Vec::new();
    for path in [AttentionPath::Tiles, AttentionPath::Rows, AttentionPath::Coop] {
        all.extend(paired(size, path));
    }
    let cached_bytes = |append| 4 * if append { 4 * width } else { 2 * width * seq + 2 * width };
    for (name, append) in [("kv_append", true), ("attention_cached", false)] {
        let work = Work::bytes(cached_bytes(append));
        // Two products with each of `seq` rows.
        let work = if append { work } else { work.flops(4 * seq * width) };
        all.push(Case::new(name, [1, width, seq], work, move |c| cached(c, size, append)));
    }
    // Queries and keys, read and written.
    let work = Work::bytes(4 * 2 * 2 * size.rows() * width);
    all.push(Case::new("rope", [size.rows(), width, seq], work, move |c| rotate(c, size)));
    all
}

/// A path forward and backward.
fn paired(size: Size, path: AttentionPath) -> [Case; 2] {
    let (names, kernels): ([&str; 2], [&'static str; 2]) = match path {
        AttentionPath::Tiles => {
            (["attention", "attention_backward"], ["attention_backward_query", "attention_backward_key"])
        }
        AttentionPath::Rows => (
            ["attention_rows", "attention_rows_backward"],
            ["attention_rows_backward_query", "attention_rows_backward_key"],
        ),
        AttentionPath::Coop => (
            ["attention_coop", "attention_coop_backward"],
            ["attention_coop_backward_query", "attention_coop_backward_key"],
        ),
    };
    let (dtype, shape) = (dtype(path), [size.rows(), size.width, size.seq]);
    let tier = if path == AttentionPath::Coop { Tier::Coop } else { Tier::Baseline };
    let bytes = |tensors: usize| Work::bytes(dtype.size() * tensors * size.rows() * size.width);
    // Queries, keys, values and the result; the gradient reads these four and one more, and writes three. It has five products instead of two.
    let forward_work = bytes(4).flops(flops(size));
    let backward_work = bytes(8).flops(flops(size) / 2 * 5);
    [
        Case::new(names[0], shape, forward_work, move |c| forward(c, size, path)).dtype(dtype).tier(tier),
        Case::new(names[1], shape, backward_work, move |c| backward(c, size, path))
            .dtype(dtype)
            .tier(tier)
            .kernels(&kernels),
    ]
}

fn dims(size: Size) -> AttentionDims {
    let Size { batch, seq, heads, width, .. } = size;
    AttentionDims { batch, seq, heads, head_dim: width / heads, causal: true }
}

/// What the path computes with.
fn dtype(path: AttentionPath) -> DType {
    if path == AttentionPath::Coop { DType::F16 } else { DType::F32 }
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
    prepared(&[&out.clone(), &lse.clone()], move || {
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
    prepared(&[&dqkv.clone()], move || {
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
    prepared(&[&written], move || {
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
    prepared(&[&qkv.clone()], move || {
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
