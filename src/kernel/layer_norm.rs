//! Layer normalisation, forward and backward; the RMS norm shares its shaders.

use super::{FLOATS, Rows, column_sum, dim, each, expect, row_variants};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The forward kernel.
pub static KERNEL: Kernel = Kernel {
    name: "layer_norm",
    source: FORWARD_SOURCE,
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

/// The backward kernel.
pub static BACKWARD: Kernel = Kernel {
    name: "layer_norm_backward",
    source: BACKWARD_SOURCE,
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

pub(super) const FORWARD_SOURCE: &str = include_str!("../../shaders/layer_norm.wgsl");
pub(super) const BACKWARD_SOURCE: &str = include_str!("../../shaders/layer_norm_backward.wgsl");

fn variants() -> Vec<Defines> {
    norm_variants(true, &[false, true], &[Scalar::F32])
}

pub(super) fn norm_variants(centered: bool, bias: &[bool], inputs: &[Scalar]) -> Vec<Defines> {
    row_variants(&[
        each("In", inputs),
        each("Elem", &[Scalar::F32, Scalar::F16]),
        each("CENTERED", &[centered]),
        each("HAS_BIAS", bias),
    ])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    units: u32,
    inv_cols: f32,
    eps: f32,
}

/// Of the backward pass of a norm, [`super::value_norm`]'s too: each workgroup takes a chunk of rows.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct BackwardParams {
    rows: u32,
    units: u32,
    chunk: u32,
    chunks: u32,
    accumulate: u32,
    inv_cols: f32,
}

impl BackwardParams {
    /// In so many workgroups at most; they are the second value.
    pub fn new([rows, cols]: [usize; 2], by: &Rows, target: usize, accumulate: bool) -> Result<(Self, usize)> {
        let chunk = rows.div_ceil(target).max(1);
        let chunks = rows.div_ceil(chunk).max(1);
        let params = Self {
            rows: dim(rows)?,
            units: by.units,
            chunk: dim(chunk)?,
            chunks: dim(chunks)?,
            accumulate: accumulate.into(),
            inv_cols: 1.0 / cols as f32,
        };
        Ok((params, chunks))
    }
}

/// What the forward pass keeps per row for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    /// Means `[rows]`, f32; `None` for the RMS norm.
    pub mean: Option<&'a Buffer>,
    /// Reciprocal standard deviations (or root mean squares) `[rows]`, f32.
    pub rstd: &'a Buffer,
}

/// Where the gradients of a norm's parameters go.
#[derive(Clone, Copy, Debug)]
pub struct ParameterGradients<'a> {
    /// Gradient of the weight `[cols]`, f32.
    pub weight: &'a Buffer,
    /// Gradient of the bias `[cols]`, f32.
    pub bias: Option<&'a Buffer>,
    /// Whether to add to both instead of setting them.
    pub accumulate: bool,
}

/// `out = (x - mean) * rstd * weight + bias` for each row, and the statistics that the backward pass needs.
///
/// # Shapes
/// `x` `[rows, cols]` f32, `weight` and `bias` `[cols]` f32, `out` `[rows, cols]` f32 or f16, `mean` and `rstd` `[rows]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that.
///
/// # Numerics
/// Two passes over a row (mean, then squared differences with the correction for the mean's rounding), f32 throughout; with f16 output
/// values beyond 65504 become infinite.
///
/// # Source
/// Ba, Kiros and Hinton, "Layer Normalization", 2016, equation 4; Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance",
/// 1983, the corrected two-pass algorithm.
#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub fn layer_norm(
    context: &Context,
    x: &Buffer,
    weight: &Buffer,
    bias: Option<&Buffer>,
    out: &Buffer,
    mean: &Buffer,
    rstd: &Buffer,
    shape: [usize; 2],
    eps: f32,
) -> Result<()> {
    forward(context, &KERNEL, [x, weight], bias, out, Statistics { mean: Some(mean), rstd }, shape, eps)
}

/// The gradients of [`layer_norm`]: `dx` is set or added to, and so are those of the parameters.
///
/// # Shapes
/// `dy` `[rows, cols]` f32 or f16, `x` and `dx` `[rows, cols]` f32, `weight` `[cols]` f32; see [`Statistics`] and [`ParameterGradients`].
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that; [`crate::Error::OutOfMemory`] for the workspace.
///
/// # Numerics
/// f32 throughout, in an order fixed by the shape and the adapter: equal inputs give equal bits.
///
/// # Source
/// The chain rule applied to equation 4 of Ba, Kiros and Hinton, 2016.
#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub fn layer_norm_backward(
    context: &Context,
    dy: &Buffer,
    x: &Buffer,
    weight: &Buffer,
    mean: &Buffer,
    rstd: &Buffer,
    dx: &Buffer,
    accumulate: bool,
    gradients: ParameterGradients<'_>,
    shape: [usize; 2],
) -> Result<()> {
    backward(
        context,
        &BACKWARD,
        [dy, x, weight],
        Statistics { mean: Some(mean), rstd },
        dx,
        accumulate,
        gradients,
        shape,
    )
}

