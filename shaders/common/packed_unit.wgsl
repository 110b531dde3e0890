// Units of 32 codes of a quantized matrix, fetched into registers and decoded to f16 there, for kernels that stage tiles of f16. Import with
// parameters, once per matrix: `#import packed_unit P=B p=b LUT=0u`. Needs the defines {P}_GRID, {P}_BITS, {P}_EXPONENT, {P}_MANTISSA as
// packed.wgsl has them, and
// - {P}_FOLD: values are level * scale * Norm, rounded to f16 once; else they are levels, which f16 holds exactly;
// - {P}_HALVES: groups are of 16, so a unit has two; {P}_DOUBLE: scales are double-quantized (both at run time cost up to a fifth of the speed:
//   branches end what the compiler schedules together);
// - `params.{p}`, {p}_side, and `{p}_codes: array<{P}Word>`;
// - `block: array<vec4<f32>>` in workgroup memory, of which four from {LUT} on keep the levels of grids that are tables, and a barrier between
//   {p}_prepare, which writes them, and the first {p}_decode. 16 words are 16 banks, so no two codes collide.
//
// The arithmetic goes two codes at a time, one in each half of a word: an integer is put into the mantissa of a power of two, which is
// subtracted (conversions run at a quarter of the rate or less), a small float is an f16 as it is but for a power of two. Scales are f32.
#import packed_scales p={p}

#if {P}_BITS == 4
alias {P}Word = vec4<u32>;
const {P}_WIDTH: u32 = 4u;
#else
#if {P}_BITS == 8
alias {P}Word = vec4<u32>;
const {P}_WIDTH: u32 = 4u;
#else
#if {P}_BITS == 2
alias {P}Word = vec2<u32>;
const {P}_WIDTH: u32 = 2u;
#else
#if {P}_BITS == 6
alias {P}Word = vec2<u32>;
const {P}_WIDTH: u32 = 2u;
#else
alias {P}Word = u32;
const {P}_WIDTH: u32 = 1u;
#endif
#endif
#endif
#endif

fn {p}_prepare(index: u32) {
#if {P}_GRID < 3
#else
    if index < 16u { block[{LUT} + index / 4u][index % 4u] = bitcast<f32>({p}_side[16u + index]); }
#endif
}

// How stored scales become factors; the same for the whole matrix.
struct {P}Scaling {
    words: u32,   // scale s is in word s >> words of its row
    bits: u32,
    left: u32,    // by how much its bits are shifted to become a float
    half: bool,   // of 16 bits
    nan: u32,     // the stored bits that are no number
    gain: f32,
}
fn {p}_scaling() -> {P}Scaling {
    let store = params.{p}.store;
    var s: {P}Scaling;
    s.words = min(store, 2u);
    s.bits = 32u >> s.words;
    s.half = store == 1u || store == 3u;
    s.nan = 0x7fc00000u;
    s.gain = bitcast<f32>({p}_side[1]);
    if store == 2u {
        s.left = 23u;
        s.nan = 255u;
        s.gain *= bitcast<f32>({p}_side[0]);
    }
    if store == 3u {
        // E4M3's bias is 8 less.
        s.left = 7u;
        s.nan = 127u;
        s.gain *= 256.0 * bitcast<f32>({p}_side[0]);
    }
    return s;
}

