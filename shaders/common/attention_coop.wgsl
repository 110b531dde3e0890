// What the attention kernels on cooperative matrices share. A workgroup is 4 subgroups of exactly 32 invocations; each subgroup owns 16 rows
// (queries, or keys in the pass over keys), whose operands and sums stay in matrices of 16 x 16. The workgroup steps through the other side in
// tiles of 16 rows, staged in workgroup memory. Matrices give no access to their elements: a product of scores goes through `scores` (f32),
// where invocations read it, two vec4 each, and comes back as an operand through `weights` (f16).
//
// Loops are unrolled by the preprocessor, so that no matrix is indexed at run time: GROUPS = HEAD_DIM / 16 and UNITS = HEAD_DIM / 32 (vec4 of
// a staged operand per invocation). Rows of f16 are padded by 8 elements and rows of f32 by 4, against bank conflicts. Workgroup memory is 13
// to 16 KiB for heads of 64, which lets three workgroups share a multiprocessor; larger tiles, or memory for both products of the backward
// pass at once, were slower. Within one subgroup a subgroupBarrier would do, but it does not order workgroup memory in SPIR-V.
#enable wgpu_cooperative_matrix
#import attention
#import philox_wide
// Dropout factors as attention_factors.
fn factors_wide(bh: u32, t: u32, quad: u32, step: u32) -> vec4<f32> {
    let index = (bh * params.seq + t) * ((params.seq + 3u) / 4u) + quad;
    let bits = philox_wide(vec2<u32>(params.seed_low, params.seed_high), vec4<u32>(index, params.drop_op, step, params.drop_micro));
    return select(vec4<f32>(params.drop_scale), vec4<f32>(), bits < vec4<u32>(params.drop_threshold));
}
const SUBGROUPS: u32 = 4u;
const TILE: u32 = 16u;
const ROWS: u32 = 16u * SUBGROUPS;        // rows that a workgroup owns
const WG_SIZE: u32 = 32u * SUBGROUPS;
const STRIDE: u32 = D4 + 2u;              // of a staged row, in vec4
const PACE: u32 = WG_SIZE / D4;           // staged rows that the workgroup loads at once
var<workgroup> tile_a: array<vec4<f16>, TILE * STRIDE>;
var<workgroup> tile_b: array<vec4<f16>, TILE * STRIDE>;

// What decides over the control flow round matrices is written out in each main and not in functions: naga takes the result of a function of
// arguments for one that may differ between invocations.
struct Head { b: u32, h: u32 }

// From row to row and from subgroup to subgroup.
const S_STRIDE: u32 = 5u;
const S_SIZE: u32 = 16u * S_STRIDE;
const W_STRIDE: u32 = 6u;
const W_SIZE: u32 = 16u * W_STRIDE;
var<workgroup> scores: array<vec4<f32>, SUBGROUPS * S_SIZE>;

// Unit i of row t of a part of the binding qkv; 0 beyond the last row.
fn fetch(head: Head, part: u32, t: u32, i: u32) -> vec4<f16> {
    let value = qkv[row_index(head.b, min(t, params.seq - 1u), part, head.h) + i];
    return select(vec4<f16>(), value, t < params.seq);
}
