// hadamard.wgsl: out = scale * x H for every block x of n = M 2^k neighbouring elements, H = H_M (x) H_2^k, in one pass over memory, f32
// inside.
//
// Elements are handled as vec4. A workgroup owns a tile of WG_SIZE * ITEMS * OUTER consecutive vec4, whole blocks; an invocation has
// OUTER groups of ITEMS = 2^LOG_ITEMS of them in registers. The vec4 of a group are numbered in the tile by thread and item: bits HOLE ..
// HOLE + LOG_ITEMS of the number are the item, the others the thread. Every step of the plan (in `params`, or STATIC) is a HOLE and which
// of the item's bits are transformed there, in registers; between two steps the workgroup exchanges through memory. Bits of the lane may
// be transformed by shuffles, and the two bits within a vec4 and the OUTER groups are registers anyway. The first hole is as high as the
// block allows, so that neighbouring threads load neighbouring vec4. The workgroup's memory holds COMPONENTS of the four components of
// one group at a time.
//
// M: 0 for powers of two, whose OUTER groups are the block's highest bits; else a block is M chunks of 2^k, chunk c is register c, and
// their product with the M x M matrix comes first. Where a chunk is shorter than a vec4 (K below 2), an invocation owns a whole block.
//
// EXTRA: the sum of the terms that the input is, a mask of it, random signs before (or, transposed, after) the transform, accumulation; with
// GELU_GRAD the result times the derivative of the exact GELU at `pre`. Bit `column` of the row's Philox stream is the sign: word
// (column / 32) % 4 of the call with counter (column / 128, op, step, 0), lowest bit first, 1 is minus.
//
// PREFETCH: workgroups go on to further tiles and load AHEAD vec4 of the next one before they exchange those of this one, the rest as
// they store, where a block takes so many registers that no second workgroup runs beside one.
//
// Bounds: loads are clamped to the last vec4 (of a term) and stores beyond it skipped. Both `deposit` and `swizzle` permute the numbers below WG_SIZE
// * ITEMS, a power of two of at least 32, and that is the length of `tile`; it has room for SIGN_SLOTS calls. A row of the mask that is
// read belongs to an element below `len`. Loops end: they count up to a parameter.
#import shuffle
#if EXTRA
#import philox
#import step_state
#if GELU_GRAD
#import activation
#endif
#endif
struct Params {
    vectors: u32,        // vec4 in x, the last one partly padding where n < 4
    tiles: u32,
    log_group: u32,      // log2 of the vec4 of a block, or of one of its OUTER groups
    within: u32,         // butterflies within a vec4: of the bits 0 .. within
    terms: u32,          // EXTRA: x is the sum of so many arrays, one after another
    passes: u32,         // exchanges
    scale: f32,
    flags: u32,
    plan: array<vec4<u32>, 2>, // per step: HOLE | bits to transform << 8
    len: u32,            // elements
    cols: u32,
    mask_words: u32,     // per row
    seed_low: u32,
    seed_high: u32,
    op: u32,
    step: u32,
    reserved1: u32,
}
const MASKED: u32 = 1u;
const SIGNS_BEFORE: u32 = 2u;
const SIGNS_AFTER: u32 = 4u;
const ACCUMULATE: u32 = 8u;
const STEP_FROM_STATE: u32 = 16u;
const MASK_FLAT: u32 = 32u; // rows of the mask are whole words, so that bit and element have one number

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<Out>>;
#if EXTRA
@group(0) @binding(2) var<storage, read> mask: array<u32>; // bit per element, a row starts on a word
@group(0) @binding(3) var<storage, read> state: StepState;
#if !IN_PLACE
@group(0) @binding(4) var<storage, read> x: array<vec4<X>>;
#endif
#if GELU_GRAD
@group(0) @binding(5) var<storage, read> pre: array<vec4<Out>>;
#endif
#else
#if !IN_PLACE
@group(0) @binding(2) var<storage, read> x: array<vec4<X>>;
#endif
#endif

