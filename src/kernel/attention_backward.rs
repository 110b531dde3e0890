//! Softmax attention on packed QKV, backward.

use super::attention::{AttentionDims, AttentionPath, Plan, coop_variants, plan, row_variants, tile_variants};
use super::{Dropout, expect};
use crate::buffer::Buffer;
use crate::shader::Kernel;
use crate::{Context, DType, Result, Tier};

/// Gradient of the queries by tiles; must run before [`KEY`].
pub static QUERY: Kernel = Kernel {
    name: "attention_backward_query",
    source: include_str!("../../shaders/attention_backward_query.wgsl"),
    tiers: &[Tier::Baseline],
    variants: tile_variants,
    proven_bounds: true,
};

/// Gradients of keys and values by tiles.
pub static KEY: Kernel = Kernel {
    name: "attention_backward_key",
    source: include_str!("../../shaders/attention_backward_key.wgsl"),
    tiers: &[Tier::Baseline],
    variants: tile_variants,
    proven_bounds: true,
};

/// Gradient of the queries, one per invocation; must run before [`ROWS_KEY`].
pub static ROWS_QUERY: Kernel = Kernel {
    name: "attention_rows_backward_query",
    source: include_str!("../../shaders/attention_rows_backward_query.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: row_variants,
    proven_bounds: true,
};

/// Gradients of keys and values, one key per invocation.
pub static ROWS_KEY: Kernel = Kernel {
    name: "attention_rows_backward_key",
    source: include_str!("../../shaders/attention_rows_backward_key.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: row_variants,
    proven_bounds: true,
};

/// Gradient of the queries on cooperative matrices; must run before [`COOP_KEY`].
pub static COOP_QUERY: Kernel = Kernel {
    name: "attention_coop_backward_query",
    source: include_str!("../../shaders/attention_coop_backward_query.wgsl"),
    tiers: &[Tier::Coop],
    variants: coop_variants,
    proven_bounds: true,
};

/// Gradients of keys and values on cooperative matrices.
pub static COOP_KEY: Kernel = Kernel {
    name: "attention_coop_backward_key",
    source: include_str!("../../shaders/attention_coop_backward_key.wgsl"),
    tiers: &[Tier::Coop],
    variants: coop_variants,
    proven_bounds: true,
};

/// Buffers of [`attention_backward`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionGrads<'a> {
    /// What the forward pass read.
    pub qkv: &'a Buffer,
    /// What it computed.
    pub out: &'a Buffer,
    /// Gradient of `out`, of the same type.
    pub dout: &'a Buffer,
    /// The forward pass's log-sum-exp.
    pub lse: &'a Buffer,
    /// Gradient of `qkv`, of the same type and layout; overwritten.
    pub dqkv: &'a Buffer,
}

/// Gradient of [`attention`](super::attention::attention) with the same `dims` and `dropout`, recomputing the probabilities from `lse`.
///
/// # Shapes
/// As in the forward pass; all of [`AttentionGrads`] but `lse` have the type of `qkv`.
///
/// # Errors
/// As [`attention`](super::attention::attention).
///
/// # Numerics
/// Computed in f32, two dispatches, sums in a fixed order; on the cooperative tier with f16 operands, as in the forward pass, and with dropout a
/// workspace of a quarter of a byte per pair of tokens and head. With f16 buffers the gradients are rounded to f16; loss scaling keeps them in range.
///
/// # Source
/// Dao et al., "FlashAttention", 2022, algorithm 4, with `delta = rowsum(dout * out)`.
pub fn attention_backward(
    context: &Context,
    grads: AttentionGrads<'_>,
    dims: AttentionDims,
    dropout: Option<Dropout<'_>>,
) -> Result<()> {
    let path = AttentionPath::of(context, grads.qkv.dtype(), dims.head_dim, dropout);
    attention_backward_on(context, grads, dims, dropout, path)
}

/// The same by a path of the caller's choice, for tests and benches.
///
/// # Errors
/// As [`attention_backward`].
pub fn attention_backward_on(
    context: &Context,
    grads: AttentionGrads<'_>,
    dims: AttentionDims,
    dropout: Option<Dropout<'_>>,
    path: AttentionPath,
) -> Result<()> {
    const OP: &str = "attention_backward";
    let AttentionGrads { qkv, out, dout, lse, dqkv } = grads;
    let plan = plan(context, OP, qkv, dims, dropout, path)?;
    expect(OP, "out", out, dims.out_len(), &[plan.dtype])?;
    expect(OP, "dout", dout, dims.out_len(), &[plan.dtype])?;
    expect(OP, "lse", lse, dims.rows(), &[DType::F32])?;
    expect(OP, "dqkv", dqkv, qkv.len(), &[plan.dtype])?;
    let (query, key) = match path {
        AttentionPath::Rows => (&ROWS_QUERY, &ROWS_KEY),
        AttentionPath::Tiles => (&QUERY, &KEY),
        AttentionPath::Coop => return coop_backward(context, grads, dims, dropout, &plan),
    };
    let stats = context.alloc(2 * dims.rows(), DType::F32)?;
    let state = dropout.iter().map(|d| d.state.read());
    let mut bindings = vec![qkv.read(), out.read(), dout.read(), lse.read(), dqkv.write(), stats.write()];
    bindings.extend(state.clone());
    context.dispatch(query, &plan.defines, &plan.params, &bindings, plan.grid)?;
    let mut bindings = vec![qkv.read(), dout.read(), stats.read(), dqkv.write()];
    bindings.extend(state);
    context.dispatch(key, &plan.defines, &plan.params, &bindings, plan.grid)
}

fn coop_backward(
    context: &Context,
    grads: AttentionGrads<'_>,
    dims: AttentionDims,
    dropout: Option<Dropout<'_>>,
    plan: &Plan,
) -> Result<()> {
    let AttentionGrads { qkv, out, dout, lse, dqkv } = grads;
    let stats = context.alloc(2 * dims.rows(), DType::F32)?;
    // A bit per key, in words of 16: the pass over keys would otherwise make the random numbers again.
    let masks = match dropout {
        Some(d) => Some((context.alloc(dims.rows() * dims.seq.div_ceil(16), DType::U32)?, d.state)),
        None => None,
    };
    let mut bindings = vec![qkv.read(), out.read(), dout.read(), lse.read(), dqkv.write(), stats.write()];
    if let Some((masks, state)) = &masks {
        bindings.extend([masks.write(), state.read()]);
    }
    context.dispatch(&COOP_QUERY, &plan.defines, &plan.params, &bindings, plan.grid)?;
    let mut bindings = vec![qkv.read(), dout.read(), stats.read(), dqkv.write()];
    bindings.extend(masks.iter().map(|(masks, _)| masks.read()));
    context.dispatch(&COOP_KEY, &plan.defines, &plan.params, &bindings, plan.grid)
}
