//! How cases are checked and timed, and what is reported.

use super::{Case, Ceilings, Prepared};
use crate::{Context, DType, Error, Result, Tier};
use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

/// For clocks of a GPU to rise before its dispatches count, after the host was busy: time permitting, and if there is none.
const WARM_UP: Duration = Duration::from_millis(300);
/// Samples to take the median of, time permitting, and if there is none.
const SAMPLES: usize = 9;
const FEW: usize = 3;
/// How much more than the least of all samples the median of a GPU's last ones may be: while it is more, clocks have been higher than they are
/// (an H200's were seen to fall from 1980 to 840 MHz between cases), and time permitting more samples are taken.
const SETTLED: f64 = 1.02;
/// Dispatches of a sample at most.
const MAX_BATCH: u64 = 256;

/// A case's numbers. Its fields, in their order, are those of the command's JSON.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// What was timed.
    pub kernel: &'static str,
    /// The weights' format, or the data's where there are no weights.
    pub format: String,
    /// The activations' format.
    pub activations: String,
    /// The highest tier among the kernels that were dispatched.
    pub tier: &'static str,
    /// See [`Case::shape`].
    pub m: usize,
    /// See [`Case::shape`].
    pub n: usize,
    /// See [`Case::shape`].
    pub k: usize,
    /// Median time in microseconds.
    pub us: f64,
    /// Bytes that must move, in 10^9 per second.
    pub gb_per_s: Option<f64>,
    /// Multiplications and additions, in 10^12 per second.
    pub tflop_per_s: Option<f64>,
    /// `gb_per_s` as a part of what a large copy has; above 1 where the operands fit a cache.
    pub share_of_copy: Option<f64>,
    /// `tflop_per_s` as a part of what multiply-adds in registers have, by cooperative matrices where the kernel uses these.
    pub share_of_multiply: Option<f64>,
    /// The adapter's name.
    pub adapter: String,
}

impl Row {
    /// What `case` did on `context`.
    #[must_use]
    pub fn new(context: &Context, case: &Case, measured: Measured, ceilings: &Ceilings) -> Self {
        let Measured { tier, median, .. } = measured;
        let rate = |work: Option<usize>| work.map(|work| work as f64 / median);
        let (bytes, flops) = (rate(case.work.bytes), rate(case.work.flops));
        let [m, n, k] = case.shape;
        Self {
            kernel: case.kernel,
            format: case.format.clone(),
            activations: case.activations.clone(),
            tier: tier.name(),
            m,
            n,
            k,
            us: median * 1e6,
            gb_per_s: bytes.map(|rate| rate * 1e-9),
            tflop_per_s: flops.map(|rate| rate * 1e-12),
            share_of_copy: bytes.map(|rate| rate / ceilings.copy),
            share_of_multiply: flops.map(|rate| rate / ceilings.multiply_of(tier)),
            adapter: context.capabilities().adapter.name.clone(),
        }
    }
}

/// What a case dispatched.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The kernels' names.
    pub kernels: Vec<&'static str>,
    /// The highest tier among them.
    pub tier: Tier,
}

/// Runs what `case` prepared once: the results must be numbers and not all zero.
///
/// # Errors
/// [`Error::Device`] where they are not; what recording and the device return.
pub fn check(context: &Context, case: &Case, prepared: &Prepared) -> Result<Checked> {
    context.submit()?;
    (prepared.record)()?;
    let dispatched = context.recorded();
    for out in &prepared.out {
        let fail = |what: &str| Err(Error::Device(format!("{case}: {what}")));
        // Integers are as good as their bits.
        let values = if out.dtype() == DType::U32 {
            out.to_vec_u32()?.into_iter().map(|v| if v == 0 { 0.0 } else { 1.0 }).collect()
        } else {
            out.to_vec()?
        };
        if !values.iter().all(|v| v.is_finite()) {
            return fail("a result is not finite");
        }
        if values.iter().all(|v| *v == 0.0) {
            return fail("all results are zero");
        }
    }
    let tier = dispatched.iter().map(|(_, tier)| *tier).max().unwrap_or(Tier::Baseline);
    Ok(Checked { kernels: dispatched.into_iter().map(|(name, _)| name).collect(), tier })
}

/// How long a dispatch took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The highest tier among the kernels.
    pub tier: Tier,
    /// The median of successive samples, in seconds: of as many as were wanted, where they were fastest.
    pub median: f64,
    /// The least of the samples, in seconds: what other work on the machine disturbs least.
    pub least: f64,
}

/// Prepares a case, checks it, and times it until `until`, or longer if that leaves no room for a few dispatches. The memory is freed.
/// Dispatches that follow each other write the same buffers, so that each waits for the one before.
///
/// # Errors
/// As [`Case::prepare`] and [`check`].
pub fn measure(context: &Context, case: &Case, until: Instant) -> Result<Measured> {
    let result = case.prepare(context).and_then(|prepared| {
        let Checked { tier, .. } = check(context, case, &prepared)?;
        let (samples, wanted) = samples(context, &prepared, until)?;
        let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(Measured { tier, median: least_median(&samples, wanted), least })
    });
    context.trim();
    result
}

