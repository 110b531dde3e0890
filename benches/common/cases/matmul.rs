//! Products: the three forms of one linear layer (width to four widths), and a square.

use super::{Case, Prepared, Size, Work, prepared, random, random_as, zeros};
use walsh::kernel::matmul::{Activation, Dims, Epilogue, Form, Matmul, matmul};
use walsh::{Context, DType, Result, Tensor, Tier};

const KERNELS: &[&str] = &["matmul_*"];

pub const CASES: &[Case] = &[
    Case {
        name: "matmul_nt",
        kernels: KERNELS,
        needs: Tier::Baseline,
        prepare: |c, s| product(c, Form::Nt, [s.rows(), 4 * s.width, s.width]),
    },
    Case {
        name: "matmul_nn",
        kernels: KERNELS,
        needs: Tier::Baseline,
        prepare: |c, s| product(c, Form::Nn, [s.rows(), s.width, 4 * s.width]),
    },
    Case {
        name: "matmul_tn",
        kernels: KERNELS,
        needs: Tier::Baseline,
        prepare: |c, s| product(c, Form::Tn, [4 * s.width, s.width, s.rows()]),
    },
    Case {
        // A token of a decoder.
        name: "matmul_vector",
        kernels: KERNELS,
        needs: Tier::Baseline,
        prepare: |c, s| product(c, Form::Nt, [1, 4 * s.width, s.width]),
    },
    // Where the activation costs the product too much it is a pass of its own.
    Case { name: "matmul_gelu", kernels: &["matmul_*", "unary"], needs: Tier::Baseline, prepare: gelu },
    Case {
        name: "matmul_square",
        kernels: KERNELS,
        needs: Tier::Baseline,
        prepare: |c, s| product(c, Form::Nt, [square(s); 3]),
    },
];

/// 4096 where the model is large.
fn square(size: Size) -> usize {
    if size.width < 256 { 256 } else { 4096 }
}

/// In f16 on the cooperative tier, whose kernels are for that.
fn dtype(context: &Context) -> DType {
    if context.tier() == Tier::Coop { DType::F16 } else { DType::F32 }
}

fn shape([m, n, k]: [usize; 3], dtype: DType) -> String {
    format!("{dtype}-{m}x{n}x{k}")
}

fn product(context: &Context, form: Form, mnk: [usize; 3]) -> Result<Prepared> {
    let ([m, n, k], dtype) = (mnk, dtype(context));
    let (a, b) = (random_as(context, m * k, dtype)?, random_as(context, k * n, dtype)?);
    let (out, c) = (zeros(context, m * n)?, context.clone());
    prepared(shape(mnk, dtype), Work::Flops(2 * m * n * k), &[&out.clone()], move || {
        let [a, b, out] = [&a, &b, &out].map(Tensor::buffer);
        let (epilogue, dims) = (Epilogue::None, Dims::new(m, n, k));
        matmul(&c, &Matmul { form, dims, a, b, out, alpha: 1.0, bias: None, epilogue, accumulate: false })
    })
}

fn gelu(context: &Context, size: Size) -> Result<Prepared> {
    let (mnk, dtype) = ([size.rows(), 4 * size.width, size.width], dtype(context));
    let [m, n, k] = mnk;
    let (a, b) = (random_as(context, m * k, dtype)?, random_as(context, k * n, dtype)?);
    let [pre, out] = [random_as(context, m * n, dtype)?, random_as(context, m * n, dtype)?];
    let (bias, c) = (random(context, n)?, context.clone());
    prepared(shape(mnk, dtype), Work::Flops(2 * m * n * k), &[&out.clone(), &pre.clone()], move || {
        let [a, b, out] = [&a, &b, &out].map(Tensor::buffer);
        let (epilogue, dims) = (Epilogue::Activation(Activation::Gelu, pre.buffer()), Dims::new(m, n, k));
        let bias = Some(bias.buffer());
        matmul(&c, &Matmul { form: Form::Nt, dims, a, b, out, alpha: 1.0, bias, epilogue, accumulate: false })
    })
}