// What memory holds of a unit: codes and the word with its zero points.
struct {P}Unit {
    words: array<u32, {P}_BITS>,
#if {P}_GRID == 1
    zeros: u32,
#endif
}
fn {p}_fetch(row: u32, unit: u32) -> {P}Unit {
    let at = (row * params.{p}.row_words + unit * {P}_BITS) / {P}_WIDTH;
    var u: {P}Unit;
#if {P}_BITS == 4
    let w = {p}_codes[at];
    u.words = array<u32, 4>(w.x, w.y, w.z, w.w);
#else
#if {P}_BITS == 8
    let w = {p}_codes[at];
    let x = {p}_codes[at + 1u];
    u.words = array<u32, 8>(w.x, w.y, w.z, w.w, x.x, x.y, x.z, x.w);
#else
#if {P}_BITS == 2
    let w = {p}_codes[at];
    u.words = array<u32, 2>(w.x, w.y);
#else
#if {P}_BITS == 6
    let w = {p}_codes[at];
    let x = {p}_codes[at + 1u];
    let y = {p}_codes[at + 2u];
    u.words = array<u32, 6>(w.x, w.y, x.x, x.y, y.x, y.y);
#else
#for i 0 {P}_BITS
    u.words[{i}] = {p}_codes[at + {i}u];
#endfor
#endif
#endif
#endif
#endif
#if {P}_GRID == 1
    u.zeros = {p}_side[params.{p}.zeros_at + row * params.{p}.zero_stride + {p}_group(unit * 32u) / 4u];
#endif
    return u;
}

#if {P}_FOLD
#if {P}_GRID == 5
const {P}_SCALES: u32 = 2u;   // for positive and for negative levels
#else
const {P}_SCALES: u32 = 1u;
#endif
// The words with the scales of a unit, which neighbouring units share, and which of the row's they are.
fn {p}_scales_of(unit: u32, s: {P}Scaling) -> u32 { return {p}_group(unit * 32u) * {P}_SCALES >> s.words; }
fn {p}_scales(row: u32, unit: u32, s: {P}Scaling) -> vec2<u32> {
    let first = 32u + row * params.{p}.scale_stride;
    let word = {p}_scales_of(unit, s);
    var scales = vec2<u32>({p}_side[first + word]);
    // Two are in one word but where they are f32.
#if {P}_GRID == 5
    scales.y = {p}_side[first + ((2u * {p}_group(unit * 32u) + 1u) >> s.words)];
#endif
#if {P}_HALVES
    if s.words == 0u { scales.y = {p}_side[first + min(word + 1u, params.{p}.groups - 1u)]; }
#endif
    return scales;
}
// Scale number `index` of a row, from the word that holds it.
fn {p}_factor(word: u32, row: u32, index: u32, s: {P}Scaling) -> f32 {
    let stored = (word >> (index * s.bits & 31u)) & (0xffffffffu >> (32u - s.bits));
#if {P}_DOUBLE
    let level = bitcast<f32>({p}_side[params.{p}.map_at + stored]);
    let nested = bitcast<f32>({p}_side[params.{p}.nested_at + (row * params.{p}.groups + index) / 256u]);
    return fma(level, nested, bitcast<f32>({p}_side[3])) * s.gain;
#else
    let bits = stored << s.left;
    let v = select(bits, bitcast<u32>(unpack2x16float(bits).x), s.half);
    return bitcast<f32>(select(v, 0x7fc00000u, stored == s.nan)) * s.gain;
#endif
}
// Those of the unit's halves.
fn {p}_factors(scales: vec2<u32>, row: u32, unit: u32, s: {P}Scaling) -> vec2<f32> {
    let group = {p}_group(unit * 32u);
#if {P}_GRID == 5
    return vec2<f32>({p}_factor(scales.x, row, 2u * group, s), {p}_factor(scales.y, row, 2u * group + 1u, s));
#else
#if {P}_HALVES
    return vec2<f32>({p}_factor(scales.x, row, group, s), {p}_factor(scales.y, row, group + 1u, s));
#else
    return vec2<f32>({p}_factor(scales.x, row, group, s));
#endif
#endif
}
#endif

