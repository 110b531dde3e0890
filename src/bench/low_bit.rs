//! Quantized matrices, in every format by its name: encoding, decoding, and products with packed weights or with both operands packed.

use super::{Case, Prepared, Size, Work, packed_bytes, prepared, random, random_as, zeros, zeros_as};
use crate::format::{Format, Grid, Span, Store};
use crate::kernel::dequantize::dequantize;
use crate::kernel::hadamard::{Signs, Step};
use crate::kernel::layer_norm::layer_norm;
use crate::kernel::learned_scale_backward::{Clip, LearnedScale, Outputs, learned_scale_backward};
use crate::kernel::matmul::{Epilogue, Form};
use crate::kernel::packed::Packed;
use crate::kernel::packed_matmul::{Operand, PackedMatmul, packed_matmul};
use crate::kernel::pad_rows::pad_rows;
use crate::kernel::quantize::{FusedLayerNorm, Options, normalizes, quantize};
use crate::kernel::quantize_transposed::{Source, quantize_transposed};
use crate::kernel::sign_gradient::{Factor, sign_gradient};
use crate::{Context, DType, Error, Result, Tensor};

/// Kernels that a product of quantized matrices may take.
const PRODUCTS: &[&str] = &["packed_*", "matmul_*", "dequantize", "mask", "pad_rows"];

pub fn cases(size: Size) -> Vec<Case> {
    let (rows, width) = (size.rows(), size.width);
    let mut all: Vec<Case> = Format::named().flat_map(|(_, format)| of_format(format, size)).collect();
    for bits in [4, 8] {
        let format =
            Format { grid: Grid::Int { bits, full: true }, ..Format::int(bits).scaled(Span::Tensor, Store::F32) };
        all.extend([encode_by_scale(format, [rows, width]), learned(format, [rows, width])]);
    }
    for format in [Format::MXFP4, Format::NVFP4] {
        all.extend([None, Some(format)].map(|from| transposed(from, format, [rows, width])));
    }
    all.push(normed(Format::gaussian_row(4), [rows, width]));
    all.push(squares(Format::NVFP4, [4 * width, width]));
    all.push(signs([4 * width, width]));
    all.push(pad([rows - 1, width - 1], [rows, width]));
    all.extend(PAIRS.map(|format| both(format, [rows, 4 * width, width])));
    if size.is_large() {
        all.extend(PAIRS.map(|format| both(format, [4096; 3])));
    }
    all
}

/// What is measured of each format: encoding, decoding, and products with dense activations.
pub fn of_format(format: Format, size: Size) -> Vec<Case> {
    let (rows, width) = (size.rows(), size.width);
    let mut all = vec![encode(format, [rows, width]), decode(format, [4 * width, width])];
    let mut shapes = vec![[1, 4 * width, width], [16, 4 * width, width], [rows, 4 * width, width]];
    if size.is_large() {
        shapes.extend([[1, 4096, 4096], [16, 4096, 4096], [256, 4096, 4096], [4096; 3], [1, 65536, 4096]]);
    }
    for shape in shapes {
        all.extend(activations(size).into_iter().map(|a| product(Form::Nt, format, a, shape)));
    }
    for a in activations(size) {
        all.push(product(Form::Nn, format, a, [rows, width, 4 * width]));
        all.push(product(Form::Tn, format, a, [4 * width, width, rows]));
    }
    all
}

/// Encoding and decoding of a matrix.
pub fn matrices_of(format: Format, shape: [usize; 2]) -> Vec<Case> {
    vec![encode(format, shape), decode(format, shape)]
}

/// Products at a shape of the caller's.
pub fn products(mnk: [usize; 3]) -> Vec<Case> {
    let weights = Format::named().flat_map(|(_, format)| products_of(format, mnk));
    weights.chain(PAIRS.map(|format| both(format, mnk))).collect()
}

