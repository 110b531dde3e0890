//! Products of quantized matrices against float64: every format, form, type and epilogue, on every tier, on ragged sizes and hard data.

mod common;

use common::{Gen, U32, assert_within, every_tier, floats, stored};
use walsh::format::{Format, Grid, PackedMatrix, Rounding, Span, Store};
use walsh::kernel::Dropout;
use walsh::kernel::matmul::{Activation, Epilogue, Form, Shape};
use walsh::kernel::packed::Packed;
use walsh::kernel::packed_matmul::{Choice, Operand, PackedMatmul, choose, packed_matmul, packed_matmul_with};
use walsh::reference::mask::mask as masked;
use walsh::reference::matmul as reference;
use walsh::{Context, DType, Error, Tensor, Tier};

const SMALL: Choice = Choice::Tiled { shape: Shape::Small, splits: 1 };
const SPLIT: Choice = Choice::Tiled { shape: Shape::Small, splits: 3 };
const WIDE: Choice = Choice::Tiled { shape: Shape::Wide, splits: 1 };

fn parsed(text: &str) -> Format {
    text.parse().unwrap()
}

/// A quantized matrix of hard data: outliers, rows of zeros and, where `extreme` and rows have f32 scales of their own, rows of 1e18 and of
/// 1e-18 times the rest.
fn quantized(format: Format, [rows, cols]: [usize; 2], seed: u64, extreme: bool) -> PackedMatrix {
    let mut x = Gen::new(seed).hard(rows * cols);
    let wide = extreme && format.store() == Store::F32 && format.span() != Span::Tensor;
    for (i, v) in x.iter_mut().enumerate() {
        *v *= match i / cols % 7 {
            3 => 0.0,
            4 if wide => 1e18,
            5 if wide => 1e-18,
            _ => 1.0,
        };
    }
    PackedMatrix::quantize(format, &x, rows, cols, Rounding::Nearest).unwrap()
}

/// A matrix of random codes and zero points with scales of 1, but for a power of two that the format brings.
fn integers(format: Format, [rows, cols]: [usize; 2], seed: u64) -> PackedMatrix {
    let mut random = Gen::new(seed);
    let mut matrix = PackedMatrix::zeros(format, rows, cols).unwrap();
    let one = match format.store() {
        Store::F32 | Store::Double => 1f32.to_bits(),
        Store::F16 => 0x3C00,
        Store::E8M0(_) => 127,
        Store::E4M3 | Store::Ue4m3 => 0x38,
    };
    let count = 1 << format.bits();
    for row in 0..rows {
        for group in 0..matrix.layout().groups {
            matrix.set_scale_bits(row, group, one);
            if matches!(format.grid(), Grid::ZeroPoint { .. }) {
                matrix.set_zero(row, group, random.below(count) as u32);
            }
        }
        for col in 0..cols {
            matrix.set_code(row, col, random.below(count) as u32);
        }
    }
    matrix
}

/// Shape of the right operand.
fn shape_b(form: Form, [_, n, k]: [usize; 3]) -> [usize; 2] {
    if form == Form::Nt { [n, k] } else { [k, n] }
}

/// The left operand.
#[derive(Clone, Debug)]
enum Left {
    Dense(DType),
    Packed(PackedMatrix),
}

/// Bound on the error of a sum: `roundings` errors of at most u of the sum of magnitudes, and what is below the smallest normal number, which
/// may be flushed, k times.
fn bounds(form: Form, dims: [usize; 3], a: &[f64], b: &[f64], roundings: usize) -> Vec<f64> {
    let abs = |v: &[f64]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let tiny = dims[2] as f64 * 1.2e-38;
    reference::matmul(form, dims, &abs(a), &abs(b)).into_iter().map(|m| roundings as f64 * U32 * m + tiny).collect()
}

/// How often the result of a kernel is rounded: k times in the running sum (integer kernels: once per group), twice for alpha and the store;
/// each value has a rounding from level times scale and one from the tensor's factor. Double-quantized scales are an offset plus a product,
/// which may cancel: 4 u of the offset, and an element counts where its scale is at least a sixteenth of that.
fn roundings(choice: Choice, k: usize, left: &Left, b: &PackedMatrix) -> usize {
    let matrices = [Some(b), if let Left::Packed(a) = left { Some(a) } else { None }];
    let double = matrices.iter().flatten().any(|m| m.format().store() == Store::Double);
    let sums = match choice {
        Choice::Integer(_) | Choice::Binary(_) => {
            matrices.iter().flatten().map(|m| m.layout().groups).max().unwrap_or(1) + 2
        }
        Choice::UnpackedVector => 3 * (k + 40),
        _ => k,
    };
    sums + 8 + if double { 64 } else { 0 }
}

