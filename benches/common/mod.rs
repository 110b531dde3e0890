//! What the benches share: contexts per tier, a header that says what was measured, timing on the device.
#![allow(dead_code, reason = "each bench uses its own part of this module")]

use criterion::Criterion;
use std::time::Duration;
use walsh::{Context, ContextOptions, Result, Tier, bench};

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

/// Adapter, driver, tiers, date and wgpu's version.
pub fn header(contexts: &[Context]) {
    print!("{}", bench::header(contexts, include_str!("../../Cargo.lock")));
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
        total += bench::time(context, now, record)?;
    }
    Ok(Duration::from_secs_f64(total))
}
