//! What works on single elements, whole-tensor reductions, and the optimizer.

use super::{Case, Prepared, Size, Work, dropout, prepared, random, state, zeros};
use walsh::kernel::accumulate::accumulate;
use walsh::kernel::adamw::{AdamwParams, Chunk, adamw};
use walsh::kernel::binary::{Binary, binary, sum_to};
use walsh::kernel::dropout::dropout as drop_out;
use walsh::kernel::optimizer_step::{CHUNK, StepParams, grad_norm, optimizer_step};
use walsh::kernel::reduce::{Reduction, reduce};
use walsh::kernel::scale_by_scalar::scale_by_scalar;
use walsh::kernel::swiglu::swiglu;
use walsh::kernel::unary::{Unary, unary};
use walsh::{Context, Result, Tensor, Tier};

pub const CASES: &[Case] = &[
    Case { name: "accumulate", kernels: &["accumulate"], needs: Tier::Baseline, prepare: add },
    Case { name: "unary", kernels: &["unary"], needs: Tier::Baseline, prepare: gelu },
    Case { name: "binary", kernels: &["binary"], needs: Tier::Baseline, prepare: product },
    Case { name: "sum_to", kernels: &["sum_to"], needs: Tier::Baseline, prepare: broadcast_gradient },
    Case { name: "dropout", kernels: &["dropout"], needs: Tier::Baseline, prepare: mask },
    Case { name: "swiglu", kernels: &["swiglu"], needs: Tier::Baseline, prepare: gate },
    Case { name: "scale_by_scalar", kernels: &["scale_by_scalar"], needs: Tier::Baseline, prepare: scale },
    Case { name: "reduce", kernels: &["reduce"], needs: Tier::Baseline, prepare: total },
    Case { name: "grad_norm", kernels: &["grad_norm"], needs: Tier::Baseline, prepare: norm },
    Case { name: "optimizer_step", kernels: &["optimizer_step"], needs: Tier::Baseline, prepare: step },
    Case { name: "adamw", kernels: &["adamw"], needs: Tier::Baseline, prepare: update },
];

/// Elements of an activation of the MLP.
fn elements(size: Size) -> usize {
    4 * size.rows() * size.width
}

/// Elements of a layer's parameters.
fn parameters(size: Size) -> usize {
    12 * size.width * size.width
}

fn add(context: &Context, size: Size) -> Result<Prepared> {
    let n = elements(size);
    let (x, out, c) = (random(context, n)?, zeros(context, n)?, context.clone());
    prepared(n.to_string(), Work::Bytes(12 * n), &[&out.clone()], move || {
        accumulate(&c, x.buffer(), out.buffer(), true)
    })
}

fn gelu(context: &Context, size: Size) -> Result<Prepared> {
    let n = elements(size);
    let (x, out, c) = (random(context, n)?, zeros(context, n)?, context.clone());
    prepared(n.to_string(), Work::Bytes(8 * n), &[&out.clone()], move || {
        unary(&c, Unary::GeluErf, x.buffer(), out.buffer())
    })
}

fn product(context: &Context, size: Size) -> Result<Prepared> {
    let n = elements(size);
    let (a, b, out, c) = (random(context, n)?, random(context, n)?, zeros(context, n)?, context.clone());
    prepared(n.to_string(), Work::Bytes(12 * n), &[&out.clone()], move || {
        binary(&c, Binary::Mul, (a.buffer(), &[n]), (b.buffer(), &[n]), out.buffer())
    })
}

fn broadcast_gradient(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, cols) = (size.rows(), size.width);
    let (x, out, c) = (random(context, rows * cols)?, zeros(context, cols)?, context.clone());
    prepared(format!("{rows}x{cols}"), Work::Bytes(4 * rows * cols), &[&out.clone()], move || {
        sum_to(&c, x.buffer(), &[rows, cols], out.buffer(), &[cols], false)
    })
}

fn mask(context: &Context, size: Size) -> Result<Prepared> {
    let n = elements(size);
    let (x, out, state, c) = (random(context, n)?, zeros(context, n)?, state(context)?, context.clone());
    prepared(n.to_string(), Work::Bytes(8 * n), &[&out.clone()], move || {
        drop_out(&c, x.buffer(), None, out.buffer(), dropout(state.buffer()))
    })
}

fn gate(context: &Context, size: Size) -> Result<Prepared> {
    let (rows, width) = (size.rows(), 4 * size.width);
    let (x, out, c) = (random(context, 2 * rows * width)?, zeros(context, rows * width)?, context.clone());
    prepared(format!("{rows}x{width}"), Work::Bytes(12 * rows * width), &[&out.clone()], move || {
        swiglu(&c, x.buffer(), out.buffer(), rows, width)
    })
}

fn scale(context: &Context, size: Size) -> Result<Prepared> {
    let n = elements(size);
    let (x, one, c) = (random(context, n)?, Tensor::from_f32(context, &[1.0], &[1])?, context.clone());
    prepared(n.to_string(), Work::Bytes(8 * n), &[&x.clone()], move || scale_by_scalar(&c, x.buffer(), one.buffer()))
}

fn total(context: &Context, size: Size) -> Result<Prepared> {
    let n = elements(size);
    let (x, out, c) = (random(context, n)?, zeros(context, 1)?, context.clone());
    prepared(n.to_string(), Work::Bytes(4 * n), &[&out.clone()], move || {
        reduce(&c, x.buffer(), out.buffer(), Reduction::Sum(1.0))
    })
}

fn norm(context: &Context, size: Size) -> Result<Prepared> {
    let n = parameters(size);
    let (grads, partials, c) = (random(context, n)?, zeros(context, n.div_ceil(CHUNK as usize))?, context.clone());
    prepared(n.to_string(), Work::Bytes(4 * n), &[&partials.clone()], move || {
        grad_norm(&c, grads.buffer(), partials.buffer(), 0)
    })
}

fn step(context: &Context, size: Size) -> Result<Prepared> {
    let n = parameters(size).div_ceil(CHUNK as usize);
    let (partials, state, c) = (Tensor::from_f32(context, &vec![1.0; n], &[n])?, state(context)?, context.clone());
    prepared(n.to_string(), Work::Bytes(4 * n), &[&state.clone()], move || {
        let params = StepParams {
            partials: n as u32,
            clip: 1.0,
            lr: 1e-3,
            min_lr: 1e-4,
            warmup: 100,
            decay: 1000,
            one_minus_beta1: 0.1,
            one_minus_beta2: 0.01,
            growth_interval: 0,
            max_loss_scale: 1.0,
        };
        optimizer_step(&c, &params, partials.buffer(), state.buffer())
    })
}

fn update(context: &Context, size: Size) -> Result<Prepared> {
    let n = parameters(size);
    let (weights, grads, state) = (random(context, n)?, random(context, n)?, state(context)?);
    let (moments1, moments2, c) = (zeros(context, n)?, zeros(context, n)?, context.clone());
    // Weights and two moments are read and written, gradients are read.
    prepared(n.to_string(), Work::Bytes(28 * n), &[&weights.clone(), &moments2.clone()], move || {
        let params = AdamwParams {
            len: n as u32,
            decay_end: n as u32,
            beta1: 0.9,
            beta2: 0.99,
            one_minus_beta1: 0.1,
            one_minus_beta2: 0.01,
            eps: 1e-8,
            weight_decay: 0.1,
        };
        let [weights, grads, moments1, moments2] = [&weights, &grads, &moments1, &moments2].map(Tensor::buffer);
        adamw(&c, &params, Chunk { weights, grads, moments1, moments2, halves: None }, state.buffer())
    })
}
