//! What the gradient of signs becomes on its way to the weights whose signs they are.

use super::packed::Packed;
use super::{FLOATS, dim, each, expect};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::format::{HEADER, Span, Store};
use crate::shader::Kernel;
use crate::{Context, Error, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "sign_gradient",
    source: include_str!("../../shaders/sign_gradient.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || each("Elem", FLOATS),
    proven_bounds: false,
};

/// What the gradient of a quantized weight is multiplied by to become that of the weight `w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// 1 where `|w| <= 1`, else 0: the straight-through estimator of a sign.
    Clip,
    /// `1 / n + alpha [|w| <= 1]` for signs times the mean magnitude `alpha` of their row of `n` weights, through which every weight acts
    /// too.
    ThroughMean,
    /// `1.001 - tanh(w)^2`: the slope of a smooth sign, and a thousandth everywhere.
    Smooth,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    rule: u32,
    accumulate: u32,
    scales_at: u32,
    inv_cols: f32,
}

/// `out = factor(weight) gradient`, or `out` is increased by that.
///
/// # Shapes
/// `gradient`, `weight` and `out` `[rows, cols]` of `quantized`, f32 or f16 all three.
///
/// # Errors
/// [`Error::Shape`] where a buffer has another length or type; [`Error::Invalid`] for [`Factor::ThroughMean`] where `quantized` has no f32
/// scale per row; [`Error::Limit`] where a dispatch is too large.
///
/// # Numerics
/// f32. A weight that is NaN has neither a sign nor a magnitude through which it acts: it gets no gradient, but a NaN by
/// [`Factor::Smooth`]. An infinity is beyond the bound, and acts through the mean of [`Factor::ThroughMean`] alone.
///
/// # Source
/// [`Factor::Clip`]: Courbariaux et al., arXiv 1511.00363; [`Factor::Smooth`]: the code of OneBit, arXiv 2402.11295.
/// [`Factor::ThroughMean`] is how XNOR-Net's own gradient (arXiv 1603.05279) is remembered; it was not compared with the paper.
pub fn sign_gradient(
    context: &Context,
    factor: Factor,
    gradient: &Buffer,
    weight: &Buffer,
    quantized: &Packed,
    out: &Buffer,
    accumulate: bool,
) -> Result<()> {
    let (op, layout) = (KERNEL.name, quantized.layout());
    let len = layout.rows * layout.cols;
    expect(op, "gradient", gradient, len, FLOATS)?;
    expect(op, "weight", weight, len, &[gradient.dtype()])?;
    expect(op, "out", out, len, &[gradient.dtype()])?;
    let format = quantized.format();
    if factor == Factor::ThroughMean && (format.span(), format.store()) != (Span::Row, Store::F32) {
        return Err(Error::invalid(op, "one f32 scale per row", format!("`{format}`")));
    }
    let params = Params {
        rows: dim(layout.rows)?,
        cols: dim(layout.cols)?,
        rule: factor as u32,
        accumulate: accumulate.into(),
        scales_at: dim(HEADER)?,
        inv_cols: 1.0 / layout.cols.max(1) as f32,
    };
    context.dispatch(
        &KERNEL,
        &[("Elem", gradient.dtype().into())],
        &params,
        &[gradient.read(), weight.read(), quantized.side().read(), out.write()],
        Grid::Linear((len as u64).div_ceil(256)),
    )
}
