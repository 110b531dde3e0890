//! Cross-entropy of logits with a teacher's distribution, and its gradient in the same pass.

use super::reduce::{Reduction, reduce};
use super::{FLOATS, check_state, dim, each, expect, product, row_shape, row_shapes, rows_of, width};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "soft_cross_entropy",
    source: include_str!("../../shaders/soft_cross_entropy.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants,
    proven_bounds: true,
};

fn variants() -> Vec<Defines> {
    let elems = each("Elem", &[Scalar::F32, Scalar::F16]);
    product(&[each("WIDTH", &[1u32, 4]), elems, each("HAS_STATE", &[false, true]), row_shapes()])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    units: u32,
    classes: u32,
    factor: f32,
}

/// What the loss and its gradient are multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// Both, beside one over the rows.
    pub factor: f32,
    /// The gradient alone: by the loss scale of this step state.
    pub state: Option<&'a Buffer>,
}

/// The mean over all rows of `log(sum exp(z)) - sum_c p_c z_c` with `p = softmax(y)`, times the factor, and its gradient with respect to
/// `z`, `(softmax(z) - p)` times the factors over the number of rows. That is the divergence of the two distributions plus the entropy of
/// `p`.
///
/// # Shapes
/// `logits` (`z`) and `teacher` (`y`) `[rows, columns]` f32, of which the first `classes` columns count and the others are padding whose
/// gradient is 0; `losses` `[rows]` f32, `loss` `[1]` f32, `grad` `[rows, columns]` f32 or f16.
///
/// # Errors
/// [`Error::Shape`] where lengths or element types differ from that; [`Error::Limit`], [`Error::OutOfMemory`].
///
/// # Numerics
/// As [`super::cross_entropy::cross_entropy`].
///
/// # Source
/// Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, at temperature 1.
#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub fn soft_cross_entropy(
    context: &Context,
    logits: &Buffer,
    teacher: &Buffer,
    losses: &Buffer,
    loss: &Buffer,
    grad: &Buffer,
    [rows, columns]: [usize; 2],
    classes: usize,
    factors: Factors<'_>,
) -> Result<()> {
    let op = KERNEL.name;
    expect(op, "logits", logits, elements(&[rows, columns])?, &[DType::F32])?;
    expect(op, "teacher", teacher, elements(&[rows, columns])?, &[DType::F32])?;
    expect(op, "losses", losses, rows, &[DType::F32])?;
    expect(op, "loss", loss, 1, &[DType::F32])?;
    expect(op, "grad", grad, elements(&[rows, columns])?, FLOATS)?;
    if classes == 0 || classes > columns {
        return Err(Error::shape(op, format!("1 to {columns} classes, one per column"), classes.to_string()));
    }
    let width = width(columns);
    let units = dim(columns)? / width;
    let mut bindings = vec![logits.read(), teacher.read(), losses.write(), grad.write()];
    if let Some(state) = factors.state {
        check_state(op, state)?;
        bindings.push(state.read());
    }
    let mut defines = vec![
        ("WIDTH", width.into()),
        ("Elem", grad.dtype().into()),
        ("HAS_STATE", Define::Bool(factors.state.is_some())),
    ];
    defines.extend(row_shape(context, units));
    let factor = factors.factor / rows.max(1) as f32;
    let params = Params { rows: dim(rows)?, units, classes: dim(classes)?, factor };
    context.dispatch(&KERNEL, &defines, &params, &bindings, Grid::Linear(rows.div_ceil(rows_of(&defines)) as u64))?;
    reduce(context, losses, loss, Reduction::Sum(factor))
}
