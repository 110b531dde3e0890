//! What works on rows: norms, softmax, the loss, sums, embeddings.

use super::{Case, Prepared, Size, Work, dropout, prepared, random, state, tokens, zeros};
use crate::kernel::column_sum::column_sum;
use crate::kernel::cross_entropy::{Gradient, cross_entropy};
use crate::kernel::embedding::{Positions, PositionsGradient, embedding, embedding_backward};
use crate::kernel::hidden_distance::hidden_distance_backward;
use crate::kernel::layer_norm::{ParameterGradients, layer_norm, layer_norm_backward};
use crate::kernel::rms_norm::{rms_norm, rms_norm_backward};
use crate::kernel::row_sum::row_sum;
use crate::kernel::scale_columns::{column_dot, scale_columns};
use crate::kernel::soft_cross_entropy::{Factors, soft_cross_entropy};
use crate::kernel::softmax::{softmax, softmax_backward};
use crate::kernel::value_norm::{Statistics, value_norm, value_norm_backward};
use crate::{Context, Result, Tensor};

pub fn cases(size: Size) -> Vec<Case> {
    let Size { seq, width, vocab, pieces, .. } = size;
    let rows = size.rows();
    // `bytes` count per element of [rows, cols].
    let on = |name, cols: usize, bytes, prepare: fn(&Context, [usize; 2]) -> Result<Prepared>| {
        Case::new(name, [rows, cols, 0], Work::bytes(bytes * rows * cols), move |c| prepare(c, [rows, cols]))
    };
    // A table of k rows.
    let gather =
        |name, k| Case::new(name, [rows, width, k], Work::bytes(4 * rows * width), move |c| embed_backward(c, size, k));
    vec![
        on("layer_norm", width, 8, |c, shape| norm(c, shape, true)),
        on("rms_norm", width, 8, |c, shape| norm(c, shape, false)),
        on("layer_norm_backward", width, 12, |c, shape| norm_backward(c, shape, true))
            .kernels(&["layer_norm_backward", "column_sum"]),
        on("rms_norm_backward", width, 12, |c, shape| norm_backward(c, shape, false))
            .kernels(&["rms_norm_backward", "column_sum"]),
        on("softmax", seq, 8, soft),
        on("softmax_backward", seq, 12, soft_backward),
        on("cross_entropy", vocab, 8, loss).kernels(&["cross_entropy_count", "cross_entropy", "cross_entropy_mean"]),
        on("soft_cross_entropy", vocab, 12, soft_loss).kernels(&["soft_cross_entropy", "reduce"]),
        on("hidden_distance", width, 12, distance),
        on("scale_columns", width, 8, scaled),
        on("column_dot", width, 8, dots).kernels(&["column_dot", "column_sum"]),
        on("value_norm", width, 8, |c, shape| valued(c, shape, false)),
        on("value_norm_backward", width, 12, |c, shape| valued(c, shape, true))
            .kernels(&["value_norm_backward", "column_sum"]),
        on("column_sum", 4 * width, 4, columns),
        on("row_sum", width, 4, row_sums),
        Case::new("embedding", [rows, width, vocab], Work::bytes(4 * rows * width), move |c| embed(c, size)),
        gather("embedding_backward", vocab).kernels(&["embedding_backward", "column_sum"]),
        gather("embedding_backward_sorted", pieces).kernels(&[
            "embedding_sort",
            "embedding_backward_sorted",
            "embedding_backward_positions",
        ]),
    ]
}

fn norm(context: &Context, [rows, cols]: [usize; 2], mean: bool) -> Result<Prepared> {
    let (x, weight, bias) = (random(context, rows * cols)?, random(context, cols)?, random(context, cols)?);
    let (out, mu, rstd) = (zeros(context, rows * cols)?, zeros(context, rows)?, zeros(context, rows)?);
    let c = context.clone();
    prepared(&[&out.clone(), &rstd.clone()], move || {
        let [x, weight, bias, out, mu, rstd] = [&x, &weight, &bias, &out, &mu, &rstd].map(Tensor::buffer);
        if mean {
            layer_norm(&c, x, weight, Some(bias), out, mu, rstd, [rows, cols], 1e-5)
        } else {
            rms_norm(&c, x, weight, out, rstd, [rows, cols], 1e-5)
        }
    })
}

