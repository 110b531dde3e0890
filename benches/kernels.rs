//! Every kernel at the shapes of `tiny_gpt`, on GPUs also at those of the preset `baby`: `cargo bench --bench kernels`.
//!
//! Ids are kernel/tier/shape. Kernels that memory bounds have bytes per second beside a copy of as many bytes in the same group; products and
//! attention have multiplications and additions per second (shown as elements).

mod common;

use common::cases::{Case, LARGE, Prepared, TINY, Work, cases, copy};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use std::collections::BTreeSet;
use walsh::{Context, Result, kernel};

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let cases = cases();
    for kernel in kernel::ALL {
        assert!(cases.iter().any(|case| case.covers(kernel.name)), "no case for the kernel {}", kernel.name);
    }
    let mut criterion = common::criterion();
    let contexts = common::contexts()?;
    common::header(&contexts);
    let mut seen = BTreeSet::new();
    for case in &cases {
        bench(&mut criterion, &contexts, case, &mut seen)?;
    }
    let unseen: Vec<_> = kernel::ALL.iter().map(|k| k.name).filter(|name| !seen.contains(*name)).collect();
    if !seen.is_empty() && !unseen.is_empty() {
        println!("not dispatched on this adapter or not selected: {}", unseen.join(", "));
    }
    criterion.final_summary();
    Ok(())
}

/// A case on every tier that makes a difference to it.
fn bench(criterion: &mut Criterion, contexts: &[Context], case: &Case, seen: &mut BTreeSet<String>) -> Result<()> {
    let mut group = criterion.benchmark_group(case.name);
    let sizes = match contexts.first() {
        Some(context) if !context.capabilities().is_cpu() => &[TINY, LARGE][..],
        _ => &[TINY][..],
    };
    for (number, context) in contexts.iter().enumerate() {
        let tier = context.tier();
        let special = kernel::ALL.iter().any(|k| case.covers(k.name) && k.tiers.contains(&tier));
        if tier < case.needs || (number > 0 && !special) {
            continue;
        }
        for size in sizes {
            let prepared = (case.prepare)(context, *size)?;
            check(context, case, &prepared, seen)?;
            measure(&mut group, context, BenchmarkId::new(tier.name(), &prepared.shape), &prepared);
            if let (0, Work::Bytes(bytes)) = (number, prepared.work) {
                let floor = copy(context, bytes)?;
                measure(&mut group, context, BenchmarkId::new("copy", &floor.shape), &floor);
            }
        }
    }
    group.finish();
    Ok(())
}

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, context: &Context, id: BenchmarkId, prepared: &Prepared) {
    group.throughput(match prepared.work {
        Work::Bytes(bytes) => Throughput::Bytes(bytes as u64),
        Work::Flops(flops) => Throughput::Elements(flops as u64),
    });
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|times| common::time(context, times, &prepared.record).expect("the kernel ran before"));
    });
}

/// Runs it once: the results must be numbers and not all zero, and the kernels those that the table names.
fn check(context: &Context, case: &Case, prepared: &Prepared, seen: &mut BTreeSet<String>) -> Result<()> {
    let profiles = walsh::wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
    if context.capabilities().features.contains(profiles) {
        for (label, _) in context.profile(|| (prepared.record)())? {
            let name = label.split('/').next().unwrap_or_default().to_owned();
            assert!(case.covers(&name), "{} dispatches {name}, which its line in the table does not name", case.name);
            seen.insert(name);
        }
    } else {
        (prepared.record)()?;
    }
    for out in &prepared.out {
        let values = out.to_vec()?;
        assert!(values.iter().all(|v| v.is_finite()), "{}: a result that is not finite", case.name);
        assert!(values.iter().any(|v| *v != 0.0), "{}: all results are zero", case.name);
    }
    Ok(())
}
