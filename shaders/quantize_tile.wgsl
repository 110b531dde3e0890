// quantize_tile.wgsl: as quantize.wgsl with scales of groups of GROUP elements by their largest magnitude, or up to 32 by their mean
// square. A team of eight invocations owns eight
// units of 32 columns; see quantize_tile.wgsl. Where rows are whole units, whole groups and whole words of scales, the tiles go through
// the matrix as one row (params.flat). Bounds: what is beyond the last tile is a tile of nothing; loads, codes and the mask ask the tile,
// scales the number of groups. Tier: subgroup, of a fixed size that eight divides.
@group(0) @binding(0) var<uniform> params: Recipe;
@group(0) @binding(1) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> side: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> mask: array<u32>;
@group(0) @binding(6) var<storage, read_write> scratch: array<u32>;
#import quantize_see
#import quantize_scale
#import quantize_code
#import quantize_side
#import quantize_tile

// The largest magnitude's bits among the invocations that have parts of a group.
fn largest(m: u32) -> u32 {
    var all = max(m, subgroupShuffleXor(m, 1u));
    all = max(all, subgroupShuffleXor(all, 2u));
#if GROUP != 16
    all = max(all, subgroupShuffleXor(all, 4u));
#endif
    return all;
}
fn magnitude(v: vec4<f32>) -> u32 {
    let m = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    return max(max(m.x, m.y), max(m.z, m.w));
}
fn added(v: f32) -> f32 {
    var sum = v + subgroupShuffleXor(v, 1u);
    sum += subgroupShuffleXor(sum, 2u);
#if GROUP != 16
    sum += subgroupShuffleXor(sum, 4u);
#endif
    return sum;
}
fn total_among(m: u32, v: vec4<f32>) -> Total {
    var t = Total(largest(m), 0u, 0.0, 0.0);
    if params.rule == 4u {
        let large = abs(v) > vec4<f32>(params.big);
        let small = select(v, vec4<f32>(), large);
        let scaled = select(vec4<f32>(), v * params.big_factor, large);
        t.a = added(dot(small, small));
        t.b = added(dot(scaled, scaled));
    }
    return t;
}
// Elements of the group that an invocation has four of in unit j.
fn count_of(t: Tile, l: u32, j: u32) -> f32 {
    let first = j * 32u + select(0u, l / 4u * 16u, GROUP == 16u);
    return f32(clamp(t.quads * 4u - min(first, t.quads * 4u), 1u, GROUP));
}
// Two neighbouring fields of scales: those of halves of a unit.
fn halves(bits: u32, l: u32, width: u32) -> u32 {
    let other = subgroupShuffleXor(bits, 4u);
    return select(bits | other << width, other | bits << width, l >= 4u);
}

