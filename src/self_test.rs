//! Products, dense and quantized, and attention by cooperative matrices against results of the host, before they may serve.

use crate::format::{Format, PackedMatrix, Rounding, Span, Store};
use crate::kernel::attention::{AttentionDims, AttentionPath, attention_on};
use crate::kernel::attention_backward::{AttentionGrads, attention_backward_on};
use crate::kernel::matmul::{Choice, Dims, Epilogue, Form, Matmul, matmul_with};
use crate::kernel::packed::Packed;
use crate::kernel::packed_matmul::{self, Operand, PackedMatmul, packed_matmul_with};
use crate::reference::attention as reference;
use crate::{Context, DType, Result, Tensor, Tier};
use half::f16;
use std::time::{Duration, Instant};

/// What [`Context::self_test`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SelfTest {
    /// The tier that was tested; lower tiers have nothing to test.
    pub tier: Tier,
    /// The products that were tried, and attention.
    pub cases: Vec<Case>,
    /// How long it took, the compilation of the kernels included.
    pub elapsed: Duration,
}

/// A product, or a layer of attention with its gradient, that was tried.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Case {
    /// Form, type of the result, sizes.
    pub name: String,
    /// Elements that are not what they must be. Dense products are exact numbers, so every difference is an error; quantized ones may differ by
    /// 2^-9 of the sum of their terms' magnitudes, results of attention by 2^-6 of the largest number of their kind.
    pub wrong: usize,
    /// The largest difference, infinite where a result is not a number.
    pub worst: f64,
    /// Why the kernel did not run, if so.
    pub failure: Option<String>,
}

impl Case {
    /// True if every element was right.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.wrong == 0 && self.failure.is_none()
    }
}

impl SelfTest {
    /// True if all was right.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.cases.iter().all(Case::passed)
    }
}

impl std::fmt::Display for SelfTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let failed: Vec<_> = self.cases.iter().filter(|c| !c.passed()).collect();
        match (self.cases.len(), failed.as_slice()) {
            (0, _) => write!(f, "nothing to test in tier {}", self.tier),
            (n, []) => {
                write!(f, "{n} cases in tier {} were right, {:.0} ms", self.tier, self.elapsed.as_secs_f64() * 1e3)
            }
            (n, failed) => {
                write!(f, "{} of {n} cases in tier {} failed:", failed.len(), self.tier)?;
                for case in failed {
                    match &case.failure {
                        Some(why) => write!(f, " {} did not run ({why});", case.name)?,
                        None => write!(f, " {}: {} elements wrong, by up to {};", case.name, case.wrong, case.worst)?,
                    }
                }
                write!(f, " the tier is not used")
            }
        }
    }
}

/// A form, the type of the result, the sizes and the parts that K is cut into.
type Spec = (Form, DType, [usize; 3], usize);

/// Every form with both types of result: whole tiles, also with K cut, and ragged ones whose last slice of K is not full.
const SPECS: [Spec; 6] = [
    (Form::Nt, DType::F32, [128, 128, 96], 1),
    (Form::Nt, DType::F16, [132, 140, 72], 1),
    (Form::Nn, DType::F32, [136, 120, 44], 1),
    (Form::Nn, DType::F16, [128, 128, 64], 1),
    (Form::Tn, DType::F32, [128, 128, 192], 3),
    (Form::Tn, DType::F16, [140, 132, 36], 1),
];

/// Small whole numbers, exact in f16, that differ from row to row and column to column.
fn numbers(len: usize, salt: u32, max: u32) -> Vec<f32> {
    let mut state = salt;
    (0..len)
        .map(|_| {
            // The generator of Numerical Recipes, 3rd ed., section 7.1.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) % (2 * max + 1)) as f32 - max as f32
        })
        .collect()
}

/// A product on its way, with its operands.
struct Product {
    a: Vec<f32>,
    b: Vec<f32>,
    result: Tensor,
}