// Of codes that are split into planes of 4, 2 and 1 bits: the eight elements from bit `first` of a plane on, four in either half of a word, and all
// that shifted left by `up`. Those j and four further are then one shift and one mask away.
fn {p}_ones(word: u32, first: u32, up: u32) -> u32 {
    let x = word >> first;
    return ((x & 15u) | (x << 12u & 0xf0000u)) << up;
}
fn {p}_twos(word: u32, first: u32, up: u32) -> u32 {
    let x = word >> first;
    return ((x & 255u) | (x << 8u & 0xff0000u)) << up;
}
#for v 0 4
// Codes of elements 8 * {v} + j and four further, shifted left by `up`, at most 4, in the halves of a word.
#if {P}_BITS == 3
fn {p}_codes{v}(w: array<u32, 3>, j: u32, up: u32) -> u32 {
    let twos = {p}_twos(w[{v}u / 2u], {v}u % 2u * 16u, up) >> (2u * j);
    return (twos & (0x30003u << up)) | ({p}_ones(w[2], {v}u * 8u, up + 2u) >> j & (0x40004u << up));
}
#endif
#if {P}_BITS == 5
fn {p}_codes{v}(w: array<u32, 5>, j: u32, up: u32) -> u32 {
    return (w[{v}] >> (4u * j) & 0xf000fu) << up | ({p}_ones(w[4], {v}u * 8u, up + 4u) >> j & (0x100010u << up));
}
#endif
#if {P}_BITS == 6
fn {p}_codes{v}(w: array<u32, 6>, j: u32, up: u32) -> u32 {
    let twos = {p}_twos(w[4u + {v}u / 2u], {v}u % 2u * 16u, up + 4u) >> (2u * j);
    return (w[{v}] >> (4u * j) & 0xf000fu) << up | (twos & (0x300030u << up));
}
#endif
#if {P}_BITS == 7
fn {p}_codes{v}(w: array<u32, 7>, j: u32, up: u32) -> u32 {
    let twos = {p}_twos(w[4u + {v}u / 2u], {v}u % 2u * 16u, up + 4u) >> (2u * j);
    let ones = {p}_ones(w[6], {v}u * 8u, up + 6u) >> j;
    return (w[{v}] >> (4u * j) & 0xf000fu) << up | (twos & (0x300030u << up)) | (ones & (0x400040u << up));
}
#endif
#endfor