// Word number i of the tile's scales, of `each` fields.
fn put_word(words: u32, i: u32, bits: u32, l: u32, left: u32, each: u32) {
    if l == (i & 7u) && i * each < left { atomicStore(&side[words + i], bits); }
}
// A scale that has a word to itself; for double quantization it waits for all others.
fn put_float(i: u32, bits: u32, words: u32, groups: u32, mine: bool) {
    if mine {
        if params.p.store == 4u { scratch[groups + i] = bits; } else { atomicStore(&side[words + i], bits); }
    }
}
@compute @workgroup_size(256)
fn main(lane: Lane) {
    let l = lane.lane & 7u;
    let wg = lane.wg.y * lane.grid.x + lane.wg.x;
    let number = wg * 32u + (lane.subgroup * lane.size + lane.lane) / 8u;
    put_header(select(0u, params.header_words, number == 0u && l == 0u));
    // A tensor's factor is there already, with the whole header; else it is of no use here.
    let factor = select(bitcast<f32>(atomicLoad(&side[0])), 1.0, params.header_words > 0u);
    // Where the row's scales, in words and in groups, start, and how many groups are left.
    var tile = Tile(number * 8u, number * 64u, 0u, 0u);
    var words = 32u;
    var groups = number * (256u / GROUP);
    var left = 0u;
    if params.flat == 1u {
        let units = params.rows * params.units;
        tile.units = units - min(units, tile.unit);
        tile.quads = tile.units * 8u;
        left = tile.units * 32u / GROUP;
        words += groups * params.scale_bits / 32u;
    } else {
        let row = number / params.pieces;
        let part = number % params.pieces;
        if row < params.rows { tile = tile_of_row(row, part); }
        left = (tile.quads * 4u + GROUP - 1u) / GROUP;
        let first = part * (256u / GROUP);
        words += row * params.p.scale_stride + first * params.scale_bits / 32u;
        groups = row * params.p.groups + first;
    }
    let u = load_tile(tile, l, lane.lane);
#for h 0 2
#for q 0 4
    var m{h}{q} = magnitude(u.q{h}{q});
#endfor
#if GROUP == 64
    m{h}0 = max(m{h}0, m{h}1);
    m{h}2 = max(m{h}2, m{h}3);
#endif
#if GROUP == 128
    m{h}0 = max(max(m{h}0, m{h}1), max(m{h}2, m{h}3));
#endif
#endfor
#if GROUP < 64
#for h 0 2
#for q 0 4
    let stored{h}{q} = stored_of(total_among(m{h}{q}, u.q{h}{q}), count_of(tile, l, {h}u * 4u + {q}u), factor);
    let s{h}{q} = scale_of(stored{h}{q}, factor);
#endfor
#endfor
#endif
#if GROUP == 64
#for h 0 2
    let stored{h}0 = stored_of(Total(largest(m{h}0), 0u, 0.0, 0.0), 1.0, factor);
    let stored{h}2 = stored_of(Total(largest(m{h}2), 0u, 0.0, 0.0), 1.0, factor);
    let s{h}0 = scale_of(stored{h}0, factor);
    let s{h}1 = s{h}0;
    let s{h}2 = scale_of(stored{h}2, factor);
    let s{h}3 = s{h}2;
#endfor
#endif
#if GROUP == 128
#for h 0 2
    let stored{h}0 = stored_of(Total(largest(m{h}0), 0u, 0.0, 0.0), 1.0, factor);
    let s{h}0 = scale_of(stored{h}0, factor);
#for q 1 4
    let s{h}{q} = s{h}0;
#endfor
#endfor
#endif
    var c: Codes;
#for h 0 2
#for q 0 4
    let coded{h}{q} = coded(u.q{h}{q}, s{h}{q}, element_of(tile, l, {h}u * 4u + {q}u));
    let there{h}{q} = has(tile, l, {h}u * 4u + {q}u);
    c.c{h}{q} = select(vec4<u32>(), coded{h}{q}.code, there{h}{q});
    c.inside[{h}] |= select(0u, join(coded{h}{q}.inside, 1u), there{h}{q}) << ({q}u * 4u);
#endfor
#endfor
    put_tile(tile, l, c);

#if GROUP == 16
    let half = l / 4u;
#for h 0 2
#for q 0 4
    let i{h}{q} = {h}u * 8u + {q}u * 2u + half;
    let b{h}{q} = select(0u, stored{h}{q}.bits.x, i{h}{q} < left);
    if params.p.store == 0u || params.p.store == 4u { put_float(i{h}{q}, b{h}{q}, words, groups, (l & 3u) == {q}u && i{h}{q} < left); }
    if params.p.store == 1u { put_word(words, {h}u * 4u + {q}u, halves(b{h}{q}, l, 16u), l, left, 2u); }
#endfor
    if params.p.store == 2u || params.p.store == 3u {
        put_word(words, {h}u * 2u, halves(b{h}0, l, 8u) | halves(b{h}1, l, 8u) << 16u, l, left, 4u);
        put_word(words, {h}u * 2u + 1u, halves(b{h}2, l, 8u) | halves(b{h}3, l, 8u) << 16u, l, left, 4u);
    }
#endfor
#endif
#if GROUP == 32
#for h 0 2
#for q 0 4
    let i{h}{q} = {h}u * 4u + {q}u;
    let b{h}{q} = select(0u, stored{h}{q}.bits.x, i{h}{q} < left);
    if params.p.store == 0u || params.p.store == 4u { put_float(i{h}{q}, b{h}{q}, words, groups, l == i{h}{q} && i{h}{q} < left); }
#endfor
    if params.p.store == 1u {
        put_word(words, {h}u * 2u, b{h}0 | b{h}1 << 16u, l, left, 2u);
        put_word(words, {h}u * 2u + 1u, b{h}2 | b{h}3 << 16u, l, left, 2u);
    }
    if params.p.store == 2u || params.p.store == 3u {
        put_word(words, {h}u, b{h}0 | b{h}1 << 8u | b{h}2 << 16u | b{h}3 << 24u, l, left, 4u);
    }
#endfor
#endif
#if GROUP == 64
#for h 0 2
    let b{h}0 = select(0u, stored{h}0.bits.x, {h}u * 2u < left);
    let b{h}2 = select(0u, stored{h}2.bits.x, {h}u * 2u + 1u < left);
    if params.p.store == 1u {
        put_word(words, {h}u, b{h}0 | b{h}2 << 16u, l, left, 2u);
    } else {
        put_float({h}u * 2u, b{h}0, words, groups, l == {h}u && {h}u * 2u < left);
        put_float({h}u * 2u + 1u, b{h}2, words, groups, l == {h}u && {h}u * 2u + 1u < left);
    }
#endfor
#endif
#if GROUP == 128
#for h 0 2
    let b{h}0 = select(0u, stored{h}0.bits.x, {h}u < left);
    if params.p.store != 1u { put_float({h}u, b{h}0, words, groups, l == {h}u && {h}u < left); }
#endfor
    if params.p.store == 1u { put_word(words, 0u, b00 | b10 << 16u, l, left, 2u); }
#endif
}
