//! The benches' table: no kernel is missing from it, and every line of it runs.

mod common;

use std::collections::BTreeSet;
use walsh::bench::{Case, LARGE, Shape, TINY, cases, check, of_format, shaped};
use walsh::kernel;

#[test]
fn every_kernel_has_a_case_and_every_case_a_kernel() {
    let cases = cases(&[TINY, LARGE]);
    for kernel in kernel::ALL {
        assert!(cases.iter().any(|case| case.covers(kernel.name)), "no case for the kernel {}", kernel.name);
    }
    for case in cases.iter().chain(&own_shapes()) {
        assert!(kernel::ALL.iter().any(|k| case.covers(k.name)), "{case} names no kernel");
        assert!(case.work.bytes.or(case.work.flops).is_some_and(|work| work > 0), "{case} has no work");
    }
    let names: BTreeSet<String> = cases.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
}

/// Cases at shapes and in a format that the table does not have.
fn own_shapes() -> Vec<Case> {
    let shapes = [Shape::Three([67, 36, 45]), Shape::Three([3, 72, 24]), Shape::Two([5, 70])];
    let of_shapes = shapes.into_iter().flat_map(shaped);
    of_shapes.chain(of_format("nf4:dq".parse().unwrap(), &[TINY], &[])).collect()
}

#[test]
fn every_case_runs_its_kernels_and_computes_something() {
    for context in common::every_tier() {
        for case in cases(&[TINY]).iter().chain(&own_shapes()) {
            if let Some(why) = case.missing(&context) {
                common::skip(&format!("{case}: {why}"));
                continue;
            }
            let prepared = case.prepare(&context).unwrap();
            let checked = check(&context, case, &prepared).unwrap();
            assert!(!checked.kernels.is_empty() && checked.tier <= context.tier(), "{case}: {checked:?}");
            for name in checked.kernels {
                assert!(case.covers(name), "{case} dispatches {name}, which its line in the table does not name");
            }
            drop(prepared);
            context.trim();
        }
    }
}