/// One product, stored and then added to itself, compared with float64; nothing may be written beyond it.
fn compare(
    ctx: &Context,
    choice: Choice,
    form: Form,
    left: &Left,
    b: &PackedMatrix,
    out: DType,
    [m, n, k]: [usize; 3],
) {
    let dims = [m, n, k];
    let (packed_b, bv) = (Packed::from_host(ctx, b).unwrap(), b.dequantize());
    let (dense, packed);
    let (a, av) = match left {
        Left::Dense(dtype) => {
            let data = Gen::new(k as u64).normals(m * k);
            let (tensor, values) = floats(ctx, &data, &[data.len()], *dtype);
            dense = tensor;
            (Operand::Dense(dense.buffer()), values)
        }
        Left::Packed(matrix) => {
            packed = Packed::from_host(ctx, matrix).unwrap();
            (Operand::Packed(&packed), matrix.dequantize())
        }
    };
    let (result, before) = floats(ctx, &vec![77.0; m * n + 5], &[m * n + 5], out);
    // A result of f16 must not overflow.
    let alpha = if out == DType::F16 { 1.0 / 1024.0 } else { 0.5 };
    let scaled: Vec<f64> = av.iter().map(|v| v * f64::from(alpha)).collect();
    let product = reference::matmul(form, dims, &scaled, &bv);
    let bound = bounds(form, dims, &scaled, &bv, roundings(choice, k, left, b));
    for accumulate in [false, true] {
        let spec = PackedMatmul {
            form,
            m,
            n,
            k,
            a,
            b: &packed_b,
            out: result.buffer(),
            alpha,
            bias: None,
            epilogue: Epilogue::None,
            mask: None,
            accumulate,
        };
        packed_matmul_with(ctx, &spec, choice).unwrap();
        let got = result.to_vec().unwrap();
        // The second product is added to the first, which was rounded when it was stored.
        let times = if accumulate { 2.0 } else { 1.0 };
        let want: Vec<f64> = product.iter().map(|w| w * times).collect();
        let store = |w: f64| if out == DType::F16 { stored(out, w) } else { 1.01 * U32 * w.abs() };
        let left = match left {
            Left::Dense(dtype) => dtype.to_string(),
            Left::Packed(matrix) => matrix.format().to_string(),
        };
        let name = &ctx.capabilities().adapter.name;
        let what =
            format!("{name} {choice:?} {form:?} {left} x {} {out} {m}x{n}x{k} accumulate {accumulate}", b.format());
        assert_within(&what, &got[..m * n], &want, |i| times * (bound[i] + store(want[i])));
        let kept = got[m * n..].iter().zip(&before[m * n..]).all(|(g, b)| f64::from(*g) == *b);
        assert!(kept, "{what}: wrote past the end");
    }
}

fn cpu(ctx: &Context) -> bool {
    ctx.capabilities().is_cpu()
}

/// Contexts of the tier in which a kernel that every tier shares is tried.
fn baseline() -> Vec<Context> {
    every_tier().into_iter().filter(|ctx| ctx.tier() == Tier::Baseline).collect()
}

/// Single elements, less than four, primes, a tile less or more one, whole units.
const SIZES: [[usize; 3]; 8] =
    [[65, 63, 33], [3, 5, 7], [1, 1, 1], [63, 65, 95], [20, 68, 64], [2, 9, 131], [64, 64, 128], [5, 33, 66]];

#[test]
fn every_format_agrees_with_float64() {
    for ctx in baseline() {
        for (i, format) in Format::all().into_iter().enumerate() {
            for (j, form) in Form::ALL.into_iter().enumerate() {
                // A software adapter takes a fraction of a second to compile a variant: there formats of as many bits have one form, with
                // vectors or single elements.
                let bits = format.bits() as usize;
                if cpu(&ctx) && !(bits + j).is_multiple_of(3) {
                    continue;
                }
                for dims in SIZES {
                    let vectors = dims.iter().all(|d| d % 4 == 0);
                    if cpu(&ctx) && vectors == bits.is_multiple_of(2) {
                        continue;
                    }
                    let b = quantized(format, shape_b(form, dims), i as u64, true);
                    compare(&ctx, SMALL, form, &Left::Dense(DType::F32), &b, DType::F32, dims);
                    if !cpu(&ctx) {
                        compare(&ctx, SPLIT, form, &Left::Dense(DType::F32), &b, DType::F32, dims);
                    }
                }
            }
        }
    }
}

#[test]
fn unpacked_operands_agree_with_float64() {
    for ctx in every_tier().into_iter().filter(|ctx| cpu(ctx) && ctx.tier() == Tier::Subgroup) {
        for (i, format) in Format::all().into_iter().enumerate() {
            let form = Form::ALL[i % 3];
            // Dense products have tests of their own; one of them takes single elements here.
            let dims = if form == Form::Nt { SIZES[i % SIZES.len()] } else { [20 + 4 * i, 68, 64] };
            let b = quantized(format, shape_b(form, dims), i as u64, true);
            compare(&ctx, Choice::Unpacked, form, &Left::Dense(DType::F32), &b, DType::F32, dims);
            if form == Form::Nt {
                let a = Left::Packed(quantized(parsed("int4:row:f32"), [dims[0], dims[2]], 5, false));
                compare(&ctx, Choice::Unpacked, form, &a, &b, DType::F32, dims);
            }
        }
    }
}

#[test]
fn few_unpacked_rows_agree_with_float64() {
    for ctx in every_tier() {
        let skipped = if cpu(&ctx) && ctx.tier() == Tier::Baseline { 8 } else { 1 };
        for (i, format) in Format::all().into_iter().enumerate().step_by(skipped) {
            let [_, n, k] = SIZES[i % SIZES.len()];
            let b = quantized(format, [n, k], i as u64, true);
            for m in [1, 1 + i % 8] {
                let a = Left::Packed(quantized(parsed("int4:row:f32"), [m, k], 6, false));
                compare(&ctx, Choice::UnpackedVector, Form::Nt, &a, &b, DType::F32, [m, n, k]);
                if ctx.capabilities().f16 && i % 6 == 0 {
                    let b = quantized(format, [n, k], i as u64, false);
                    compare(&ctx, Choice::UnpackedVector, Form::Nt, &a, &b, DType::F16, [m, n, k]);
                }
            }
        }
    }
}