const REGISTERS: u32 = OUTER * ITEMS;
const PER_TILE: u32 = WG_SIZE * ITEMS;
#if COMPONENTS == 1
alias Item = f32;
alias Word = u32;
#endif
#if COMPONENTS == 2
alias Item = vec2<f32>;
alias Word = vec2<u32>;
#endif
#if COMPONENTS == 4
alias Item = vec4<f32>;
alias Word = vec4<u32>;
#endif
alias Group = array<Item, ITEMS>;
// Calls of the random numbers that hold the signs of a tile: it touches at most one group of 128 columns per 128 elements, one more at
// either end, and one more where a row ends.
const SIGN_SLOTS: u32 = PER_TILE * OUTER / 32u + 3u;
#if EXCHANGE
var<workgroup> tile: array<Word, PER_TILE>;

// Keeps neighbouring threads in different banks whatever the hole. It is linear: swizzle(a ^ b) = swizzle(a) ^ swizzle(b).
fn swizzle(i: u32) -> u32 {
#if COMPONENTS == 4
    return i ^ (((i >> 3u) ^ (i >> 6u)) & 7u);
#else
    return i ^ ((i >> 4u) & (32u / COMPONENTS - 1u));
#endif
}
#else
#if EXTRA
#if !OWNED
var<workgroup> tile: array<vec4<u32>, SIGN_SLOTS>;
#endif
#endif
#endif

#if STATIC
// The plan, where it is compiled in.
fn step_of(i: u32) -> u32 {
    if i == 0u { return STEP_0; }
    if i == 1u { return STEP_1; }
    return select(STEP_2, STEP_3, i == 3u);
}
fn passes() -> u32 { return PASSES; }
fn within() -> u32 { return 2u; }
#else
fn step_of(i: u32) -> u32 { return params.plan[i >> 2u][i & 3u]; }
fn passes() -> u32 { return params.passes; }
fn within() -> u32 { return params.within; }
#endif

// The thread's number with a hole of LOG_ITEMS bits for the item.
fn deposit(thread: u32, hole: u32) -> u32 { return (thread & ((1u << hole) - 1u)) | ((thread >> hole) << (hole + LOG_ITEMS)); }

// Where vec4 `local` of group `outer` of the tile is in x and out.
fn at(tile_index: u32, local: u32, outer: u32) -> u32 {
    let flat = tile_index * PER_TILE + local;
#if OUTER == 1
    return flat;
#else
    return (((flat >> params.log_group) * OUTER + outer) << params.log_group) + (flat & ((1u << params.log_group) - 1u));
#endif
}

fn load(i: u32) -> vec4<X> {
#if IN_PLACE
    return out[min(i, params.vectors - 1u)];
#else
    return x[min(i, params.vectors - 1u)];
#endif
}

#if EXTRA
#if !IN_PLACE
fn load_term(i: u32, term: u32) -> vec4<f32> { return vec4<f32>(x[min(i, params.vectors - 1u) + term * params.vectors]); }
#endif
#endif

// Transforms the group's bits that are neither shuffled nor within a vec4.
fn transform(group: Group, thread: u32) -> Group {
    var s = group;
    var current = step_of(0u);
    for (var done = 0u; ; done++) {
#for i 0 LOG_ITEMS
        if ((current >> 8u) & (1u << {i}u)) != 0u {
#for h 0 HALF
            {
                const low = (({h}u >> {i}u) << ({i}u + 1u)) | ({h}u & ((1u << {i}u) - 1u));
                const high = low + (1u << {i}u);
                let difference = s[low] - s[high];
                s[low] += s[high];
                s[high] = difference;
            }
#endfor
        }
#endfor
        if done == passes() { break; }
        let next = step_of(done + 1u);
#if EXCHANGE
        // The places that a thread writes are those that it alone read in the exchange before, so one barrier is enough.
        let hole = current & 255u;
        let from_place = swizzle(deposit(thread, hole));
#for b 0 ITEMS
        tile[from_place ^ swizzle({b}u << hole)] = bitcast<Word>(s[{b}u]);
#endfor
        workgroupBarrier();
        let next_hole = next & 255u;
        let to_place = swizzle(deposit(thread, next_hole));
#for b 0 ITEMS
        s[{b}u] = bitcast<Item>(tile[to_place ^ swizzle({b}u << next_hole)]);
#endfor
#endif
        current = next;
    }
    return s;
}

