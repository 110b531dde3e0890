//! Products with quantized operands by cooperative matrices against float64: every way to decode, form, epilogue and pair of operands.

mod common;

use common::{Gen, U16, U32, assert_within, every_tier};
use half::f16;
use walsh::format::{Format, Header, PackedMatrix, Rounding, Store};
use walsh::kernel::Dropout;
use walsh::kernel::matmul::{Activation, Epilogue, Form};
use walsh::kernel::packed::Packed;
use walsh::kernel::packed_matmul::{Choice, Operand, PackedMatmul, choose, packed_matmul_with};
use walsh::reference::matmul as reference;
use walsh::{Context, DType, Tensor, Tier};

/// The contexts that have the kernel. The others must refuse it.
fn contexts() -> Vec<Context> {
    let (coop, others): (Vec<_>, Vec<_>) = every_tier().into_iter().partition(|c| c.tier() == Tier::Coop);
    for ctx in others {
        let (x, w) =
            (Tensor::zeros(&ctx, &[16], DType::F32).unwrap(), PackedMatrix::zeros(format("int4"), 4, 4).unwrap());
        let w = Packed::from_host(&ctx, &w).unwrap();
        let spec = plain(Form::Nt, [4, 4, 4], Operand::Dense(x.buffer()), &w, x.buffer());
        assert_eq!(supports(&ctx, &spec), Err("it needs the coop tier"));
        assert!(packed_coop(&ctx, &spec).is_err());
    }
    if coop.is_empty() {
        common::skip("packed_coop: no adapter with the coop tier");
    }
    coop
}

fn supports(ctx: &Context, spec: &PackedMatmul<'_>) -> Result<(), &'static str> {
    Choice::Coop { splits: 1 }.supports(ctx, spec)
}

fn packed_coop(ctx: &Context, spec: &PackedMatmul<'_>) -> walsh::Result<()> {
    packed_coop_in(ctx, spec, 1)
}

fn packed_coop_in(ctx: &Context, spec: &PackedMatmul<'_>, splits: usize) -> walsh::Result<()> {
    packed_matmul_with(ctx, spec, Choice::Coop { splits })
}

fn format(name: &str) -> Format {
    name.parse().unwrap()
}

fn plain<'a>(
    form: Form,
    [m, n, k]: [usize; 3],
    a: Operand<'a>,
    b: &'a Packed,
    out: &'a walsh::Buffer,
) -> PackedMatmul<'a> {
    let (epilogue, bias, mask) = (Epilogue::None, None, None);
    PackedMatmul { form, m, n, k, a, b, out, alpha: 1.0, bias, epilogue, mask, accumulate: false }
}

/// An operand on the device, the values that it stands for, and by how much they may be off in the kernel: relatively and absolutely.
enum Stored {
    Dense(Tensor),
    Packed(Packed),
}

struct Side {
    stored: Stored,
    values: Vec<f64>,
    relative: f64,
    absolute: f64,
}

impl Side {
    fn dense(ctx: &Context, data: &[f32]) -> Self {
        let half: Vec<f16> = data.iter().map(|v| f16::from_f32(*v)).collect();
        let values = half.iter().map(|v| v.to_f64()).collect();
        let stored = Stored::Dense(Tensor::from_f16(ctx, &half, &[data.len()]).unwrap());
        Self { stored, values, relative: 0.0, absolute: 0.0 }
    }

    /// One rounding to f16, after two or three to f32, of what Norm brings below 2^14; below 2^-14 the rounding is absolute, 2^-25, and twice
    /// that where subnormals are cut off.
    fn packed(ctx: &Context, matrix: &PackedMatrix) -> Self {
        let stored = Stored::Packed(Packed::from_host(ctx, matrix).unwrap());
        let absolute = 2f64.powi(-24) * f64::from(matrix.header(Header::InverseNorm));
        Self { stored, values: matrix.dequantize(), relative: 1.01 * U16, absolute }
    }

    fn operand(&self) -> Operand<'_> {
        match &self.stored {
            Stored::Dense(tensor) => Operand::Dense(tensor.buffer()),
            Stored::Packed(packed) => Operand::Packed(packed),
        }
    }

    fn quantized(&self) -> &Packed {
        match &self.stored {
            Stored::Packed(packed) => packed,
            Stored::Dense(_) => panic!("not a quantized operand"),
        }
    }
}

