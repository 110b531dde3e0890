//! What the benches share: contexts per tier, a header that says what was measured, timing on the device.
#![allow(dead_code, reason = "each bench uses its own part of this module")]

pub mod cases;

use criterion::Criterion;
use std::time::{Duration, Instant, SystemTime};
use walsh::{Context, ContextOptions, Result, Tier};

/// Short measurements: the whole of a bench ends in a few minutes on a software adapter. Criterion's own flags go before.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .configure_from_args()
}

/// A context per tier of the first adapter, or of the one whose name `WALSH_BENCH_ADAPTER` is a part of.
pub fn contexts() -> Result<Vec<Context>> {
    let mut options = ContextOptions::default();
    if let Ok(name) = std::env::var("WALSH_BENCH_ADAPTER") {
        options = options.adapter(name);
    }
    let mut contexts = Vec::new();
    for tier in Tier::ALL {
        let context = Context::with_options(&options.clone().max_tier(tier))?;
        if context.tier() == tier {
            contexts.push(context);
        } else {
            let why = context.capabilities().missing.iter().find(|(t, _)| *t == tier);
            println!("skipped: tier {tier}: {}", why.map_or("unknown", |(_, why)| why));
        }
    }
    Ok(contexts)
}

/// Adapter, driver, tiers, date and wgpu's version: numbers without them say nothing.
pub fn header(contexts: &[Context]) {
    let Some(context) = contexts.first() else { return };
    let info = &context.capabilities().adapter;
    println!("adapter  {} ({}, {:?})", info.name, info.backend, info.device_type);
    println!("driver   {} {}", info.driver, info.driver_info);
    println!("tiers    {}", contexts.iter().map(|c| c.tier().name()).collect::<Vec<_>>().join(", "));
    println!("date     {}", date());
    println!("wgpu     {}", wgpu_version());
    println!("timing   {}", if has_timestamps(context) { "timestamps of the device" } else { "wall clock" });
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

fn wgpu_version() -> &'static str {
    let lock = include_str!("../../Cargo.lock");
    let version = lock.split_once("name = \"wgpu\"\nversion = \"").and_then(|(_, rest)| rest.split_once('"'));
    version.map_or("unknown", |(version, _)| version)
}

pub fn has_timestamps(context: &Context) -> bool {
    context.capabilities().features.contains(walsh::wgpu::Features::TIMESTAMP_QUERY)
}

/// Recordings of one submit: enough that starting it does not count, few enough for a desktop's watchdog.
const PER_SUBMIT: u64 = 64;

/// The device time of recording `record` `times` times.
pub fn time(context: &Context, times: u64, record: &dyn Fn() -> Result<()>) -> Result<Duration> {
    let mut total = 0.0;
    let mut left = times;
    while left > 0 {
        let now = left.min(PER_SUBMIT);
        left -= now;
        let work = || (0..now).try_for_each(|_| record());
        total += if has_timestamps(context) {
            context.gpu_time(work)?
        } else {
            context.synchronize()?;
            let start = Instant::now();
            work()?;
            context.synchronize()?;
            start.elapsed().as_secs_f64()
        };
    }
    // A clock too coarse for the work must not make it infinitely fast.
    Ok(Duration::from_secs_f64(total.max(1e-9)))
}
