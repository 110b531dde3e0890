//! Products: the three forms of one linear layer (width to four widths), one of its rows, and a square.

use super::{Case, Prepared, Size, Work, prepared, random, random_as, zeros};
use crate::kernel::matmul::{Activation, Dims, Epilogue, Form, Matmul, matmul};
use crate::{Context, DType, Result, Tensor};

pub fn cases(size: Size) -> Vec<Case> {
    let (rows, width) = (size.rows(), size.width);
    let square = if size.is_large() { 4096 } else { 256 };
    DTYPES
        .into_iter()
        .flat_map(|dtype| {
            [
                product(Form::Nt, [rows, 4 * width, width], dtype),
                product(Form::Nn, [rows, width, 4 * width], dtype),
                product(Form::Tn, [4 * width, width, rows], dtype),
                // A token of a decoder.
                product(Form::Nt, [1, 4 * width, width], dtype),
                gelu([rows, 4 * width, width], dtype),
                product(Form::Nt, [square; 3], dtype),
            ]
        })
        .collect()
}

pub fn products(mnk: [usize; 3]) -> Vec<Case> {
    DTYPES.into_iter().flat_map(|dtype| Form::ALL.map(|form| product(form, mnk, dtype))).collect()
}

const DTYPES: [DType; 2] = [DType::F32, DType::F16];

/// What may be dispatched; cooperative matrices are for f16.
fn kernels(dtype: DType) -> &'static [&'static str] {
    if dtype == DType::F16 {
        &["matmul_*"]
    } else {
        &["matmul_tiled", "matmul_lanes", "matmul_vector*", "matmul_reduce"]
    }
}

/// Operands of `dtype`, and a result of `out`.
fn work([m, n, k]: [usize; 3], dtype: DType, out: DType) -> Work {
    Work::bytes(dtype.size() * (m * k + k * n) + out.size() * m * n).flops(2 * m * n * k)
}

fn product(form: Form, mnk: [usize; 3], dtype: DType) -> Case {
    let name = match form {
        Form::Nt => "matmul_nt",
        Form::Nn => "matmul_nn",
        Form::Tn => "matmul_tn",
    };
    let prepare = move |context: &Context| prepare_product(context, form, mnk, dtype);
    Case::new(name, mnk, work(mnk, dtype, DType::F32), prepare).dtype(dtype).kernels(kernels(dtype))
}

fn prepare_product(context: &Context, form: Form, [m, n, k]: [usize; 3], dtype: DType) -> Result<Prepared> {
    let (a, b) = (random_as(context, m * k, dtype)?, random_as(context, k * n, dtype)?);
    let (out, c) = (zeros(context, m * n)?, context.clone());
    prepared(&[&out.clone()], move || {
        let [a, b, out] = [&a, &b, &out].map(Tensor::buffer);
        let (epilogue, dims) = (Epilogue::None, Dims::new(m, n, k));
        matmul(&c, &Matmul { form, dims, a, b, out, alpha: 1.0, bias: None, epilogue, accumulate: false })
    })
}

/// With bias and GELU, whose argument is kept.
fn gelu(mnk: [usize; 3], dtype: DType) -> Case {
    let [m, n, k] = mnk;
    let mut work = work(mnk, dtype, dtype);
    work.bytes = work.bytes.map(|bytes| bytes + dtype.size() * m * n);
    let prepare = move |context: &Context| {
        let (a, b) = (random_as(context, m * k, dtype)?, random_as(context, k * n, dtype)?);
        let [pre, out] = [random_as(context, m * n, dtype)?, random_as(context, m * n, dtype)?];
        let (bias, c) = (random(context, n)?, context.clone());
        prepared(&[&out.clone(), &pre.clone()], move || {
            let [a, b, out] = [&a, &b, &out].map(Tensor::buffer);
            let (epilogue, dims) = (Epilogue::Activation(Activation::Gelu, pre.buffer()), Dims::new(m, n, k));
            let bias = Some(bias.buffer());
            matmul(&c, &Matmul { form: Form::Nt, dims, a, b, out, alpha: 1.0, bias, epilogue, accumulate: false })
        })
    };
    // Where the activation costs the product too much it is a pass of its own.
    Case::new("matmul_gelu", mnk, work, prepare).dtype(dtype).kernels(&[kernels(dtype), &["unary"]].concat())
}
