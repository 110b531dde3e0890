// What the kernels that quantize are told; twin of `Recipe` in src/kernel/quantize.rs.
#import packed_info
struct Recipe {
    p: PackedInfo,
    rows: u32,
    units: u32,            // of 32 columns in a row
    bits: u32,
    group: u32,            // elements that share a scale in a row
    rule: u32,             // of scales: 0 largest magnitude, 1 with its sign, 2 both ends, 3 mean magnitude, 4 root mean square
    ties: u32,             // 0 even, 1 up, 2 down, 3 to zero, 4 away from zero
    zero_points: u32,
    exact: u32,            // codes by the scale before it is rounded to its storage
    exponent: u32,         // bits of small floats
    mantissa: u32,
    max_code: u32,
    finite_only: u32,      // statistics skip what is not finite
    top: u32,              // E8M0: exponent of the grid's largest value
    threshold: u32,        // E8M0: mantissas from here on take the next power
    unit_log2: u32,        // E8M0: 6 where elements have six fraction bits
    span_odd: u32,         // the largest magnitude of any code is span_odd * 2^span_exponent
    span_exponent: i32,
    seed_low: u32,
    seed_high: u32,
    op: u32,
    step: u32,
    step_at_state: u32,    // the step is the state's, not `step`
    masked: u32,
    rotated: u32,
    rotation_units: u32,   // units of a rotation's block; 1 without or below 64
    last_stage: u32,       // 0 where a rotation's block is 16
    given: u32,            // the scale is there already
    pieces: u32,           // of an invocation or a workgroup, per row
    piece_units: u32,
    header_words: u32,     // to be written: all or none
    partials: u32,         // workgroups that reduce a tensor
    max: f32,              // what the statistic is divided by
    gain: f32,             // factor on a mean
    epsilon: f32,          // added to it
    least: f32,            // the smallest scale from a mean
    low: f32,              // integers: range, what is added for the code, 1/2 for centred ones
    high: f32,
    add: f32,
    centre: f32,
    bound: f32,            // of the mask, in units of the scale
    rotation_factor: f32,
    big: f32,              // magnitudes above it are summed apart, times big_factor
    big_factor: f32,
    least_normal: f32,     // small floats: the smallest normal number, 1 / the smallest number, 2^(mantissa - 23)
    subnormals: f32,
    fraction: f32,
    scale_bits: u32,
    flat: u32,             // tiles go through the matrix as one row
    ue4m3: u32,            // E4M3 scales as ggml rounds them
    handed: u32,           // the scale is the caller's, in a buffer of its own
    shifted: u32,          // so is an offset that elements are less by
    square: u32,           // where scratch has the largest magnitudes of squares of groups; 0 where rows have their own
    factor: f32,           // on elements, not on scales
    flips: u32,            // signs of columns change before a rotation
    flip_low: u32,         // key, operation and step of the signs
    flip_high: u32,
    flip_op: u32,
    flip_step: u32,
    flip_at_state: u32,
    layer_norm_eps: f32,   // of the layer norm that comes first
    biased: u32,           // it has a bias
    rstd_at: u32,          // where in its statistics the reciprocal standard deviations are
    inv_cols: f32,
    reserved: u32,
    a: PackedInfo,         // of x, where it is quantized
    header: array<vec4<u32>, 8>,
}
// The trip count of a loop that stands for a branch: software adapters run both sides of an `if`, but no loop that ends at once.
fn once(condition: bool) -> u32 { return select(0u, 1u, condition); }