fn start(context: &Context, (form, out, [m, n, k], splits): Spec) -> Result<Product> {
    // Sums stay exact: below 2^24 in f32, below 2^11 in f16. With f32 results they exceed 2^11 on purpose, which finds sums that are kept in f16.
    let max = if out == DType::F16 { 3 } else { 60 };
    let (a, b) = (numbers(m * k, 1, max), numbers(k * n, 2, max));
    let half =
        |v: &[f32]| Tensor::from_f16(context, &v.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>(), &[v.len()]);
    let (at, bt, result) = (half(&a)?, half(&b)?, Tensor::zeros(context, &[m * n], out)?);
    let spec = Matmul {
        form,
        dims: Dims::new(m, n, k),
        a: at.buffer(),
        b: bt.buffer(),
        out: result.buffer(),
        alpha: 1.0,
        bias: None,
        epilogue: Epilogue::None,
        accumulate: false,
    };
    matmul_with(context, &spec, Choice::Coop { splits })?;
    Ok(Product { a, b, result })
}

/// How many elements are wrong, and by how much at most.
fn finish((form, _, [m, n, k], _): Spec, Product { a, b, result }: &Product) -> Result<(usize, f64)> {
    let got = result.to_vec()?;
    let (mut wrong, mut worst) = (0, 0.0f64);
    let mut want = vec![0.0f32; n];
    for i in 0..m {
        want.fill(0.0);
        for p in 0..k {
            let x = if form == Form::Tn { a[p * m + i] } else { a[i * k + p] };
            for (j, w) in want.iter_mut().enumerate() {
                *w += x * if form == Form::Nt { b[j * k + p] } else { b[p * n + j] };
            }
        }
        for (g, w) in got[i * n..(i + 1) * n].iter().zip(&want) {
            let error = (f64::from(*g) - f64::from(*w)).abs();
            if error > 0.0 || !g.is_finite() {
                wrong += 1;
                worst = worst.max(if g.is_finite() { error } else { f64::INFINITY });
            }
        }
    }
    Ok((wrong, worst))
}

/// A quantized product: kernel, form, format, whether the left operand is quantized as the right one is, and the sizes.
type QuantizedSpec = (packed_matmul::Choice, Form, Format, bool, [usize; 3]);

const COOP: packed_matmul::Choice = packed_matmul::Choice::Coop { splits: 1 };
const SKINNY: packed_matmul::Choice = packed_matmul::Choice::Skinny;

/// Integers and floats, tables and signs, scales in the operands and in the sums; ragged, and with a slice of K that is not full; two of whole tiles.
/// Of few rows with one and two blocks of them, and with two scales to a unit of 32.
const QUANTIZED: [QuantizedSpec; 12] = [
    (COOP, Form::Nt, Format::int(4).scaled(Span::Group(32), Store::F16), false, [132, 140, 72]),
    (COOP, Form::Nt, Format::BINARY, true, [132, 132, 100]),
    (COOP, Form::Nt, Format::MXFP4, true, [36, 132, 64]),
    (COOP, Form::Nn, Format::NF4, false, [132, 140, 44]),
    (COOP, Form::Tn, Format::gaussian_row(4), false, [132, 140, 68]),
    (COOP, Form::Nt, Format::gaussian_row(4), true, [128, 128, 96]),
    (COOP, Form::Nn, Format::gaussian_row(3), false, [128, 128, 64]),
    (SKINNY, Form::Nt, Format::int(4).scaled(Span::Group(32), Store::F16), false, [9, 33, 100]),
    (SKINNY, Form::Nt, Format::int(8).scaled(Span::Row, Store::F32), false, [20, 48, 72]),
    (SKINNY, Form::Nt, Format::MXFP4, false, [2, 35, 640]),
    (SKINNY, Form::Nt, Format::NVFP4, false, [16, 35, 260]),
    (SKINNY, Form::Nt, Format::NF4, false, [32, 17, 96]),
];

/// A quantized product on its way, with the values of its operands.
struct Quantized {
    a: Vec<f64>,
    b: Vec<f64>,
    result: Tensor,
}

