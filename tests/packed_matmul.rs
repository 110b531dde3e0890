//! Products of quantized matrices against float64: every format, form, type and epilogue, on every tier, on ragged sizes and hard data.

mod common;

use common::{Gen, U16, U32, assert_within, every_tier, floats, stored};
use walsh::format::{Format, PackedMatrix, Rounding, Store};
use walsh::kernel::Dropout;
use walsh::kernel::matmul::{Activation, Epilogue, Form, Shape};
use walsh::kernel::packed::Packed;
use walsh::kernel::packed_matmul::{Choice, Operand, PackedMatmul, choose, packed_matmul, packed_matmul_with};
use walsh::reference::mask::mask as masked;
use walsh::reference::matmul as reference;
use walsh::{Buffer, Context, DType, Error, Tensor, Tier};

const SMALL: Choice = Choice::Tiled { shape: Shape::Small, splits: 1 };
const WIDE: Choice = Choice::Tiled { shape: Shape::Wide, splits: 1 };

/// A quantized matrix of hard data: outliers, a row of zeros and, where scales are f32 by row or group, rows of 1e18 and of 1e-18 times the rest.
fn quantized(ctx: &Context, format: Format, [rows, cols]: [usize; 2], seed: u64) -> (Packed, Vec<f64>) {
    let mut x = Gen::new(seed).hard(rows * cols);
    let wide = format.store() == Store::F32 && format.scale_count(rows) > 1;
    for (i, v) in x.iter_mut().enumerate() {
        *v *= match i / cols % 7 {
            3 => 0.0,
            4 if wide => 1e18,
            5 if wide => 1e-18,
            _ => 1.0,
        };
    }
    let matrix = PackedMatrix::quantize(format, &x, rows, cols, Rounding::Nearest).unwrap();
    (Packed::from_host(ctx, &matrix).unwrap(), matrix.dequantize())
}

trait Scales {
    /// 1 where rows share a scale.
    fn scale_count(&self, rows: usize) -> usize;
}
impl Scales for Format {
    fn scale_count(&self, rows: usize) -> usize {
        if self.span() == walsh::format::Span::Tensor { 1 } else { rows }
    }
}

/// Shape of the right operand.
fn shape_b(form: Form, [_, n, k]: [usize; 3]) -> [usize; 2] {
    if form == Form::Nt { [n, k] } else { [k, n] }
}

/// Bound on the error of a sum of k products: k rounding errors of the running sum and two of its scaling and storing; a value is a level
/// times a scale (1 u), the scale may be a product with the tensor's factor (1 u more) or a fused multiply-add of terms that cancel (counted
/// by `double`, at most 4 u of the offset, which is at most 16 times the value's scale where data are normal), of two operands.
fn bounds(form: Form, dims: [usize; 3], a: &[f64], b: &[f64], double: bool) -> Vec<f64> {
    let abs = |v: &[f64]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let errors = (dims[2] + 8) as f64 + if double { 64.0 } else { 0.0 };
    // What is below the smallest normal number may be flushed, at each step.
    let tiny = dims[2] as f64 * 1.2e-38;
    reference::matmul(form, dims, &abs(a), &abs(b)).into_iter().map(|m| errors * U32 * m + tiny).collect()
}

struct Case {
    form: Form,
    format: Format,
    /// The type of a dense left operand, or the format of a quantized one.
    left: Result<DType, Format>,
    out: DType,
    dims: [usize; 3],
}

