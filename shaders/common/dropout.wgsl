// Inverted dropout on units of WIDTH columns: the factors of unit `unit` of the dropped tensor, counted over the whole tensor row by row.
// Needs `state` (a StepState) and in `params`: seed_low, seed_high, op, micro, threshold, keep_scale.
#import philox
#import step_state
fn keep(unit: u32) -> V {
    let seed = vec2<u32>(params.seed_low, params.seed_high);
#if WIDTH == 4
    return dropout_factors(seed, unit, params.op, state.step, params.micro, params.threshold, params.keep_scale);
#else
    let factors = dropout_factors(seed, unit >> 2u, params.op, state.step, params.micro, params.threshold, params.keep_scale);
    return factors[unit & 3u];
#endif
}