fn rows_by(context: &Context, [input, elem]: [DType; 2], cols: usize, centered: bool, bias: bool) -> Result<Rows> {
    let (centered, bias) = (Define::Bool(centered), Define::Bool(bias));
    let own = [("In", input.into()), ("Elem", elem.into()), ("CENTERED", centered), ("HAS_BIAS", bias)];
    Rows::new(context, cols, &own)
}

/// Types of the input: a layer norm's is the residual stream; an RMS norm may stand before any layer.
fn inputs(statistics: Statistics<'_>) -> &'static [DType] {
    if statistics.mean.is_some() { &[DType::F32] } else { FLOATS }
}

#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub(super) fn forward(
    context: &Context,
    kernel: &'static Kernel,
    [x, weight]: [&Buffer; 2],
    bias: Option<&Buffer>,
    out: &Buffer,
    statistics: Statistics<'_>,
    [rows, cols]: [usize; 2],
    eps: f32,
) -> Result<()> {
    let op = kernel.name;
    expect(op, "x", x, elements(&[rows, cols])?, inputs(statistics))?;
    expect(op, "weight", weight, cols, &[DType::F32])?;
    expect(op, "out", out, elements(&[rows, cols])?, FLOATS)?;
    expect(op, "rstd", statistics.rstd, rows, &[DType::F32])?;
    let mut bindings = vec![x.read(), weight.read(), out.write(), statistics.rstd.write()];
    if let Some(mean) = statistics.mean {
        expect(op, "mean", mean, rows, &[DType::F32])?;
        bindings.push(mean.write());
    }
    if let Some(bias) = bias {
        expect(op, "bias", bias, cols, &[DType::F32])?;
        bindings.push(bias.read());
    }
    if cols == 0 {
        return Ok(()); // nothing to write but statistics of nothing
    }
    let by = rows_by(context, [x.dtype(), out.dtype()], cols, statistics.mean.is_some(), bias.is_some())?;
    let params = Params { rows: dim(rows)?, units: by.units, inv_cols: 1.0 / cols as f32, eps };
    context.dispatch(kernel, &by.defines, &params, &bindings, by.grid(rows))
}

#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub(super) fn backward(
    context: &Context,
    kernel: &'static Kernel,
    [dy, x, weight]: [&Buffer; 3],
    statistics: Statistics<'_>,
    dx: &Buffer,
    accumulate: bool,
    gradients: ParameterGradients<'_>,
    [rows, cols]: [usize; 2],
) -> Result<()> {
    let op = kernel.name;
    expect(op, "dy", dy, elements(&[rows, cols])?, FLOATS)?;
    expect(op, "x", x, elements(&[rows, cols])?, inputs(statistics))?;
    expect(op, "weight", weight, cols, &[DType::F32])?;
    expect(op, "rstd", statistics.rstd, rows, &[DType::F32])?;
    expect(op, "dx", dx, elements(&[rows, cols])?, &[x.dtype()])?;
    expect(op, "dweight", gradients.weight, cols, &[DType::F32])?;
    let mut outs = vec![gradients.weight];
    if let Some(bias) = gradients.bias {
        expect(op, "dbias", bias, cols, &[DType::F32])?;
        outs.push(bias);
    }
    if cols == 0 {
        return Ok(());
    }
    let by = rows_by(context, [x.dtype(), dy.dtype()], cols, statistics.mean.is_some(), outs.len() == 2)?;
    // So many workgroups that the device is full; each has a row of sums in the workspace.
    let target = if context.capabilities().is_cpu() {
        16
    } else {
        match by.units {
            0..=128 => 2112 / by.slots().min(2),
            129..=256 => 1056,
            _ => 528,
        }
    };
    let (params, chunks) = BackwardParams::new([rows, cols], &by, target, accumulate)?;
    let partial = context.alloc(chunks * outs.len() * cols, DType::F32)?;
    let mut bindings = vec![dy.read(), x.read(), weight.read(), statistics.rstd.read(), dx.write(), partial.write()];
    if let Some(mean) = statistics.mean {
        expect(op, "mean", mean, rows, &[DType::F32])?;
        bindings.push(mean.read());
    }
    context.dispatch(kernel, &by.defines, &params, &bindings, Grid::Linear(chunks as u64))?;
    column_sum::sum(context, &partial, &outs, [chunks, outs.len() * cols], 1.0, gradients.accumulate)
}