/// `None` where the device does not have what the kernel needs beside the tier, so that no product would choose it.
fn start_quantized(
    context: &Context,
    (choice, form, format, both, [m, n, k]): QuantizedSpec,
) -> Result<Option<Quantized>> {
    let (x, w) = (numbers(m * k, 5, 30), numbers(k * n, 6, 30));
    let [rows, cols] = if form == Form::Nt { [n, k] } else { [k, n] };
    let right = PackedMatrix::quantize(format, &w, rows, cols, Rounding::Nearest)?;
    let half = Tensor::from_f16(context, &x.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>(), &[x.len()])?;
    let left = PackedMatrix::quantize(format, &x, m, k, Rounding::Nearest)?;
    let (packed, left_packed) = (Packed::from_host(context, &right)?, Packed::from_host(context, &left)?);
    let result = Tensor::zeros(context, &[m * n], DType::F32)?;
    let spec = PackedMatmul {
        form,
        m,
        n,
        k,
        a: if both { Operand::Packed(&left_packed) } else { Operand::Dense(half.buffer()) },
        b: &packed,
        out: result.buffer(),
        alpha: 1.0,
        bias: None,
        epilogue: Epilogue::None,
        mask: None,
        accumulate: false,
    };
    if choice.supports(context, &spec).is_err() {
        return Ok(None);
    }
    packed_matmul_with(context, &spec, choice)?;
    let a = if both { left.dequantize() } else { x.iter().map(|v| f64::from(*v)).collect() };
    Ok(Some(Quantized { a, b: right.dequantize(), result }))
}

/// How many elements are wrong, and by how much at most. Each operand is rounded to f16, 2^-11 of each term, and sums in f32 add less.
fn finish_quantized(form: Form, [m, n, k]: [usize; 3], case: &Quantized) -> Result<(usize, f64)> {
    const BOUND: f64 = 1.0 / 512.0;
    let got = case.result.to_vec()?;
    let (mut wrong, mut worst) = (0, 0.0f64);
    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for p in 0..k {
                let x = if form == Form::Tn { case.a[p * m + i] } else { case.a[i * k + p] };
                let term = x * if form == Form::Nt { case.b[j * k + p] } else { case.b[p * n + j] };
                sum += term;
                magnitude += term.abs();
            }
            let g = got[i * n + j];
            let error = if g.is_finite() { (f64::from(g) - sum).abs() } else { f64::INFINITY };
            if error > BOUND * magnitude {
                wrong += 1;
                worst = worst.max(error);
            }
        }
    }
    Ok((wrong, worst))
}

/// Attention for the self-test: more than one block of queries and keys, the last of each not full.
const ATTENTION: AttentionDims = AttentionDims { batch: 2, seq: 72, heads: 2, head_dim: 64, causal: true };

/// Attention on its way, with its operands.
struct Attention {
    qkv: Vec<f32>,
    dout: Vec<f32>,
    out: Tensor,
    lse: Tensor,
    dqkv: Tensor,
}

fn start_attention(context: &Context, dims: AttentionDims, dtype: DType, path: AttentionPath) -> Result<Attention> {
    // Multiples of an eighth up to 2 and of a quarter up to 1: exact in f16, and scores far enough apart that keys differ in weight.
    let qkv: Vec<_> = numbers(3 * dims.out_len(), 3, 16).iter().map(|v| v / 8.0).collect();
    let dout: Vec<_> = numbers(dims.out_len(), 4, 4).iter().map(|v| v / 4.0).collect();
    let tensor = |v: &[f32]| match dtype {
        DType::F16 => Tensor::from_f16(context, &v.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>(), &[v.len()]),
        _ => Tensor::from_f32(context, v, &[v.len()]),
    };
    let (x, dy) = (tensor(&qkv)?, tensor(&dout)?);
    let (out, dqkv) = (Tensor::zeros(context, &[dout.len()], dtype)?, Tensor::zeros(context, &[qkv.len()], dtype)?);
    let lse = Tensor::zeros(context, &[dims.rows()], DType::F32)?;
    attention_on(context, x.buffer(), out.buffer(), lse.buffer(), dims, None, path)?;
    let grads = AttentionGrads {
        qkv: x.buffer(),
        out: out.buffer(),
        dout: dy.buffer(),
        lse: lse.buffer(),
        dqkv: dqkv.buffer(),
    };
    attention_backward_on(context, grads, dims, None, path)?;
    Ok(Attention { qkv, dout, out, lse, dqkv })
}