fn quantize(name: Format, data: &[f32], rows: usize, cols: usize) -> PackedMatrix {
    PackedMatrix::quantize(name, data, rows, cols, Rounding::Nearest).unwrap()
}

/// The exact sums, and how far the kernel's may be off: its header's bound for products of f16, and what the operands are off.
fn expected(form: Form, dims: [usize; 3], a: &Side, b: &Side) -> (Vec<f64>, Vec<f64>) {
    let abs = |v: &[f64]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let flat = |v: &[f64], value: f64| vec![value; v.len()];
    let magnitude = reference::matmul(form, dims, &abs(&a.values), &abs(&b.values));
    let from_a = reference::matmul(form, dims, &flat(&a.values, a.absolute), &abs(&b.values));
    let from_b = reference::matmul(form, dims, &abs(&a.values), &flat(&b.values, b.absolute));
    let k = dims[2].next_multiple_of(32);
    let sums = 2.0 * (k + k / 16 + 10) as f64 * U32;
    let bounds = (0..magnitude.len())
        .map(|i| (sums + a.relative + b.relative) * magnitude[i] + 1.1 * (from_a[i] + from_b[i]) + 1e-37);
    (reference::matmul(form, dims, &a.values, &b.values), bounds.collect())
}

/// What storing a value adds.
fn stored(dtype: DType, v: f64) -> f64 {
    if dtype == DType::F16 { 1.01 * U16 * v.abs() + 6e-8 } else { 2.0 * U32 * v.abs() }
}

/// A product on its way. All of a test are recorded before the first is read, so that their pipelines compile side by side.
struct Running {
    what: String,
    out: Tensor,
    want: Vec<f64>,
    bounds: Vec<f64>,
}

impl Running {
    fn finish(self) {
        let got = self.out.to_vec().unwrap();
        let len = self.want.len();
        assert_within(&self.what, &got[..len], &self.want, |i| self.bounds[i]);
        assert!(got[len..].iter().all(|g| *g == 77.0), "{}: wrote past the end", self.what);
    }
}

/// One product with K in so many parts, half of it stored and then a quarter added.
fn start(ctx: &Context, form: Form, dims: [usize; 3], a: &Side, b: &Side, dtype: DType, parts: usize) -> Running {
    let len = dims[0] * dims[1];
    let sentinel = vec![77.0; len + 5];
    let out = match dtype {
        DType::F16 => Tensor::from_f16(ctx, &vec![f16::from_f32(77.0); len + 5], &[len + 5]).unwrap(),
        _ => Tensor::from_f32(ctx, &sentinel, &[len + 5]).unwrap(),
    };
    let spec = plain(form, dims, a.operand(), b.quantized(), out.buffer());
    packed_coop_in(ctx, &PackedMatmul { alpha: 0.5, ..spec }, parts).unwrap();
    packed_coop_in(ctx, &PackedMatmul { alpha: 0.25, accumulate: true, ..spec }, parts).unwrap();
    let (want, bounds) = expected(form, dims, a, b);
    let want: Vec<f64> = want.iter().map(|w| w * 0.75).collect();
    let bounds = bounds.iter().zip(&want).map(|(b, w)| 0.75 * b + 2.0 * stored(dtype, *w)).collect();
    let left = if let Stored::Packed(a) = &a.stored { a.format().to_string() } else { "f16".into() };
    let what = format!("{form:?} {left} x {} into {dtype} {dims:?} in {parts} parts", b.quantized().format());
    Running { what, out, want, bounds }
}

/// Shape of B as it is stored.
fn shape_b(form: Form, [_, n, k]: [usize; 3]) -> [usize; 2] {
    if form == Form::Nt { [n, k] } else { [k, n] }
}

#[test]
fn every_format_and_form_agrees_with_float64() {
    for ctx in contexts() {
        let mut running = Vec::new();
        let formats = Format::all();
        for (i, format) in formats.iter().enumerate() {
            for form in Form::ALL {
                // Ragged in every dimension, the last slice of K and the last group not full; whole tiles; a single unit.
                for dims in [[140, 132, 100], [128, 256, 64], [4, 20, 12]] {
                    let [m, _, k] = dims;
                    let mut random = Gen::new((i * 7 + m) as u64);
                    let [rows, cols] = shape_b(form, dims);
                    let a = Side::dense(&ctx, &random.hard(m * k));
                    let b = Side::packed(&ctx, &quantize(*format, &random.hard(rows * cols), rows, cols));
                    let dtype = if i % 4 == 0 && m == 128 { DType::F16 } else { DType::F32 };
                    running.push(start(&ctx, form, dims, &a, &b, dtype, 1));
                }
            }
        }
        assert_eq!(running.len(), 9 * formats.len());
        running.into_iter().for_each(Running::finish);
    }
}

