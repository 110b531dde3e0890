//! Kernels for cooperative matrices on adapters without them: their own logic (what is loaded and decoded where, edges, epilogues, parts of K),
//! with the matrices in plain WGSL.

mod common;

use common::skip;
use walsh::{Context, ContextOptions, Tier};

#[test]
fn the_self_test_of_the_coop_tier_passes_with_emulated_matrices() {
    let adapters = Context::adapters();
    assert!(!adapters.is_empty(), "no adapter to test on; `cargo xtask test` installs a software driver");
    for (number, adapter) in adapters.iter().enumerate() {
        let name = adapter.get_info().name;
        let options = ContextOptions::default().adapter(format!("#{number}")).emulate_matrices().self_test(false);
        let context = Context::with_options(&options).unwrap();
        if !context.capabilities().emulated {
            let why = context.capabilities().missing.iter().find(|(tier, _)| *tier == Tier::Coop);
            skip(&format!("emulated matrices on {name}: {}", why.map_or("it has the tier", |(_, why)| why.as_str())));
            continue;
        }
        let report = context.self_test().unwrap();
        // Dense and quantized products and attention; products of few rows only where there is more workgroup memory.
        assert!(report.cases.len() >= 14, "{report}");
        assert!(report.passed(), "{name}: {report}");
    }
}