#if M
// y_i = sum over j of +-x_j, minus where bit M - 1 - j of ROW_i is set: the columns of the matrix, or transposed its rows.
#if M == 12
const ROW_0: u32 = 0x400u; const ROW_1: u32 = 0xd55u; const ROW_2: u32 = 0x13cu; const ROW_3: u32 = 0x769u;
const ROW_4: u32 = 0x04fu; const ROW_5: u32 = 0x5dau; const ROW_6: u32 = 0x313u; const ROW_7: u32 = 0x676u;
const ROW_8: u32 = 0x3c4u; const ROW_9: u32 = 0x69du; const ROW_10: u32 = 0x0f1u; const ROW_11: u32 = 0x5a7u;
#endif
#if M == 20
#if TRANSPOSE
const ROW_0: u32 = 0x7bcc9u; const ROW_1: u32 = 0xbdc74u; const ROW_2: u32 = 0xdee2au; const ROW_3: u32 = 0xef705u;
const ROW_4: u32 = 0xf7992u; const ROW_5: u32 = 0x83ec6u; const ROW_6: u32 = 0x45d63u; const ROW_7: u32 = 0x26eb1u;
const ROW_8: u32 = 0x17758u; const ROW_9: u32 = 0x0f9acu; const ROW_10: u32 = 0xca5f0u; const ROW_11: u32 = 0xe52e8u;
const ROW_12: u32 = 0x72b64u; const ROW_13: u32 = 0x397a2u; const ROW_14: u32 = 0x9cbc1u; const ROW_15: u32 = 0xb65efu;
const ROW_16: u32 = 0x5f2f7u; const ROW_17: u32 = 0xabb7bu; const ROW_18: u32 = 0xd1fbdu; const ROW_19: u32 = 0x6cfdeu;
#else
const ROW_0: u32 = 0x7c336u; const ROW_1: u32 = 0xba38bu; const ROW_2: u32 = 0xd91d5u; const ROW_3: u32 = 0xe88fau;
const ROW_4: u32 = 0xf066du; const ROW_5: u32 = 0x7bd39u; const ROW_6: u32 = 0xbde9cu; const ROW_7: u32 = 0xded4eu;
const ROW_8: u32 = 0xef4a7u; const ROW_9: u32 = 0xf7a53u; const ROW_10: u32 = 0x359efu; const ROW_11: u32 = 0x1aef7u;
const ROW_12: u32 = 0x8d77bu; const ROW_13: u32 = 0xc6bbdu; const ROW_14: u32 = 0x637deu; const ROW_15: u32 = 0x49a0fu;
const ROW_16: u32 = 0xa0d17u; const ROW_17: u32 = 0x5449bu; const ROW_18: u32 = 0x2e05du; const ROW_19: u32 = 0x9303eu;
#endif
#endif
#if M == 28
#if TRANSPOSE
const ROW_0: u32 = 0x7e796b3u; const ROW_1: u32 = 0xbe3eb59u; const ROW_2: u32 = 0xdf1d5ecu; const ROW_3: u32 = 0xef8eab6u;
const ROW_4: u32 = 0xf7c751bu; const ROW_5: u32 = 0xfbe1acdu; const ROW_6: u32 = 0xfcf2d66u; const ROW_7: u32 = 0xc2fe62du;
const ROW_8: u32 = 0xe17d356u; const ROW_9: u32 = 0x71bc9abu; const ROW_10: u32 = 0x39de4d5u; const ROW_11: u32 = 0x1def26au;
const ROW_12: u32 = 0x0ff5935u; const ROW_13: u32 = 0x87f8cdau; const ROW_14: u32 = 0xa4cdfe1u; const ROW_15: u32 = 0x5366ff0u;
const ROW_16: u32 = 0xa9b37b8u; const ROW_17: u32 = 0x54dbb9cu; const ROW_18: u32 = 0x2a6fd8eu; const ROW_19: u32 = 0x9537e87u;
const ROW_20: u32 = 0x4b9bf43u; const ROW_21: u32 = 0x9948f3fu; const ROW_22: u32 = 0x4ca47dfu; const ROW_23: u32 = 0x27523efu;
const ROW_24: u32 = 0x92ab1f7u; const ROW_25: u32 = 0xc8578fbu; const ROW_26: u32 = 0x652bc7du; const ROW_27: u32 = 0x3295e7eu;
#else
const ROW_0: u32 = 0x7f8694cu; const ROW_1: u32 = 0xbfc14a6u; const ROW_2: u32 = 0xdee2a13u; const ROW_3: u32 = 0xee71549u;
const ROW_4: u32 = 0xf638ae4u; const ROW_5: u32 = 0xfa1e532u; const ROW_6: u32 = 0xfd0d299u; const ROW_7: u32 = 0x3cfd9d2u;
const ROW_8: u32 = 0x1f7eca9u; const ROW_9: u32 = 0x8fbf654u; const ROW_10: u32 = 0xc7ddb2au; const ROW_11: u32 = 0xe3ecd95u;
const ROW_12: u32 = 0xf1f66cau; const ROW_13: u32 = 0x79fb325u; const ROW_14: u32 = 0x5b31f9eu; const ROW_15: u32 = 0xac9af8fu;
const ROW_16: u32 = 0x564f7c7u; const ROW_17: u32 = 0xab27be3u; const ROW_18: u32 = 0xd593df1u; const ROW_19: u32 = 0x6acbef8u;
const ROW_20: u32 = 0xb467f3cu; const ROW_21: u32 = 0x66b70bfu; const ROW_22: u32 = 0xb35b85fu; const ROW_23: u32 = 0xd8adc6fu;
const ROW_24: u32 = 0x6d54e77u; const ROW_25: u32 = 0x37a877bu; const ROW_26: u32 = 0x9ad43fdu; const ROW_27: u32 = 0xcd6a1feu;
#endif
#endif
alias Chunks = array<f32, M>;