#[test]
fn pairs_of_quantized_operands_agree_with_float64() {
    for ctx in contexts() {
        let mut pairs: Vec<(Format, Format)> = Format::all().into_iter().map(|f| (f, f)).collect();
        let row = |bits: &str| format(&format!("int{bits}:row:f32"));
        let (two, one, int4) = (format("ternary"), format("binary"), format("int4:centred:row:f32:mse"));
        pairs.extend([(row("8"), row("4")), (row("8"), two), (row("8"), one), (int4, two), (int4, one)]);
        let mut running = Vec::new();
        for (i, (left, right)) in pairs.iter().enumerate() {
            // K need not be a multiple of 4 where both are quantized.
            for dims in [[131, 132, 101], [128, 128, 64]] {
                let [m, n, k] = dims;
                let mut random = Gen::new((i * 3 + m) as u64);
                let a = Side::packed(&ctx, &quantize(*left, &random.hard(m * k), m, k));
                let b = Side::packed(&ctx, &quantize(*right, &random.hard(n * k), n, k));
                let dtype = if i % 8 == 0 && m == 131 { DType::F16 } else { DType::F32 };
                running.push(start(&ctx, Form::Nt, dims, &a, &b, dtype, 1));
            }
        }
        running.into_iter().for_each(Running::finish);
    }
}

/// A row of zeros, rows of other sizes, and matrices of large and of small elements: the norm of the header, scales beyond f16.
#[test]
fn rows_and_matrices_of_any_size_agree_with_float64() {
    for ctx in contexts() {
        let mut running = Vec::new();
        for name in [
            "int4:row:f32",
            "int4:centred:row:f32:mse",
            "int4:asym:g32:f32",
            "int4:g32",
            "int8:row:f32",
            "binary",
            "mxfp4",
            "nvfp4",
            "nf3",
            "nf4",
            "nf4:dq",
        ] {
            let format = format(name);
            let sizes: &[f32] = if format.store() == Store::F32 { &[1.0, 1e18, 1e-18] } else { &[1.0] };
            let matrix = |rows: usize, cols: usize, size: f32, random: &mut Gen| {
                let mut x = random.normals(rows * cols);
                for (i, v) in x.iter_mut().enumerate() {
                    *v *= size * [1.0, 0.0, 1e5, 1e-6][i / cols % 4];
                }
                Side::packed(&ctx, &quantize(format, &x, rows, cols))
            };
            for (form, size) in Form::ALL.into_iter().flat_map(|form| sizes.iter().map(move |size| (form, *size))) {
                let dims = [68, 72, 100];
                let [m, _, k] = dims;
                let mut random = Gen::new(5);
                let [rows, cols] = shape_b(form, dims);
                let b = matrix(rows, cols, size, &mut random);
                let a = Side::dense(&ctx, &random.normals(m * k));
                running.push(start(&ctx, form, dims, &a, &b, DType::F32, 1));
                if form == Form::Nt {
                    let a = matrix(m, k, 1.0, &mut random);
                    running.push(start(&ctx, form, dims, &a, &b, DType::F32, 1));
                }
            }
        }
        running.into_iter().for_each(Running::finish);
    }
}

#[test]
fn parts_of_k_are_summed() {
    for ctx in contexts() {
        let mut running = Vec::new();
        for form in Form::ALL {
            for name in ["int4:centred:row:f32:mse", "nf4"] {
                for (dims, parts) in [([136, 132, 200], 3), ([128, 128, 256], 2), ([8, 4, 68], 9)] {
                    let [m, _, k] = dims;
                    let mut random = Gen::new(k as u64);
                    let [rows, cols] = shape_b(form, dims);
                    let a = Side::dense(&ctx, &random.normals(m * k));
                    let b = Side::packed(&ctx, &quantize(format(name), &random.normals(rows * cols), rows, cols));
                    running.push(start(&ctx, form, dims, &a, &b, DType::F32, parts));
                }
            }
        }
        running.into_iter().for_each(Running::finish);
    }
}

