//! What the kernel tests share: contexts for every adapter and tier, generators of hard data, derived bounds.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

pub mod bounds;
#[cfg(feature = "cli")]
pub mod command;

use walsh::qat::Quantizer;
use walsh::{Context, ContextOptions, Tensor, Tier};

/// A context per tier on offer, on every adapter present or on those whose name contains `WALSH_TEST_ADAPTER`. The baseline one is made
/// with `wgpu::Limits::default()`. Tiers that an adapter lacks are reported and counted.
pub fn every_tier() -> Vec<Context> {
    let adapters = Context::adapters();
    let only = std::env::var("WALSH_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    let mut contexts = Vec::new();
    let mut skipped = 0;
    for (number, adapter) in adapters.iter().enumerate() {
        let name = adapter.get_info().name;
        if !name.to_lowercase().contains(&only) {
            continue;
        }
        for tier in Tier::ALL {
            let mut options = ContextOptions::default().adapter(format!("#{number}")).max_tier(tier);
            if tier == Tier::Baseline {
                options = options.default_limits();
            }
            let context = Context::with_options(&options).expect("a device on an adapter that was listed");
            if context.tier() == tier {
                contexts.push(context);
            } else {
                skipped += 1;
                let why = context.capabilities().missing.iter().find(|(t, _)| *t == tier).map(|(_, w)| w.as_str());
                skip(&format!("tier {tier} on {name}: {}", why.unwrap_or("unknown")));
            }
        }
    }
    eprintln!("testing {} contexts, {skipped} tiers skipped", contexts.len());
    assert!(!contexts.is_empty(), "no adapter to test on; `cargo xtask test` installs a software driver");
    contexts
}

/// The best tier of each adapter, for what the kernels' own tests cover on the others.
pub fn best_tiers() -> Vec<Context> {
    let mut best: Vec<Context> = Vec::new();
    for context in every_tier() {
        let same = |c: &Context| c.capabilities().adapter == context.capabilities().adapter;
        match best.iter_mut().find(|c| same(c)) {
            Some(other) => *other = context,
            None => best.push(context),
        }
    }
    best
}

/// Takes so many steps, which must create nothing on the device and submit once each.
#[track_caller]
pub fn assert_steady(what: &str, context: &Context, steps: u32, step: impl FnMut(u32)) {
    let before = context.counts();
    (0..steps).for_each(step);
    let after = context.counts();
    assert_eq!(
        (after.buffers, after.bind_groups, after.pipelines, after.shader_modules),
        (before.buffers, before.bind_groups, before.pipelines, before.shader_modules),
        "{what}"
    );
    assert_eq!(after.submits - before.submits, u64::from(steps), "{what}");
}

/// The quantizer with these settings; inputs stay dense where there is no format for them.
pub fn quantizer(method: &str, weights: &str, activations: Option<&str>, hadamard: Option<u32>) -> Quantizer {
    let activations = activations.map(|format| format.parse().unwrap());
    Quantizer::new(method.parse().unwrap(), weights.parse().unwrap(), activations, hadamard).unwrap()
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Says that something was not tested and why. Cargo hides the output of tests that pass, so `cargo xtask test` names a file in
/// `WALSH_SKIPPED` from which it counts and lists them.
pub fn skip(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(path) = std::env::var_os("WALSH_SKIPPED") {
        let line = format!("{why}\n");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut f| std::io::Write::write_all(&mut f, line.as_bytes())).expect("the file for skipped tests");
    }
}

/// Half the distance between 1 and the next f32: the unit roundoff u.
pub const U32: f64 = 1.0 / (1u64 << 24) as f64;
/// The unit roundoff of f16.
pub const U16: f64 = 1.0 / (1u64 << 11) as f64;

/// Repeatable random numbers for tests.
pub struct Gen(u64);

impl Gen {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn bits(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.unit(), self.unit());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// Normal data.
    pub fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal() as f32).collect()
    }

    /// Normal data with outliers of 30 to 100 sigma in about one element of fifty.
    pub fn hard(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| {
                let v = self.normal();
                (if self.unit() < 0.02 { v * (30.0 + 70.0 * self.unit()) } else { v }) as f32
            })
            .collect()
    }
}

/// Text with structure, so that there is something to learn: each token depends on the one before it. Inputs, and targets one further.
pub fn text(seed: u64, count: usize, vocab: u32) -> (Vec<u32>, Vec<u32>) {
    let mut random = Gen::new(seed);
    let mut token = 0u32;
    let all: Vec<u32> = (0..=count)
        .map(|_| {
            token = (token * 3 + 1 + random.below(3) as u32) % vocab;
            token
        })
        .collect();
    (all[..count].to_vec(), all[1..].to_vec())
}

/// Asserts |got - want| <= bound for every element; the bound may differ by element.
#[track_caller]
pub fn assert_within(what: &str, got: &[f32], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let mut worst = (0.0, 0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (error, bound) = ((f64::from(*g) - w).abs(), bound(i));
        assert!(error <= bound, "{what}[{i}]: got {g}, want {w}, error {error:.3e} > bound {bound:.3e}");
        if error / bound.max(f64::MIN_POSITIVE) > worst.0 {
            worst = (error / bound.max(f64::MIN_POSITIVE), i);
        }
    }
}