#if {P}_GRID < 3
fn {p}_f16(bits: u32) -> vec2<f16> { return vec2<f16>(unpack2x16float(bits)); }
// Integers: their bits, which start at bit 1 or so of a mantissa, so that halves are exact beside them; `minus` is that power of two and the zero.
fn {p}_pair(bits: u32, mask: u32, power: u32, minus: f16) -> vec2<f16> { return {p}_f16((bits & mask) | power) - vec2<f16>(minus); }
// Levels by four.
fn {p}_levels(w: array<u32, {P}_BITS>, zero: f16) -> array<vec4<f16>, 8> {
#if {P}_GRID < 2
    let z512 = zero + 512.0h;
    let z128 = zero + 128.0h;
    let z32 = zero + 32.0h;
    let z8 = zero + 8.0h;
#if {P}_BITS == 1
    // Signs, the zero being 1/2: bit j and bit j + 16.
#for j 0 16
    let p{j} = {p}_f16((w[0] << (15u - {j}u) & 0x80008000u) ^ 0xb800b800u);
#endfor
    return array<vec4<f16>, 8>(
        vec4<f16>(p0.x, p1.x, p2.x, p3.x), vec4<f16>(p4.x, p5.x, p6.x, p7.x), vec4<f16>(p8.x, p9.x, p10.x, p11.x), vec4<f16>(p12.x, p13.x, p14.x, p15.x),
        vec4<f16>(p0.y, p1.y, p2.y, p3.y), vec4<f16>(p4.y, p5.y, p6.y, p7.y), vec4<f16>(p8.y, p9.y, p10.y, p11.y), vec4<f16>(p12.y, p13.y, p14.y, p15.y),
    );
#else
#if {P}_BITS == 2
#for v 0 2
#for h 0 2
    let x{v}_{h} = select(w[{v}] << 1u, w[{v}] >> 7u, {h} == 1);
    let p{v}_{h}_0 = {p}_pair(x{v}_{h}, 0x00060006u, 0x60006000u, z512);
    let p{v}_{h}_1 = {p}_pair(x{v}_{h}, 0x00180018u, 0x58005800u, z128);
    let p{v}_{h}_2 = {p}_pair(x{v}_{h}, 0x00600060u, 0x50005000u, z32);
    let p{v}_{h}_3 = {p}_pair(x{v}_{h}, 0x01800180u, 0x48004800u, z8);
    let l{v}_{h} = vec4<f16>(p{v}_{h}_0.x, p{v}_{h}_1.x, p{v}_{h}_2.x, p{v}_{h}_3.x);
    let m{v}_{h} = vec4<f16>(p{v}_{h}_0.y, p{v}_{h}_1.y, p{v}_{h}_2.y, p{v}_{h}_3.y);
#endfor
#endfor
    return array<vec4<f16>, 8>(l0_0, l0_1, m0_0, m0_1, l1_0, l1_1, m1_0, m1_1);
#else
#if {P}_BITS == 8
#for v 0 8
    let p{v} = {p}_pair(w[{v}] << 1u, 0x01fe01feu, 0x60006000u, z512);
    let q{v} = {p}_pair(w[{v}] >> 7u, 0x01fe01feu, 0x60006000u, z512);
    let l{v} = vec4<f16>(p{v}.x, q{v}.x, p{v}.y, q{v}.y);
#endfor
    return array<vec4<f16>, 8>(l0, l1, l2, l3, l4, l5, l6, l7);
#else
#for v 0 4
#if {P}_BITS == 4
    let p{v}_0 = {p}_pair(w[{v}] << 1u, 0x001e001eu, 0x60006000u, z512);
    let p{v}_1 = {p}_pair(w[{v}] << 1u, 0x01e001e0u, 0x50005000u, z32);
    let p{v}_2 = {p}_pair(w[{v}] >> 7u, 0x001e001eu, 0x60006000u, z512);
    let p{v}_3 = {p}_pair(w[{v}] >> 7u, 0x01e001e0u, 0x50005000u, z32);
#else
#for j 0 4
    let p{v}_{j} = {p}_pair({p}_codes{v}(w, {j}u, 1u), 0x01fe01feu, 0x60006000u, z512);
#endfor
#endif
    let l{v} = vec4<f16>(p{v}_0.x, p{v}_1.x, p{v}_2.x, p{v}_3.x);
    let m{v} = vec4<f16>(p{v}_0.y, p{v}_1.y, p{v}_2.y, p{v}_3.y);
#endfor
    return array<vec4<f16>, 8>(l0, m0, l1, m1, l2, m2, l3, m3);
#endif
#endif
#endif
#else
#if {P}_BITS == 8
#for v 0 8
#if {P}_EXPONENT == 4
    let p{v} = {p}_f16(nan_e4m3((w[{v}] << 7u & 0x3f803f80u) | (w[{v}] << 8u & 0x80008000u))) * 256.0h;
    let q{v} = {p}_f16(nan_e4m3((w[{v}] >> 1u & 0x3f803f80u) | (w[{v}] & 0x80008000u))) * 256.0h;
#else
    let p{v} = {p}_f16(w[{v}] << 8u & 0xff00ff00u);
    let q{v} = {p}_f16(w[{v}] & 0xff00ff00u);
#endif
    let l{v} = vec4<f16>(p{v}.x, q{v}.x, p{v}.y, q{v}.y);
#endfor
    return array<vec4<f16>, 8>(l0, l1, l2, l3, l4, l5, l6, l7);
#else
#for v 0 4
#if {P}_BITS == 4
    let p{v}_0 = {p}_f16((w[{v}] << 9u & 0x0e000e00u) | (w[{v}] << 12u & 0x80008000u)) * 16384.0h;
    let p{v}_1 = {p}_f16((w[{v}] << 5u & 0x0e000e00u) | (w[{v}] << 8u & 0x80008000u)) * 16384.0h;
    let p{v}_2 = {p}_f16((w[{v}] << 1u & 0x0e000e00u) | (w[{v}] << 4u & 0x80008000u)) * 16384.0h;
    let p{v}_3 = {p}_f16((w[{v}] >> 3u & 0x0e000e00u) | (w[{v}] & 0x80008000u)) * 16384.0h;
#else
#for j 0 4
    let c{v}_{j} = {p}_codes{v}(w, {j}u, 0u);
#if {P}_MANTISSA == 3
    let p{v}_{j} = {p}_f16((c{v}_{j} << 7u & 0x0f800f80u) | (c{v}_{j} << 10u & 0x80008000u)) * 16384.0h;
#else
    let p{v}_{j} = {p}_f16((c{v}_{j} << 8u & 0x1f001f00u) | (c{v}_{j} << 10u & 0x80008000u)) * 4096.0h;
#endif
#endfor
#endif
    let l{v} = vec4<f16>(p{v}_0.x, p{v}_1.x, p{v}_2.x, p{v}_3.x);
    let m{v} = vec4<f16>(p{v}_0.y, p{v}_1.y, p{v}_2.y, p{v}_3.y);
#endfor
    return array<vec4<f16>, 8>(l0, m0, l1, m1, l2, m2, l3, m3);
#endif
#endif
}
#else
// Levels of codes in the lowest bits of each.
fn {p}_table4(c: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(block[{LUT} + c.x / 4u][c.x % 4u], block[{LUT} + c.y / 4u][c.y % 4u], block[{LUT} + c.z / 4u][c.z % 4u], block[{LUT} + c.w / 4u][c.w % 4u]);
}
#endif