// Four terms have eight sums but for the sign, which all M rows share: a third of the additions.
fn mix(v: Chunks) -> Chunks {
    var sums: array<f32, 2u * M>;
#for g 0 OUTER_M
    {
        let a = v[4u * {g}u] + v[4u * {g}u + 1u];
        let b = v[4u * {g}u] - v[4u * {g}u + 1u];
        let c = v[4u * {g}u + 2u] + v[4u * {g}u + 3u];
        let d = v[4u * {g}u + 2u] - v[4u * {g}u + 3u];
        sums[8u * {g}u] = a + c;      // minus none
        sums[8u * {g}u + 1u] = a + d; // minus the last
        sums[8u * {g}u + 2u] = a - d;
        sums[8u * {g}u + 3u] = a - c;
        sums[8u * {g}u + 4u] = b + c;
        sums[8u * {g}u + 5u] = b + d;
        sums[8u * {g}u + 6u] = b - d;
        sums[8u * {g}u + 7u] = b - c;
    }
#endfor
    return Chunks(
#for i 0 M
        0.0
#for g 0 OUTER_M
        // The bits of four terms: those of the last three, all turned over where the first is minus, and its sign.
        + (1.0 - 2.0 * f32((ROW_{i} >> (M - 1u - 4u * {g}u)) & 1u))
            * sums[8u * {g}u + (((ROW_{i} >> (M - 4u - 4u * {g}u)) ^ (7u * ((ROW_{i} >> (M - 1u - 4u * {g}u)) & 1u))) & 7u)]
#endfor
        ,
#endfor
    );
}
#endif

