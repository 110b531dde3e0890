//! What works on rows: norms, softmax, the loss, sums, embeddings.

use super::{Case, Prepared, Size, Work, dropout, prepared, random, state, tokens, zeros};
use walsh::kernel::column_sum::column_sum;
use walsh::kernel::cross_entropy::{Gradient, cross_entropy};
use walsh::kernel::embedding::{Positions, PositionsGradient, embedding, embedding_backward};
use walsh::kernel::layer_norm::{ParameterGradients, layer_norm, layer_norm_backward};
use walsh::kernel::rms_norm::{rms_norm, rms_norm_backward};
use walsh::kernel::row_sum::row_sum;
use walsh::kernel::softmax::{softmax, softmax_backward};
use walsh::{Context, Result, Tensor, Tier};

pub const CASES: &[Case] = &[
    Case { name: "layer_norm", kernels: &["layer_norm"], needs: Tier::Baseline, prepare: |c, s| norm(c, s, true) },
    Case { name: "rms_norm", kernels: &["rms_norm"], needs: Tier::Baseline, prepare: |c, s| norm(c, s, false) },
    Case {
        name: "layer_norm_backward",
        kernels: &["layer_norm_backward", "column_sum"],
        needs: Tier::Baseline,
        prepare: |c, s| norm_backward(c, s, true),
    },
    Case {
        name: "rms_norm_backward",
        kernels: &["rms_norm_backward", "column_sum"],
        needs: Tier::Baseline,
        prepare: |c, s| norm_backward(c, s, false),
    },
    Case { name: "softmax", kernels: &["softmax"], needs: Tier::Baseline, prepare: soft },
    Case { name: "softmax_backward", kernels: &["softmax_backward"], needs: Tier::Baseline, prepare: soft_backward },
    Case {
        name: "cross_entropy",
        kernels: &["cross_entropy_count", "cross_entropy", "cross_entropy_mean"],
        needs: Tier::Baseline,
        prepare: loss,
    },
    Case { name: "column_sum", kernels: &["column_sum"], needs: Tier::Baseline, prepare: columns },
    Case { name: "row_sum", kernels: &["row_sum"], needs: Tier::Baseline, prepare: rows },
    Case { name: "embedding", kernels: &["embedding"], needs: Tier::Baseline, prepare: embed },
    Case {
        name: "embedding_backward",
        kernels: &["embedding_backward", "column_sum"],
        needs: Tier::Baseline,
        prepare: |c, s| embed_backward(c, s, s.vocab),
    },
    Case {
        name: "embedding_backward_sorted",
        kernels: &["embedding_sort", "embedding_backward_sorted", "embedding_backward_positions"],
        needs: Tier::Baseline,
        prepare: |c, s| embed_backward(c, s, s.pieces),
    },
];

fn shape(rows: usize, cols: usize) -> String {
    format!("{rows}x{cols}")
}

fn norm(context: &Context, size: Size, mean: bool) -> Result<Prepared> {
    let (rows, cols) = (size.rows(), size.width);
    let (x, weight, bias) = (random(context, rows * cols)?, random(context, cols)?, random(context, cols)?);
    let (out, mu, rstd) = (zeros(context, rows * cols)?, zeros(context, rows)?, zeros(context, rows)?);
    let c = context.clone();
    prepared(shape(rows, cols), Work::Bytes(8 * rows * cols), &[&out.clone(), &rstd.clone()], move || {
        let [x, weight, bias, out, mu, rstd] = [&x, &weight, &bias, &out, &mu, &rstd].map(Tensor::buffer);
        if mean {
            layer_norm(&c, x, weight, Some(bias), out, mu, rstd, [rows, cols], 1e-5)
        } else {
            rms_norm(&c, x, weight, out, rstd, [rows, cols], 1e-5)
        }
    })
}

fn norm_backward(context: &Context, size: Size, mean: bool) -> Result<Prepared> {
    let (rows, cols) = (size.rows(), size.width);
    let (x, dy, weight) = (random(context, rows * cols)?, random(context, rows * cols)?, random(context, cols)?);
    let (mu, rstd) = (random(context, rows)?, random(context, rows)?);
    let (dx, dweight, dbias) = (zeros(context, rows * cols)?, zeros(context, cols)?, zeros(context, cols)?);
    let c = context.clone();
    prepared(shape(rows, cols), Work::Bytes(12 * rows * cols), &[&dx.clone(), &dweight.clone()], move || {
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

fn soft(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, cols) = (size.rows(), size.seq);
    let (x, y, c) = (random(context, rows * cols)?, zeros(context, rows * cols)?, context.clone());
    prepared(shape(rows, cols), Work::Bytes(8 * rows * cols), &[&y.clone()], move || {
        softmax(&c, x.buffer(), y.buffer(), rows, cols)
    })
}

fn soft_backward(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, cols) = (size.rows(), size.seq);
    let (y, dy, dx) = (random(context, rows * cols)?, random(context, rows * cols)?, zeros(context, rows * cols)?);
    let c = context.clone();
    prepared(shape(rows, cols), Work::Bytes(12 * rows * cols), &[&dx.clone()], move || {
        softmax_backward(&c, y.buffer(), dy.buffer(), dx.buffer(), rows, cols, false)
    })
}

fn loss(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, cols) = (size.rows(), size.vocab);
    let (logits, targets) = (random(context, rows * cols)?, tokens(context, rows, cols)?);
    let (losses, loss, grad) = (zeros(context, rows)?, zeros(context, 1)?, zeros(context, rows * cols)?);
    let c = context.clone();
    prepared(shape(rows, cols), Work::Bytes(8 * rows * cols), &[&loss.clone(), &grad.clone()], move || {
        let gradient = Gradient { out: Some(grad.buffer()), factor: 1.0, state: None };
        let [logits, targets, losses, loss] = [&logits, &targets, &losses, &loss].map(Tensor::buffer);
        cross_entropy(&c, logits, targets, losses, loss, [rows, cols], cols, Some(gradient))
    })
}

fn columns(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, cols) = (size.rows(), 4 * size.width);
    let (x, out, c) = (random(context, rows * cols)?, zeros(context, cols)?, context.clone());
    prepared(shape(rows, cols), Work::Bytes(4 * rows * cols), &[&out.clone()], move || {
        column_sum(&c, x.buffer(), out.buffer(), [rows, cols], 1.0, false)
    })
}

fn rows(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, cols) = (size.rows(), size.width);
    let (x, out, c) = (random(context, rows * cols)?, zeros(context, rows)?, context.clone());
    prepared(shape(rows, cols), Work::Bytes(4 * rows * cols), &[&out.clone()], move || {
        row_sum(&c, x.buffer(), out.buffer(), [rows, cols], 1.0, false)
    })
}

fn embed(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, cols, seq) = (size.rows(), size.width, size.seq);
    let (ids, table) = (tokens(context, rows, size.vocab)?, random(context, size.vocab * cols)?);
    let (places, out) = (random(context, seq * cols)?, zeros(context, rows * cols)?);
    let (state, c) = (state(context)?, context.clone());
    prepared(shape(rows, cols), Work::Bytes(4 * rows * cols), &[&out.clone()], move || {
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
    let shape = format!("{rows}x{cols}-of-{vocab}");
    prepared(shape, Work::Bytes(4 * rows * cols), &[&dtable.clone(), &dplaces.clone()], move || {
        let places = PositionsGradient { table: dplaces.buffer(), seq, accumulate: true };
        embedding_backward(&c, dout.buffer(), ids.buffer(), dtable.buffer(), true, Some(places), None, [rows, cols])
    })
}