/// The least of the medians of each `wanted` successive samples, or of all where they are fewer. Infinite without samples.
fn least_median(samples: &[f64], wanted: usize) -> f64 {
    let medians = samples.windows(wanted.min(samples.len()).max(1)).map(|window| {
        let mut window = window.to_vec();
        window.sort_by(f64::total_cmp);
        window[window.len() / 2]
    });
    medians.fold(f64::INFINITY, f64::min)
}

/// Seconds per dispatch, a few times at least, and how many of them are wanted.
fn samples(context: &Context, prepared: &Prepared, until: Instant) -> Result<(Vec<f64>, usize)> {
    let cpu = context.capabilities().is_cpu();
    let (seconds, dispatches) = if cpu { (2e-3, 20) } else { (20e-3, 100) };
    // A first sample, on clocks that may still be low, says how many dispatches the others have: a whole number, rounded down.
    let batch = ((seconds / time(context, 1, &prepared.record)?) as u64).clamp(1, MAX_BATCH);
    if !cpu {
        // Whatever time is left: clocks that fell while pipelines were compiled show a third of the speed.
        let start = Instant::now();
        while start.elapsed() < WARM_UP {
            time(context, batch, &prepared.record)?;
        }
    }
    let mut samples = Vec::new();
    let wanted = usize::try_from(dispatches / batch).unwrap_or_default().max(SAMPLES);
    while samples.len() < FEW || (!enough(&samples, wanted, cpu) && Instant::now() < until) {
        samples.push(time(context, batch, &prepared.record)? / batch as f64);
    }
    Ok((samples, wanted))
}

/// Whether there are as many as are wanted, and a GPU is as fast as it has been.
fn enough(samples: &[f64], wanted: usize, cpu: bool) -> bool {
    let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
    samples.len() >= wanted && (cpu || least_median(&samples[samples.len() - wanted..], wanted) <= SETTLED * least)
}

/// The seconds that the device takes for what `record` records, `times` times in one submit.
///
/// # Errors
/// What `record` and the device return.
pub fn time(context: &Context, times: u64, record: &dyn Fn() -> Result<()>) -> Result<f64> {
    let work = || (0..times).try_for_each(|_| record());
    let seconds = if has_timestamps(context) {
        context.gpu_time(work)?
    } else {
        context.synchronize()?;
        let start = Instant::now();
        work()?;
        context.synchronize()?;
        start.elapsed().as_secs_f64()
    };
    // A clock too coarse for the work must not make it infinitely fast.
    Ok(seconds.max(1e-9))
}

fn has_timestamps(context: &Context) -> bool {
    context.capabilities().features.contains(wgpu::Features::TIMESTAMP_QUERY)
}

/// Adapter, driver, tiers, date and wgpu's version: numbers without them say nothing. `lock` is the content of `Cargo.lock`.
#[must_use]
pub fn header(contexts: &[Context], lock: &str) -> String {
    let mut text = String::new();
    let Some(context) = contexts.first() else { return text };
    let info = &context.capabilities().adapter;
    let tiers: Vec<&str> = contexts.iter().map(|c| c.tier().name()).collect();
    let timing = if has_timestamps(context) { "timestamps of the device" } else { "wall clock" };
    for (name, value) in [
        ("adapter", format!("{} ({}, {:?})", info.name, info.backend, info.device_type)),
        ("driver", format!("{} {}", info.driver, info.driver_info)),
        ("tier", tiers.join(", ")),
        ("date", date()),
        ("wgpu", wgpu_version(lock).to_owned()),
        ("timing", timing.to_owned()),
    ] {
        let _ = writeln!(text, "{name:<9}{value}");
    }
    text
}

/// The day, in UTC.
fn date() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // Days to year, month and day: Howard Hinnant, "chrono-compatible low-level date algorithms", for dates after 1970.
    let days = seconds / 86400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153; // months from March
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    format!("{}-{month:02}-{day:02}", era * 400 + year_of_era + u64::from(month <= 2))
}

fn wgpu_version(lock: &str) -> &str {
    let version = lock.split_once("name = \"wgpu\"\nversion = \"").and_then(|(_, rest)| rest.split_once('"'));
    version.map_or("unknown", |(version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_fell_do_not_count() {
        let mut samples = vec![1.0, 1.01, 0.99, 3.0, 3.1, 2.9];
        assert!((least_median(&samples, 3) - 1.0).abs() < 1e-12, "the fastest three");
        assert!(!enough(&samples, 3, false), "the last three took three times as long");
        assert!(enough(&samples, 3, true), "a CPU has other work instead");
        samples.extend([1.0, 1.0]);
        assert!(enough(&samples, 3, false), "the median of the last three is back");
        assert!(!enough(&samples, 9, false), "fewer than wanted");
        assert!((least_median(&samples, 9) - 1.01).abs() < 1e-12, "of all where they are fewer");
    }
}
