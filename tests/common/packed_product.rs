//! What the tests of products with a quantized matrix share: hard matrices, the float64 result, its bound.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use crate::common::{Gen, U16, U32, assert_within, floats, stored};
use walsh::format::{Format, Grid, Header, Layout, Minifloat, PackedMatrix, Rounding, Store};
use walsh::kernel::matmul::{Activation, Epilogue, Form};
use walsh::kernel::packed::Packed;
use walsh::kernel::packed_matmul::{Operand, PackedMatmul};
use walsh::reference::matmul as reference;
use walsh::{Context, DType, Error, Result, Tensor};

/// A kernel's entry point.
pub type Run = fn(&Context, &PackedMatmul<'_>) -> Result<()>;

/// Every kind of format, and groups of 16 where the shaders tell them apart.
pub fn formats() -> Vec<Format> {
    let mut all = Format::all();
    let options =
        ["int4:g16", "int8:g16:f32", "int4:asym:g16", "nf3:g16", "nf4:g16", "int2:g16", "int6:g16", "int4:g32:f16"];
    all.extend(options.map(|o| o.parse::<Format>().unwrap()));
    all
}

/// A matrix with outliers, a row of zeros, rows of tiny and of huge values, and, where no code is a NaN, codes that encoding would not choose.
pub fn hard(format: Format, rows: usize, cols: usize, seed: u64) -> PackedMatrix {
    let mut random = Gen::new(seed);
    let mut x = random.hard(rows * cols);
    for (i, row) in x.chunks_mut(cols.max(1)).enumerate() {
        let factor = match i % 7 {
            2 => 1e-6,
            3 => 1e5,
            4 => 0.0,
            _ => 1.0,
        };
        row.iter_mut().for_each(|v| *v *= factor);
    }
    let mut matrix = PackedMatrix::quantize(format, &x, rows, cols, Rounding::Nearest).unwrap();
    if !matches!(format.grid(), Grid::Float(Minifloat::E4M3 | Minifloat::E5M2)) {
        for row in (0..rows).step_by(3) {
            (0..cols).for_each(|col| matrix.set_code(row, col, random.bits() as u32));
        }
    }
    matrix
}

/// A product to try.
pub struct Problem<'a> {
    pub m: usize,
    pub matrix: &'a PackedMatrix,
    pub input: DType,
    pub out: DType,
    /// Whether codes, with their scale, are rounded to f16 on the way.
    pub half: bool,
}

impl<'a> Problem<'a> {
    pub fn new(m: usize, matrix: &'a PackedMatrix, input: DType) -> Self {
        Self { m, matrix, input, out: DType::F32, half: false }
    }

    /// The product in float64, and the bound on the error of f32 sums: on the way of a product to the sum there are at most k roundings and
    /// a few for the scale, the order and the store; the level of a centred grid is an integer of at most three times its magnitude, and a
    /// half. GPUs may subtract the zero of 4-bit integers from the sum: an integer is then a difference of numbers of at most its magnitude and
    /// two zeros. Double-quantized scales are a sum that may cancel. Products below 2^-126 may be flushed to zero, before the scale or after it.
    pub fn reference(&self, a: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (m, matrix) = (self.m, self.matrix);
        let Layout { rows: n, cols: k, .. } = *matrix.layout();
        let w = matrix.dequantize();
        let want = reference::matmul(Form::Nt, [m, n, k], a, &w);
        let format = matrix.format();
        let offset = f64::from(matrix.header(Header::Offset)).abs();
        let smallest = 1.0 / f64::from(matrix.header(Header::Norm));
        let slack: Vec<f64> = w
            .iter()
            .enumerate()
            .map(|(i, w)| {
                let (row, group) = (i / k, i % k / matrix.layout().group);
                let zeros = match format.grid() {
                    Grid::Int { bits: 4, .. } | Grid::Centred { bits: 4 } => 16.0,
                    Grid::ZeroPoint { bits: 4 } => 2.0 * f64::from(matrix.zero(row, group)),
                    _ => 0.0,
                };
                let terms = w.abs() + zeros * matrix.scale(row, group, false).abs();
                let sums = 3.0 * (k + 40) as f64 * U32 * terms;
                let scale = if format.store() == Store::Double { 4.0 * U32 * (w.abs() + offset) } else { 0.0 };
                // Rounding to f16; half the distance of its subnormals is 2^-25 of a normalized weight.
                let half = if self.half { 1.01 * U16 * w.abs() + smallest * 2f64.powi(-25) } else { 0.0 };
                // Cooperative matrices may cut off.
                sums * if self.half { 2.0 } else { 1.0 } + scale + half + 1e-35
            })
            .collect();
        let abs: Vec<f64> = a.iter().map(|v| v.abs()).collect();
        (want, reference::matmul(Form::Nt, [m, n, k], &abs, &slack))
    }
}