#if EXTRA
fn random_bits(group: u32) -> vec4<u32> {
    let step = select(params.step, state.step, (params.flags & STEP_FROM_STATE) != 0u);
    return philox(vec2<u32>(params.seed_low, params.seed_high), vec4<u32>(group, params.op, step, 0u));
}

#if !OWNED
// Random bits for the columns of the tile, in the workgroup's memory before or after it holds data.
var<private> first_group: u32;

fn prepare_signs(tile_index: u32, thread: u32) {
    let groups = (params.cols + 127u) / 128u;
    first_group = ((at(tile_index, 0u, 0u) * 4u) % params.cols) / 128u;
    workgroupBarrier(); // the tile may still be read
    for (var slot = thread; slot < min(groups, SIGN_SLOTS); slot += WG_SIZE) {
        let bits = random_bits((first_group + slot) % groups);
#if COMPONENTS == 1
        tile[4u * slot] = bits.x;
        tile[4u * slot + 1u] = bits.y;
        tile[4u * slot + 2u] = bits.z;
        tile[4u * slot + 3u] = bits.w;
#endif
#if COMPONENTS == 2
        tile[2u * slot] = bits.xy;
        tile[2u * slot + 1u] = bits.zw;
#endif
#if COMPONENTS == 4
        tile[slot] = bits;
#endif
    }
    workgroupBarrier();
}

fn sign_word(column: u32) -> u32 {
    let groups = (params.cols + 127u) / 128u;
    let group = column / 128u;
    let slot = select(group + groups - first_group, group - first_group, group >= first_group);
    let word = (column / 32u) % 4u;
#if COMPONENTS == 1
    return tile[4u * slot + word];
#else
    return tile[(4u * slot + word) / COMPONENTS][word % COMPONENTS];
#endif
}
#else
// An invocation's elements are neighbours: it makes each group's bits once.
var<private> group_bits: vec4<u32>;
var<private> group_made: u32 = 0xffffffffu;

fn prepare_signs(tile_index: u32, thread: u32) {}

fn sign_word(column: u32) -> u32 {
    if column / 128u != group_made {
        group_made = column / 128u;
        group_bits = random_bits(group_made);
    }
    return group_bits[(column / 32u) % 4u];
}
#endif

#if RAGGED
// n < 4: a vec4 may reach into the next row.
struct Places { column: vec4<u32>, row: vec4<u32> }
fn places(i: u32) -> Places {
    let element = min(vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.len - 1u));
    let row = element / params.cols;
    return Places(element - row * params.cols, row);
}

fn kept(p: Places) -> vec4<bool> {
    let i = p.row * params.mask_words + p.column / 32u;
    return ((vec4<u32>(mask[i.x], mask[i.y], mask[i.z], mask[i.w]) >> (p.column % 32u)) & vec4<u32>(1u)) != vec4<u32>();
}

fn minus(p: Places) -> vec4<bool> {
    let words = vec4<u32>(sign_word(p.column.x), sign_word(p.column.y), sign_word(p.column.z), sign_word(p.column.w));
    return ((words >> (p.column % 32u)) & vec4<u32>(1u)) != vec4<u32>();
}
#else
// A vec4 is within a row, and its bits within a word.
struct Places { column: u32, row: u32 }
fn places(i: u32) -> Places {
    let first = 4u * min(i, params.vectors - 1u);
    let row = first / params.cols;
    return Places(first - row * params.cols, row);
}

