//! Gradients of a quantizer whose one scale, and perhaps an offset, are parameters.

use super::{FLOATS, column_sum, dim, each, expect, product, row_shape, row_shapes};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::format::Grid as Levels;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "learned_scale_backward",
    source: include_str!("../../shaders/learned_scale_backward.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    // What `row_shape` may choose for very long rows.
    let taken = |shape: &Defines| [8u32, 256].iter().any(|size| shape.contains(&("WG_SIZE", Define::U32(*size))));
    let shapes = row_shapes().into_iter().filter(taken).collect();
    let types = [Scalar::F32, Scalar::F16];
    product(&[each("X", &types), each("Elem", &types), shapes])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    len: u32,
    groups: u32,
    accumulate: u32,
    shifted: u32,
    rounded: u32,
    first: f32,
    last: f32,
    low: f32,
    high: f32,
    centre: f32,
}

/// Where a quantizer's range ends for the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clip {
    /// Strictly between the lowest and the highest level (LSQ): the value is clamped, then rounded.
    BeforeRounding,
    /// Where the value rounds to a level: it is rounded, then clamped. Half a step further on both sides.
    AfterRounding,
}

/// A quantizer with a scale, and perhaps an offset, on the device.
#[derive(Clone, Copy, Debug)]
pub struct LearnedScale<'a> {
    /// The levels in units of the scale: integers with a zero, or centred ones.
    pub grid: Levels,
    /// Where the range ends.
    pub clip: Clip,
    /// f32 `[1]`, as [`super::quantize::Options::scale`] takes it: the scale is its magnitude.
    pub scale: &'a Buffer,
    /// f32 `[1]`.
    pub offset: Option<&'a Buffer>,
    /// Factor on the gradients of scale and offset.
    pub factor: f32,
}

/// What [`learned_scale_backward`] writes.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a> {
    /// The gradient of x.
    pub dx: &'a Buffer,
    /// Whether `dx` is added to.
    pub accumulate: bool,
    /// The gradient of the scale, f32 `[1]`.
    pub scale: &'a Buffer,
    /// The gradient of the offset, f32 `[1]`.
    pub offset: Option<&'a Buffer>,
    /// Whether the gradients of scale and offset are added to.
    pub accumulate_scalars: bool,
}

/// Hands on `dy`, the gradient of the quantized values of `x`.
///
/// With `v = (x - offset) / s`, and in the range that [`Clip`] says: `dx = dy`, `ds = factor * sum(dy (q - v))` with `q` the level that `v`
/// rounds to; outside `dx = 0`, `ds = factor * sum(dy q)` with `q` the end level, and the offset gets `factor * sum(dy)`. The gradient of
/// the caller's scalar has its sign, since the scale is its magnitude.
///
/// # Shapes
/// `x` and `dy` of one length, f32 or f16 each; `dx` as `dy`, another buffer; scale and offset and their gradients `[1]` f32.
///
/// # Errors
/// [`Error::Shape`] for other buffers, and where only one of offset and its gradient is there; [`Error::Invalid`] for a grid of other
/// levels than integers; [`Error::OutOfMemory`] for the workspace.
///
/// # Numerics
/// f32; sums are trees of sums of 64, in an order fixed by the length and the adapter. Within a few ulps of a limit or half-way between two
/// levels either side may be taken. Elements that are not finite count as encoding has them; where the scale is not, all are in the range.
///
/// # Source
/// LSQ: Esser et al., arXiv 1902.08153, equations 2 to 5. LSQ+: Bhalgat et al., arXiv 2004.09576, section 3.1. A centred grid as QuEST's
/// baselines (arXiv 2502.05003) have it.
pub fn learned_scale_backward(
    context: &Context,
    x: &Buffer,
    dy: &Buffer,
    learned: LearnedScale<'_>,
    out: Outputs<'_>,
) -> Result<()> {
    let name = KERNEL.name;
    expect(name, "x", x, x.len(), FLOATS)?;
    expect(name, "dy", dy, x.len(), FLOATS)?;
    expect(name, "dx", out.dx, x.len(), &[dy.dtype()])?;
    let scalars = [("scale", Some(learned.scale)), ("the scale's gradient", Some(out.scale))];
    let offsets = [("offset", learned.offset), ("the offset's gradient", out.offset)];
    for (what, buffer) in scalars.into_iter().chain(offsets) {
        if let Some(buffer) = buffer {
            expect(name, what, buffer, 1, &[DType::F32])?;
        }
    }
    if learned.offset.is_some() != out.offset.is_some() {
        return Err(Error::shape(name, "an offset together with its gradient", "one of them"));
    }
    let (low, high, centre) = levels(learned.grid)
        .ok_or_else(|| Error::invalid(name, "integers with a zero or centred ones", format!("{:?}", learned.grid)))?;
    // Rounded values are integers: between the ends half a step further is at the ends or between them.
    let margin = if learned.clip == Clip::AfterRounding { 0.5 } else { 0.0 };
    // An invocation has four sums of up to 2^13 elements each where there are 2^26; more sums than these the second stage would add slowly.
    let (least, most) = if context.capabilities().is_cpu() { (1 << 13, 256) } else { (1 << 12, 1024) };
    let groups = (x.len() / least).clamp(1, most);
    let params = Params {
        len: dim(x.len())?,
        groups: dim(groups)?,
        accumulate: out.accumulate.into(),
        shifted: learned.offset.is_some().into(),
        rounded: (learned.clip == Clip::AfterRounding).into(),
        first: low - margin,
        last: high + margin,
        low,
        high,
        centre,
    };
    let sums = context.alloc(2 * groups, DType::F32)?;
    let mut defines: Defines = vec![("X", x.dtype().into()), ("Elem", dy.dtype().into())];
    defines.extend(row_shape(context, u32::MAX));
    let offset = learned.offset.unwrap_or(learned.scale);
    let bindings = [x.read(), dy.read(), learned.scale.read(), offset.read(), out.dx.write(), sums.write()];
    context.dispatch(&KERNEL, &defines, &params, &bindings, Grid::Xyz([params.groups, 1, 1]))?;
    let outs: Vec<&Buffer> = [Some(out.scale), out.offset].into_iter().flatten().collect();
    column_sum::sum(context, &sums, &outs, [groups, 2], learned.factor, out.accumulate_scalars)
}

/// The lowest and the highest level less the centre, and the centre.
pub(crate) fn levels(grid: Levels) -> Option<(f32, f32, f32)> {
    let half = |bits: u32| 2f32.powi(bits as i32 - 1);
    match grid {
        Levels::Int { bits, full } => Some((if full { -half(bits) } else { 1.0 - half(bits) }, half(bits) - 1.0, 0.0)),
        Levels::Centred { bits } => Some((-half(bits), half(bits) - 1.0, 0.5)),
        _ => None,
    }
}