/// How many elements are wrong, and by how much at most. Operands, weights and results are rounded to f16, 2^-11 of each term, and for this
/// data the terms of one result add up to less than twice the largest result; 2^-6 of that is ample, and a kernel that takes wrong elements is off
/// by far more.
fn finish_attention(dims: AttentionDims, case: &Attention) -> Result<(usize, f64)> {
    const BOUND: f64 = 1.0 / 64.0;
    let AttentionDims { batch, seq, heads, head_dim, causal } = dims;
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let host = reference::Dims { batch, seq, heads, head_dim, causal };
    let (qkv, dout) = (wide(&case.qkv), wide(&case.dout));
    let (out, lse) = reference::attention(&qkv, host, None);
    let dqkv = reference::attention_backward(&qkv, &dout, host, None);
    // The gradients of queries, keys and values differ in size.
    let part = |v: &[f64], i: usize| -> Vec<f64> {
        v.chunks_exact(heads * head_dim).skip(i).step_by(3).flatten().copied().collect()
    };
    let got = wide(&case.dqkv.to_vec()?);
    let mut pairs = vec![(wide(&case.out.to_vec()?), out), (wide(&case.lse.to_vec()?), lse)];
    pairs.extend((0..3).map(|i| (part(&got, i), part(&dqkv, i))));
    let (mut wrong, mut worst) = (0, 0.0f64);
    for (got, want) in pairs {
        let largest = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        for (g, w) in got.iter().zip(&want) {
            let error = if g.is_finite() { (g - w).abs() } else { f64::INFINITY };
            if error > BOUND * largest {
                wrong += 1;
                worst = worst.max(error);
            }
        }
    }
    Ok((wrong, worst))
}

/// A case whose commands are recorded, and what is left to do.
type Pending = (String, Box<dyn FnOnce() -> Result<(usize, f64)>>);

/// Records every case. Each has a context of its own, so that a kernel which fails takes no other case and nothing of the caller's with it.
fn pending(context: &Context) -> Vec<Pending> {
    let mut all: Vec<Pending> = Vec::new();
    for spec in SPECS {
        let (form, out, [m, n, k], splits) = spec;
        let parts = if splits > 1 { format!(" in {splits} parts") } else { String::new() };
        let name = format!("{form:?} into {out} of {m} x {n} x {k}{parts}");
        let started = start(&context.private(), spec);
        all.push((name, Box::new(move || finish(spec, &started?))));
    }
    for spec in QUANTIZED {
        let (_, form, format, both, [m, n, k]) = spec;
        let left = if both { format.to_string() } else { "f16".to_owned() };
        let Some(started) = start_quantized(&context.private(), spec).transpose() else { continue };
        let name = format!("{form:?} of {left} and {format}, {m} x {n} x {k}");
        all.push((name, Box::new(move || finish_quantized(form, [m, n, k], &started?))));
    }
    let AttentionDims { batch, seq, heads, head_dim, .. } = ATTENTION;
    let name = format!("causal attention and its gradient of {batch} x {seq} tokens, {heads} heads of {head_dim}");
    let started = start_attention(&context.private(), ATTENTION, DType::F16, AttentionPath::Coop);
    all.push((name, Box::new(move || finish_attention(ATTENTION, &started?))));
    all
}

