//! What works on single elements, whole-tensor reductions, and the optimizer.

use super::{Case, Prepared, Size, Work, dropout, prepared, random, state, zeros};
use crate::kernel::accumulate::accumulate;
use crate::kernel::adamw::{AdamwParams, Chunk, adamw};
use crate::kernel::binary::{Binary, binary, sum_to};
use crate::kernel::clamp::clamp;
use crate::kernel::dropout::dropout as drop_out;
use crate::kernel::optimizer_step::{CHUNK, StepParams, grad_norm, optimizer_step};
use crate::kernel::reduce::{Reduction, reduce};
use crate::kernel::scale_by_scalar::scale_by_scalar;
use crate::kernel::swiglu::swiglu;
use crate::kernel::unary::{Unary, unary};
use crate::{Context, Result, Tensor};

pub fn cases(size: Size) -> Vec<Case> {
    // An activation of the MLP, and a layer's parameters.
    let (rows, cols, width) = (size.rows(), 4 * size.width, size.width);
    let (n, parameters) = (rows * cols, 12 * width * width);
    let chunks = parameters.div_ceil(CHUNK as usize);
    let on_activation = |name, bytes, prepare: fn(&Context, usize) -> Result<Prepared>| {
        Case::new(name, [rows, cols, 0], Work::bytes(bytes * n), move |c| prepare(c, n))
    };
    let on_parameters = |name, n, bytes, prepare: fn(&Context, usize) -> Result<Prepared>| {
        Case::new(name, [1, n, 0], Work::bytes(bytes * n), move |c| prepare(c, n))
    };
    vec![
        on_activation("accumulate", 12, add),
        on_activation("unary", 8, gelu),
        on_activation("binary", 12, product),
        Case::new("sum_to", [rows, width, 0], Work::bytes(4 * rows * width), move |c| {
            broadcast_gradient(c, rows, width)
        }),
        on_activation("dropout", 8, mask),
        Case::new("swiglu", [rows, cols, 0], Work::bytes(12 * n), move |c| gate(c, rows, cols)),
        on_activation("scale_by_scalar", 8, scale),
        on_activation("reduce", 4, total),
        on_parameters("grad_norm", parameters, 4, norm),
        on_parameters("optimizer_step", chunks, 4, step),
        // Weights and two moments are read and written, gradients are read.
        on_parameters("adamw", parameters, 28, update),
        on_parameters("clamp", parameters, 4, bounds),
    ]
}

fn add(context: &Context, n: usize) -> Result<Prepared> {
    let (x, out, c) = (random(context, n)?, zeros(context, n)?, context.clone());
    prepared(&[&out.clone()], move || accumulate(&c, x.buffer(), out.buffer(), true))
}

fn gelu(context: &Context, n: usize) -> Result<Prepared> {
    let (x, out, c) = (random(context, n)?, zeros(context, n)?, context.clone());
    prepared(&[&out.clone()], move || unary(&c, Unary::GeluErf, x.buffer(), out.buffer()))
}

fn product(context: &Context, n: usize) -> Result<Prepared> {
    let (a, b, out, c) = (random(context, n)?, random(context, n)?, zeros(context, n)?, context.clone());
    prepared(&[&out.clone()], move || binary(&c, Binary::Mul, (a.buffer(), &[n]), (b.buffer(), &[n]), out.buffer()))
}

fn broadcast_gradient(context: &Context, rows: usize, cols: usize) -> Result<Prepared> {
    let (x, out, c) = (random(context, rows * cols)?, zeros(context, cols)?, context.clone());
    prepared(&[&out.clone()], move || sum_to(&c, x.buffer(), &[rows, cols], out.buffer(), &[cols], false))
}

fn mask(context: &Context, n: usize) -> Result<Prepared> {
    let (x, out, state, c) = (random(context, n)?, zeros(context, n)?, state(context)?, context.clone());
    prepared(&[&out.clone()], move || drop_out(&c, x.buffer(), None, out.buffer(), dropout(state.buffer())))
}

fn gate(context: &Context, rows: usize, width: usize) -> Result<Prepared> {
    let (x, out, c) = (random(context, 2 * rows * width)?, zeros(context, rows * width)?, context.clone());
    prepared(&[&out.clone()], move || swiglu(&c, x.buffer(), out.buffer(), rows, width))
}

fn scale(context: &Context, n: usize) -> Result<Prepared> {
    let (x, one, c) = (random(context, n)?, Tensor::from_f32(context, &[1.0], &[1])?, context.clone());
    prepared(&[&x.clone()], move || scale_by_scalar(&c, x.buffer(), one.buffer()))
}

fn total(context: &Context, n: usize) -> Result<Prepared> {
    let (x, out, c) = (random(context, n)?, zeros(context, 1)?, context.clone());
    prepared(&[&out.clone()], move || reduce(&c, x.buffer(), out.buffer(), Reduction::Sum(1.0)))
}

fn norm(context: &Context, n: usize) -> Result<Prepared> {
    let (grads, partials, c) = (random(context, n)?, zeros(context, n.div_ceil(CHUNK as usize))?, context.clone());
    prepared(&[&partials.clone()], move || grad_norm(&c, grads.buffer(), partials.buffer(), 0))
}

fn step(context: &Context, n: usize) -> Result<Prepared> {
    let (partials, state, c) = (Tensor::from_f32(context, &vec![1.0; n], &[n])?, state(context)?, context.clone());
    prepared(&[&state.clone()], move || {
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
            lambda: 10.0,
            lambda_silent: 800,
            lambda_full: 1000,
            lambda_slope: 0.05,
            lambda_offset: 0.0,
        };
        optimizer_step(&c, &params, partials.buffer(), state.buffer())
    })
}

fn update(context: &Context, n: usize) -> Result<Prepared> {
    let (weights, grads, state) = (random(context, n)?, random(context, n)?, state(context)?);
    let (moments1, moments2, c) = (zeros(context, n)?, zeros(context, n)?, context.clone());
    prepared(&[&weights.clone(), &moments2.clone()], move || {
        let params = AdamwParams {
            len: n as u32,
            decay_end: n as u32,
            beta1: 0.9,
            beta2: 0.99,
            one_minus_beta1: 0.1,
            one_minus_beta2: 0.01,
            eps: 1e-8,
            weight_decay: 0.1,
            pull_end: 0,
            coupled: 0,
        };
        let [weights, grads, moments1, moments2] = [&weights, &grads, &moments1, &moments2].map(Tensor::buffer);
        adamw(&c, &params, Chunk { weights, grads, moments1, moments2, halves: None, targets: None }, state.buffer())
    })
}

fn bounds(context: &Context, n: usize) -> Result<Prepared> {
    let (weights, c) = (random(context, n)?, context.clone());
    prepared(&[&weights.clone()], move || clamp(&c, weights.buffer(), None, 1.0))
}