// The unit's values.
#if {P}_FOLD
fn {p}_decode(u: {P}Unit, scales: vec2<u32>, row: u32, unit: u32, s: {P}Scaling) -> array<vec4<f16>, 8> {
    let scale = {p}_factors(scales, row, unit, s);
#else
fn {p}_decode(u: {P}Unit, unit: u32) -> array<vec4<f16>, 8> {
#endif
#if {P}_GRID == 5
#for v 0 4
    let c{v} = vec4<u32>({p}_codes{v}(u.words, 0u, 0u), {p}_codes{v}(u.words, 1u, 0u), {p}_codes{v}(u.words, 2u, 0u), {p}_codes{v}(u.words, 3u, 0u));
    let l{v} = {p}_table4(c{v} & vec4<u32>(7u));
    let m{v} = {p}_table4(c{v} >> vec4<u32>(16u));
#endfor
    return array<vec4<f16>, 8>(
#for v 0 4
        vec4<f16>(l{v} * select(vec4<f32>(scale.x), vec4<f32>(scale.y), l{v} < vec4<f32>())),
        vec4<f16>(m{v} * select(vec4<f32>(scale.x), vec4<f32>(scale.y), m{v} < vec4<f32>())),
#endfor
    );
#else
#if {P}_GRID < 3
#if {P}_GRID == 1
    let zero = f16(f32((u.zeros >> ({p}_group(unit * 32u) % 4u * 8u)) & 255u));
#else
    let zero = f16(params.{p}.zero);
#endif
    let level = {p}_levels(u.words, zero);
#if {P}_FOLD
    return array<vec4<f16>, 8>(
#for q 0 8
        vec4<f16>(vec4<f32>(level[{q}]) * scale[{q}u / 4u]),
#endfor
    );
#else
    return level;
#endif
#else
    let shifts = vec4<u32>(0u, 4u, 8u, 12u);
    return array<vec4<f16>, 8>(
#for q 0 8
        vec4<f16>({p}_table4(vec4<u32>(u.words[{q}u / 2u] >> ({q}u % 2u * 16u)) >> shifts & vec4<u32>(15u)) * scale[{q}u / 4u]),
#endfor
    );
#endif
#endif
}