#[test]
fn what_follows_one_unpacked_row_agrees_with_float64() {
    for ctx in every_tier() {
        let dtypes = if ctx.capabilities().f16 { &[DType::F32, DType::F16][..] } else { &[DType::F32] };
        for (right, out) in ["int4:row:f32", "nf4"].iter().flat_map(|f| dtypes.iter().map(move |out| (*f, *out))) {
            let (n, k) = (40, 72);
            let mut random = Gen::new(12);
            let (a, b) =
                (quantized(parsed("int4:row:f32"), [1, k], 3, false), quantized(parsed(right), [n, k], 4, false));
            let (pa, pb) = (Packed::from_host(&ctx, &a).unwrap(), Packed::from_host(&ctx, &b).unwrap());
            let (bias, biasv) = floats(&ctx, &random.normals(n), &[n], DType::F32);
            let [result, pre] = [(); 2].map(|()| Tensor::zeros(&ctx, &[n], out).unwrap());
            let (av, bv) = (a.dequantize(), b.dequantize());
            let product = reference::matmul(Form::Nt, [1, n, k], &av, &bv);
            let biased: Vec<f64> = product.iter().zip(&biasv).map(|(v, b)| v + b).collect();
            let choice = Choice::UnpackedVector;
            let base = bounds(Form::Nt, [1, n, k], &av, &bv, roundings(choice, k, &Left::Packed(a), &b));
            // A result of f16 is rounded to 11 bits, or to a multiple of 2^-24.
            let stored = |v: f64| if out == DType::F16 { 2f64.powi(-11) * v.abs() + 2f64.powi(-25) } else { 0.0 };
            let near = |i: usize| base[i] + 2.0 * U32 * (biased[i].abs() + biasv[i].abs()) + stored(biased[i]);
            let epilogue = Epilogue::Activation(Activation::Gelu, pre.buffer());
            let plain = plain(Form::Nt, [1, n, k], Operand::Packed(&pa), &pb, &result);
            let spec = PackedMatmul { bias: Some(bias.buffer()), epilogue, ..plain };
            packed_matmul_with(&ctx, &spec, choice).unwrap();
            let what = |part: &str| format!("{right} into {out} {part}");
            assert_within(&what("pre"), &pre.to_vec().unwrap(), &biased, near);
            let want: Vec<f64> = biased.iter().map(|v| reference::activate(Activation::Gelu, *v)).collect();
            // GELU's slope is below 1.2, and it is computed to 1e-6 of (1 + |v|), of the sum or of what is stored of it.
            assert_within(&what("activation"), &result.to_vec().unwrap(), &want, |i| {
                1.2 * near(i) + 1e-6 * (1.0 + biased[i].abs()) + stored(want[i])
            });
        }
    }
}

#[test]
fn f16_operands_and_results_agree_with_float64() {
    for ctx in baseline().into_iter().filter(|ctx| ctx.capabilities().f16) {
        for (i, (out, form)) in
            [DType::F16, DType::F32].into_iter().flat_map(|out| Form::ALL.map(|form| (out, form))).enumerate()
        {
            // Single elements and vectors, each once on a software adapter.
            for dims in if cpu(&ctx) { &SIZES[3 + i % 2..4 + i % 2] } else { &SIZES[..] } {
                let b = quantized(parsed("int3:g32"), shape_b(form, *dims), 1, false);
                compare(&ctx, SMALL, form, &Left::Dense(DType::F16), &b, out, *dims);
            }
        }
    }
}

#[test]
fn two_quantized_operands_agree_with_float64() {
    for ctx in baseline() {
        let all = Format::all();
        for (i, left) in all.iter().copied().enumerate() {
            // As many right operands as a software adapter has time to compile.
            let (right, dims) = match i % 2 {
                _ if !cpu(&ctx) => (all[i * 7 % all.len()], SIZES[i % SIZES.len()]),
                0 => (parsed("nf3"), SIZES[i / 2 % 4]),
                _ => (parsed("int5:asym:g32"), [20, 68, 60 + i / 2]),
            };
            let b = quantized(right, shape_b(Form::Nt, dims), 1, true);
            let a = Left::Packed(quantized(left, [dims[0], dims[2]], 2, false));
            compare(&ctx, SMALL, Form::Nt, &a, &b, DType::F32, dims);
            if ctx.capabilities().f16 && i % 24 == 0 {
                let b = quantized(b.format(), shape_b(Form::Nt, dims), 1, false);
                let a = Left::Packed(quantized(left, [dims[0], dims[2]], 2, false));
                compare(&ctx, SMALL, Form::Nt, &a, &b, DType::F16, dims);
            }
        }
    }
}

#[test]
fn two_quantized_operands_of_an_input_gradient_agree_with_float64() {
    for ctx in baseline() {
        let pairs = [("nvfp4", "nvfp4"), ("mxfp4", "int4:asym:g32"), ("int8:row:f32", "nvfp4")];
        for (i, (left, right)) in pairs.into_iter().enumerate() {
            // Vectors, ragged rows, and K in parts.
            let (choice, dims) = [
                (SMALL, [20, 68, 92]),
                (SMALL, [33, 37, 45]),
                (Choice::Tiled { shape: Shape::Small, splits: 2 }, [20, 36, 100]),
            ][i];
            let b = quantized(parsed(right), shape_b(Form::Nn, dims), 1, true);
            let a = Left::Packed(quantized(parsed(left), [dims[0], dims[2]], 2, false));
            compare(&ctx, choice, Form::Nn, &a, &b, DType::F32, dims);
            if cpu(&ctx) {
                compare(&ctx, Choice::Unpacked, Form::Nn, &a, &b, DType::F32, dims);
            }
        }
    }
}

