// Rows of logits in units of columns. Needs `params.classes`.
#import elem
// Below every logit of use; its distance to any of them does not overflow.
const LOWEST: f32 = -1e38;

// A unit of columns; those beyond the classes are padding and become `fill`.
fn masked(v: V, c: u32, fill: f32) -> V {
    if (c + 1u) * WIDTH <= params.classes { return v; }
#if WIDTH == 4
    return select(vec4<f32>(fill), v, vec4<u32>(0u, 1u, 2u, 3u) + c * 4u < vec4<u32>(params.classes));
#else
    return fill;
#endif
}

fn largest(v: V) -> f32 {
#if WIDTH == 4
    return max(max(v.x, v.y), max(v.z, v.w));
#else
    return v;
#endif
}

// Some drivers' logarithm of a NaN is a number.
fn log_sum(sum: f32) -> f32 {
    let failed = (bitcast<u32>(sum) & 0x7f800000u) == 0x7f800000u;
    return select(log(sum), sum, failed);
}
