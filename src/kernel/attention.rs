//! Softmax attention on packed QKV, forward.

use super::{Dropout, dim, expect};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// Attention by 64 x 64 tiles in workgroup memory.
pub static KERNEL: Kernel = Kernel {
    name: "attention",
    source: include_str!("../../shaders/attention.wgsl"),
    tiers: &[Tier::Baseline],
    variants: tile_variants,
    proven_bounds: true,
};

/// Attention with one query per invocation, for adapters that run shaders on the CPU.
pub static ROWS: Kernel = Kernel {
    name: "attention_rows",
    source: include_str!("../../shaders/attention_rows.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: row_variants,
    proven_bounds: true,
};

/// Attention on cooperative matrices.
pub static COOP: Kernel = Kernel {
    name: "attention_coop",
    source: include_str!("../../shaders/attention_coop.wgsl"),
    tiers: &[Tier::Coop],
    variants: coop_variants,
    proven_bounds: true,
};

/// Head widths that the kernels are specialised for.
pub const HEAD_DIMS: [u32; 6] = [16, 32, 48, 64, 96, 128];

/// Head widths that the kernels on cooperative matrices are specialised for.
pub const COOP_HEAD_DIMS: [u32; 3] = [32, 64, 128];

/// Rows of a workgroup on cooperative matrices: 16 for each of 4 subgroups.
const COOP_ROWS: u64 = 64;

pub(super) fn coop_variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for head_dim in COOP_HEAD_DIMS {
        for (dropout, int64) in [(false, false), (true, false), (true, true)] {
            all.push(coop_defines(head_dim, dropout, int64));
        }
    }
    all
}

fn coop_defines(head_dim: u32, dropout: bool, int64: bool) -> Defines {
    vec![
        ("HEAD_DIM", head_dim.into()),
        ("Elem", Scalar::F16.into()),
        ("DROPOUT", dropout.into()),
        ("INT64", int64.into()),
        ("GROUPS", (head_dim / 16).into()),
        ("UNITS", (head_dim / 32).into()),
    ]
}

fn each(defines: impl Fn(u32, Scalar, bool) -> Vec<Defines>) -> Vec<Defines> {
    let mut all = Vec::new();
    for head_dim in HEAD_DIMS {
        for elem in [Scalar::F32, Scalar::F16] {
            for dropout in [false, true] {
                all.extend(defines(head_dim, elem, dropout));
            }
        }
    }
    all
}

pub(super) fn tile_variants() -> Vec<Defines> {
    each(|head_dim, elem, dropout| vec![tile_defines(head_dim, elem.into(), dropout)])
}

pub(super) fn row_variants() -> Vec<Defines> {
    each(|head_dim, elem, dropout| {
        let widths: &[u32] = if head_dim % 32 == 0 { &[4, 8] } else { &[4] };
        widths.iter().map(|fan| row_defines(head_dim, elem.into(), dropout, *fan)).collect()
    })
}

fn tile_defines(head_dim: u32, elem: Define, dropout: bool) -> Defines {
    // Both operands' chunks must fit 16 KiB of workgroup memory.
    let chunk = if head_dim == 32 || head_dim == 64 { 32u32 } else { 16 };
    vec![
        ("HEAD_DIM", head_dim.into()),
        ("Elem", elem),
        ("DROPOUT", dropout.into()),
        ("CHUNK", chunk.into()),
        ("WIDE", (head_dim > 64).into()),
    ]
}

fn row_defines(head_dim: u32, elem: Define, dropout: bool, fan: u32) -> Defines {
    vec![("HEAD_DIM", head_dim.into()), ("Elem", elem), ("DROPOUT", dropout.into()), ("FAN", fan.into())]
}

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Sequences.
    pub batch: usize,
    /// Tokens per sequence, T.
    pub seq: usize,
    /// Heads.
    pub heads: usize,
    /// Elements per head, one of [`HEAD_DIMS`].
    pub head_dim: usize,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
}

