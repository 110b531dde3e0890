//! Quantization for products along another dimension: of transposed matrices, with random signs, headroom, and scales of squares.

mod common;

use common::{Gen, U32, assert_within, dtypes, every_tier, floats};
use walsh::format::{Format, Header, PackedMatrix, Rounding, Store, Uniform};
use walsh::kernel::hadamard::{Signs, Step as SignStep};
use walsh::kernel::packed::Packed;
use walsh::kernel::quantize::{self as kernel, Division, Options, Step, quantize};
use walsh::kernel::quantize_transposed::{Source, quantize_transposed};
use walsh::reference::hadamard::signs;
use walsh::reference::matmul::matmul;
use walsh::reference::quantize::{Turn, quantized, squares, turned};
use walsh::{Context, DType, Error, Tensor};

const SEED: u64 = 0x1234_5678_9ABC_DEF0;

/// What one case does beside encoding.
#[derive(Clone, Copy, Debug, Default)]
struct Extras {
    block: Option<usize>,
    signs: bool,
    factor: Option<f32>,
    stochastic: bool,
    square: bool,
    division: Option<Division>,
}

impl Extras {
    fn uniform(self) -> Option<Uniform> {
        self.stochastic.then_some(Uniform { seed: SEED, op: 3, step: 41 })
    }

    fn rounding(self) -> kernel::Rounding<'static> {
        self.uniform().map_or(kernel::Rounding::Nearest, |u| kernel::Rounding::Stochastic {
            seed: u.seed,
            op: u.op,
            step: Step::Number(u.step),
        })
    }

    fn signs(self) -> Option<Signs> {
        self.signs.then_some(Signs { seed: SEED ^ 77, op: 9, step: SignStep::Number(5) })
    }

    fn options(self, signs: Option<&Signs>) -> Options<'_> {
        let Self { block, factor, square, division, .. } = self;
        Options { rounding: self.rounding(), hadamard: block, signs, factor, square, division, ..Options::default() }
    }
}

/// Checks a matrix `[rows, cols]` against the values that it encodes, which are `error` off at most.
#[track_caller]
fn check(what: &str, got: &PackedMatrix, x: &[f64], error: impl Fn(usize) -> f64, extras: Extras) {
    let (format, layout) = (got.format(), *got.layout());
    let dims = [layout.rows, layout.cols];
    let by = if extras.square { squares(x, dims) } else { x.to_vec() };
    let narrow: Vec<f32> = by.iter().map(|v| *v as f32).collect();
    let want = PackedMatrix::quantize(format, &narrow, dims[0], dims[1], Rounding::Nearest).unwrap();
    if format.store() == Store::E4M3 {
        let largest = x.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let most = (0..x.len()).map(&error).fold(0.0f64, f64::max);
        let factor = f64::from(got.header(Header::Factor)) * format.grid().max() * 448.0;
        assert!((factor - largest).abs() <= most + 8.0 * U32 * largest, "{what}: {factor} for {largest}");
    }
    for row in 0..dims[0] {
        for group in 0..layout.groups {
            // What is stored in eight bits may fall to the neighbour.
            let (a, b) = (got.scale_bits(row, group), want.scale_bits(row, group));
            let exact = matches!(format.store(), Store::E8M0(_)) && extras.block.is_none() && error(0) == 0.0;
            let near = if exact && format.to_string() != "mxfp4:mse" { 0 } else { 1 };
            assert!(a.abs_diff(b) <= near, "{what}: scale {group} of row {row}: {a:#x}, want {b:#x}");
        }
        for col in 0..dims[1] {
            let i = row * dims[1] + col;
            let (scale, zero) = (got.scale(row, col / layout.group, false), got.zero(row, col / layout.group));
            let factor = f64::from(extras.factor.unwrap_or(1.0));
            let v = if scale == 0.0 { 0.0 } else { x[i] * factor / scale };
            // The reciprocal, its products, the factor; E4M3's scale is a product.
            let d = if scale == 0.0 { 0.0 } else { 14.0 * U32 * v.abs() + error(i) * factor / scale };
            let code = got.code(row, col);
            let allowed = [v - d, v, v + d].map(|v| match extras.uniform() {
                None => format.nearest(v, zero),
                Some(uniform) => format.stochastic(v, zero, uniform.at(i as u32)),
            });
            assert!(allowed.contains(&code), "{what}: {row}, {col}: {code} for {v}, want one of {allowed:?}");
        }
    }
    // Every word is what its fields say.
    let mut again = PackedMatrix::zeros(format, dims[0], dims[1]).unwrap();
    for row in 0..dims[0] {
        (0..dims[1]).for_each(|col| again.set_code(row, col, got.code(row, col)));
        for group in 0..layout.groups {
            again.set_scale_bits(row, group, got.scale_bits(row, group));
            again.set_zero_of(got, row, group);
        }
    }
    assert_eq!(again.codes(), got.codes(), "{what}: words of codes");
    assert_eq!(again.side()[32..], got.side()[32..], "{what}: words of side data");
    let mut normed = got.clone();
    normed.set_norm();
    assert_eq!(normed.side()[..32], got.side()[..32], "{what}: the header's norm");
}