#[test]
fn large_tiles_and_parts_of_k_agree_with_float64() {
    for ctx in baseline() {
        // The last part is shorter than a step, and a group ends within it.
        for (choice, form, format, dims) in [
            (WIDE, Form::Nt, "int4:g32", [132, 124, 44]),
            (WIDE, Form::Nn, "nf4", [128, 132, 36]),
            (WIDE, Form::Tn, "mxfp4", [136, 128, 35]),
            (Choice::Tiled { shape: Shape::Wide, splits: 3 }, Form::Nt, "int4:g32", [68, 132, 140]),
            (Choice::Tiled { shape: Shape::Small, splits: 3 }, Form::Nn, "nvfp4", [65, 67, 131]),
            (Choice::Tiled { shape: Shape::Small, splits: 4 }, Form::Tn, "int4:asym", [64, 36, 102]),
        ] {
            let b = quantized(parsed(format), shape_b(form, dims), 4, true);
            compare(&ctx, choice, form, &Left::Dense(DType::F32), &b, DType::F32, dims);
        }
    }
}

/// Integer formats with one scale per row, per tensor and per group of 16 to 128.
const INTEGERS: [&str; 18] = [
    "int8:row:f32",
    "int4:row:f32",
    "binary",
    "int2:centred:row:f32",
    "int8:centred:row:f32",
    "int4:centred:row:f32",
    "int8:asym:row:f32",
    "int3:asym:row",
    "ternary",
    "int8:tensor:f32",
    "int5:row",
    "int6:centred:row",
    "int7:g64",
    "int4",
    "int4:asym:g32",
    "mxint8",
    "nvint4",
    "binary:g64:f16",
];

#[test]
fn integer_sums_are_exact() {
    for ctx in baseline() {
        for (i, left) in INTEGERS.iter().enumerate() {
            for (j, right) in INTEGERS.iter().enumerate() {
                // Every pair of neighbours, squares, and some of the rest: formats are data of this kernel.
                if i.abs_diff(j) > 1 && (i * 7 + j) % 5 != 0 {
                    continue;
                }
                let dims = [[65, 63, 33], [3, 5, 7], [66, 2, 129], [9, 20, 300], [1, 1, 1], [2, 67, 64]][(i + j) % 6];
                exact(&ctx, Choice::Integer(Shape::Small), parsed(left), parsed(right), dims);
            }
        }
        for (left, right) in [("int8:row:f32", "int4:centred:row:f32"), ("int4:asym:g32", "int8")] {
            exact(&ctx, Choice::Integer(Shape::Wide), parsed(left), parsed(right), [129, 130, 100]);
        }
    }
}

#[test]
fn differing_signs_are_counted_exactly() {
    for ctx in baseline() {
        for (left, right) in
            [("binary", "binary:tensor"), ("binary:g128", "binary"), ("binary:g256", "binary:g128:f16")]
        {
            let (left, right) = (parsed(left), parsed(right));
            for dims in [[1, 1, 1], [65, 63, 31], [3, 9, 33], [20, 70, 700], [2, 5, 129], [64, 64, 1024], [7, 3, 2051]]
            {
                exact(&ctx, Choice::Binary(Shape::Small), left, right, dims);
            }
            exact(&ctx, Choice::Binary(Shape::Wide), left, right, [129, 131, 300]);
        }
    }
}

/// Sums of integers below 2^24, or of their halves and quarters, have no error at all.
fn exact(ctx: &Context, choice: Choice, left: Format, right: Format, [m, n, k]: [usize; 3]) {
    let (a, b) = (integers(left, [m, k], (m + n) as u64), integers(right, [n, k], k as u64));
    let want = reference::matmul(Form::Nt, [m, n, k], &a.dequantize(), &b.dequantize());
    let out = Tensor::from_f32(ctx, &vec![-5.0; m * n + 3], &[m * n + 3]).unwrap();
    let (a, b) = (Packed::from_host(ctx, &a).unwrap(), Packed::from_host(ctx, &b).unwrap());
    let spec = plain(Form::Nt, [m, n, k], Operand::Packed(&a), &b, &out);
    packed_matmul_with(ctx, &spec, choice).unwrap();
    let got = out.to_vec().unwrap();
    let what = format!("{choice:?} {left} x {right} {m}x{n}x{k}");
    assert_within(&what, &got[..m * n], &want, |_| 0.0);
    assert_eq!(got[m * n..], [-5.0; 3], "{what}: wrote past the end");
}

fn plain<'a>(form: Form, [m, n, k]: [usize; 3], a: Operand<'a>, b: &'a Packed, out: &'a Tensor) -> PackedMatmul<'a> {
    PackedMatmul {
        form,
        m,
        n,
        k,
        a,
        b,
        out: out.buffer(),
        alpha: 1.0,
        bias: None,
        epilogue: Epilogue::None,
        mask: None,
        accumulate: false,
    }
}

