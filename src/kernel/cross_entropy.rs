//! Cross-entropy of logits with integer targets: mean loss, losses per row, and the gradient in the same pass.

use super::{FLOATS, Rows, check_state, dim, expect, row_shape, row_shapes, row_variants};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// Losses and gradients of rows.
pub static KERNEL: Kernel = Kernel {
    name: "cross_entropy",
    source: include_str!("../../shaders/cross_entropy.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

/// How many rows count.
pub static COUNT: Kernel = Kernel {
    name: "cross_entropy_count",
    source: include_str!("../../shaders/cross_entropy_count.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: row_shapes,
    proven_bounds: false,
};

/// The mean over the rows that count.
pub static MEAN: Kernel = Kernel {
    name: "cross_entropy_mean",
    source: include_str!("../../shaders/cross_entropy_mean.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: row_shapes,
    proven_bounds: false,
};

/// The target of a row that contributes nothing.
pub const IGNORE: u32 = u32::MAX;

fn variants() -> Vec<Defines> {
    let kind = |elem: Scalar, grad: u32, state: bool| {
        vec![("Elem", elem.into()), ("GRAD", Define::U32(grad)), ("HAS_STATE", Define::Bool(state))]
    };
    let mut kinds = vec![kind(Scalar::F32, 0, false)];
    for state in [false, true] {
        kinds.extend([kind(Scalar::F32, 1, state), kind(Scalar::F32, 2, state), kind(Scalar::F16, 2, state)]);
    }
    row_variants(&[kinds])
}

/// Of a loss over rows of logits, [`super::soft_cross_entropy`]'s too.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Params {
    pub rows: u32,
    pub units: u32,
    pub classes: u32,
    pub factor: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CountParams {
    rows: u32,
    classes: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct MeanParams {
    rows: u32,
}

/// Where the gradient of the mean loss goes, and what it is multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// A buffer `[rows, columns]` of f32 or f16; `None` overwrites the logits.
    pub out: Option<&'a Buffer>,
    /// A constant factor: what the loss itself is multiplied by, such as one over the micro-batches of a step.
    pub factor: f32,
    /// The step state, whose loss scale is another factor.
    pub state: Option<&'a Buffer>,
}

/// The mean over all rows that count of `log(sum exp(logits)) - logits[target]`, and on request its gradient with respect to the logits.
///
/// A row whose target is [`IGNORE`] contributes nothing and has loss and gradient 0. Any other target that is no class makes its loss and
/// the mean NaN; its gradient is 0. Where no row counts the mean is 0.
///
/// # Shapes
/// `logits` `[rows, columns]` f32, of which the first `classes` columns count and the others are padding whose gradient is 0; `targets`
/// `[rows]` u32, `losses` `[rows]` f32, `loss` `[1]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that; [`crate::Error::OutOfMemory`].
///
/// # Numerics
/// f32; the row's maximum is subtracted before any exponential, so that finite logits below 1e38 in magnitude never overflow. Sums have an
/// order fixed by the shape and the adapter. The rows are counted exactly up to 2^24. In f16 a gradient below 2^-25 is lost: that is
/// what the loss scale is for.
///
/// # Source
/// Online maximum and sum: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub fn cross_entropy(
    context: &Context,
    logits: &Buffer,
    targets: &Buffer,
    losses: &Buffer,
    loss: &Buffer,
    [rows, columns]: [usize; 2],
    classes: usize,
    gradient: Option<Gradient<'_>>,
) -> Result<()> {
    let op = KERNEL.name;
    expect(op, "logits", logits, elements(&[rows, columns])?, &[DType::F32])?;
    expect(op, "targets", targets, rows, &[DType::U32])?;
    expect(op, "losses", losses, rows, &[DType::F32])?;
    expect(op, "loss", loss, 1, &[DType::F32])?;
    if classes > columns {
        return Err(Error::shape(op, format!("at most {columns} classes, one per column"), classes.to_string()));
    }
    let (rows32, classes32) = (dim(rows)?, dim(classes)?);
    let count = context.alloc(1, DType::F32)?;
    let single = row_shape(context, u32::MAX);
    let params = CountParams { rows: rows32, classes: classes32 };
    context.dispatch(&COUNT, &single, &params, &[targets.read(), count.write()], Grid::Linear(1))?;

    let in_place = gradient.is_some_and(|g| g.out.is_none());
    let out = gradient.and_then(|g| g.out);
    let state = gradient.and_then(|g| g.state);
    state.map_or(Ok(()), |s| check_state(op, s))?;
    let mut bindings = vec![targets.read(), count.read(), losses.write()];
    bindings.push(if in_place { logits.write() } else { logits.read() });
    bindings.extend(state.map(Buffer::read));
    if let Some(out) = out {
        expect(op, "gradient", out, elements(&[rows, columns])?, FLOATS)?;
        bindings.push(out.write());
    }
    let own = [
        ("Elem", out.map_or(DType::F32, Buffer::dtype).into()),
        ("GRAD", Define::U32(if in_place { 1 } else { 2 * u32::from(out.is_some()) })),
        ("HAS_STATE", Define::Bool(state.is_some())),
    ];
    let by = Rows::new(context, columns, &own)?;
    let factor = gradient.map_or(0.0, |g| g.factor);
    let params = Params { rows: rows32, units: by.units, classes: classes32, factor };
    context.dispatch(&KERNEL, &by.defines, &params, &bindings, by.grid(rows))?;
    let bindings = [losses.read(), count.read(), loss.write()];
    context.dispatch(&MEAN, &single, &MeanParams { rows: rows32 }, &bindings, Grid::Linear(1))
}
