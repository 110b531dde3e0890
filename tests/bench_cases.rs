//! The benches' table: no kernel is missing from it, and every line of it runs.

mod common;

use std::collections::BTreeSet;
use walsh::bench::{LARGE, TINY, cases, check, products};
use walsh::kernel;

#[test]
fn every_kernel_has_a_case_and_every_case_a_kernel() {
    let cases = cases(&[TINY, LARGE]);
    for kernel in kernel::ALL {
        assert!(cases.iter().any(|case| case.covers(kernel.name)), "no case for the kernel {}", kernel.name);
    }
    for case in cases.iter().chain(&products([3, 5, 7])) {
        assert!(kernel::ALL.iter().any(|k| case.covers(k.name)), "{case} names no kernel");
        assert!(case.work.bytes.or(case.work.flops).is_some_and(|work| work > 0), "{case} has no work");
    }
    let names: BTreeSet<String> = cases.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
}

#[test]
fn every_case_runs_its_kernels_and_computes_something() {
    for context in common::every_tier() {
        for case in cases(&[TINY]).iter().chain(&products([67, 36, 45])) {
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
