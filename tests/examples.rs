//! The examples work: their code is compiled into this test and run.
#![allow(dead_code, reason = "the examples' own main functions")]

#[path = "../examples/capabilities.rs"]
mod capabilities;
#[path = "../examples/embed_in_app.rs"]
mod embed_in_app;
#[path = "../examples/tiny_gpt.rs"]
mod tiny_gpt;

#[test]
fn capabilities_names_every_adapter() {
    let report = capabilities::report().unwrap();
    for adapter in walsh::Context::adapters() {
        assert!(report.contains(&adapter.get_info().name), "{report}");
    }
    assert!(report.contains("tier "), "{report}");
}

#[test]
fn tiny_gpt_comes_nearer_to_the_floor_and_writes() {
    let outcome = tiny_gpt::run(&walsh::Context::new().unwrap(), 30).unwrap();
    // Before training the loss is about ln(vocabulary); 30 steps learn at least the frequencies of the characters.
    assert!(outcome.above_floor < outcome.above_floor_before - 0.5, "{}", outcome.above_floor);
    assert!(outcome.above_floor > 0.0, "below the entropy of the source: {}", outcome.above_floor);
    assert_eq!(outcome.sample.chars().count(), 300);
}

#[test]
fn the_host_draws_the_loss_that_walsh_computed() {
    for features in [true, false] {
        let outcome = embed_in_app::run(features).unwrap();
        assert_eq!(outcome.counts.submits, 0);
        assert_eq!(outcome.history.last(), Some(&outcome.last_loss));
        assert!(outcome.last_loss < 0.9 * outcome.history[0], "{:?}", outcome.history);
        let width = embed_in_app::WIDTH as usize;
        let bar = |step: usize| outcome.image.iter().skip(step).step_by(width).sum::<u32>();
        assert!(bar(width - 1) > 0 && bar(width - 1) < bar(0), "{:?}", outcome.image);
    }
}