fn kept(p: Places) -> vec4<bool> {
    let word = mask[p.row * params.mask_words + p.column / 32u] >> (p.column % 32u);
    return (vec4<u32>(word) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
}

fn minus(p: Places) -> vec4<bool> {
    let word = sign_word(p.column) >> (p.column % 32u);
    return (vec4<u32>(word) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
}
#endif

// What is transformed of vec4 i.
fn prepared(raw: vec4<f32>, i: u32) -> vec4<f32> {
    var value = raw;
    if (params.flags & MASK_FLAT) != 0u {
        let first = 4u * min(i, params.vectors - 1u);
        let word = mask[first / 32u] >> (first % 32u);
        value = select(vec4<f32>(), value, (vec4<u32>(word) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>());
    } else if (params.flags & MASKED) != 0u {
        value = select(vec4<f32>(), value, kept(places(i)));
    }
    if (params.flags & SIGNS_BEFORE) != 0u { value = select(value, -value, minus(places(i))); }
    return value;
}
#endif

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    var tile_index = wg.y * grid.x + wg.x;
    if tile_index >= params.tiles { return; }
    let thread = thread_of(inv);
    let first_hole = step_of(0u) & 255u;
    let last_hole = step_of(passes()) & 255u;
    let first_local = deposit(thread, first_hole);
    let last_local = deposit(thread, last_hole);
    var raw: array<vec4<X>, REGISTERS>;
#for a 0 OUTER
#for b 0 ITEMS
    raw[{a}u * ITEMS + {b}u] = load(at(tile_index, first_local | ({b}u << first_hole), {a}u));
#endfor
#endfor
#if PREFETCH
    loop {
#endif
    var v: array<vec4<f32>, REGISTERS>;
#for r 0 REGS
    v[{r}u] = vec4<f32>(raw[{r}u]);
#endfor
#if EXTRA
#if !IN_PLACE
    var term = 1u;
#if REGS < 5
    // Four terms at a time keep more loads in flight.
    for (; term + 4u <= params.terms; term += 4u) {
#for t 0 4
#for b 0 REGS
        let term{t}_{b} = load_term(at(tile_index, first_local | (({b}u % ITEMS) << first_hole), {b}u / ITEMS), term + {t}u);
#endfor
#endfor
#for b 0 REGS
        v[{b}u] += (term0_{b} + term1_{b}) + (term2_{b} + term3_{b});
#endfor
    }
#endif
    for (; term < params.terms; term++) {
#for b 0 REGS
        v[{b}u] += load_term(at(tile_index, first_local | (({b}u % ITEMS) << first_hole), {b}u / ITEMS), term);
#endfor
    }
#endif
    if (params.flags & SIGNS_BEFORE) != 0u { prepare_signs(tile_index, thread); }
    if (params.flags & (MASKED | SIGNS_BEFORE)) != 0u {
#for a 0 OUTER
#for b 0 ITEMS
        v[{a}u * ITEMS + {b}u] = prepared(v[{a}u * ITEMS + {b}u], at(tile_index, first_local | ({b}u << first_hole), {a}u));
#endfor
#endfor
    }
#endif
    if within() >= 1u {
#for r 0 REGS
        v[{r}u] = vec4<f32>(v[{r}u].x + v[{r}u].y, v[{r}u].x - v[{r}u].y, v[{r}u].z + v[{r}u].w, v[{r}u].z - v[{r}u].w);
#endfor
    }
    if within() >= 2u {
#for r 0 REGS
        v[{r}u] = vec4<f32>(v[{r}u].xy + v[{r}u].zw, v[{r}u].xy - v[{r}u].zw);
#endfor
    }
#for bit 0 SHUFFLES
    {
        let own = vec4<f32>(select(1.0, -1.0, ((thread >> {bit}u) & 1u) != 0u));
#for r 0 REGS
        v[{r}u] = fma(own, v[{r}u], shuffle_xor(v[{r}u], 1u << {bit}u));
#endfor
    }
#endfor
#if PREFETCH
    // A part of the next tile is on its way while this one is transformed.
    let next_tile = tile_index + grid.x * grid.y;
#for r 0 AHEAD
    raw[{r}u] = load(at(next_tile, first_local | (({r}u % ITEMS) << first_hole), {r}u / ITEMS));
#endfor
#endif
#if M
#if K == 0
    {
        let y = mix(Chunks(
#for j 0 M
            v[{j}u / 4u][{j}u % 4u],
#endfor
        ));
#for j 0 M
        v[{j}u / 4u][{j}u % 4u] = y[{j}u];
#endfor
    }
#else
#if K == 1
#for c 0 2
    {
        let y = mix(Chunks(
#for j 0 M
            v[{j}u / 2u][{j}u % 2u * 2u + {c}u],
#endfor
        ));
#for j 0 M
        v[{j}u / 2u][{j}u % 2u * 2u + {c}u] = y[{j}u];
#endfor
    }
#endfor
#else
    // One component after the other, each moved to the front.
    for (var component = 0u; component < 4u; component++) {
        let y = mix(Chunks(
#for j 0 M
            v[{j}u].x,
#endfor
        ));
#for j 0 M
        v[{j}u] = vec4<f32>(v[{j}u].yzw, y[{j}u]);
#endfor
    }
#endif
#endif
#else
#for i 0 LOG_OUTER
#for h 0 HALF_REGS
    {
        const low = (({h}u / (ITEMS << {i}u)) * (ITEMS << ({i}u + 1u))) + {h}u % (ITEMS << {i}u);
        const high = low + (ITEMS << {i}u);
        let difference = v[low] - v[high];
        v[low] += v[high];
        v[high] = difference;
    }
#endfor
#endfor
#endif
#for a 0 OUTER
#if COMPONENTS == 4
    {
#if EXCHANGE
        if (EXTRA || PREFETCH || {a}u > 0u) && passes() > 0u { workgroupBarrier(); } // the tile may still be read
#endif
        let s = transform(Group(
#for b 0 ITEMS
            v[{a}u * ITEMS + {b}u],
#endfor
        ), thread);
#for b 0 ITEMS
        v[{a}u * ITEMS + {b}u] = s[{b}u];
#endfor
    }
#else
    for (var component = 0u; component < 4u; component += COMPONENTS) {
        if passes() > 0u { workgroupBarrier(); } // the tile may still be read
        let s = transform(Group(
#for b 0 ITEMS
#if COMPONENTS == 1
            v[{a}u * ITEMS + {b}u].x,
#else
            v[{a}u * ITEMS + {b}u].xy,
#endif
#endfor
        ), thread);
#for b 0 ITEMS
#if COMPONENTS == 1
        v[{a}u * ITEMS + {b}u] = vec4<f32>(v[{a}u * ITEMS + {b}u].yzw, s[{b}u]);
#else
        v[{a}u * ITEMS + {b}u] = vec4<f32>(v[{a}u * ITEMS + {b}u].zw, s[{b}u]);
#endif
#endfor
    }
#endif
#endfor
#if EXTRA
    if (params.flags & SIGNS_AFTER) != 0u { prepare_signs(tile_index, thread); }
#endif
#for a 0 OUTER
#for b 0 ITEMS
    {
        let i = at(tile_index, last_local | ({b}u << last_hole), {a}u);
        var value = v[{a}u * ITEMS + {b}u] * params.scale;
        if i < params.vectors {
#if EXTRA
            if (params.flags & SIGNS_AFTER) != 0u { value = select(value, -value, minus(places(i))); }
#if GELU_GRAD
            let at_pre = vec4<f32>(pre[i]);
            value *= vec4<f32>(activate_grad(at_pre.x), activate_grad(at_pre.y), activate_grad(at_pre.z), activate_grad(at_pre.w));
#endif
            if (params.flags & ACCUMULATE) != 0u { value += vec4<f32>(out[i]); }
#endif
#if OWNED
            // Of blocks of one or two the last vec4 may reach beyond the end, where gradients' padding must stay zero.
            value = select(vec4<f32>(), value, vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.len));
#endif
            out[i] = vec4<Out>(value);
        }
#if PREFETCH
        const r = {a}u * ITEMS + {b}u;
        if r >= AHEAD { raw[r] = load(at(next_tile, first_local | ({b}u << first_hole), {a}u)); }
#endif
    }
#endfor
#endfor
#if PREFETCH
    tile_index = next_tile;
    if tile_index >= params.tiles { break; }
    }
#endif
}