#[test]
fn sums_beyond_2_to_the_24_are_rounded_once() {
    for ctx in baseline() {
        // 255^2 * 4099 is above 2^27; a running sum in f32 would err by hundreds.
        let format = parsed("int8:asym:row:f32");
        let (m, n, k) = (2, 3, 4099);
        let mut matrices = [m, n].map(|rows| integers(format, [rows, k], 3));
        for matrix in &mut matrices {
            for row in 0..matrix.layout().rows {
                matrix.set_zero(row, 0, 0);
                (0..k).for_each(|col| matrix.set_code(row, col, 255 - u32::from(col % 3 == row)));
            }
        }
        let want = reference::matmul(Form::Nt, [m, n, k], &matrices[0].dequantize(), &matrices[1].dequantize());
        let [a, b] = matrices.map(|matrix| Packed::from_host(&ctx, &matrix).unwrap());
        let out = Tensor::zeros(&ctx, &[m * n], DType::F32).unwrap();
        let spec = plain(Form::Nt, [m, n, k], Operand::Packed(&a), &b, &out);
        packed_matmul_with(&ctx, &spec, Choice::Integer(Shape::Small)).unwrap();
        assert_within("large sums", &out.to_vec().unwrap(), &want, |i| U32 * want[i]);
    }
}

#[test]
fn scaled_integers_agree_with_float64() {
    for ctx in baseline() {
        let formats = [
            ("int8:row:f32", "int4:row:f32"),
            ("mxint8", "nvint4"),
            ("int4:asym", "int8:g64:f32"),
            ("binary", "int3:asym:row"),
        ];
        for (i, (left, right)) in formats.into_iter().enumerate() {
            let dims = [[65, 63, 131], [20, 68, 96]][i % 2];
            let a = Left::Packed(quantized(parsed(left), [dims[0], dims[2]], 2, false));
            let b = quantized(parsed(right), [dims[1], dims[2]], 1, true);
            compare(&ctx, Choice::Integer(Shape::Small), Form::Nt, &a, &b, DType::F32, dims);
        }
        let dims = [20, 68, 300];
        for right in ["binary", "binary:g128:f16"] {
            let a = Left::Packed(quantized(parsed("binary"), [dims[0], dims[2]], 2, false));
            let b = quantized(parsed(right), [dims[1], dims[2]], 1, true);
            compare(&ctx, Choice::Binary(Shape::Small), Form::Nt, &a, &b, DType::F32, dims);
        }
        if ctx.capabilities().f16 {
            let a = Left::Packed(quantized(parsed("int8:row:f32"), [dims[0], dims[2]], 2, false));
            let b = quantized(parsed("int4"), [dims[1], dims[2]], 1, false);
            compare(&ctx, Choice::Integer(Shape::Small), Form::Nt, &a, &b, DType::F16, dims);
        }
    }
}

/// Bias, activations with what they keep, their derivatives under a mask, residuals, dropout.
fn epilogues(
    ctx: &Context,
    choice: Choice,
    formats: [Option<&str>; 2],
    [m, n, k]: [usize; 3],
    activations: &[Activation],
) {
    let mut random = Gen::new(9);
    let right = parsed(formats[1].unwrap());
    let b = quantized(right, [n, k], 1, false);
    let left = formats[0].map_or(Left::Dense(DType::F32), |f| Left::Packed(quantized(parsed(f), [m, k], 2, false)));
    let (dense, av) = floats(ctx, &random.normals(m * k), &[m * k], DType::F32);
    let packed;
    let (a, av) = match &left {
        Left::Dense(_) => (Operand::Dense(dense.buffer()), av),
        Left::Packed(matrix) => {
            packed = Packed::from_host(ctx, matrix).unwrap();
            (Operand::Packed(&packed), matrix.dequantize())
        }
    };
    let (pb, bv) = (Packed::from_host(ctx, &b).unwrap(), b.dequantize());
    let (bias, biasv) = floats(ctx, &random.normals(n), &[n], DType::F32);
    let (extra, extrav) = floats(ctx, &random.normals(m * n), &[m * n], DType::F32);
    let out = Tensor::zeros(ctx, &[m * n], DType::F32).unwrap();
    let pre = Tensor::zeros(ctx, &[m * n], DType::F32).unwrap();
    let spec = |bias, epilogue| PackedMatmul { bias, epilogue, ..plain(Form::Nt, [m, n, k], a, &pb, &out) };
    let what = |part: &str| format!("{} {choice:?} {formats:?} {m}x{n}x{k} {part}", ctx.capabilities().adapter.name);
    let product = reference::matmul(Form::Nt, [m, n, k], &av, &bv);
    let base = bounds(Form::Nt, [m, n, k], &av, &bv, roundings(choice, k, &left, &b));
    let biased: Vec<f64> = product.iter().enumerate().map(|(i, v)| v + biasv[i % n]).collect();
    // The sum with the bias is rounded, and stored.
    let biased_bound = |i: usize| base[i] + 2.0 * U32 * (biased[i].abs() + biasv[i % n].abs());
    packed_matmul_with(ctx, &spec(Some(bias.buffer()), Epilogue::None), choice).unwrap();
    assert_within(&what("bias"), &out.to_vec().unwrap(), &biased, biased_bound);
    for activation in activations {
        let epilogue = Epilogue::Activation(*activation, pre.buffer());
        packed_matmul_with(ctx, &spec(Some(bias.buffer()), epilogue), choice).unwrap();
        let want: Vec<f64> = biased.iter().map(|v| reference::activate(*activation, *v)).collect();
        assert_within(&what("pre"), &pre.to_vec().unwrap(), &biased, biased_bound);
        // The slopes of all three activations are below 1.2, and they are computed to 1e-6 of (1 + |v|).
        assert_within(&what("activation"), &out.to_vec().unwrap(), &want, |i| {
            1.2 * biased_bound(i) + 1e-6 * (1.0 + biased[i].abs())
        });
    }
    packed_matmul_with(ctx, &spec(None, Epilogue::Residual(extra.buffer(), None)), choice).unwrap();
    let want: Vec<f64> = product.iter().zip(&extrav).map(|(v, r)| v + r).collect();
    assert_within(&what("residual"), &out.to_vec().unwrap(), &want, |i| {
        base[i] + 2.0 * U32 * (product[i].abs() + extrav[i].abs())
    });
    // The mask of the same dropout on ones.
    let state = Tensor::zeros(ctx, &[16], DType::F32).unwrap();
    let dropout = Dropout { p: 0.25, seed: 77, op: 3, micro: 1, state: state.buffer() };
    let (ones, kept) =
        (floats(ctx, &vec![1.0; m * n], &[m * n], DType::F32).0, Tensor::zeros(ctx, &[m * n], DType::F32).unwrap());
    walsh::kernel::dropout::dropout(ctx, ones.buffer(), None, kept.buffer(), dropout).unwrap();
    let kept = kept.to_vec().unwrap();
    assert!(kept.contains(&0.0) && kept.iter().any(|v| *v > 1.0));
    let epilogue = Epilogue::Residual(extra.buffer(), Some(dropout));
    packed_matmul_with(ctx, &spec(Some(bias.buffer()), epilogue), choice).unwrap();
    let want: Vec<f64> = (0..m * n).map(|i| extrav[i] + f64::from(kept[i]) * biased[i]).collect();
    assert_within(&what("dropout"), &out.to_vec().unwrap(), &want, |i| {
        f64::from(kept[i]) * biased_bound(i) + 4.0 * U32 * (want[i].abs() + extrav[i].abs())
    });
}