/// The activations of a product: outliers, and a row of zeros.
fn activations(ctx: &Context, problem: &Problem<'_>) -> (Tensor, Vec<f64>) {
    let (m, k) = (problem.m, problem.matrix.layout().cols);
    let mut x = Gen::new((m * 31 + k) as u64).hard(m * k);
    if m > 2 {
        x[k..2 * k].fill(0.0);
    }
    floats(ctx, &x, &[m * k], problem.input)
}

/// One product, stored and then added to itself; nothing may be written beyond it.
#[track_caller]
pub fn compare(ctx: &Context, run: Run, problem: &Problem<'_>) {
    let Layout { rows: n, cols: k, .. } = *problem.matrix.layout();
    let m = problem.m;
    let packed = Packed::from_host(ctx, problem.matrix).unwrap();
    let (a, values) = activations(ctx, problem);
    let (out, _) = floats(ctx, &vec![-77.0; m * n], &[m * n], problem.out);
    let (want, bound) = problem.reference(&values);
    for accumulate in [false, true] {
        let spec = PackedMatmul {
            form: Form::Nt,
            m,
            n,
            k,
            a: Operand::Dense(a.buffer()),
            b: &packed,
            out: out.buffer(),
            alpha: 0.5,
            bias: None,
            epilogue: Epilogue::None,
            mask: None,
            accumulate,
        };
        run(ctx, &spec).unwrap();
        let times = if accumulate { 1.0 } else { 0.5 };
        let what = format!(
            "{} {} {} {m}x{n}x{k} {} to {} accumulate {accumulate}",
            ctx.capabilities().adapter.name,
            ctx.tier(),
            problem.matrix.format(),
            problem.input,
            problem.out,
        );
        let got = out.to_vec().unwrap();
        let want: Vec<f64> = want.iter().map(|w| w * times).collect();
        if problem.out == DType::F16 {
            // What f16 does not hold is not compared.
            let fits: Vec<usize> = (0..m * n).filter(|i| want[*i].abs() < 6e4).collect();
            let pick = |v: &[f64]| fits.iter().map(|i| v[*i]).collect::<Vec<_>>();
            let got: Vec<f32> = fits.iter().map(|i| got[*i]).collect();
            let (want, bound) = (pick(&want), pick(&bound));
            assert_within(&what, &got, &want, |i| times * bound[i] + 3.0 * stored(DType::F16, want[i]));
        } else {
            assert_within(&what, &got, &want, |i| times * bound[i] + 2.0 * U32 * want[i].abs());
        }
    }
}