/// A matrix of random codes whose scales are 1.
fn codes(format: Format, rows: usize, cols: usize, random: &mut Gen) -> PackedMatrix {
    let mut matrix = PackedMatrix::zeros(format, rows, cols).unwrap();
    for row in 0..rows {
        for col in 0..cols {
            matrix.set_code(row, col, random.below(1 << format.bits()) as u32);
        }
        matrix.set_scale_bits(row, 0, 1f32.to_bits());
    }
    matrix.set_norm();
    matrix
}

#[test]
fn integers_are_exact() {
    for ctx in contexts() {
        for (left, right) in [
            ("int4:centred:row:f32:mse", "int4:centred:row:f32:mse"),
            ("int4:row:f32", "int4:row:f32"),
            ("binary", "binary"),
            ("int8:row:f32", "int8:row:f32"),
            ("int8:row:f32", "int4:row:f32"),
            ("int3:row:f32", "int3:row:f32"),
            ("int6:centred:row:f32:mse", "int6:centred:row:f32:mse"),
        ] {
            // The largest sum is 128^2 k < 2^24.
            let [m, n, k] = [132, 136, 1000];
            let mut random = Gen::new(3);
            let a = codes(format(left), m, k, &mut random);
            let b = codes(format(right), n, k, &mut random);
            let want = reference::matmul(Form::Nt, [m, n, k], &a.dequantize(), &b.dequantize());
            let (a, b) = (Packed::from_host(&ctx, &a).unwrap(), Packed::from_host(&ctx, &b).unwrap());
            let out = Tensor::zeros(&ctx, &[m * n], DType::F32).unwrap();
            let spec = plain(Form::Nt, [m, n, k], Operand::Packed(&a), &b, out.buffer());
            packed_coop(&ctx, &spec).unwrap();
            let got = out.to_vec().unwrap();
            let wrong = got.iter().zip(&want).filter(|(g, w)| f64::from(**g) != **w).count();
            assert_eq!(wrong, 0, "{left} x {right}: {:?} for {:?}", &got[..4], &want[..4]);
        }
    }
}

#[test]
fn two_quantized_operands_of_an_input_gradient_agree_with_float64() {
    for ctx in contexts() {
        for (name, [m, n, k]) in [
            ("nvfp4", [132, 136, 100]),
            ("mxfp4", [64, 260, 48]),
            ("nf4", [8, 36, 260]),
            ("int4:row:f32", [130, 8, 64]),
        ] {
            let mut random = Gen::new(6);
            let mut side =
                |rows, cols| Side::packed(&ctx, &quantize(format(name), &random.normals(rows * cols), rows, cols));
            let (a, b) = (side(m, k), side(k, n));
            let (want, bounds) = expected(Form::Nn, [m, n, k], &a, &b);
            let out = Tensor::zeros(&ctx, &[m * n], DType::F32).unwrap();
            packed_coop(&ctx, &plain(Form::Nn, [m, n, k], a.operand(), b.quantized(), out.buffer())).unwrap();
            assert_within(&format!("{name} {m}x{n}x{k}"), &out.to_vec().unwrap(), &want, |i| bounds[i]);
        }
    }
}

#[test]
fn not_a_number_stays_in_its_row() {
    for ctx in contexts() {
        for name in ["int4:row:f32", "int4:g32", "mxfp4", "nf4", "nvfp4"] {
            let [m, n, k] = [8, 136, 72];
            let mut random = Gen::new(4);
            let mut w = random.normals(n * k);
            w[5 * k + 70] = f32::NAN;
            w[135 * k] = f32::INFINITY;
            let (a, w) = (Side::dense(&ctx, &random.normals(m * k)), quantize(format(name), &w, n, k));
            let w = Packed::from_host(&ctx, &w).unwrap();
            let out = Tensor::zeros(&ctx, &[m * n], DType::F32).unwrap();
            packed_coop(&ctx, &plain(Form::Nt, [m, n, k], a.operand(), &w, out.buffer())).unwrap();
            for (i, v) in out.to_vec().unwrap().iter().enumerate() {
                assert_eq!(v.is_nan(), [5, 135].contains(&(i % n)), "{name}: row {}, column {}: {v}", i / n, i % n);
            }
        }
    }
}

#[test]
fn epilogues_agree_with_float64() {
    for ctx in contexts() {
        for name in ["int4:centred:row:f32:mse", "int4", "nf4"] {
            for dtype in [DType::F32, DType::F16] {
                for dims in [[140, 132, 72], [128, 128, 64]] {
                    forward(&ctx, format(name), dims, dtype, false);
                    backward(&ctx, format(name), dims, dtype);
                }
            }
            forward(&ctx, format(name), [132, 140, 71], DType::F32, true);
        }
    }
}

