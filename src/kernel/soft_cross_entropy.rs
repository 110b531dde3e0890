//! Cross-entropy of logits with a teacher's distribution, and its gradient in the same pass.

use super::cross_entropy::Params;
use super::reduce::{Reduction, reduce};
use super::{FLOATS, Rows, check_state, dim, each, expect, row_variants};
use crate::buffer::{Buffer, elements};
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
    row_variants(&[each("Elem", &[Scalar::F32, Scalar::F16]), each("HAS_STATE", &[false, true])])
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
    let mut bindings = vec![logits.read(), teacher.read(), losses.write(), grad.write()];
    if let Some(state) = factors.state {
        check_state(op, state)?;
        bindings.push(state.read());
    }
    let own = [("Elem", grad.dtype().into()), ("HAS_STATE", Define::Bool(factors.state.is_some()))];
    let by = Rows::new(context, columns, &own)?;
    let factor = factors.factor / rows.max(1) as f32;
    let params = Params { rows: dim(rows)?, units: by.units, classes: dim(classes)?, factor };
    context.dispatch(&KERNEL, &by.defines, &params, &bindings, by.grid(rows))?;
    reduce(context, losses, loss, Reduction::Sum(factor))
}