/// A mask in place of the bias, and derivatives of activations, after an input gradient.
fn gradients(ctx: &Context, choice: Choice, format: &str, [m, n, k]: [usize; 3], activations: &[Activation]) {
    let mut random = Gen::new(11);
    let b = quantized(parsed(format), [k, n], 1, false);
    let (pb, bv) = (Packed::from_host(ctx, &b).unwrap(), b.dequantize());
    let (a, av) = floats(ctx, &random.normals(m * k), &[m * k], DType::F32);
    let (pre, prev) = floats(ctx, &random.normals(m * n), &[m * n], DType::F32);
    let bits: Vec<u32> = (0..walsh::kernel::mask::words(m, n)).map(|_| random.bits() as u32).collect();
    let mask = Tensor::from_u32(ctx, &bits, &[bits.len()]).unwrap();
    let product = reference::matmul(Form::Nn, [m, n, k], &av, &bv);
    let base = bounds(Form::Nn, [m, n, k], &av, &bv, roundings(choice, k, &Left::Dense(DType::F32), &b));
    let what = |part: &str| format!("{} {choice:?} {format} {m}x{n}x{k} {part}", ctx.capabilities().adapter.name);
    for (use_mask, activation) in
        [(true, None)].into_iter().chain(activations.iter().flat_map(|a| [(false, Some(*a)), (true, Some(*a))]))
    {
        for accumulate in [false, true] {
            let out = Tensor::from_f32(ctx, &vec![3.0; m * n], &[m * n]).unwrap();
            let spec = PackedMatmul {
                mask: use_mask.then(|| mask.buffer()),
                epilogue: activation.map_or(Epilogue::None, |a| Epilogue::ActivationGrad(a, pre.buffer())),
                accumulate,
                ..plain(Form::Nn, [m, n, k], Operand::Dense(a.buffer()), &pb, &out)
            };
            packed_matmul_with(ctx, &spec, choice).unwrap();
            let slope = |i: usize| activation.map_or(1.0, |a| reference::activate_grad(a, prev[i]));
            let mut want: Vec<f64> = product.iter().enumerate().map(|(i, v)| v * slope(i)).collect();
            if use_mask {
                want = masked(&want, &bits, n);
            }
            let added = if accumulate { 3.0 } else { 0.0 };
            want.iter_mut().for_each(|w| *w += added);
            assert_within(&what(&format!("{activation:?} mask {use_mask}")), &out.to_vec().unwrap(), &want, |i| {
                1.2 * base[i] + 2e-6 * product[i].abs() + U32 * (want[i].abs() + added)
            });
        }
    }
}

#[test]
fn what_follows_agrees_with_float64() {
    for ctx in every_tier() {
        let all = if cpu(&ctx) { &[Activation::GeluTanh][..] } else { &Activation::ALL };
        if ctx.tier() == Tier::Baseline {
            epilogues(&ctx, SMALL, [None, Some("int4:row:f32")], [33, 20, 24], &Activation::ALL);
            gradients(&ctx, SMALL, "int4:row:f32", [33, 44, 24], &Activation::ALL);
            // What follows ragged rows is a kernel of its own.
            epilogues(&ctx, SMALL, [None, Some("int4:row:f32")], [7, 13, 9], all);
            gradients(&ctx, SMALL, "int4:row:f32", [7, 37, 9], all);
            epilogues(
                &ctx,
                Choice::Integer(Shape::Small),
                [Some("int8:row:f32"), Some("int4:row:f32")],
                [33, 21, 70],
                all,
            );
            if !cpu(&ctx) {
                // The same text as in the integer kernel, which a software adapter takes seconds to compile.
                epilogues(&ctx, Choice::Binary(Shape::Small), [Some("binary"), Some("binary")], [33, 21, 70], all);
            }
        } else if cpu(&ctx) && ctx.tier() == Tier::Subgroup {
            epilogues(&ctx, Choice::Unpacked, [Some("int8:row:f32"), Some("nf4")], [33, 20, 72], all);
            gradients(&ctx, Choice::Unpacked, "nf4", [33, 44, 24], all);
        }
    }
}

