// embedding.wgsl: out[r, c] = (table[tokens[r], c] + positions[pos, c]) * keep, pos = r % seq + offset[0]. An invocation owns one unit of out.
// POSITIONS: 0 none, 1 from 0, 2 with the offset read from a buffer. DROPOUT: keep is 0 or 1 / (1 - p). A token or position beyond its
// table makes its row NaN. Baseline.
#import vector
struct Params {
    rows: u32, units: u32, vocab: u32, seq: u32, block: u32,
    seed_low: u32, seed_high: u32, op: u32, micro: u32, threshold: u32, keep_scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;        // [rows]
@group(0) @binding(2) var<storage, read> table: array<V>;           // [vocab, units]
@group(0) @binding(3) var<storage, read_write> out: array<V>;       // [rows, units]
#if POSITIONS != 0
@group(0) @binding(4) var<storage, read> positions: array<V>;       // [block, units]
#endif
#if POSITIONS == 2
@group(0) @binding(5) var<storage, read> offset: array<u32>;        // [1]
#endif
#if DROPOUT
#if POSITIONS == 0
@group(0) @binding(4) var<storage, read> state: StepState;
#else
@group(0) @binding(5) var<storage, read> state: StepState;
#endif
#import dropout
#endif

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * WG_SIZE + index;
    if i >= params.rows * params.units { return; }
    let row = i / params.units;
    let c = i % params.units;
    let token = tokens[row];
    var known = token < params.vocab;
    var value = table[min(token, params.vocab - 1u) * params.units + c];
#if POSITIONS != 0
    var pos = row % params.seq;
#if POSITIONS == 2
    pos += offset[0];
#endif
    known &= pos < params.block;
    value += positions[min(pos, params.block - 1u) * params.units + c];
#endif
#if DROPOUT
    value *= keep(i);
#endif
    if !known {
        var bits = 0x7fc00000u; // a NaN, which WGSL has no way to write
        value = V(bitcast<f32>(bits));
    }
    out[i] = value;
}
