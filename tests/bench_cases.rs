//! The benches' table: no kernel is missing from it, and every line of it runs.

#[path = "../benches/common/cases/mod.rs"]
#[allow(dead_code, reason = "the benches use the rest of it")]
mod cases;
mod common;

use cases::{TINY, cases};

#[test]
fn every_kernel_has_a_case_and_every_case_a_kernel() {
    let cases = cases();
    for kernel in walsh::kernel::ALL {
        assert!(cases.iter().any(|case| case.covers(kernel.name)), "no case for the kernel {}", kernel.name);
    }
    for case in &cases {
        assert!(walsh::kernel::ALL.iter().any(|k| case.covers(k.name)), "{} names no kernel", case.name);
        for name in case.kernels.iter().filter(|name| !name.ends_with('*')) {
            assert!(walsh::kernel::ALL.iter().any(|k| k.name == *name), "{}: no kernel {name}", case.name);
        }
    }
}

#[test]
fn every_case_runs_and_computes_something() {
    for context in common::every_tier() {
        for case in cases().iter().filter(|case| case.needs <= context.tier()) {
            let prepared = (case.prepare)(&context, TINY).unwrap();
            (prepared.record)().unwrap();
            for out in &prepared.out {
                let values = out.to_vec().unwrap();
                assert!(values.iter().all(|v| v.is_finite()), "{}: not finite", case.name);
                assert!(values.iter().any(|v| *v != 0.0), "{}: all zero", case.name);
            }
        }
    }
}
