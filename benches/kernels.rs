//! Every kernel at the shapes of `tiny_gpt`, on GPUs also at those of the preset `baby`: `cargo bench --bench kernels`.
//!
//! Ids are kernel/tier/format/shape. Kernels that memory bounds have bytes per second beside a copy of as many bytes in the same group; products
//! and attention have multiplications and additions per second (shown as elements). `walsh bench` measures the same cases in less time.

mod common;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use std::collections::BTreeSet;
use walsh::bench::{Case, Prepared, cases, check, copy, sizes};
use walsh::{Context, Result, kernel};

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let mut criterion = common::criterion();
    let contexts = common::contexts()?;
    common::header(&contexts);
    let Some(first) = contexts.first() else { return Ok(()) };
    let mut seen = BTreeSet::new();
    for case in cases(sizes(first)) {
        bench(&mut criterion, &contexts, &case, &mut seen)?;
    }
    let unseen: Vec<_> = kernel::ALL.iter().map(|k| k.name).filter(|name| !seen.contains(name)).collect();
    if !unseen.is_empty() {
        println!("not dispatched on this adapter: {}", unseen.join(", "));
    }
    criterion.final_summary();
    Ok(())
}

/// A case on every tier that makes a difference to it.
fn bench(
    criterion: &mut Criterion,
    contexts: &[Context],
    case: &Case,
    seen: &mut BTreeSet<&'static str>,
) -> Result<()> {
    let mut group = criterion.benchmark_group(case.kernel);
    let shape = format!("{}-{}", case.format, case.shape_name());
    for (number, context) in contexts.iter().enumerate() {
        let tier = context.tier();
        let special = kernel::ALL.iter().any(|k| case.covers(k.name) && k.tiers.contains(&tier));
        if case.missing(context).is_some() || (number > 0 && !special) {
            continue;
        }
        let prepared = case.prepare(context)?;
        seen.extend(check(context, case, &prepared)?.kernels);
        measure(&mut group, context, BenchmarkId::new(tier.name(), &shape), case, &prepared);
        if let (0, Some(bytes), None) = (number, case.work.bytes, case.work.flops) {
            let floor = copy(bytes);
            let prepared = floor.prepare(context)?;
            measure(&mut group, context, BenchmarkId::new("copy", format!("{bytes}B")), &floor, &prepared);
        }
    }
    group.finish();
    Ok(())
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    context: &Context,
    id: BenchmarkId,
    case: &Case,
    prepared: &Prepared,
) {
    if let Some(flops) = case.work.flops {
        group.throughput(Throughput::Elements(flops as u64));
    } else if let Some(bytes) = case.work.bytes {
        group.throughput(Throughput::Bytes(bytes as u64));
    }
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|times| common::time(context, times, &prepared.record).expect("the kernel ran before"));
    });
}