/// Rounds to f16 where the case wants it; sent to the device without a further loss.
pub fn tensor(context: &Context, data: &mut [f32], f16: bool) -> Tensor {
    if f16 {
        let half: Vec<half::f16> = data.iter().map(|v| half::f16::from_f32(*v)).collect();
        data.iter_mut().zip(&half).for_each(|(d, h)| *d = h.to_f32());
        Tensor::from_f16(context, &half, &[data.len()]).unwrap()
    } else {
        Tensor::from_f32(context, data, &[data.len()]).unwrap()
    }
}

pub fn blank(context: &Context, len: usize, f16: bool) -> Tensor {
    // Values that no kernel would leave: what is not overwritten fails the comparison.
    tensor(context, &mut vec![-12345.0; len], f16)
}

/// The same values in f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Whether f32 and, where the device has it, f16.
pub fn precisions(context: &Context) -> &'static [bool] {
    if context.capabilities().f16 { &[false, true] } else { &[false] }
}

/// The element types of activations that a context has.
pub fn dtypes(context: &Context) -> Vec<walsh::DType> {
    if context.capabilities().f16 { vec![walsh::DType::F32, walsh::DType::F16] } else { vec![walsh::DType::F32] }
}

/// A tensor of `data` as `dtype`, and the values that it then has.
pub fn floats(context: &Context, data: &[f32], shape: &[usize], dtype: walsh::DType) -> (walsh::Tensor, Vec<f64>) {
    if dtype == walsh::DType::F16 {
        let rounded: Vec<half::f16> = data.iter().map(|v| half::f16::from_f32(*v)).collect();
        let values = rounded.iter().map(|v| f64::from(*v)).collect();
        (walsh::Tensor::from_f16(context, &rounded, shape).unwrap(), values)
    } else {
        (walsh::Tensor::from_f32(context, data, shape).unwrap(), data.iter().map(|v| f64::from(*v)).collect())
    }
}

/// What storing `value` as `dtype` may add to its error.
pub fn stored(dtype: walsh::DType, value: f64) -> f64 {
    // Half the distance of f16 subnormals is 2^-25.
    if dtype == walsh::DType::F16 { 1.01 * U16 * value.abs() + f64::from(2.0f32.powi(-25)) } else { 0.0 }
}

/// Where the gradient of a matrix passes by its mask, everywhere without one.
pub fn passes([rows, cols]: [usize; 2], mask: Option<&Tensor>) -> Vec<bool> {
    let bits = mask.map(|mask| mask.to_vec_u32().unwrap());
    let open = |row: usize, col: usize, bits: &[u32]| bits[row * cols.div_ceil(32) + col / 32] >> (col % 32) & 1 == 1;
    (0..rows * cols).map(|i| bits.as_ref().is_none_or(|bits| open(i / cols, i % cols, bits))).collect()
}

/// `x`, rotated, quantized as the coding says, with scales and mask, from the device as a layer does it of an input that is written.
pub fn encoded(
    context: &Context,
    x: &Tensor,
    [rows, cols]: [usize; 2],
    coding: &walsh::qat::Coding,
) -> (Vec<f64>, Vec<f64>, Vec<bool>) {
    assert!(coding.scale == walsh::qat::Scale::Computed && !coding.square);
    let packed = walsh::kernel::packed::Packed::empty(context, coding.format, rows, cols).unwrap();
    let mask = Tensor::zeros(context, &[walsh::kernel::mask::words(rows, cols)], walsh::DType::U32).unwrap();
    let options = walsh::kernel::quantize::Options {
        hadamard: coding.hadamard.map(|block| block as usize),
        mask: coding.bound.map(|bound| (mask.buffer(), bound)),
        skip_norm: context.tier() < Tier::Coop,
        ..Default::default()
    };
    walsh::kernel::quantize::quantize(context, x.buffer(), &packed, options).unwrap();
    let passes = passes([rows, cols], coding.bound.map(|_| &mask));
    let host = packed.to_host(context).unwrap();
    let scales = (0..rows * cols).map(|i| host.scale(i / cols, i % cols / coding.format.group(cols), false)).collect();
    (host.dequantize(), scales, passes)
}

/// Asserts that `analytic` is the gradient at `x` of the scalar function `f`: central differences with h = 1e-5, whose truncation error is of
/// the order of h^2 and whose rounding error is of the order of 1e-16 / h times the function's terms.
#[track_caller]
pub fn assert_gradient(what: &str, x: &[f64], analytic: &[f64], f: impl Fn(&[f64]) -> f64) {
    const H: f64 = 1e-5;
    let mut at = x.to_vec();
    for i in 0..x.len() {
        at[i] = x[i] + H;
        let above = f(&at);
        at[i] = x[i] - H;
        let below = f(&at);
        at[i] = x[i];
        let numeric = (above - below) / (2.0 * H);
        let bound = 1e-7 * (1.0 + numeric.abs() + f(x).abs());
        assert!(
            (numeric - analytic[i]).abs() <= bound,
            "{what}[{i}]: {} against {numeric} by differences",
            analytic[i]
        );
    }
}
