// What the attention kernels share: parameters and the layout of packed QKV, [batch, seq, 3 * heads * HEAD_DIM] with q, k and v in this
// order, each [heads, HEAD_DIM]. Indices below count vec4.
#import philox
#import step_state
struct Params {
    batch: u32,
    seq: u32,
    heads: u32,
    causal: u32,
    scale: f32,         // 1 / sqrt(HEAD_DIM)
    drop_op: u32,
    drop_micro: u32,
    drop_threshold: u32,
    drop_scale: f32,
    seed_low: u32,
    seed_high: u32,
    reserved: u32,
}
@group(0) @binding(0) var<uniform> params: Params;

const D4: u32 = HEAD_DIM / 4u;
const LOG2E: f32 = 1.4426950408889634;
const LN2: f32 = 0.6931471805599453;
// Stands for minus infinity, which compilers may assume away; far below any finite score that does not overflow its exponential.
const MASKED: f32 = -1e30;

fn row_index(b: u32, t: u32, part: u32, h: u32) -> u32 { return ((b * params.seq + t) * 3u + part) * params.heads * D4 + h * D4; }
fn out_index(b: u32, t: u32, h: u32) -> u32 { return (b * params.seq + t) * params.heads * D4 + h * D4; }

// One past the last key that query t sees.
fn visible(t: u32) -> u32 { return select(params.seq, min(t + 1u, params.seq), params.causal != 0u); }

// Dropout factors of keys 4 * quad .. 4 * quad + 3 for query t of head bh = b * heads + h. The counter runs over [batch, heads, seq, keys],
// keys padded to a multiple of 4.
fn attention_factors(bh: u32, t: u32, quad: u32, step: u32) -> vec4<f32> {
    let index = (bh * params.seq + t) * ((params.seq + 3u) / 4u) + quad;
    return dropout_factors(vec2<u32>(params.seed_low, params.seed_high), index, params.drop_op, step, params.drop_micro,
        params.drop_threshold, params.drop_scale);
}