fn zeros(ctx: &Context, len: usize, dtype: DType) -> Tensor {
    Tensor::zeros(ctx, &[len], dtype).unwrap()
}

/// Bias, activations with what they keep, residuals, dropout. The bounds of the activations are those of tests/matmul.rs.
fn forward(ctx: &Context, format: Format, [m, n, k]: [usize; 3], dtype: DType, both: bool) {
    let mut random = Gen::new(9);
    let x = random.normals(m * k);
    let a = if both { Side::packed(ctx, &quantize(format, &x, m, k)) } else { Side::dense(ctx, &x) };
    let b = Side::packed(ctx, &quantize(format, &random.normals(n * k), n, k));
    let (bias, residual) = (random.normals(n), random.normals(m * n));
    let bias_on = Tensor::from_f32(ctx, &bias, &[n]).unwrap();
    let residual_on = Tensor::from_f32(ctx, &residual, &[m * n]).unwrap();
    let (out, pre) = (zeros(ctx, m * n, dtype), zeros(ctx, m * n, dtype));
    let (sums, base) = expected(Form::Nt, [m, n, k], &a, &b);
    let biased: Vec<f64> = sums.iter().enumerate().map(|(i, v)| v + f64::from(bias[i % n])).collect();
    let near: Vec<f64> =
        (0..m * n).map(|i| base[i] + 4.0 * U32 * (sums[i].abs() + f64::from(bias[i % n]).abs())).collect();
    let what = |part: &str| format!("{format} {m}x{n}x{k} {dtype} {part}");
    let spec = plain(Form::Nt, [m, n, k], a.operand(), b.quantized(), out.buffer());
    for activation in Activation::ALL {
        let epilogue = Epilogue::Activation(activation, pre.buffer());
        packed_coop(ctx, &PackedMatmul { bias: Some(bias_on.buffer()), epilogue, ..spec }).unwrap();
        let want: Vec<f64> = biased.iter().map(|v| reference::activate(activation, *v)).collect();
        assert_within(&what("pre"), &pre.to_vec().unwrap(), &biased, |i| near[i] + stored(dtype, biased[i]));
        assert_within(&what("activation"), &out.to_vec().unwrap(), &want, |i| {
            1.2 * near[i] + 1e-6 * (1.0 + biased[i].abs()) + stored(dtype, want[i])
        });
    }
    if dtype != DType::F32 {
        return;
    }
    packed_coop(ctx, &PackedMatmul { epilogue: Epilogue::Residual(residual_on.buffer(), None), ..spec }).unwrap();
    let want: Vec<f64> = sums.iter().zip(&residual).map(|(v, r)| v + f64::from(*r)).collect();
    assert_within(&what("residual"), &out.to_vec().unwrap(), &want, |i| {
        near[i] + 2.0 * U32 * f64::from(residual[i]).abs()
    });
    let state = zeros(ctx, 16, DType::F32);
    let dropout = Dropout { p: 0.25, seed: 77, op: 3, micro: 1, state: state.buffer() };
    let epilogue = Epilogue::Residual(residual_on.buffer(), Some(dropout));
    packed_coop(ctx, &PackedMatmul { bias: Some(bias_on.buffer()), epilogue, ..spec }).unwrap();
    // The mask of the same dropout on ones.
    let (ones, mask) = (Tensor::from_f32(ctx, &vec![1.0; m * n], &[m * n]).unwrap(), zeros(ctx, m * n, DType::F32));
    walsh::kernel::dropout::dropout(ctx, ones.buffer(), None, mask.buffer(), dropout).unwrap();
    let mask = mask.to_vec().unwrap();
    assert!(mask.contains(&0.0) && mask.iter().any(|v| *v > 1.0));
    let want: Vec<f64> = (0..m * n).map(|i| f64::from(residual[i]) + f64::from(mask[i]) * biased[i]).collect();
    assert_within(&what("dropout"), &out.to_vec().unwrap(), &want, |i| {
        f64::from(mask[i]) * near[i] + 2.0 * U32 * (want[i].abs() + f64::from(residual[i]).abs())
    });
}