/// Bias, activations with what they keep, residuals.
#[track_caller]
pub fn epilogues(ctx: &Context, run: Run, m: usize, matrix: &PackedMatrix, input: DType, functions: &[Activation]) {
    let problem = Problem { half: input == DType::F16, ..Problem::new(m, matrix, input) };
    let Layout { rows: n, cols: k, .. } = *matrix.layout();
    let packed = Packed::from_host(ctx, matrix).unwrap();
    let (a, values) = activations(ctx, &problem);
    let mut random = Gen::new(17);
    let (bias, shift) = floats(ctx, &random.normals(n), &[n], DType::F32);
    let (residual, extra) = floats(ctx, &random.normals(m * n), &[m * n], DType::F32);
    let [out, pre] = [(); 2].map(|()| Tensor::zeros(ctx, &[m * n], DType::F32).unwrap());
    let (product, bound) = problem.reference(&values);
    let biased: Vec<f64> = product.iter().enumerate().map(|(i, v)| v + shift[i % n]).collect();
    let slack = |i: usize| bound[i] + 4.0 * U32 * (biased[i].abs() + shift[i % n].abs());
    let spec = |epilogue| PackedMatmul {
        form: Form::Nt,
        m,
        n,
        k,
        a: Operand::Dense(a.buffer()),
        b: &packed,
        out: out.buffer(),
        alpha: 1.0,
        bias: Some(bias.buffer()),
        epilogue,
        mask: None,
        accumulate: false,
    };
    let name = &ctx.capabilities().adapter.name;
    run(ctx, &spec(Epilogue::None)).unwrap();
    assert_within(&format!("{name} bias"), &out.to_vec().unwrap(), &biased, slack);
    for function in functions {
        run(ctx, &spec(Epilogue::Activation(*function, pre.buffer()))).unwrap();
        let want: Vec<f64> = biased.iter().map(|v| reference::activate(*function, *v)).collect();
        assert_within(&format!("{name} pre"), &pre.to_vec().unwrap(), &biased, slack);
        // The slopes of the activations are below 1.2, and they are computed to 1e-6 of (1 + |v|).
        assert_within(&format!("{name} {function:?}"), &out.to_vec().unwrap(), &want, |i| {
            1.2 * slack(i) + 1e-6 * (1.0 + biased[i].abs())
        });
    }
    run(ctx, &spec(Epilogue::Residual(residual.buffer(), None))).unwrap();
    let want: Vec<f64> = biased.iter().zip(&extra).map(|(v, r)| v + r).collect();
    assert_within(&format!("{name} residual"), &out.to_vec().unwrap(), &want, |i| {
        slack(i) + 4.0 * U32 * (want[i].abs() + extra[i].abs())
    });
}

/// Operands that do not fit together.
#[track_caller]
pub fn refusals(ctx: &Context, run: Run) {
    let matrix = PackedMatrix::zeros("int4:g32".parse().unwrap(), 4, 64).unwrap();
    let packed = Packed::from_host(ctx, &matrix).unwrap();
    let tensor = |len: usize| Tensor::zeros(ctx, &[len], DType::F32).unwrap();
    let (a, out) = (tensor(128), tensor(8));
    let short = [127, 7, 3].map(tensor);
    let good = PackedMatmul {
        form: Form::Nt,
        m: 2,
        n: 4,
        k: 64,
        a: Operand::Dense(a.buffer()),
        b: &packed,
        out: out.buffer(),
        alpha: 1.0,
        bias: None,
        epilogue: Epilogue::None,
        mask: None,
        accumulate: false,
    };
    let shape = |spec: PackedMatmul<'_>| assert!(matches!(run(ctx, &spec), Err(Error::Shape { .. })), "{spec:?}");
    let unsupported =
        |spec: PackedMatmul<'_>| assert!(matches!(run(ctx, &spec), Err(Error::Unsupported { .. })), "{spec:?}");
    shape(PackedMatmul { a: Operand::Dense(short[0].buffer()), ..good });
    shape(PackedMatmul { out: short[1].buffer(), ..good });
    shape(PackedMatmul { n: 5, ..good });
    shape(PackedMatmul { k: 32, ..good });
    shape(PackedMatmul { bias: Some(short[2].buffer()), ..good });
    unsupported(PackedMatmul { form: Form::Nn, ..good });
    unsupported(PackedMatmul { m: 65, ..good });
}
