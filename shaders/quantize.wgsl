// quantize.wgsl: codes, scales, zero points, the header and a mask of x. SPAN 0: an invocation owns the units of 32 columns that share a scale
// (where the scale is given, one unit); 1: an invocation owns a unit of two groups of 16; 2: a workgroup owns a row or a long group, its
// invocations take units in turn. TRANSPOSED (SPAN 0 and 1): x is read by columns, see quantize_load.wgsl. Units are read again for their
// codes, last one first, but for the last, which is still there: one place
// in the code that loads, since software adapters take a second to compile five. No code word has two writers; words of scales have, see quantize_side.wgsl. Bounds: units beyond a row are nobody's; the last one is filled up with
// code 0. Tier: baseline; subgroup for the reduction of SPAN 2.
@group(0) @binding(0) var<uniform> params: Recipe;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> side: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> mask: array<u32>;
// The tensor's scale before it was rounded, or scales for double quantization; then the largest magnitudes of squares.
@group(0) @binding(6) var<storage, read_write> scratch: array<u32>;
#if HANDED
// The caller's scale and offset of all elements.
@group(0) @binding(7) var<storage, read> handed_scale: array<u32>;
@group(0) @binding(8) var<storage, read> handed_offset: array<u32>;
#endif
#import quantize_load AT=1 AND=7
const STRIDE: u32 = 4u;
#import quantize_scale
#import quantize_code
#import quantize_unit
#import quantize_side
#if SPAN == 2
#import quantize_total
const STEP: u32 = WG_SIZE;
#else
const STEP: u32 = 1u;
#endif

// What is seen of a group, or its largest magnitude among the rows that share scales with this one.
fn shared_total(t: Total, row: u32, group: u32) -> Total {
    var all = t;
    for (var i = 0u; i < once(params.square > 0u); i++) { all.m = scratch[params.square + row / 16u * params.p.groups + group]; }
    return all;
}
fn elements(group: u32) -> f32 { return f32(min(params.group, params.p.cols - group * params.group)); }

#if HANDED
#import handed_scale
// The bits of the caller's scale; the smallest f16 is 2^-24.
fn handed_bits() -> u32 { return max(handed_magnitude(handed_scale[0]), select(0u, 0x33800000u, params.p.store == 1u)); }
fn handed() -> Stored {
    var s: Stored;
    let bits = handed_bits();
    s.good = handed_good(handed_scale[0]);
    for (var i = 0u; i < params.shifted; i++) { s.good = s.good && handed_good(handed_offset[0]); }
    s.pick = vec2<f32>(bitcast<f32>(bits));
    s.bits = vec2<u32>(select(bad_bits(), stored_bits(s.pick.x, bits, 1.0), s.good));
    s.zero = 0u;
    return s;
}
// A unit as the caller's scale and offset have it.
fn fitted(v: Unit) -> Unit {
    var u = v;
    for (var i = 0u; i < params.handed; i++) {
        let offset = handed_number(handed_offset[0] * params.shifted);
        let limit = handed_limit(handed_bits());
#for h 0 2
#for q 0 4
        u.q{h}{q} = handed_element(u.q{h}{q}, offset, limit);
#endfor
#endfor
    }
    return u;
}
#else
fn fitted(v: Unit) -> Unit { return v; }
#endif

// The scale of all rows.
fn given() -> Stored {
    var s: Stored;
#if HANDED
    if params.handed == 1u { return handed(); }
#endif
    let word = atomicLoad(&side[32]);
    s.bits = vec2<u32>(select(word, word & 0xffffu, params.p.store == 1u), 0u);
#if CLASS == 4
    s.bits.y = select(atomicLoad(&side[33]), word >> 16u, params.p.store == 1u);
#endif
    s.good = s.bits.x != bad_bits();
    s.pick = bitcast<vec2<f32>>(vec2<u32>(scratch[0], scratch[1]));
    s.zero = 0u;
#if CLASS == 0
    for (var i = 0u; i < params.zero_points; i++) { s.zero = atomicLoad(&side[params.p.zeros_at]) & 255u; }
#endif
    return s;
}

#if SPAN == 2
@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let i = wg.y * grid.x + wg.x;
    let lane = inv.index;
#else
@compute @workgroup_size(WG_SIZE)
fn main(@builtin(local_invocation_index) index: u32, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let i = (wg.y * grid.x + wg.x) * WG_SIZE + index;
    let lane = 0u;
#endif
    put_header(select(0u, params.header_words, i == 0u && lane == 0u));
#if TRANSPOSED
    let row = i % params.rows;
    let piece = i / params.rows;
    if piece >= params.pieces { return; }
#else
    let row = i / params.pieces;
    if row >= params.rows { return; }
    let piece = i % params.pieces;
#endif
    // A tensor's factor is there already, with the whole header; else it is of no use here.
    let factor = select(bitcast<f32>(atomicLoad(&side[0])), 1.0, params.header_words > 0u);
#if SPAN == 1
    let u = unit_of(row, piece);
    let s0 = stored_of(shared_total(total_of(see0(unseen(), u, 0u)), row, 2u * piece), elements(2u * piece), factor);
    put_scale(row, 2u * piece, s0);
    var s1 = s0;
    for (var k = 0u; k < once(2u * piece + 1u < params.p.groups); k++) {
        let total = shared_total(total_of(see1(unseen(), u, 0u)), row, 2u * piece + 1u);
        s1 = stored_of(total, elements(2u * piece + 1u), factor);
        put_scale(row, 2u * piece + 1u, s1);
    }
    put_unit(row, piece, u, scale_of(s0, factor), scale_of(s1, factor));
#else
    let first = piece * params.piece_units;
    let end = min(first + params.piece_units, params.units);
    let rounds = (params.piece_units + STEP - 1u) / STEP;
    var seen = unseen();
    var scale: Scale;
    // There and back again: statistics on the way up, codes on the way down, and both at the turn.
    for (var t = 0u; t + 1u < 2u * rounds; t++) {
        let unit = first + lane + min(t, 2u * rounds - 2u - t) * STEP;
        let there = unit < end;
        let u = unit_of(row, select(params.units, unit, there));
        for (var k = 0u; k < once(t < rounds); k++) {
            let place = (unit - first) * 32u;
            seen = see1(see0(seen, u, place), u, place);
        }
        for (var k = 0u; k < once(t + 1u == rounds); k++) {
#if SPAN == 2
            let stored = stored_of(workgroup_total(total_of(seen), inv), elements(piece), factor);
            for (var n = lane; n < 1u; n++) { put_scale(row, piece, stored); }
#else
            var stored: Stored;
            for (var n = 0u; n < params.given; n++) { stored = given(); }
            for (var n = 0u; n < once(params.handed == 1u && i == 0u); n++) {
                put_scale(0u, 0u, stored);
                put_norm(stored);
            }
            for (var n = params.given; n < 1u; n++) {
                stored = stored_of(total_of(seen), elements(piece), factor);
                put_scale(row, piece, stored);
            }
#endif
            scale = scale_of(stored, factor);
        }
        for (var k = 0u; k < once(there && t + 1u >= rounds); k++) { put_unit(row, unit, fitted(u), scale, scale); }
    }
#endif
}
