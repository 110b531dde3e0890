//! RMS normalisation, forward and backward: the shaders of the layer norm without mean and bias.

use super::layer_norm::{
    BACKWARD_SOURCE, FORWARD_SOURCE, ParameterGradients, Statistics, backward, forward, norm_variants,
};
use crate::buffer::Buffer;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, Result, Tier};

/// The forward kernel.
pub static KERNEL: Kernel = Kernel {
    name: "rms_norm",
    source: FORWARD_SOURCE,
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

/// The backward kernel.
pub static BACKWARD: Kernel = Kernel {
    name: "rms_norm_backward",
    source: BACKWARD_SOURCE,
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

fn variants() -> Vec<Defines> {
    norm_variants(false, &[false], &[Scalar::F32, Scalar::F16])
}

/// `out = x * rstd * weight` for each row with `rstd = 1 / sqrt(mean(x^2) + eps)`.
///
/// # Shapes
/// `x` and `out` `[rows, cols]` f32 or f16, `weight` `[cols]` f32, `rstd` `[rows]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that.
///
/// # Numerics
/// f32 throughout; with f16 output values beyond 65504 become infinite.
///
/// # Source
/// Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.
pub fn rms_norm(
    context: &Context,
    x: &Buffer,
    weight: &Buffer,
    out: &Buffer,
    rstd: &Buffer,
    shape: [usize; 2],
    eps: f32,
) -> Result<()> {
    forward(context, &KERNEL, [x, weight], None, out, Statistics { mean: None, rstd }, shape, eps)
}

/// The gradients of [`rms_norm`]: `dx` `[rows, cols]` of `x`'s type and `dweight` `[cols]` f32, each set or added to.
///
/// # Shapes
/// `dy` and `x` `[rows, cols]` f32 or f16, `weight` `[cols]` f32, `rstd` `[rows]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that; [`crate::Error::OutOfMemory`] for the workspace.
///
/// # Numerics
/// f32 throughout, in an order fixed by the shape and the adapter: equal inputs give equal bits.
///
/// # Source
/// The chain rule applied to equation 4 of Zhang and Sennrich, 2019.
#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub fn rms_norm_backward(
    context: &Context,
    dy: &Buffer,
    x: &Buffer,
    weight: &Buffer,
    rstd: &Buffer,
    dx: &Buffer,
    accumulate: bool,
    dweight: &Buffer,
    accumulate_weight: bool,
    shape: [usize; 2],
) -> Result<()> {
    let gradients = ParameterGradients { weight: dweight, bias: None, accumulate: accumulate_weight };
    backward(context, &BACKWARD, [dy, x, weight], Statistics { mean: None, rstd }, dx, accumulate, gradients, shape)
}