#[test]
fn without_k_there_is_what_follows_alone() {
    for ctx in every_tier() {
        let empty = PackedMatrix::zeros(parsed("int4"), 3, 0).unwrap();
        let b = Packed::from_host(&ctx, &empty).unwrap();
        let bias = Tensor::from_f32(&ctx, &[1.0, 2.0, 3.0], &[3]).unwrap();
        let out = Tensor::from_f32(&ctx, &[9.0; 6], &[6]).unwrap();
        let nothing = Tensor::zeros(&ctx, &[1], DType::F32).unwrap();
        let spec = plain(Form::Nt, [2, 3, 0], Operand::Dense(nothing.buffer()), &b, &out);
        packed_matmul(&ctx, &PackedMatmul { bias: Some(bias.buffer()), ..spec }).unwrap();
        assert_eq!(out.to_vec().unwrap(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        packed_matmul(&ctx, &PackedMatmul { a: Operand::Packed(&b), m: 3, n: 3, ..spec }).unwrap_err();
        packed_matmul(&ctx, &PackedMatmul { m: 0, ..spec }).unwrap();
    }
}

#[test]
fn the_chosen_kernel_fits_the_device() {
    for ctx in every_tier() {
        let of = |format: &str, rows, cols| {
            Packed::from_host(&ctx, &quantized(parsed(format), [rows, cols], 1, false)).unwrap()
        };
        let (m, n, k) = (256, 256, 64);
        let dense = Tensor::zeros(&ctx, &[m * k], DType::F32).unwrap();
        let out = Tensor::zeros(&ctx, &[m * n], DType::F32).unwrap();
        let (int, sign, nf4) = (of("int4", n, k), of("binary", n, k), of("nf4", n, k));
        let picked = |a, b| choose(&ctx, &plain(Form::Nt, [m, n, k], a, b, &out));
        let choices = [
            picked(Operand::Dense(dense.buffer()), &int),
            picked(Operand::Packed(&int), &int),
            picked(Operand::Packed(&sign), &sign),
            picked(Operand::Packed(&int), &nf4),
        ];
        let coop = Choice::Coop { splits: 1 };
        assert_eq!(
            choices,
            match ctx.tier() {
                _ if cpu(&ctx) => [Choice::Unpacked; 4],
                // Whose operands are f16 or quantized, both in one way or integers by rows.
                Tier::Coop => [SMALL, coop, coop, SMALL],
                _ => [SMALL, Choice::Integer(Shape::Small), Choice::Binary(Shape::Small), SMALL],
            }
        );
        // One row is unpacked alone; a CPU does so with a few, and counts bits where there are many to count.
        let (one, few, long) = (of("int4", 1, k), of("int4", 8, k), of("binary", 16, 1024));
        let row = choose(&ctx, &plain(Form::Nt, [1, n, k], Operand::Packed(&one), &int, &out));
        let rows = choose(&ctx, &plain(Form::Nt, [8, n, k], Operand::Packed(&few), &int, &out));
        let bits = choose(&ctx, &plain(Form::Nt, [16, 16, 1024], Operand::Packed(&long), &long, &out));
        assert_eq!(row, Choice::UnpackedVector);
        assert_eq!(rows == Choice::UnpackedVector, cpu(&ctx), "{rows:?}");
        assert_eq!(bits == Choice::Binary(Shape::Small), ctx.tier() != Tier::Coop, "{bits:?}");
        // It computes, too: a row of the identity picks a column of b.
        let mut x = vec![0.0; m * k];
        (0..k).for_each(|i| x[i * k + i] = 1.0);
        let x = Tensor::from_f32(&ctx, &x, &[m * k]).unwrap();
        packed_matmul(&ctx, &plain(Form::Nt, [m, n, k], Operand::Dense(x.buffer()), &int, &out)).unwrap();
        let (got, want) = (out.to_vec().unwrap(), int.to_host(&ctx).unwrap());
        for (i, g) in got.iter().take(k * n).enumerate() {
            assert_eq!(f64::from(*g), f64::from(want.value(i % n, i / n) as f32));
        }
    }
}

#[test]
fn a_kernel_says_what_it_cannot_do() {
    let ctx = &baseline()[0];
    let of = |format: &str, rows, cols| {
        Packed::from_host(ctx, &PackedMatrix::zeros(parsed(format), rows, cols).unwrap()).unwrap()
    };
    let out = Tensor::zeros(ctx, &[4], DType::F32).unwrap();
    let dense = Tensor::zeros(ctx, &[4 * 40000], DType::F32).unwrap();
    let (wide, nf4, short) = (of("int8:row:f32", 2, 40000), of("nf4", 2, 40000), of("binary:g32", 2, 40000));
    for (choice, a, b, why) in [
        // 40000 2^16 > 2^31
        (Choice::Integer(Shape::Small), Operand::Packed(&wide), &wide, "32 bits"),
        (Choice::Integer(Shape::Small), Operand::Packed(&wide), &nf4, "integers"),
        (Choice::Integer(Shape::Small), Operand::Dense(dense.buffer()), &wide, "both"),
        (Choice::Binary(Shape::Small), Operand::Packed(&wide), &wide, "signs"),
        (Choice::Binary(Shape::Small), Operand::Packed(&short), &short, "groups of 128"),
        (Choice::Tiled { shape: Shape::Tall, splits: 1 }, Operand::Dense(dense.buffer()), &wide, "tall"),
        (Choice::UnpackedVector, Operand::Dense(dense.buffer()), &wide, "is quantized"),
    ] {
        let spec = plain(Form::Nt, [2, 2, 40000], a, b, &out);
        let error = packed_matmul_with(ctx, &spec, choice).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { why: said, .. } if said.contains(why)), "{choice:?}: {error}");
    }
}