impl Context {
    /// Tries the kernels of the tier `coop` on products whose exact results are known and on attention, and gives the tier up where a result is
    /// wrong. Contexts with a device of their own do it when they are made, see [`ContextOptions::self_test`](field@crate::ContextOptions::self_test);
    /// for a host's device it is the host's to call, once, before it trains: this submits to the device's queue and waits. What the caller has
    /// recorded stays recorded. The report is kept, see [`Context::self_test_report`].
    ///
    /// # Errors
    /// [`crate::Error::DeviceLost`] or [`crate::Error::Device`] where the device fails as a whole; a wrong result is no error.
    pub fn self_test(&self) -> Result<SelfTest> {
        let begin = Instant::now();
        let tier = self.tier();
        let mut cases = Vec::new();
        if tier == Tier::Coop {
            // All are recorded before the first is read, so that their pipelines compile side by side.
            for (name, finish) in pending(self) {
                cases.push(match finish() {
                    Ok((wrong, worst)) => Case { name, wrong, worst, failure: None },
                    Err(error) => Case { name, wrong: 0, worst: 0.0, failure: Some(error.to_string()) },
                });
            }
            self.check()?;
        }
        let report = SelfTest { tier, cases, elapsed: begin.elapsed() };
        if !report.passed() {
            log::warn!("self-test: {report}");
            self.limit_tier(Tier::Subgroup);
        }
        self.keep_report(report.clone());
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attention_case_passes_right_kernels_and_finds_wrong_ones() {
        let context = Context::new().unwrap();
        let dtypes: &[DType] = if context.capabilities().f16 { crate::kernel::FLOATS } else { &[DType::F32] };
        for dtype in dtypes {
            for path in [AttentionPath::Tiles, AttentionPath::Rows] {
                let case = start_attention(&context.private(), ATTENTION, *dtype, path).unwrap();
                assert_eq!(finish_attention(ATTENTION, &case).unwrap(), (0, 0.0), "{dtype} {path:?}");
                // Operands of another sign, and a mask that is not there.
                let other = Attention { qkv: case.qkv.iter().map(|v| -v).collect(), ..case };
                assert!(finish_attention(ATTENTION, &other).unwrap().0 > 0);
                let open = AttentionDims { causal: false, ..ATTENTION };
                let case = start_attention(&context.private(), open, *dtype, path).unwrap();
                assert!(finish_attention(ATTENTION, &case).unwrap().0 > ATTENTION.out_len() / 2);
            }
        }
    }

    #[test]
    fn the_quantized_cases_pass_right_kernels_and_find_wrong_ones() {
        let context = Context::new().unwrap();
        if !context.capabilities().f16 {
            return;
        }
        let tiled = packed_matmul::Choice::Tiled { shape: crate::kernel::matmul::Shape::Small, splits: 1 };
        for (_, form, format, both, sizes) in QUANTIZED {
            let start =
                |format| start_quantized(&context.private(), (tiled, form, format, both, sizes)).unwrap().unwrap();
            let case = start(format);
            assert_eq!(finish_quantized(form, sizes, &case).unwrap(), (0, 0.0), "{form:?} {format} {sizes:?}");
            // Weights in another order, and in a coarser format.
            let b = case.b.iter().rev().copied().collect();
            let other = Quantized { b, ..case };
            assert!(finish_quantized(form, sizes, &other).unwrap().0 > sizes[0] * sizes[1] / 2, "{format}");
            let coarse = Quantized { result: start(Format::int(2)).result, ..start(format) };
            assert!(finish_quantized(form, sizes, &coarse).unwrap().0 > sizes[0] * sizes[1] / 2, "{format}");
        }
    }

    #[test]
    fn the_self_test_leaves_the_callers_work_recorded_and_fails_per_case() {
        let context = Context::new().unwrap();
        let x = Tensor::from_f32(&context, &[2.0], &[1]).unwrap();
        let (submits, read) = (context.counts().submits, x.read().unwrap());
        let coop = context.tier() == Tier::Coop;
        for (name, finish) in pending(&context) {
            // Without the tier the kernels are refused or do not compile, which must stay within the case.
            assert_eq!(finish().is_ok(), coop, "{name}");
        }
        context.check().unwrap();
        assert_eq!(context.counts().submits, submits);
        assert_eq!(read.wait().unwrap(), 2.0f32.to_le_bytes());
    }
}