/// Derivatives of activations, and the mask, whose zeros are zero.
fn backward(ctx: &Context, format: Format, [m, n, k]: [usize; 3], dtype: DType) {
    let mut random = Gen::new(10);
    let a = Side::dense(ctx, &random.normals(m * k));
    let b = Side::packed(ctx, &quantize(format, &random.normals(n * k), k, n));
    let extra = Side::dense(ctx, &random.normals(m * n));
    let pre = match (dtype, &extra.stored) {
        (DType::F16, Stored::Dense(pre)) => pre.clone(),
        _ => Tensor::from_f32(ctx, &extra.values.iter().map(|v| *v as f32).collect::<Vec<_>>(), &[m * n]).unwrap(),
    };
    let words = n.div_ceil(32);
    let bits: Vec<u32> = (0..m * words).map(|_| random.bits() as u32).collect();
    let mask = Tensor::from_u32(ctx, &bits, &[m * words]).unwrap();
    let kept = |i: usize| bits[i / n * words + i % n / 32] >> (i % n % 32) & 1 == 1;
    let out = zeros(ctx, m * n, dtype);
    let (sums, bounds) = expected(Form::Nn, [m, n, k], &a, &b);
    let spec = plain(Form::Nn, [m, n, k], a.operand(), b.quantized(), out.buffer());
    packed_coop(ctx, &PackedMatmul { mask: Some(mask.buffer()), ..spec }).unwrap();
    let want: Vec<f64> = sums.iter().enumerate().map(|(i, v)| if kept(i) { *v } else { 0.0 }).collect();
    let what = |part: &str| format!("{format} {m}x{n}x{k} {dtype} {part}");
    assert_within(&what("mask"), &out.to_vec().unwrap(), &want, |i| {
        if kept(i) { bounds[i] + stored(dtype, want[i]) } else { 0.0 }
    });
    for activation in Activation::ALL {
        let epilogue = Epilogue::ActivationGrad(activation, pre.buffer());
        packed_coop(ctx, &PackedMatmul { epilogue, mask: Some(mask.buffer()), ..spec }).unwrap();
        let of = |i: usize| sums[i] * reference::activate_grad(activation, extra.values[i]);
        let want: Vec<f64> = (0..m * n).map(|i| if kept(i) { of(i) } else { 0.0 }).collect();
        assert_within(&what("activation gradient"), &out.to_vec().unwrap(), &want, |i| {
            if kept(i) { 1.2 * bounds[i] + 2e-6 * sums[i].abs() + stored(dtype, want[i]) } else { 0.0 }
        });
    }
}

#[test]
fn what_does_not_fit_is_refused_and_not_chosen() {
    for ctx in contexts() {
        let of = |name: &str, rows, cols| {
            Packed::from_host(&ctx, &PackedMatrix::zeros(format(name), rows, cols).unwrap()).unwrap()
        };
        let (w, ragged, pairs, nf3) = (of("int4", 8, 8), of("int4", 7, 8), of("mxfp4", 64, 8), of("nf3:g16", 8, 8));
        // More rows than those that the kernel for few takes.
        let (half, wide) = (zeros(&ctx, 64 * 8, DType::F16), zeros(&ctx, 64 * 8, DType::F32));
        let good = plain(Form::Nt, [64, 8, 8], Operand::Dense(half.buffer()), &w, wide.buffer());
        assert_eq!(supports(&ctx, &good), Ok(()));
        assert_eq!(choose(&ctx, &good), Choice::Coop { splits: 1 });
        for bad in [
            PackedMatmul { n: 7, b: &ragged, ..good },
            PackedMatmul { a: Operand::Dense(wide.buffer()), ..good },
            PackedMatmul { a: Operand::Packed(&pairs), ..good },
            PackedMatmul { b: &nf3, ..good },
        ] {
            assert!(supports(&ctx, &bad).is_err(), "{bad:?}");
            assert!(packed_coop(&ctx, &bad).is_err());
            assert!(!matches!(choose(&ctx, &bad), Choice::Coop { .. }));
        }
        // Sums of 128^2 k are exact below 2^24.
        for (k, exact) in [(1024, true), (1032, false)] {
            let (x, w, out) = (of("int8:row:f32", 8, k), of("int8:row:f32", 8, k), zeros(&ctx, 64, DType::F32));
            let choice = choose(&ctx, &plain(Form::Nt, [8, 8, k], Operand::Packed(&x), &w, out.buffer()));
            assert_eq!(matches!(choice, Choice::Coop { .. }), exact, "{choice:?} for {k}");
        }
    }
}