#[test]
fn a_residual_in_the_buffer_of_the_result_is_refused() {
    for ctx in every_tier() {
        // Few columns are no multiples of 4, so that what follows tiles is a kernel of its own; few rows are a kernel of vectors.
        for (m, n, k) in [(6, 4, 8), (6, 5, 8), (70, 5, 8), (1, 5, 8), (6, 4, 0)] {
            let b = Packed::from_host(&ctx, &PackedMatrix::zeros(parsed("int4"), n, k).unwrap()).unwrap();
            let a = Tensor::zeros(&ctx, &[(m * k).max(1)], DType::F32).unwrap();
            let out = Tensor::from_f32(&ctx, &vec![2.0; m * n], &[m * n]).unwrap();
            let good = plain(Form::Nt, [m, n, k], Operand::Dense(a.buffer()), &b, &out);
            let bad = PackedMatmul { epilogue: Epilogue::Residual(out.buffer(), None), ..good };
            let results = [packed_matmul(&ctx, &bad), walsh::kernel::packed_vector::dispatch(&ctx, &bad)];
            for result in results.into_iter().take(if m <= 64 { 2 } else { 1 }) {
                assert!(matches!(&result, Err(Error::Invalid { .. })), "{m} {n} {k}: {result:?}");
            }
            // The context is as good as before, and nothing was written.
            assert_eq!(out.to_vec().unwrap(), vec![2.0; m * n], "{m} {n} {k}");
            packed_matmul(&ctx, &good).unwrap();
            assert_eq!(out.to_vec().unwrap(), vec![0.0; m * n], "{m} {n} {k}");
        }
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let ctx = &baseline()[0];
    let of = |len: usize| Tensor::zeros(ctx, &[len], DType::F32).unwrap();
    let words = |len: usize| Tensor::from_u32(ctx, &vec![0; len], &[len]).unwrap();
    let (a, out, short, mask, state) = (of(6 * 8), of(6 * 4), of(3), words(6), of(16));
    let square = Packed::from_host(ctx, &PackedMatrix::zeros(parsed("int4"), 4, 8).unwrap()).unwrap();
    let other = Packed::from_host(ctx, &PackedMatrix::zeros(parsed("int4"), 8, 4).unwrap()).unwrap();
    let good = plain(Form::Nt, [6, 4, 8], Operand::Dense(a.buffer()), &square, &out);
    let nn = PackedMatmul { form: Form::Nn, b: &other, ..good };
    let tn = PackedMatmul { form: Form::Tn, b: &other, ..good };
    packed_matmul(ctx, &good).unwrap();
    packed_matmul(ctx, &nn).unwrap();
    let dropout = Dropout { p: 1.5, seed: 1, op: 0, micro: 0, state: state.buffer() };
    for (bad, says) in [
        (PackedMatmul { b: &other, ..good }, "b of 4 x 8"),
        (PackedMatmul { m: 7, ..good }, "a of at least 56"),
        (PackedMatmul { a: Operand::Packed(&square), ..good }, "a of 6 x 8"),
        (PackedMatmul { a: Operand::Packed(&other), ..tn }, "dense a"),
        (PackedMatmul { a: Operand::Packed(&other), ..nn }, "a of 6 x 8"),
        (PackedMatmul { a: Operand::Dense(mask.buffer()), ..good }, "f32 or f16"),
        (PackedMatmul { out: short.buffer(), ..good }, "out of 24"),
        (PackedMatmul { bias: Some(short.buffer()), ..good }, "bias of 4"),
        (PackedMatmul { bias: Some(a.buffer()), ..nn }, "form Nt"),
        (PackedMatmul { mask: Some(mask.buffer()), ..good }, "form Nn"),
        (PackedMatmul { mask: Some(a.buffer()), ..nn }, "mask of 6 words"),
        (PackedMatmul { epilogue: Epilogue::Activation(Activation::Gelu, short.buffer()), ..good }, "pre of 24"),
        (PackedMatmul { epilogue: Epilogue::Activation(Activation::Gelu, out.buffer()), ..nn }, "activations after Nt"),
        (
            PackedMatmul { epilogue: Epilogue::Residual(out.buffer(), None), accumulate: true, ..good },
            "no accumulation",
        ),
        (PackedMatmul { epilogue: Epilogue::Residual(out.buffer(), Some(dropout)), ..good }, "probability"),
    ] {
        let error = packed_matmul(ctx, &bad).unwrap_err().to_string();
        assert!(error.contains(says), "expected `{says}` in: {error}");
    }
}
