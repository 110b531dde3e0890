//! Rotary position embedding.

use super::{dim, expect};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "rope",
    source: include_str!("../../shaders/rope.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for elem in [Scalar::F32, Scalar::F16] {
        for in_place in [true, false] {
            all.push(vec![("Elem", elem.into()), ("IN_PLACE", in_place.into()), ("WG_SIZE", 64u32.into())]);
        }
    }
    all
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    seq: u32,
    heads: u32,
    groups: u32,
    x_stride: u32,
    x_offset: u32,
    out_stride: u32,
    out_offset: u32,
    interleaved: u32,
    sign: f32,
    use_offset: u32,
    reserved: u32,
}

/// Which elements form a pair that turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `i` and `i + head_dim / 2` (GPT-NeoX, Llama in Hugging Face's layout).
    HalfSplit,
    /// `2 i` and `2 i + 1` (the paper, Llama in Meta's and GGUF's layout).
    Interleaved,
}

/// What to turn.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Tokens, `batch * seq`; token `r` is at position `r % seq`.
    pub rows: usize,
    /// Tokens per sequence.
    pub seq: usize,
    /// Heads to turn per token.
    pub heads: usize,
    /// Elements per head, a multiple of 8.
    pub head_dim: usize,
    /// Pairing.
    pub pairs: RopePairs,
    /// Turn backwards: the inverse, which is also the gradient.
    pub inverse: bool,
    /// Radians per position of each pair, `head_dim / 2` f32, see [`frequencies`].
    pub frequencies: &'a Buffer,
    /// One u32 that is added to every position (tokens in a KV cache).
    pub position_offset: Option<&'a Buffer>,
}

/// Elements per token and the first of the heads to turn within a token; multiples of 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Elements from one token to the next.
    pub stride: usize,
    /// Elements before the first head.
    pub offset: usize,
}

/// `theta^(-2 i / head_dim)` for `i` below `head_dim / 2`, the frequencies of the paper (theta 10000).
#[must_use]
pub fn frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32).collect()
}

/// Turns pairs of elements of `x` by position times frequency, into `out`, or in place where `x` is `None`.
///
/// # Shapes
/// Per token, `heads * head_dim` elements at `offset` within each `stride` elements of `x` and `out` (f32 or f16, one type). q and k of packed QKV
/// are one call with `2 * n_head` heads, stride `3 * C`, offset 0. Elements of `out` outside the heads are left alone.
///
/// # Errors
/// [`Error::Shape`] for a `head_dim` that 8 does not divide, strides or offsets that 4 does not divide, or buffers that are too short.
///
/// # Numerics
/// f32; cosine and sine to about 4 u plus the rounding of position * frequency where fma is not fused, for angles up to 6433 radians (4096
/// quarter turns: position 6433 at frequency 1). Beyond, an unfused fma rounds in the reduction of the angle, and the error grows with it.
/// Positions count exactly up to 2^24.
///
/// # Source
/// Su et al., "RoFormer", 2021, equation 34.
pub fn rope(context: &Context, rope: Rope<'_>, x: Option<(&Buffer, Lane)>, out: &Buffer, out_lane: Lane) -> Result<()> {
    const OP: &str = "rope";
    let Rope { rows, seq, heads, head_dim, .. } = rope;
    if head_dim % 8 != 0 || head_dim == 0 || seq == 0 {
        return Err(Error::shape(
            OP,
            "a head_dim that 8 divides and seq of at least 1",
            format!("head_dim {head_dim}, seq {seq}"),
        ));
    }
    let width = elements(&[heads, head_dim])?;
    let (source, x_lane) = x.unwrap_or((out, out_lane));
    for (buffer, lane) in [(source, x_lane), (out, out_lane)] {
        let fits = lane.offset.checked_add(width).is_some_and(|end| end <= lane.stride)
            && rows.checked_mul(lane.stride).is_some_and(|len| len <= buffer.len());
        let float = [DType::F32, DType::F16].contains(&buffer.dtype()) && buffer.dtype() == out.dtype();
        if !fits || !float || lane.stride % 4 != 0 || lane.offset % 4 != 0 {
            return Err(Error::shape(
                OP,
                format!("{rows} rows of {heads} heads of {head_dim} f32 or f16, strides and offsets that 4 divides"),
                format!("{lane:?} in {} elements of {}", buffer.len(), buffer.dtype()),
            ));
        }
    }
    expect(OP, "frequencies", rope.frequencies, head_dim / 2, &[DType::F32])?;
    if let Some(offset) = rope.position_offset {
        expect(OP, "position_offset", offset, 1, &[DType::U32])?;
    }
    let params = Params {
        rows: dim(rows)?,
        seq: dim(seq)?,
        heads: dim(heads)?,
        groups: dim(head_dim / 4)?,
        x_stride: dim(x_lane.stride / 4)?,
        x_offset: dim(x_lane.offset / 4)?,
        out_stride: dim(out_lane.stride / 4)?,
        out_offset: dim(out_lane.offset / 4)?,
        interleaved: (rope.pairs == RopePairs::Interleaved).into(),
        sign: if rope.inverse { -1.0 } else { 1.0 },
        use_offset: rope.position_offset.is_some().into(),
        reserved: 0,
    };
    let mut bindings = vec![out.write(), rope.frequencies.read()];
    // Without an offset the binding is there but not read; any buffer will do.
    bindings.push(rope.position_offset.unwrap_or(rope.frequencies).read());
    bindings.extend(x.iter().map(|(x, _)| x.read()));
    context.dispatch(
        &KERNEL,
        &[("Elem", out.dtype().into()), ("IN_PLACE", x.is_none().into()), ("WG_SIZE", 64u32.into())],
        &params,
        &bindings,
        Grid::Linear(((rows * width / 8) as u64).div_ceil(64)),
    )
}
