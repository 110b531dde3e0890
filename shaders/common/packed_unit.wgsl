// Units of 32 codes of a quantized matrix, fetched into registers and decoded to f16 there, for kernels that stage tiles of f16. Import with
// parameters, once per matrix: `#import packed_unit P=B p=b LUT=0u`. Needs the defines {P}_GRID, {P}_BITS, {P}_EXPONENT, {P}_MANTISSA as
// packed.wgsl has them, and
// - {P}_FOLD: values are level * scale * Norm, rounded to f16 once; else they are levels, which f16 holds exactly;
// - `params.{p}`, {p}_side, and `{p}_codes: array<{P}Word>`;
// - `block: array<vec4<f32>>` in workgroup memory, of which four from {LUT} on keep the levels of grids that are tables, and a barrier between
//   {p}_prepare, which writes them, and the first {p}_decode. 16 words are 16 banks, so no two codes collide.
//
// The arithmetic goes two codes at a time, one in each half of a word: an integer is put into the mantissa of a power of two, which is
// subtracted (conversions run at a quarter of the rate or less), a small float is an f16 as it is but for a power of two.
// An f16 level times an f32 scale, rounded once: the scale is the sum of two f16, the second of them 2^-11 of the first.
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

// How stored scales become factors; the same for the whole matrix, and without branches, which would end what is scheduled together.
struct {P}Scaling {
    words: u32,   // scale s is in word s >> words of its row
    bits: u32,
    left: u32,    // by how much its bits are shifted to become a float
    half: bool,   // of 16 bits
    nan: u32,     // the stored bits that are no number
    gain: f32,
    step: u32,    // groups from the unit's first half to its second: 1 where groups are of 16
}
fn {p}_scaling() -> {P}Scaling {
    let store = params.{p}.store;
    var s: {P}Scaling;
    s.words = min(store, 2u);
    s.bits = 32u >> s.words;
    s.half = store == 1u || store == 3u;
    s.nan = 0x7fc00000u;
    s.gain = bitcast<f32>({p}_side[1]);
    s.step = select(0u, 1u, params.{p}.group_shift == 4u);
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

// What memory holds of a unit: codes, and where they are scaled one by one the words with the scales and zero points of its one or two groups.
struct {P}Unit {
    words: array<u32, {P}_BITS>,
#if {P}_FOLD
    scales: vec2<u32>,
#endif
#if {P}_GRID == 1
    zeros: u32,
#endif
}
fn {p}_fetch(row: u32, unit: u32, s: {P}Scaling) -> {P}Unit {
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
    let group = {p}_group(unit * 32u);
#if {P}_FOLD
    let first = 32u + row * params.{p}.scale_stride;
#if {P}_GRID == 5
    // For positive and for negative levels.
    u.scales = vec2<u32>({p}_side[first + (2u * group >> s.words)], {p}_side[first + ((2u * group + 1u) >> s.words)]);
#else
    // The two scales of a unit are in one word but where they are f32.
    u.scales = vec2<u32>({p}_side[first + (group >> s.words)]);
    if s.step > s.words { u.scales.y = {p}_side[first + min(group + 1u, params.{p}.groups - 1u)]; }
#endif
#endif
#if {P}_GRID == 1
    u.zeros = {p}_side[params.{p}.zeros_at + row * params.{p}.zero_stride + group / 4u];
#endif
    return u;
}

#if {P}_FOLD
// Scale number `index` of a row, from the word that holds it.
fn {p}_factor(word: u32, row: u32, index: u32, s: {P}Scaling) -> f32 {
    let stored = (word >> (index * s.bits & 31u)) & (0xffffffffu >> (32u - s.bits));
    let bits = stored << s.left;
    let v = select(bits, bitcast<u32>(unpack2x16float(bits).x), s.half);
    var scale = bitcast<f32>(select(v, 0x7fc00000u, stored == s.nan));
#if {P}_GRID == 3
    if params.{p}.store == 4u { scale = {p}_stored(row, min(index, params.{p}.groups - 1u)); }
#endif
#if {P}_GRID == 4
    if params.{p}.store == 4u { scale = {p}_stored(row, min(index, params.{p}.groups - 1u)); }
#endif
    return scale * s.gain;
}
#endif

// One or two bits of elements `first` and four further, in the halves of a word.
fn {p}_halves1(word: u32, first: u32) -> u32 {
    let x = word >> first;
    return (x & 1u) | (x << 12u & 0x10000u);
}
fn {p}_halves2(word: u32, first: u32) -> u32 {
    let x = word >> (first * 2u);
    return (x & 3u) | (x << 8u & 0x30000u);
}
#for v 0 4
// Codes of elements 8 * {v} + j and four further, in the halves of a word.
#if {P}_BITS == 3
fn {p}_codes{v}(w: array<u32, 3>, j: u32) -> u32 {
    return {p}_halves2(w[{v}u / 2u], {v}u % 2u * 8u + j) | {p}_halves1(w[2], {v}u * 8u + j) << 2u;
}
#endif
#if {P}_BITS == 5
fn {p}_codes{v}(w: array<u32, 5>, j: u32) -> u32 { return (w[{v}] >> (4u * j) & 0xf000fu) | {p}_halves1(w[4], {v}u * 8u + j) << 4u; }
#endif
#if {P}_BITS == 6
fn {p}_codes{v}(w: array<u32, 6>, j: u32) -> u32 {
    return (w[{v}] >> (4u * j) & 0xf000fu) | {p}_halves2(w[4u + {v}u / 2u], {v}u % 2u * 8u + j) << 4u;
}
#endif
#if {P}_BITS == 7
fn {p}_codes{v}(w: array<u32, 7>, j: u32) -> u32 {
    return (w[{v}] >> (4u * j) & 0xf000fu) | {p}_halves2(w[4u + {v}u / 2u], {v}u % 2u * 8u + j) << 4u | {p}_halves1(w[6], {v}u * 8u + j) << 6u;
}
#endif
#endfor

#if {P}_GRID < 3
fn {p}_f16(bits: u32) -> vec2<f16> { return vec2<f16>(unpack2x16float(bits)); }
// Integers: their bits, which start at bit 1 or so of a mantissa, so that halves are exact beside them; `minus` is that power of two and the zero.
fn {p}_pair(bits: u32, mask: u32, power: u32, minus: f16) -> vec2<f16> { return {p}_f16((bits & mask) | power) - vec2<f16>(minus); }
// Levels by four, with the zero points of the unit's halves.
fn {p}_levels(w: array<u32, {P}_BITS>, zero: vec2<f16>) -> array<vec4<f16>, 8> {
#if {P}_GRID < 2
    let z512 = zero + vec2<f16>(512.0h);
    let z128 = zero + vec2<f16>(128.0h);
    let z32 = zero + vec2<f16>(32.0h);
    let z8 = zero + vec2<f16>(8.0h);
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
    let x{v}_{h} = (w[{v}] << 1u) >> ({h}u * 8u);
    let p{v}_{h}_0 = {p}_pair(x{v}_{h}, 0x00060006u, 0x60006000u, z512[{v}]);
    let p{v}_{h}_1 = {p}_pair(x{v}_{h}, 0x00180018u, 0x58005800u, z128[{v}]);
    let p{v}_{h}_2 = {p}_pair(x{v}_{h}, 0x00600060u, 0x50005000u, z32[{v}]);
    let p{v}_{h}_3 = {p}_pair(x{v}_{h}, 0x01800180u, 0x48004800u, z8[{v}]);
    let l{v}_{h} = vec4<f16>(p{v}_{h}_0.x, p{v}_{h}_1.x, p{v}_{h}_2.x, p{v}_{h}_3.x);
    let m{v}_{h} = vec4<f16>(p{v}_{h}_0.y, p{v}_{h}_1.y, p{v}_{h}_2.y, p{v}_{h}_3.y);
#endfor
#endfor
    return array<vec4<f16>, 8>(l0_0, l0_1, m0_0, m0_1, l1_0, l1_1, m1_0, m1_1);
#else
#if {P}_BITS == 8
#for v 0 8
    let p{v} = {p}_pair(w[{v}] << 1u, 0x01fe01feu, 0x60006000u, z512[{v}u / 4u]);
    let q{v} = {p}_pair(w[{v}] >> 7u, 0x01fe01feu, 0x60006000u, z512[{v}u / 4u]);
    let l{v} = vec4<f16>(p{v}.x, q{v}.x, p{v}.y, q{v}.y);
#endfor
    return array<vec4<f16>, 8>(l0, l1, l2, l3, l4, l5, l6, l7);
#else
#for v 0 4
#if {P}_BITS == 4
    let p{v}_0 = {p}_pair(w[{v}] << 1u, 0x001e001eu, 0x60006000u, z512[{v}u / 2u]);
    let p{v}_1 = {p}_pair(w[{v}] << 1u, 0x01e001e0u, 0x50005000u, z32[{v}u / 2u]);
    let p{v}_2 = {p}_pair(w[{v}] >> 7u, 0x001e001eu, 0x60006000u, z512[{v}u / 2u]);
    let p{v}_3 = {p}_pair(w[{v}] >> 7u, 0x01e001e0u, 0x50005000u, z32[{v}u / 2u]);
#else
#for j 0 4
    let p{v}_{j} = {p}_pair({p}_codes{v}(w, {j}u) << 1u, 0x01fe01feu, 0x60006000u, z512[{v}u / 2u]);
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
    let c{v}_{j} = {p}_codes{v}(w, {j}u);
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

// The unit's values. `row` and `unit` are what it was fetched by.
fn {p}_decode(u: {P}Unit, row: u32, unit: u32, s: {P}Scaling) -> array<vec4<f16>, 8> {
    let group = {p}_group(unit * 32u);
#if {P}_GRID < 3
#if {P}_GRID == 1
    let zeros = vec2<u32>(u.zeros) >> vec2<u32>(group % 4u * 8u, (group + s.step) % 4u * 8u);
    let level = {p}_levels(u.words, vec2<f16>(vec2<f32>(zeros & vec2<u32>(255u))));
#else
    let level = {p}_levels(u.words, vec2<f16>(f16(params.{p}.zero)));
#endif
#if {P}_FOLD
    let scale = vec2<f32>({p}_factor(u.scales.x, row, group, s), {p}_factor(u.scales.y, row, group + s.step, s));
#if {P}_BITS == 8
#if {P}_GRID == 2
    // Beside levels of so many powers of two a scale in f16 would be too coarse.
    return array<vec4<f16>, 8>(
#for q 0 8
        vec4<f16>(vec4<f32>(level[{q}]) * scale[{q}u / 4u]),
#endfor
    );
#endif
#endif
    let high = vec2<f16>(scale);
    let low = vec2<f16>(scale - vec2<f32>(high));
    return array<vec4<f16>, 8>(
#for q 0 8
        fma(level[{q}], vec4<f16>(high[{q}u / 4u]), level[{q}] * low[{q}u / 4u]),
#endfor
    );
#else
    return level;
#endif
#else
#if {P}_GRID == 5
    let scale = vec2<f32>({p}_factor(u.scales.x, row, 2u * group, s), {p}_factor(u.scales.y, row, 2u * group + 1u, s));
#for v 0 4
    let c{v} = vec4<u32>({p}_codes{v}(u.words, 0u), {p}_codes{v}(u.words, 1u), {p}_codes{v}(u.words, 2u), {p}_codes{v}(u.words, 3u));
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
    let scale = vec2<f32>({p}_factor(u.scales.x, row, group, s), {p}_factor(u.scales.y, row, group + s.step, s));
    let shifts = vec4<u32>(0u, 4u, 8u, 12u);
    return array<vec4<f16>, 8>(
#for q 0 8
        vec4<f16>({p}_table4(vec4<u32>(u.words[{q}u / 2u] >> ({q}u % 2u * 16u)) >> shifts & vec4<u32>(15u)) * scale[{q}u / 4u]),
#endfor
    );
#endif
#endif
}