/// One product, stored and then added to itself, compared with float64; nothing may be written beyond it.
fn compare(ctx: &Context, choice: Choice, case: &Case) {
    let Case { form, format, left, out, dims } = *case;
    let [m, n, k] = dims;
    let (b, bv) = quantized(ctx, format, shape_b(form, dims), (m * 131 + n * 17 + k) as u64);
    let dense;
    let packed;
    let (a, av) = match left {
        Ok(dtype) => {
            let data = Gen::new(k as u64).normals(m * k);
            let (tensor, values) = floats(ctx, &data, &[data.len()], dtype);
            dense = tensor;
            (Operand::Dense(dense.buffer()), values)
        }
        Err(format) => {
            let (matrix, values) = quantized(ctx, format, [m, k], 3);
            packed = matrix;
            (Operand::Packed(&packed), values)
        }
    };
    let (result, before) = floats(ctx, &vec![77.0; m * n + 5], &[m * n + 5], out);
    // A result of f16 must not overflow, and what it rounds is not what is tested.
    let alpha = if out == DType::F16 { 1.0 / 1024.0 } else { 0.5 };
    let scaled: Vec<f64> = av.iter().map(|v| v * f64::from(alpha)).collect();
    let product = reference::matmul(form, dims, &scaled, &bv);
    let double = format.store() == Store::Double || left.is_err_and(|f| f.store() == Store::Double);
    let first = bounds(form, dims, &scaled, &bv, double);
    for accumulate in [false, true] {
        let spec = PackedMatmul {
            form,
            m,
            n,
            k,
            a,
            b: &b,
            out: result.buffer(),
            alpha,
            bias: None,
            epilogue: Epilogue::None,
            mask: None,
            accumulate,
        };
        packed_matmul_with(ctx, &spec, choice).unwrap();
        let got = result.to_vec().unwrap();
        let times = if accumulate { 2.0 } else { 1.0 };
        let want: Vec<f64> = product.iter().map(|w| w * times).collect();
        let store = |w: f64| if out == DType::F16 { stored(out, w) } else { 1.01 * U32 * w.abs() };
        let what = format!(
            "{} {choice:?} {form:?} {left:?} {format} {out} {m}x{n}x{k} accumulate {accumulate}",
            ctx.capabilities().adapter.name
        );
        assert_within(&what, &got[..m * n], &want, |i| times * first[i] + times * store(want[i]));
        let kept = got[m * n..].iter().zip(&before[m * n..]).all(|(g, b)| f64::from(*g) == *b);
        assert!(kept, "{what}: wrote past the end");
    }
}

/// The kernels to try on a context: each on the lowest tier that has it.
fn kernels(ctx: &Context) -> Vec<Choice> {
    match ctx.tier() {
        Tier::Baseline => vec![SMALL],
        // It is made of other kernels, the best of which need subgroups.
        Tier::Subgroup if ctx.capabilities().is_cpu() => vec![Choice::Unpacked],
        _ => Vec::new(),
    }
}

/// Sizes of which a format sees one after the other: single elements, less than a quad, primes, a tile less or more one, whole units.
const SIZES: [[usize; 3]; 8] =
    [[65, 63, 33], [3, 5, 7], [1, 1, 1], [63, 65, 95], [20, 68, 64], [2, 9, 131], [64, 64, 128], [5, 33, 66]];

#[test]
fn every_format_agrees_with_float64() {
    for ctx in every_tier() {
        let f16 = ctx.capabilities().f16;
        for choice in kernels(&ctx) {
            for (i, format) in Format::all().into_iter().enumerate() {
                // A software adapter takes a fraction of a second to compile a variant: there a format has one form, that of its neighbours
                // differs.
                let cpu = ctx.capabilities().is_cpu();
                for (j, form) in Form::ALL.into_iter().enumerate() {
                    if cpu && choice == SMALL && (i + j) % 3 != 0 {
                        continue;
                    }
                    for (s, dims) in SIZES.into_iter().enumerate() {
                        let aligned = dims[..2].iter().all(|d| d % 4 == 0);
                        if cpu && (s + i) % 2 == usize::from(aligned) {
                            continue;
                        }
                        compare(&ctx, choice, &Case { form, format, left: Ok(DType::F32), out: DType::F32, dims });
                        if !cpu && f16 {
                            compare(&ctx, choice, &Case { form, format, left: Ok(DType::F16), out: DType::F16, dims });
                        }
                    }
                }
            }
        }
    }
}