/// Those with weights in one format and dense activations.
pub fn products_of(format: Format, mnk: [usize; 3]) -> Vec<Case> {
    let of = |activations| Form::ALL.map(|form| product(form, format, activations, mnk));
    [DType::F32, DType::F16].into_iter().flat_map(of).collect()
}

/// What activations and weights are both quantized to.
const PAIRS: [Format; 5] = [
    Format::int(8).scaled(Span::Row, Store::F32),
    Format::gaussian_row(4),
    Format::MXFP4,
    Format::NVFP4,
    Format::BINARY,
];

/// f32, and where models are large f16 too.
fn activations(size: Size) -> Vec<DType> {
    if size.is_large() { vec![DType::F32, DType::F16] } else { vec![DType::F32] }
}

fn encode(format: Format, [rows, cols]: [usize; 2]) -> Case {
    let work = Work::bytes(packed_bytes(format, [rows, cols]) + 4 * rows * cols);
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (x, out) = (random_as(context, rows * cols, DType::F32)?, zeros(context, rows * cols)?);
        let (codes, c) = (Packed::empty(context, format, rows, cols)?, context.clone());
        // What the case computes shows in the values.
        quantize(context, x.buffer(), &codes, Options::default())?;
        dequantize(context, &codes, out.buffer())?;
        prepared(&[&out], move || quantize(&c, x.buffer(), &codes, Options::default()))
    };
    Case::new("quantize", [rows, cols, 0], work, prepare).format(format.to_string()).kernels(&["quantize*"])
}

/// Encoding by a scale that is on the device, as a learned one is.
fn encode_by_scale(format: Format, [rows, cols]: [usize; 2]) -> Case {
    let work = Work::bytes(packed_bytes(format, [rows, cols]) + 4 * rows * cols);
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (x, out) = (random_as(context, rows * cols, DType::F32)?, zeros(context, rows * cols)?);
        let scale = Tensor::from_f32(context, &[0.25], &[1])?;
        let (codes, c) = (Packed::empty(context, format, rows, cols)?, context.clone());
        let encode = move |c: &Context| {
            quantize(c, x.buffer(), &codes, Options { scale: Some(scale.buffer()), ..Options::default() })?;
            Ok::<_, Error>(codes.clone())
        };
        dequantize(context, &encode(context)?, out.buffer())?;
        prepared(&[&out], move || encode(&c).map(drop))
    };
    Case::new("quantize", [rows, cols, 0], work, prepare).format(format.to_string()).kernels(&["quantize"])
}

fn learned(format: Format, [rows, cols]: [usize; 2]) -> Case {
    let n = rows * cols;
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (x, dy, dx) = (random(context, n)?, random(context, n)?, zeros(context, n)?);
        let (scale, ds) = (Tensor::from_f32(context, &[0.25], &[1])?, zeros(context, 1)?);
        let c = context.clone();
        prepared(&[&dx.clone(), &ds.clone()], move || {
            let (clip, offset, factor) = (Clip::BeforeRounding, None, 1.0);
            let learned = LearnedScale { grid: format.grid(), clip, scale: scale.buffer(), offset, factor };
            let (accumulate, accumulate_scalars) = (false, false);
            let out = Outputs { dx: dx.buffer(), accumulate, scale: ds.buffer(), offset: None, accumulate_scalars };
            learned_scale_backward(&c, x.buffer(), dy.buffer(), learned, out)
        })
    };
    Case::new("learned_scale_backward", [rows, cols, 0], Work::bytes(12 * n), prepare)
        .format(format.to_string())
        .kernels(&["learned_scale_backward", "column_sum"])
}

