//! Products by cooperative matrices against exact results, before they may serve.

use crate::kernel::matmul::{Choice, Dims, Epilogue, Form, Matmul, matmul_with};
use crate::{Context, DType, Result, Tensor, Tier};
use half::f16;
use std::time::{Duration, Instant};

/// What [`Context::self_test`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SelfTest {
    /// The tier that was tested; lower tiers have nothing to test.
    pub tier: Tier,
    /// The products that were tried.
    pub cases: Vec<Case>,
    /// How long it took, the compilation of the kernels included.
    pub elapsed: Duration,
}

/// A product that was tried.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Case {
    /// Form, type of the result, sizes.
    pub name: String,
    /// Elements that are not what they must be; the results of the self-test are exact numbers, so every difference is an error.
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
                write!(f, "{n} products in tier {} were exact, {:.0} ms", self.tier, self.elapsed.as_secs_f64() * 1e3)
            }
            (n, failed) => {
                write!(f, "{} of {n} products in tier {} failed:", failed.len(), self.tier)?;
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
struct Pending {
    a: Vec<f32>,
    b: Vec<f32>,
    result: Tensor,
}

fn start(context: &Context, (form, out, [m, n, k], splits): Spec) -> Result<Pending> {
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
    Ok(Pending { a, b, result })
}

/// How many elements are wrong, and by how much at most.
fn finish((form, _, [m, n, k], _): Spec, Pending { a, b, result }: &Pending) -> Result<(usize, f64)> {
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

impl Context {
    /// Tries the kernels of the tier `coop` on products whose exact results are known, and gives the tier up where one is wrong. Contexts with
    /// a device of their own do it when they are made, see [`crate::ContextOptions::self_test`]; for a host's device it is the host's to
    /// call, once, before it trains: this submits to the device's queue and waits. The report is kept, see [`Context::self_test_report`].
    ///
    /// # Errors
    /// [`crate::Error::DeviceLost`] or [`crate::Error::Device`] where the device fails as a whole; a wrong result is no error.
    pub fn self_test(&self) -> Result<SelfTest> {
        let begin = Instant::now();
        let tier = self.tier();
        let mut cases = Vec::new();
        if tier == Tier::Coop {
            // On a host's device a context of its own, so that what the host has recorded stays recorded.
            let context = self.private();
            // All are recorded before the first is read, so that their pipelines compile side by side.
            let pending: Vec<_> = SPECS.map(|spec| start(&context, spec)).into();
            for (spec, pending) in SPECS.into_iter().zip(pending) {
                let (form, out, [m, n, k], splits) = spec;
                let parts = if splits > 1 { format!(" in {splits} parts") } else { String::new() };
                let name = format!("{form:?} into {out} of {m} x {n} x {k}{parts}");
                cases.push(match pending.and_then(|pending| finish(spec, &pending)) {
                    Ok((wrong, worst)) => Case { name, wrong, worst, failure: None },
                    Err(error) => Case { name, wrong: 0, worst: 0.0, failure: Some(error.to_string()) },
                });
            }
            context.check()?;
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