fn norm_backward(context: &Context, [rows, cols]: [usize; 2], mean: bool) -> Result<Prepared> {
    let (x, dy, weight) = (random(context, rows * cols)?, random(context, rows * cols)?, random(context, cols)?);
    let (mu, rstd) = (random(context, rows)?, random(context, rows)?);
    let (dx, dweight, dbias) = (zeros(context, rows * cols)?, zeros(context, cols)?, zeros(context, cols)?);
    let c = context.clone();
    prepared(&[&dx.clone(), &dweight.clone()], move || {
        let [dy, x, weight, mu, rstd, dx] = [&dy, &x, &weight, &mu, &rstd, &dx].map(Tensor::buffer);
        let (weight_grad, bias_grad) = (dweight.buffer(), Some(dbias.buffer()));
        if mean {
            let gradients = ParameterGradients { weight: weight_grad, bias: bias_grad, accumulate: false };
            layer_norm_backward(&c, dy, x, weight, mu, rstd, dx, false, gradients, [rows, cols])
        } else {
            rms_norm_backward(&c, dy, x, weight, rstd, dx, false, weight_grad, false, [rows, cols])
        }
    })
}

fn soft(context: &Context, [rows, cols]: [usize; 2]) -> Result<Prepared> {
    let (x, y, c) = (random(context, rows * cols)?, zeros(context, rows * cols)?, context.clone());
    prepared(&[&y.clone()], move || softmax(&c, x.buffer(), y.buffer(), rows, cols))
}

fn soft_backward(context: &Context, [rows, cols]: [usize; 2]) -> Result<Prepared> {
    let (y, dy, dx) = (random(context, rows * cols)?, random(context, rows * cols)?, zeros(context, rows * cols)?);
    let c = context.clone();
    prepared(&[&dx.clone()], move || softmax_backward(&c, y.buffer(), dy.buffer(), dx.buffer(), rows, cols, false))
}

fn loss(context: &Context, [rows, cols]: [usize; 2]) -> Result<Prepared> {
    let (logits, targets) = (random(context, rows * cols)?, tokens(context, rows, cols)?);
    let (losses, loss, grad) = (zeros(context, rows)?, zeros(context, 1)?, zeros(context, rows * cols)?);
    let c = context.clone();
    prepared(&[&loss.clone(), &grad.clone()], move || {
        let gradient = Gradient { out: Some(grad.buffer()), factor: 1.0, state: None };
        let [logits, targets, losses, loss] = [&logits, &targets, &losses, &loss].map(Tensor::buffer);
        cross_entropy(&c, logits, targets, losses, loss, [rows, cols], cols, Some(gradient))
    })
}

fn soft_loss(context: &Context, [rows, cols]: [usize; 2]) -> Result<Prepared> {
    let (logits, teacher) = (random(context, rows * cols)?, random(context, rows * cols)?);
    let (losses, loss, grad) = (zeros(context, rows)?, zeros(context, 1)?, zeros(context, rows * cols)?);
    let c = context.clone();
    prepared(&[&loss.clone(), &losses.clone()], move || {
        let factors = Factors { factor: 1.0, state: None };
        let [z, y, losses, loss, grad] = [&logits, &teacher, &losses, &loss, &grad].map(Tensor::buffer);
        soft_cross_entropy(&c, z, y, losses, loss, grad, [rows, cols], cols, factors)
    })
}

fn distance(context: &Context, [rows, cols]: [usize; 2]) -> Result<Prepared> {
    let (a, b, grad) = (random(context, rows * cols)?, zeros(context, rows * cols)?, zeros(context, rows * cols)?);
    let ones: Vec<f32> = (0..rows * cols).map(|i| (i % 3) as f32).collect();
    b.write(bytemuck::cast_slice(&ones))?;
    let c = context.clone();
    prepared(&[&grad.clone()], move || {
        let factors = Factors { factor: 1.0, state: None };
        hidden_distance_backward(&c, a.buffer(), b.buffer(), grad.buffer(), [rows, cols], factors, false)
    })
}