/// What the gradient of a weight multiplies: rotated along what were the columns, with random signs.
fn transposed(from: Option<Format>, format: Format, [rows, cols]: [usize; 2]) -> Case {
    let size = from.map_or(4 * rows * cols, |from| packed_bytes(from, [rows, cols]));
    let work = Work::bytes(size + packed_bytes(format, [cols, rows]));
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (dense, out) = (random_as(context, rows * cols, DType::F32)?, zeros(context, rows * cols)?);
        let codes = from.map(|from| packed(context, from, [rows, cols])).transpose()?;
        let (to, c) = (Packed::empty(context, format, cols, rows)?, context.clone());
        let run = move || {
            let block = format.group(rows);
            let signs = Signs { seed: 1, op: 0, step: Step::Number(0) };
            let hadamard = rows.is_multiple_of(block).then_some(block);
            let options = Options { hadamard, signs: Some(&signs), ..Options::default() };
            let x = codes.as_ref().map_or(Source::Dense(dense.buffer()), Source::Packed);
            quantize_transposed(&c, x, &to, options).map(|()| to.clone())
        };
        dequantize(context, &run()?, out.buffer())?;
        prepared(&[&out], move || run().map(|_| ()))
    };
    let case = Case::new("quantize_transposed", [rows, cols, 0], work, prepare).format(format.to_string());
    let case = case.kernels(&["quantize_transposed*", "quantize_tensor", "quantize_norm", "dequantize"]);
    if let Some(from) = from { case.packed_activations(from) } else { case }
}

/// Encoding of a layer norm, in one kernel where there is one.
fn normed(format: Format, [rows, cols]: [usize; 2]) -> Case {
    let work = Work::bytes(packed_bytes(format, [rows, cols]) + 4 * rows * cols);
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (x, weight) = (random_as(context, rows * cols, DType::F32)?, random(context, cols)?);
        let (out, statistics) = (zeros(context, rows * cols)?, zeros(context, 2 * FusedLayerNorm::second(rows))?);
        let (codes, c) = (Packed::empty(context, format, rows, cols)?, context.clone());
        let fused = normalizes(context, &format, cols, None);
        let encode = move |c: &Context| {
            let (weight, statistics) = (weight.buffer(), statistics.buffer());
            if fused {
                let layer_norm = Some(FusedLayerNorm { weight, bias: None, eps: 1e-5, statistics });
                quantize(c, x.buffer(), &codes, Options { layer_norm, ..Options::default() })?;
            } else {
                let [normed, mean, rstd] = [rows * cols, rows, rows].map(|len| c.alloc(len, DType::F32));
                let normed = normed?;
                layer_norm(c, x.buffer(), weight, None, &normed, &mean?, &rstd?, [rows, cols], 1e-5)?;
                quantize(c, &normed, &codes, Options::default())?;
            }
            Ok::<_, Error>(codes.clone())
        };
        dequantize(context, &encode(context)?, out.buffer())?;
        prepared(&[&out], move || encode(&c).map(drop))
    };
    let case = Case::new("quantize_normed", [rows, cols, 0], work, prepare).format(format.to_string());
    case.kernels(&["quantize*", "layer_norm"])
}

/// Scales of squares.
fn squares(format: Format, [rows, cols]: [usize; 2]) -> Case {
    let work = Work::bytes(packed_bytes(format, [rows, cols]) + 4 * rows * cols);
    let options = Options { square: true, ..Options::default() };
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (x, out) = (random_as(context, rows * cols, DType::F32)?, zeros(context, rows * cols)?);
        let (codes, c) = (Packed::empty(context, format, rows, cols)?, context.clone());
        quantize(context, x.buffer(), &codes, options)?;
        dequantize(context, &codes, out.buffer())?;
        prepared(&[&out], move || quantize(&c, x.buffer(), &codes, options))
    };
    Case::new("quantize_square", [rows, cols, 0], work, prepare).format(format.to_string()).kernels(&["quantize*"])
}

fn signs([rows, cols]: [usize; 2]) -> Case {
    let n = rows * cols;
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (w, dq, dw) = (random(context, n)?, random(context, n)?, zeros(context, n)?);
        let packed = Packed::empty(context, Format::BINARY, rows, cols)?;
        quantize(context, w.buffer(), &packed, Options::default())?;
        let c = context.clone();
        prepared(&[&dw.clone()], move || {
            sign_gradient(&c, Factor::Smooth, dq.buffer(), w.buffer(), &packed, dw.buffer(), false)
        })
    };
    Case::new("sign_gradient", [rows, cols, 0], Work::bytes(12 * n), prepare)
}