trait Zeros {
    fn set_zero_of(&mut self, other: &PackedMatrix, row: usize, group: usize);
}

impl Zeros for PackedMatrix {
    fn set_zero_of(&mut self, other: &PackedMatrix, row: usize, group: usize) {
        if matches!(self.format().grid(), walsh::format::Grid::ZeroPoint { .. }) {
            self.set_zero(row, group, other.zero(row, group));
        }
    }
}

/// Memory full of ones.
fn garbage(context: &Context, format: Format, rows: usize, cols: usize) -> Packed {
    let sizes = PackedMatrix::zeros(format, rows, cols).unwrap();
    let ones = |words: &[u32]| vec![u32::MAX; words.len()];
    let matrix = PackedMatrix::from_words(format, rows, cols, ones(sizes.codes()), ones(sizes.side())).unwrap();
    Packed::from_host(context, &matrix).unwrap()
}

/// The bound on a rotated element: log2(block) additions of numbers that are together at most sqrt(block) times the block's norm, and the
/// factor; `relative` is the error of the elements before.
fn rotation_error(x: &[f64], cols: usize, block: Option<usize>, relative: f64) -> impl Fn(usize) -> f64 {
    let n = block.unwrap_or(1);
    let norms: Vec<f64> = x.chunks(n).map(|b| b.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
    let steps = if n == 1 { 0.0 } else { f64::from(n.ilog2()) + 4.0 };
    assert!(block.is_none_or(|n| cols.is_multiple_of(n)));
    move |i| norms[i / n] * (U32 * steps + relative)
}

enum Stored {
    Dense(Tensor),
    Packed(Packed),
}

/// A matrix on the device, its values, and how far a device may be off when it reads one.
struct Given {
    stored: Stored,
    values: Vec<f64>,
    relative: f64,
}

/// Quantizes the transpose of x, `[rows, cols]`, from each source that there is.
#[track_caller]
fn run(context: &Context, format: &str, source: &str, [rows, cols]: [usize; 2], extras: Extras) {
    let format: Format = format.parse().unwrap();
    let data = Gen::new(4).hard(rows * cols);
    let sources: Vec<Given> = if source == "dense" {
        let dense = |dtype| {
            let (tensor, values) = floats(context, &data, &[rows, cols], dtype);
            Given { stored: Stored::Dense(tensor), values, relative: 0.0 }
        };
        dtypes(context).into_iter().map(dense).collect()
    } else {
        let matrix = PackedMatrix::quantize(source.parse().unwrap(), &data, rows, cols, Rounding::Nearest).unwrap();
        // Level times scale, which may be a product itself, or a sum.
        let stored = Stored::Packed(Packed::from_host(context, &matrix).unwrap());
        vec![Given { stored, values: matrix.dequantize(), relative: 4.0 * U32 }]
    };
    for Given { stored, values, relative } in sources {
        let signs_of = extras.signs();
        let factors = signs_of.as_ref().map(|s| signs(rows, s.seed, s.op, 5));
        let turn = Turn { transposed: true, signs: factors.as_deref(), block: extras.block };
        let x = turned(&values, [cols, rows], turn);
        let from = match &stored {
            Stored::Dense(tensor) => Source::Dense(tensor.buffer()),
            Stored::Packed(packed) => Source::Packed(packed),
        };
        // As suits the adapter, and decoded where it is read.
        let divisions = [None, Some(Division::Units)];
        for division in divisions.into_iter().take(if matches!(stored, Stored::Packed(_)) { 2 } else { 1 }) {
            let extras = Extras { division, ..extras };
            let out = garbage(context, format, cols, rows);
            quantize_transposed(context, from, &out, extras.options(signs_of.as_ref())).unwrap();
            let adapter = &context.capabilities().adapter.name;
            let what = format!("{format} of {source} {rows} x {cols}, {extras:?} on {adapter}, {}", context.tier());
            let error = rotation_error(&x, rows, extras.block, relative);
            check(&what, &out.to_host(context).unwrap(), &x, error, extras);
        }
    }
}

#[test]
fn transposed_matrices_match_their_definition() {
    let rotated = |block, signs| Extras { block: Some(block), signs, ..Extras::default() };
    for context in every_tier() {
        // Ragged groups, units and rows.
        for format in ["mxfp4", "nvfp4", "mxfp4:mse", "int8:g64:asym", "mxfp8_e4m3"] {
            run(&context, format, "dense", [37, 19], Extras::default());
        }
        for (format, source, dims, extras) in [
            ("mxfp4", "mxfp4", [64, 40], Extras::default()),
            ("nvfp4", "nvfp4", [83, 33], Extras::default()),
            ("mxfp4", "int4:asym:g32", [45, 70], Extras::default()),
            ("mxfp4", "int3", [33, 5], Extras::default()),
            ("nvfp4", "nf3", [40, 35], Extras::default()),
            ("mxfp4", "nf4:dq", [32, 64], Extras::default()),
            ("nvint4", "mxfp6_e3m2", [20, 33], Extras::default()),
            ("mxfp4", "mxfp8_e4m3", [1, 33], Extras::default()),
            ("int4:g32:mse:centred", "int8:row:f32", [96, 31], rotated(32, false)),
            ("mxfp4", "dense", [64, 33], rotated(32, true)),
            ("mxfp4", "mxfp4:mse", [96, 40], rotated(32, true)),
            ("mxfp4", "dense", [256, 9], rotated(128, true)),
            ("mxfp4", "dense", [64, 7], rotated(64, true)),
            ("nvfp4", "dense", [48, 20], rotated(16, true)),
            ("nvfp4", "nvfp4", [128, 12], rotated(128, true)),
        ] {
            run(&context, format, source, dims, extras);
        }
        for (format, dims) in [("mxfp4", [64usize, 33]), ("nvfp4", [48, 20]), ("mxfp4", [35, 6])] {
            let block = dims[0].is_multiple_of(16).then_some(16);
            let extras = Extras { block, signs: true, factor: Some(0.75), stochastic: true, ..Extras::default() };
            run(&context, format, "dense", dims, extras);
            run(&context, format, "nvfp4", dims, Extras { stochastic: false, ..extras });
        }
    }
}

#[test]
fn signs_and_factors_come_with_rows_too() {
    for context in every_tier() {
        for (format, [rows, cols], block) in [
            ("mxfp4", [5, 96usize], Some(32)),
            ("mxfp4:mse", [3, 320], Some(32)),
            ("nvfp4", [4, 48], Some(16)),
            ("nvfp4", [3, 256], Some(128)),
            ("mxfp4", [3, 133], None),
            ("int4:centred:row:f32:mse", [3, 640], Some(64)),
            ("int4:row:f32", [3, 160], Some(32)),
        ] {
            let parsed: Format = format.parse().unwrap();
            let both = kernel::tiles(&context) && cols.is_multiple_of(4);
            for division in Division::ALL.into_iter().take(if both { 3 } else { 1 }) {
                let extras =
                    Extras { block, signs: true, factor: Some(0.75), division: Some(division), ..Extras::default() };
                let (tensor, values) = floats(&context, &Gen::new(3).normals(rows * cols), &[rows, cols], DType::F32);
                let s = extras.signs().unwrap();
                let factors = signs(cols, s.seed, s.op, 5);
                let x = turned(&values, [rows, cols], Turn { transposed: false, signs: Some(&factors), block });
                let out = garbage(&context, parsed, rows, cols);
                quantize(&context, tensor.buffer(), &out, extras.options(Some(&s))).unwrap();
                let got = out.to_host(&context).unwrap();
                let what =
                    format!("{format} {rows} x {cols} by {division:?} on {}", context.capabilities().adapter.name);
                if parsed.store() == Store::F32 {
                    // Scales of rows are compared elsewhere; the codes follow from them.
                    let d = rotation_error(&x, cols, block, 0.0);
                    for (i, v) in x.iter().enumerate() {
                        let scale = got.scale(i / cols, 0, false);
                        let slack = (14.0 * U32 * v.abs() + d(i)) / scale;
                        let allowed = [-slack, 0.0, slack].map(|e| parsed.nearest(0.75 * v / scale + e, 0));
                        assert!(allowed.contains(&got.code(i / cols, i % cols)), "{what}: element {i}");
                    }
                } else {
                    check(&what, &got, &x, rotation_error(&x, cols, block, 0.0), extras);
                }
            }
        }
    }
}

#[test]
fn signs_change_before_the_transform_and_not_after_it() {
    for context in every_tier() {
        let (rows, cols) = (64, 4);
        let values: Vec<f32> = (0..rows * cols).map(|i| (i / cols % 5) as f32 + 1.0).collect();
        let wide: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        let tensor = Tensor::from_f32(&context, &values, &[rows, cols]).unwrap();
        let format: Format = "mxfp8_e4m3".parse().unwrap();
        let random = Signs { seed: 5, op: 1, step: SignStep::Number(2) };
        let out = Packed::empty(&context, format, cols, rows).unwrap();
        let options = Options { hadamard: Some(32), signs: Some(&random), ..Options::default() };
        quantize_transposed(&context, Source::Dense(tensor.buffer()), &out, options).unwrap();
        let got = out.to_host(&context).unwrap().dequantize();
        let factors = signs(rows, 5, 1, 2);
        let right = turned(&wide, [cols, rows], Turn { transposed: true, signs: Some(&factors), block: Some(32) });
        let mut wrong = turned(&wide, [cols, rows], Turn { transposed: true, signs: None, block: Some(32) });
        wrong.iter_mut().enumerate().for_each(|(i, v)| *v *= factors[i % rows]);
        let distance = |x: &[f64]| {
            let square = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>();
            (square(&mut x.iter().zip(&got).map(|(a, b)| a - b)) / square(&mut x.iter().copied())).sqrt()
        };
        // Three bits of mantissa are off by a sixteenth at most; the wrong order has nothing to do with it.
        assert!(distance(&right) <= 1.0 / 16.0, "{}", distance(&right));
        assert!(distance(&wrong) > 0.5, "{}", distance(&wrong));
    }
}

/// Errors of means over `draws` of stochastic rounding in units of their own standard deviation, for a group with values in (6, 8) scales.
fn bias(context: &Context, format: &str, factor: Option<f32>, x: &[f32], back: f64) -> f64 {
    let format: Format = format.parse().unwrap();
    let tensor = Tensor::from_f32(context, x, &[x.len(), 1]).unwrap();
    let draws = 256;
    let mut sums = vec![(0.0, 0.0); x.len()];
    for step in 0..draws {
        let out = Packed::empty(context, format, 1, x.len()).unwrap();
        let rounding = kernel::Rounding::Stochastic { seed: 3, op: 1, step: Step::Number(step) };
        let options = Options { rounding, factor, ..Options::default() };
        quantize_transposed(context, Source::Dense(tensor.buffer()), &out, options).unwrap();
        for (sum, v) in sums.iter_mut().zip(out.to_host(context).unwrap().dequantize()) {
            *sum = (sum.0 + v * back, sum.1 + (v * back).powi(2));
        }
    }
    let n = f64::from(draws);
    let (mut error, mut variance) = (0.0, 0.0);
    for (x, (sum, squares)) in x.iter().zip(&sums) {
        error += sum / n - f64::from(*x);
        variance += (squares / n - (sum / n).powi(2)).max(0.0) / n;
    }
    error.abs() / variance.sqrt()
}

#[test]
fn stochastic_rounding_needs_three_quarters_to_be_unbiased() {
    for context in every_tier() {
        // A scale of 1, and many values between 6 and 8.
        let x: Vec<f32> = (0..32).map(|i| if i % 2 == 0 { 7.9 - 0.05 * i as f32 } else { 0.2 * i as f32 }).collect();
        let clipped = bias(&context, "mxfp4", None, &x, 1.0);
        assert!(clipped > 6.0, "values beyond 6 must saturate: {clipped} standard deviations");
        let fitting = bias(&context, "mxfp4", Some(0.75), &x, 4.0 / 3.0);
        assert!(fitting <= 6.0, "biased by {fitting} standard deviations");
        // E4M3 scales round down by up to 1/17.
        let fitting = bias(&context, "nvfp4", Some(16.0 / 17.0), &x, 17.0 / 16.0);
        assert!(fitting <= 6.0, "nvfp4 biased by {fitting} standard deviations");
    }
}

/// dW = G^T X through quantized operands that are rotated along tokens with the same signs, times `alpha`.
fn weight_gradient(
    context: &Context,
    format: Format,
    [g, x]: [&Tensor; 2],
    [tokens, n, k]: [usize; 3],
    step: Option<u32>,
    factor: f32,
) -> Vec<f64> {
    let random = Signs { seed: 9, op: 2, step: SignStep::Number(step.unwrap_or(1)) };
    let encode = |x: &Tensor, width: usize, op: u32| {
        let out = Packed::empty(context, format, width, tokens).unwrap();
        let rounding = match step {
            Some(step) => kernel::Rounding::Stochastic { seed: 8, op, step: Step::Number(step) },
            None => kernel::Rounding::Nearest,
        };
        let options =
            Options { rounding, hadamard: Some(32), signs: Some(&random), factor: Some(factor), ..Options::default() };
        quantize_transposed(context, Source::Dense(x.buffer()), &out, options).unwrap();
        out.to_host(context).unwrap().dequantize()
    };
    let (g, x) = (encode(g, n, 0), encode(x, k, 1));
    let alpha = 1.0 / f64::from(factor).powi(2);
    let product = matmul(walsh::kernel::matmul::Form::Nt, [n, k, tokens], &g, &x);
    product.into_iter().map(|v| v * alpha).collect()
}

#[test]
fn rotated_operands_multiply_to_the_weight_gradient() {
    for context in every_tier() {
        let (tokens, n, k) = (128, 12, 20);
        let (g, gv) = floats(&context, &Gen::new(1).hard(tokens * n), &[tokens, n], DType::F32);
        let (x, xv) = floats(&context, &Gen::new(2).normals(tokens * k), &[tokens, k], DType::F32);
        let want = matmul(walsh::kernel::matmul::Form::Tn, [n, k, tokens], &gv, &xv);
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let off = |got: &[f64]| {
            let difference: Vec<f64> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
            norm(&difference) / norm(&want)
        };
        let dims = [tokens, n, k];
        let product = |format: &str, step, factor| {
            weight_gradient(&context, format.parse().unwrap(), [&g, &x], dims, step, factor)
        };
        // The finer the format, the nearer: 2^-9, 2^-4 and 2^-2 of an element at most, some of which cancel.
        let [fine, medium, coarse] = ["int8:g32", "mxfp8_e4m3", "mxfp4"].map(|format| off(&product(format, None, 1.0)));
        assert!(fine < 0.02 && medium < 0.1 && coarse < 0.4, "{fine} {medium} {coarse}");
        assert!(fine < medium && medium < coarse, "{fine} {medium} {coarse}");
        // Independent draws average out to the product itself, with 16/9 for two factors of 3/4.
        let draws = 64;
        let (mut sum, mut squares) = (vec![0.0; n * k], vec![0.0; n * k]);
        for step in 0..draws {
            for (i, v) in product("mxfp4", Some(step), 0.75).into_iter().enumerate() {
                sum[i] += v;
                squares[i] += v * v;
            }
        }
        let count = f64::from(draws);
        let (mut error, mut variance) = (0.0, 0.0);
        for i in 0..n * k {
            error += sum[i] / count - want[i];
            variance += (squares[i] / count - (sum[i] / count).powi(2)) / count;
        }
        // Elements of a product share operands, whose errors are not independent: rows and columns as one, by the larger number of them.
        let sigma = (variance * n.max(k) as f64).sqrt();
        assert!(error.abs() <= 6.0 * sigma, "biased: {error} with {sigma}");
        let mean: Vec<f64> = sum.iter().map(|v| v / count).collect();
        assert!(off(&mean) < off(&product("mxfp4", Some(0), 0.75)) / 4.0, "64 draws are no nearer: {}", off(&mean));
    }
}

#[test]
fn squares_share_a_scale_and_transpose_to_the_same_values() {
    for context in every_tier() {
        for [rows, cols] in [[48, 64], [37, 53], [16, 16]] {
            let (tensor, values) = floats(&context, &Gen::new(6).hard(rows * cols), &[rows, cols], DType::F32);
            let format: Format = "nvfp4".parse().unwrap();
            let extras = Extras { square: true, ..Extras::default() };
            let packed = garbage(&context, format, rows, cols);
            quantize(&context, tensor.buffer(), &packed, extras.options(None)).unwrap();
            let got = packed.to_host(&context).unwrap();
            check(&format!("{rows} x {cols}"), &got, &values, |_| 0.0, extras);
            for row in 0..rows {
                for group in 0..got.layout().groups {
                    assert_eq!(got.scale_bits(row, group), got.scale_bits(row / 16 * 16, group), "row {row}");
                }
            }
            assert_eq!(
                got.codes(),
                quantized(format, &values, [rows, cols], 1.0, true, Rounding::Nearest).unwrap().codes()
            );
            let back = garbage(&context, format, cols, rows);
            let direct = Extras { division: Some(Division::Units), ..extras };
            quantize_transposed(&context, Source::Packed(&packed), &back, direct.options(None)).unwrap();
            let again: Vec<f32> = back.to_host(&context).unwrap().dequantize().iter().map(|v| *v as f32).collect();
            let want = turned(&got.dequantize(), [cols, rows], Turn { transposed: true, ..Turn::default() });
            // The tensor's factor is computed anew from values with three roundings.
            assert_within("transposed", &again, &want, |i| 6.0 * U32 * want[i].abs());
        }
    }
}

#[test]
fn the_steps_number_may_be_the_devices() {
    for context in every_tier() {
        let x = Tensor::from_f32(&context, &Gen::new(2).normals(64 * 40), &[64, 40]).unwrap();
        let mut words = [0u32; 16];
        words[0] = 41;
        let state = Tensor::from_u32(&context, &words, &[16]).unwrap();
        let other = Tensor::from_u32(&context, &words, &[16]).unwrap();
        let encode = |sign: SignStep, step: Step<'_>| {
            let random = Signs { seed: 4, op: 7, step: sign };
            let packed = Packed::empty(&context, "mxfp4".parse().unwrap(), 40, 64).unwrap();
            let rounding = kernel::Rounding::Stochastic { seed: 1, op: 2, step };
            let options = Options { rounding, signs: Some(&random), hadamard: Some(32), ..Options::default() };
            quantize_transposed(&context, Source::Dense(x.buffer()), &packed, options)
                .map(|()| packed.to_host(&context).unwrap())
        };
        let from_state = |tensor: &Tensor| SignStep::State(tensor.buffer().clone());
        let want = encode(SignStep::Number(41), Step::Number(41)).unwrap();
        assert_eq!(encode(from_state(&state), Step::State(state.buffer())).unwrap(), want);
        assert_eq!(encode(SignStep::Number(41), Step::State(state.buffer())).unwrap(), want);
        assert_eq!(encode(from_state(&state), Step::Number(41)).unwrap(), want);
        assert_ne!(encode(SignStep::Number(42), Step::Number(41)).unwrap(), want);
        assert_ne!(encode(SignStep::Number(41), Step::Number(42)).unwrap(), want);
        let two = encode(from_state(&other), Step::State(state.buffer())).unwrap_err();
        assert!(two.to_string().contains("one step state"), "{two}");
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let context = &every_tier()[0];
    let x = Tensor::from_f32(context, &[0.0; 96], &[48, 2]).unwrap();
    let packed = |text: &str, rows, cols| Packed::empty(context, text.parse().unwrap(), rows, cols).unwrap();
    let q = |out: &Packed, options: Options<'_>| quantize_transposed(context, Source::Dense(x.buffer()), out, options);
    assert!(q(&packed("mxfp4", 2, 48), Options::default()).is_ok());
    assert!(matches!(q(&packed("mxfp4", 2, 47), Options::default()), Err(Error::Shape { .. })));
    for format in ["nf4", "int4:row", "int8:tensor:f32", "nf4:dq", "int4:g2048", "nf3", "fp4", "binary"] {
        let error = q(&packed(format, 2, 48), Options::default()).unwrap_err().to_string();
        assert!(error.contains("integers or small floats with a scale per group of 16 to 1024"), "{format}: {error}");
    }
    let with = |hadamard| Options { hadamard, ..Options::default() };
    assert!(matches!(q(&packed("mxfp4", 2, 48), with(Some(32))), Err(Error::Shape { .. })));
    assert!(matches!(q(&packed("mxfp4", 2, 48), with(Some(8))), Err(Error::Invalid { .. })));
    let square = Options { square: true, ..Options::default() };
    assert!(q(&packed("nvfp4", 2, 48), square).is_ok());
    assert!(matches!(q(&packed("mxfp4", 2, 48), square), Err(Error::Invalid { .. })));
    let from = packed("mxfp4", 47, 2);
    let error = quantize_transposed(context, Source::Packed(&from), &packed("mxfp4", 2, 48), Options::default());
    assert!(error.unwrap_err().to_string().contains("x of 48 x 2"));
    // Nothing is a matrix too.
    let none = Tensor::from_f32(context, &[], &[0, 3]).unwrap();
    let out = packed("nvfp4", 3, 0);
    quantize_transposed(context, Source::Dense(none.buffer()), &out, Options::default()).unwrap();
    assert_eq!(out.to_host(context).unwrap(), PackedMatrix::zeros("nvfp4".parse().unwrap(), 3, 0).unwrap());
}