fn scaled(context: &Context, shape: [usize; 2]) -> Result<Prepared> {
    let (x, values, out) =
        (random(context, shape[0] * shape[1])?, random(context, shape[1])?, zeros(context, shape[0] * shape[1])?);
    let c = context.clone();
    prepared(&[&out.clone()], move || scale_columns(&c, x.buffer(), values.buffer(), out.buffer(), shape, false))
}

fn dots(context: &Context, shape: [usize; 2]) -> Result<Prepared> {
    let (x, d, out) =
        (random(context, shape[0] * shape[1])?, random(context, shape[0] * shape[1])?, zeros(context, shape[1])?);
    let c = context.clone();
    prepared(&[&out.clone()], move || column_dot(&c, x.buffer(), d.buffer(), out.buffer(), shape, false))
}

fn valued(context: &Context, shape: [usize; 2], backward: bool) -> Result<Prepared> {
    let [rows, cols] = shape;
    let (u, dz, values) = (random(context, rows * cols)?, random(context, rows * cols)?, random(context, cols)?);
    let (mean, rstd) = (random(context, rows)?, random(context, rows)?);
    let (out, dvalues, c) = (zeros(context, rows * cols)?, zeros(context, cols)?, context.clone());
    prepared(&[&out.clone()], move || {
        let [u, dz, values, out, dvalues] = [&u, &dz, &values, &out, &dvalues].map(Tensor::buffer);
        let statistics = Statistics { mean: mean.buffer(), rstd: rstd.buffer() };
        if backward {
            value_norm_backward(&c, dz, u, values, statistics, out, false, dvalues, false, shape)
        } else {
            value_norm(&c, u, values, None, out, statistics, shape, 1e-5)
        }
    })
}

fn columns(context: &Context, [rows, cols]: [usize; 2]) -> Result<Prepared> {
    let (x, out, c) = (random(context, rows * cols)?, zeros(context, cols)?, context.clone());
    prepared(&[&out.clone()], move || column_sum(&c, x.buffer(), out.buffer(), [rows, cols], 1.0, false))
}

fn row_sums(context: &Context, [rows, cols]: [usize; 2]) -> Result<Prepared> {
    let (x, out, c) = (random(context, rows * cols)?, zeros(context, rows)?, context.clone());
    prepared(&[&out.clone()], move || row_sum(&c, x.buffer(), out.buffer(), [rows, cols], 1.0, false))
}

fn embed(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, cols, seq) = (size.rows(), size.width, size.seq);
    let (ids, table) = (tokens(context, rows, size.vocab)?, random(context, size.vocab * cols)?);
    let (places, out) = (random(context, seq * cols)?, zeros(context, rows * cols)?);
    let (state, c) = (state(context)?, context.clone());
    prepared(&[&out.clone()], move || {
        let positions = Positions { table: places.buffer(), seq, offset: None };
        let mask = dropout(state.buffer());
        embedding(&c, ids.buffer(), table.buffer(), Some(positions), Some(mask), out.buffer(), [rows, cols])
    })
}

/// Adds to the gradients, since setting them starts with a clear, which would end the compute pass that is timed.
fn embed_backward(context: &Context, size: Size, vocab: usize) -> Result<Prepared> {
    let (rows, cols, seq) = (size.rows(), size.width, size.seq);
    let (ids, dout) = (tokens(context, rows, vocab)?, random(context, rows * cols)?);
    let (dtable, dplaces) = (zeros(context, vocab * cols)?, zeros(context, seq * cols)?);
    let c = context.clone();
    prepared(&[&dtable.clone(), &dplaces.clone()], move || {
        let places = PositionsGradient { table: dplaces.buffer(), seq, accumulate: true };
        embedding_backward(&c, dout.buffer(), ids.buffer(), dtable.buffer(), true, Some(places), None, [rows, cols])
    })
}