fn decode(format: Format, [rows, cols]: [usize; 2]) -> Case {
    let work = Work::bytes(packed_bytes(format, [rows, cols]) + 4 * rows * cols);
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (codes, out) = (packed(context, format, [rows, cols])?, zeros(context, rows * cols)?);
        let c = context.clone();
        prepared(&[&out.clone()], move || dequantize(&c, &codes, out.buffer()))
    };
    Case::new("dequantize", [rows, cols, 0], work, prepare).format(format.to_string())
}

/// A random matrix in a format.
pub(super) fn packed(context: &Context, format: Format, [rows, cols]: [usize; 2]) -> Result<Packed> {
    let x = random_as(context, rows * cols, DType::F32)?;
    let codes = Packed::empty(context, format, rows, cols)?;
    quantize(context, x.buffer(), &codes, Options::default())?;
    Ok(codes)
}

fn pad(from: [usize; 2], to: [usize; 2]) -> Case {
    let (len, room) = (from[0] * from[1], to[0] * to[1]);
    let prepare = move |context: &Context| {
        let (x, out, c) = (random_as(context, len, DType::F32)?, zeros(context, room)?, context.clone());
        prepared(&[&out.clone()], move || pad_rows(&c, x.buffer(), from, out.buffer(), to))
    };
    Case::new("pad_rows", [from[0], from[1], 0], Work::bytes(4 * (len + room)), prepare)
}

fn name(form: Form) -> &'static str {
    match form {
        Form::Nt => "packed_nt",
        Form::Nn => "packed_nn",
        Form::Tn => "packed_tn",
    }
}

/// Dense activations times packed weights; the weight gradient has packed activations on its right.
fn product(form: Form, format: Format, activations: DType, mnk: [usize; 3]) -> Case {
    let [m, n, k] = mnk;
    let codes = if form == Form::Nt { [n, k] } else { [k, n] };
    let work = Work::bytes(packed_bytes(format, codes) + m * k * activations.size() + 4 * m * n).flops(2 * m * n * k);
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (a, b) = (random_as(context, m * k, activations)?, packed(context, format, codes)?);
        let (out, c) = (zeros(context, m * n)?, context.clone());
        prepared(&[&out.clone()], move || multiply(&c, form, mnk, Operand::Dense(a.buffer()), &b, out.buffer()))
    };
    Case::new(name(form), mnk, work, prepare).format(format.to_string()).activations(activations).kernels(PRODUCTS)
}

fn both(format: Format, mnk: [usize; 3]) -> Case {
    let [m, n, k] = mnk;
    let bytes = packed_bytes(format, [n, k]) + packed_bytes(format, [m, k]) + 4 * m * n;
    let prepare = move |context: &Context| -> Result<Prepared> {
        let (a, b) = (packed(context, format, [m, k])?, packed(context, format, [n, k])?);
        let (out, c) = (zeros_as(context, m * n, DType::F32)?, context.clone());
        prepared(&[&out.clone()], move || multiply(&c, Form::Nt, mnk, Operand::Packed(&a), &b, out.buffer()))
    };
    let work = Work::bytes(bytes).flops(2 * m * n * k);
    Case::new(name(Form::Nt), mnk, work, prepare)
        .format(format.to_string())
        .packed_activations(format)
        .kernels(PRODUCTS)
}

fn multiply(
    context: &Context,
    form: Form,
    [m, n, k]: [usize; 3],
    a: Operand<'_>,
    b: &Packed,
    out: &crate::Buffer,
) -> Result<()> {
    let (epilogue, accumulate) = (Epilogue::None, false);
    let spec = PackedMatmul { form, m, n, k, a, b, out, alpha: 1.0, bias: None, epilogue, mask: None, accumulate };
    packed_matmul(context, &spec)
}
