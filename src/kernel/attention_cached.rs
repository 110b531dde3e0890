//! Attention of one new token per sequence against a cache of keys and values, for sampling.

use super::attention::HEAD_DIMS;
use super::{dim, expect};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// Writes the new token's key and value.
pub static APPEND: Kernel = Kernel {
    name: "kv_append",
    source: include_str!("../../shaders/kv_append.wgsl"),
    tiers: &[Tier::Baseline],
    variants: append_variants,
    proven_bounds: false,
};

/// The attention itself.
pub static KERNEL: Kernel = Kernel {
    name: "attention_cached",
    source: include_str!("../../shaders/attention_cached.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn append_variants() -> Vec<Defines> {
    [Scalar::F32, Scalar::F16].map(|elem| vec![("Elem", elem.into())]).to_vec()
}

fn variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for head_dim in HEAD_DIMS {
        for elem in [Scalar::F32, Scalar::F16] {
            for size in [8u32, 64] {
                all.push(vec![("HEAD_DIM", head_dim.into()), ("Elem", elem.into()), ("WG_SIZE", size.into())]);
            }
        }
    }
    all
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AppendParams {
    batch: u32,
    heads: u32,
    max_seq: u32,
    groups: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    batch: u32,
    heads: u32,
    max_seq: u32,
    scale: f32,
}

/// Sizes of a cache of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheDims {
    /// Sequences.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Elements per head, one of [`HEAD_DIMS`].
    pub head_dim: usize,
    /// Tokens that the cache has room for.
    pub max_seq: usize,
}

/// The cache of one layer.
#[derive(Clone, Copy, Debug)]
pub struct KvCache<'a> {
    /// `[batch, heads, max_seq, head_dim]`.
    pub keys: &'a Buffer,
    /// `[batch, heads, max_seq, head_dim]`.
    pub values: &'a Buffer,
    /// Tokens in the cache, one u32; on the device, so that each token submits the same commands. The caller advances it.
    pub length: &'a Buffer,
}

fn check(op: &'static str, qkv: &Buffer, cache: KvCache<'_>, dims: CacheDims) -> Result<()> {
    if !dim(dims.head_dim).is_ok_and(|d| HEAD_DIMS.contains(&d)) {
        return Err(Error::shape(op, format!("head_dim of {HEAD_DIMS:?}"), dims.head_dim.to_string()));
    }
    let CacheDims { batch, heads, head_dim, max_seq } = dims;
    let len = elements(&[batch, heads, head_dim, max_seq])?;
    expect(op, "qkv", qkv, elements(&[3, batch, heads, head_dim])?, &[DType::F32, DType::F16])?;
    expect(op, "keys", cache.keys, len, &[qkv.dtype()])?;
    expect(op, "values", cache.values, len, &[qkv.dtype()])?;
    expect(op, "length", cache.length, 1, &[DType::U32])
}

/// Writes k and v of one new token per sequence into row `length` of the cache.
///
/// # Shapes
/// `qkv [batch, 3 * heads * head_dim]` of the cache's type. Where the cache is full nothing is written.
///
/// # Errors
/// [`Error::Shape`] for other shapes.
pub fn kv_append(context: &Context, qkv: &Buffer, cache: KvCache<'_>, dims: CacheDims) -> Result<()> {
    check("kv_append", qkv, cache, dims)?;
    let params = AppendParams {
        batch: dim(dims.batch)?,
        heads: dim(dims.heads)?,
        max_seq: dim(dims.max_seq)?,
        groups: dim(dims.head_dim / 4)?,
    };
    let items = (dims.batch * dims.heads * dims.head_dim / 4) as u64;
    context.dispatch(
        &APPEND,
        &[("Elem", qkv.dtype().into())],
        &params,
        &[qkv.read(), cache.length.read(), cache.keys.write(), cache.values.write()],
        Grid::Linear(items.div_ceil(64)),
    )
}

/// Attention of one new token per sequence over the first `length + 1` rows of the cache, which [`kv_append`] has filled.
///
/// # Shapes
/// `qkv [batch, 3 * heads * head_dim]`, of which q is read; `out [batch, heads * head_dim]`; all of the cache's type.
///
/// # Errors
/// [`Error::Shape`] for other shapes.
///
/// # Numerics
/// Computed in f32; the sum over keys is split into 64 interleaved parts (8 on CPU adapters), added in a fixed order.
pub fn attention_cached(
    context: &Context,
    qkv: &Buffer,
    cache: KvCache<'_>,
    out: &Buffer,
    dims: CacheDims,
) -> Result<()> {
    check("attention_cached", qkv, cache, dims)?;
    expect("attention_cached", "out", out, dims.batch * dims.heads * dims.head_dim, &[qkv.dtype()])?;
    let params = Params {
        batch: dim(dims.batch)?,
        heads: dim(dims.heads)?,
        max_seq: dim(dims.max_seq)?,
        scale: 1.0 / (dims.head_dim as f32).sqrt(),
    };
    let size = if context.capabilities().is_cpu() { 8u32 } else { 64 };
    let defines = [("HEAD_DIM", dim(dims.head_dim)?.into()), ("Elem", qkv.dtype().into()), ("WG_SIZE", size.into())];
    context.dispatch(
        &KERNEL,
        &defines,
        &params,
        &[qkv.read(), cache.length.read(), cache.keys.read(), cache.values.read(), out.write()],
        Grid::Linear((dims.batch * dims.heads) as u64),
    )
}