impl AttentionDims {
    /// Elements of an output, `[batch, seq, heads * head_dim]`. Saturates.
    #[must_use]
    pub fn out_len(&self) -> usize {
        [self.seq, self.heads, self.head_dim].into_iter().fold(self.batch, usize::saturating_mul)
    }

    /// Elements of the row statistics, `[batch, heads, seq]`. Saturates.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.batch.saturating_mul(self.heads).saturating_mul(self.seq)
    }
}

/// Which family of kernels computes attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionPath {
    /// One query (or key) per invocation: CPU adapters.
    Rows,
    /// Tiles in workgroup memory: GPUs.
    Tiles,
    /// Cooperative matrices: f16 on the cooperative tier, with a dropout of at most 127/128.
    Coop,
}

/// The largest factor 1 / (1 - p) of dropout on cooperative matrices: weights there are f16 and up to 2^8 times it, and f16 ends below 2^16.
const COOP_DROPOUT_FACTOR: f32 = 128.0;

fn coop_holds(dropout: Option<Dropout<'_>>) -> bool {
    dropout.is_none_or(|d| d.factors().1 <= COOP_DROPOUT_FACTOR)
}

impl AttentionPath {
    /// The one for the context's adapter and a problem.
    #[must_use]
    pub fn of(context: &Context, dtype: DType, head_dim: usize, dropout: Option<Dropout<'_>>) -> Self {
        let coop = dtype == DType::F16 && COOP_HEAD_DIMS.iter().any(|d| *d as usize == head_dim) && coop_holds(dropout);
        match context.tier() {
            Tier::Coop if coop => Self::Coop,
            _ if context.capabilities().is_cpu() => Self::Rows,
            _ => Self::Tiles,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Params {
    batch: u32,
    seq: u32,
    heads: u32,
    causal: u32,
    scale: f32,
    drop_op: u32,
    drop_micro: u32,
    drop_threshold: u32,
    drop_scale: f32,
    seed_low: u32,
    seed_high: u32,
    reserved: u32,
}

/// A checked problem: parameters, defines and grid for each path.
pub(super) struct Plan {
    pub params: Params,
    pub defines: Defines,
    pub grid: Grid,
    pub dtype: DType,
}

pub(super) fn plan(
    context: &Context,
    op: &'static str,
    qkv: &Buffer,
    dims: AttentionDims,
    dropout: Option<Dropout<'_>>,
    path: AttentionPath,
) -> Result<Plan> {
    let head_dim = dim(dims.head_dim)?;
    if !HEAD_DIMS.contains(&head_dim) {
        return Err(Error::shape(op, format!("head_dim of {HEAD_DIMS:?}"), dims.head_dim.to_string()));
    }
    expect(
        op,
        "qkv",
        qkv,
        elements(&[3, dims.batch, dims.seq, dims.heads, dims.head_dim])?,
        &[DType::F32, DType::F16],
    )?;
    let mut params = Params {
        batch: dim(dims.batch)?,
        seq: dim(dims.seq)?,
        heads: dim(dims.heads)?,
        causal: dims.causal.into(),
        scale: 1.0 / (dims.head_dim as f32).sqrt(),
        drop_op: 0,
        drop_micro: 0,
        drop_threshold: 0,
        drop_scale: 1.0,
        seed_low: 0,
        seed_high: 0,
        reserved: 0,
    };
    if let Some(dropout) = dropout {
        dim(dims.rows().saturating_mul(dims.seq.div_ceil(4)))?; // the random numbers' counter
        dropout.check(op)?;
        let (threshold, scale) = dropout.factors();
        let [low, high] = dropout.seed_words();
        (params.drop_op, params.drop_micro) = (dropout.op, dropout.micro);
        (params.drop_threshold, params.drop_scale, params.seed_low, params.seed_high) = (threshold, scale, low, high);
    }
    let heads = (dims.batch * dims.heads) as u64;
    let (defines, per_workgroup) = match path {
        AttentionPath::Tiles => (tile_defines(head_dim, qkv.dtype().into(), dropout.is_some()), 64),
        AttentionPath::Coop => {
            if !COOP_HEAD_DIMS.contains(&head_dim) || qkv.dtype() != DType::F16 || context.tier() < Tier::Coop {
                let expected = format!("f16 and head_dim of {COOP_HEAD_DIMS:?} on the cooperative tier");
                let got = format!("{} and {head_dim} on the {} tier", qkv.dtype(), context.tier());
                return Err(Error::shape(op, expected, got));
            }
            if let Some(dropout) = dropout.filter(|d| !coop_holds(Some(*d))) {
                let expected = "a dropout of at most 127/128 on cooperative matrices, whose weights are f16";
                return Err(Error::invalid(op, expected, dropout.p.to_string()));
            }
            let int64 = dropout.is_some() && context.capabilities().features.contains(wgpu::Features::SHADER_INT64);
            (coop_defines(head_dim, dropout.is_some(), int64), COOP_ROWS)
        }
        AttentionPath::Rows => {
            let caps = context.capabilities();
            let fan = if head_dim % 32 == 0 && caps.subgroup_size.0 >= 8 { 8 } else { 4 };
            (row_defines(head_dim, qkv.dtype().into(), dropout.is_some(), fan), 8)
        }
    };
    let grid = Grid::Linear(heads * (dims.seq as u64).div_ceil(per_workgroup));
    Ok(Plan { params, defines, grid, dtype: qkv.dtype() })
}

/// Softmax attention: per head `out = dropout(softmax(q k^T / sqrt(head_dim))) v`.
///
/// # Shapes
/// `qkv [batch, seq, 3 * heads * head_dim]`, f32 or f16: q, then k, then v, each `[heads, head_dim]`; `out [batch, seq, heads * head_dim]` of the
/// same type; `lse [batch, heads, seq]` f32, the logarithm of the sum of exponentials of a query's scaled scores, which the backward pass wants.
///
/// # Errors
/// [`Error::Shape`] for other shapes or a head width outside [`HEAD_DIMS`]; [`Error::Invalid`] for a dropout that is no probability below 1;
/// [`Error::Limit`] where indices exceed 32 bits.
///
/// # Numerics
/// Computed in f32 with an online softmax; nothing of size `seq * seq` is stored. Dropout counts its random numbers over `[batch, heads, seq, keys]`
/// with keys padded to a multiple of 4. With f16 buffers on the cooperative tier the products run on matrix units with f16 operands and f32 sums:
/// the weights are rounded to f16, and weights below 2^-25 of a row's sum vanish; not with a dropout above 127/128, whose factor would carry weights
/// beyond the range of f16. Each result depends only on its own sequence and head, and with `causal` only on tokens up to its own.
///
/// # Source
/// Dao et al., "FlashAttention", 2022, algorithm 1; Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
pub fn attention(
    context: &Context,
    qkv: &Buffer,
    out: &Buffer,
    lse: &Buffer,
    dims: AttentionDims,
    dropout: Option<Dropout<'_>>,
) -> Result<()> {
    let path = AttentionPath::of(context, qkv.dtype(), dims.head_dim, dropout);
    attention_on(context, qkv, out, lse, dims, dropout, path)
}

/// The same by a path of the caller's choice, for tests and benches.
///
/// # Errors
/// As [`attention`]; [`Error::Invalid`] for a dropout above 127/128 on cooperative matrices.
pub fn attention_on(
    context: &Context,
    qkv: &Buffer,
    out: &Buffer,
    lse: &Buffer,
    dims: AttentionDims,
    dropout: Option<Dropout<'_>>,
    path: AttentionPath,
) -> Result<()> {
    let plan = plan(context, "attention", qkv, dims, dropout, path)?;
    expect("attention", "out", out, dims.out_len(), &[plan.dtype])?;
    expect("attention", "lse", lse, dims.rows(), &[DType::F32])?;
    let kernel = match path {
        AttentionPath::Rows => &ROWS,
        AttentionPath::Tiles => &KERNEL,
        AttentionPath::Coop => &COOP,
    };
    let mut bindings = vec![qkv.read(), out.write(), lse.write()];
    bindings.extend(dropout.iter().map(|d| d.state.read()));
    context.dispatch(kernel, &plan.defines, &plan.params, &bindings, plan.grid)
}
