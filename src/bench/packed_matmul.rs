//! The kernels that multiply quantized matrices, each by itself: the table of `packed_matmul` would take another one on some adapters.

use super::low_bit::packed;
use super::{Case, Prepared, Size, Work, packed_bytes, prepared, random, random_as, zeros};
use crate::format::{Format, Span, Store};
use crate::kernel::mask::{mask, words};
use crate::kernel::matmul::{Epilogue, Form, Shape};
use crate::kernel::packed_matmul::{Choice, Operand, PackedMatmul, packed_matmul_with};
use crate::{Context, DType, Result, Tensor};

pub fn cases(size: Size) -> Vec<Case> {
    let (rows, width) = (size.rows(), size.width);
    let mut all = if size.is_large() { products([4096; 3]) } else { products([256; 3]) };
    all.push(masked([rows, width]));
    all
}

pub fn products(mnk: [usize; 3]) -> Vec<Case> {
    let shape = if mnk[0].min(mnk[1]) < 1024 { Shape::Small } else { Shape::Wide };
    let (tiled, integer) = (Choice::Tiled { shape, splits: 1 }, Choice::Integer(shape));
    let by_row = |bits| Format::int(bits).scaled(Span::Row, Store::F32);
    let mut all: Vec<Case> = Form::ALL.iter().map(|form| product(tiled, *form, None, Format::int(4), mnk)).collect();
    for (choice, left, right) in [
        (tiled, Format::NF4, Format::NF4),
        (integer, by_row(8), by_row(4)),
        (integer, Format::int(8), Format::int(4)),
        (Choice::Binary(shape), Format::BINARY, Format::BINARY),
        (Choice::Binary(shape), Format::BINARY.scaled(Span::Group(128), Store::F16), Format::BINARY),
    ] {
        all.push(product(choice, Form::Nt, Some(left), right, mnk));
    }
    all
}

/// `left` is dense, of f32, where there is no format for it.
fn product(choice: Choice, form: Form, left: Option<Format>, right: Format, mnk: [usize; 3]) -> Case {
    let [m, n, k] = mnk;
    let shape_b = if form == Form::Nt { [n, k] } else { [k, n] };
    let bytes_a = left.map_or(4 * m * k, |left| packed_bytes(left, [m, k]));
    let work = Work::bytes(packed_bytes(right, shape_b) + bytes_a + 4 * m * n).flops(2 * m * n * k);
    let prepare = move |context: &Context| -> Result<Prepared> {
        let dense = random_as(context, if left.is_some() { 1 } else { m * k }, DType::F32)?;
        let codes = left.map(|left| packed(context, left, [m, k])).transpose()?;
        let (b, out, c) = (packed(context, right, shape_b)?, zeros(context, m * n)?, context.clone());
        prepared(&[&out.clone()], move || {
            let a = codes.as_ref().map_or(Operand::Dense(dense.buffer()), Operand::Packed);
            let (b, out, epilogue) = (&b, out.buffer(), Epilogue::None);
            let (alpha, bias, mask, accumulate) = (1.0, None, None, false);
            let spec = PackedMatmul { form, m, n, k, a, b, out, alpha, bias, epilogue, mask, accumulate };
            packed_matmul_with(&c, &spec, choice)
        })
    };
    let (name, kernels) = match (choice, form) {
        (Choice::Integer(_), _) => ("packed_integer", "packed_integer"),
        (Choice::Binary(_), _) => ("packed_binary", "packed_binary"),
        (_, Form::Nt) => ("packed_tiled", "packed_tiled"),
        (_, Form::Nn) => ("packed_tiled_nn", "packed_tiled"),
        (_, Form::Tn) => ("packed_tiled_tn", "packed_tiled"),
    };
    let case = Case::new(name, mnk, work, prepare).format(right.to_string()).kernels(&[kernels]);
    match left {
        Some(left) => case.packed_activations(left),
        None => case,
    }
}

fn masked([rows, cols]: [usize; 2]) -> Case {
    let prepare = move |context: &Context| {
        let (x, out, c) = (random(context, rows * cols)?, zeros(context, rows * cols)?, context.clone());
        let bits = Tensor::from_u32(context, &vec![0x5a5a_a5a5; words(rows, cols)], &[words(rows, cols)])?;
        prepared(&[&out.clone()], move || mask(&c, x.buffer(), bits.buffer(), out.buffer(), [rows, cols], false))
    };
    Case::new("mask", [rows, cols, 0], Work::bytes(8 * rows * cols + 4 * words(rows, cols)), prepare)
}
