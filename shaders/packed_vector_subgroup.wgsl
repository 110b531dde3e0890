// packed_vector_subgroup.wgsl: packed_vector.wgsl for one row of a on GPUs with subgroups. What that says of decoding holds here.
//
// A workgroup owns params.span neighbouring columns. An invocation keeps one unit of 32 elements of a in registers: a subgroup's are a slice of
// K, `width` subgroups next to each other have the slices, and as many teams of them as there are go through the columns, COLS at a time. So
// nothing but codes and scales is loaded per column, and a is read once for many (from workgroup memory, columns sharing a load, it took longer
// than decoding). The sums of COLS columns are exchanged between invocations so that each ends with one of them, and are kept in workgroup
// memory by slice, until all are added in the slices' order. Where K has more slices than there are subgroups, all this is done again.
// Table entries are handed out by the invocations that hold them. AHEAD: codes are loaded before those of the columns before are multiplied.
//
// STORE: how scales are stored, 5 where that is told at run time. LOOSE is for GPUs that are known to keep subnormal halves and to take an
// invocation's number modulo the subgroup's size, which is 32: two masked codes are two subnormal halves, which become floats by a conversion each.
// HALVED 1, integers of 4 bits: u 2^-24, or u 2^-20 where they stand four bits higher; the zero times the sum of the activations is subtracted
// from the sum. HALVED 2, E2M1: its three bits of magnitude are a half's lowest exponent bits and highest mantissa bit, so level 2^-14; every
// second code is looked up all the same, which halves the load on either unit. Tables: codes need no mask to be an invocation's number.
//
// Bounds: n is at least COLS and there is a unit; the last columns are done in a block that overlaps the one before, of which what is new is
// kept; units beyond the end repeat the last one and count nothing. Tier: subgroup (of at least 16 invocations, of one size).
#import packed_level P=B p=b
#import packed_decode
#import packed_store
#import packed_epilogue

struct Params {
    b: PackedInfo,
    m: u32, n: u32,
    units: u32,          // of 32 elements in a row
    ld: u32, team: u32,
    bias: u32,           // 1: add the bias
    activation: u32, accumulate: u32,
    alpha: f32,
    span: u32,           // columns of a workgroup; with one for each slice that it has at a time, at most 2048
    pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<InA>>;
@group(0) @binding(2) var<storage, read> b_codes: array<Pack>;
@group(0) @binding(3) var<storage, read> b_side: array<u32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<Out>;
#if EPILOGUE == 1
@group(0) @binding(6) var<storage, read_write> pre: array<Out>;
#endif
#if EPILOGUE == 3
@group(0) @binding(6) var<storage, read> residual: array<f32>;
#endif

// Units of a on their way to registers, STAGE of them. A unit's eight vec4 are rotated by its number, so that eight neighbours read from
// different banks. WHOLE: all that the subgroups have at a time are there at once, which a driver makes faster code of where shuffles decode.
var<workgroup> stage: array<vec4<f32>, STAGE * 8u>;
var<workgroup> parts: array<f32, 2048>;   // [slice of those at a time][column]

fn plain(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

// Products with levels, summed while they are too large or too small: WEIGHT on activations makes them alike, FACTOR is what remains.
#if WIDE
alias Sum = vec4<f32>;
fn add(v: vec4<f32>, level: vec4<f32>, sum: Sum) -> Sum { return fma(v, level, sum); }
fn total(sum: Sum) -> f32 { return plain(sum * OVER); }
#else
alias Sum = vec2<f32>;
fn add(v: vec4<f32>, level: vec4<f32>, sum: Sum) -> Sum { return fma(v.zw, level.zw, fma(v.xy, level.xy, sum)); }
fn total(sum: Sum) -> f32 { return (sum.x + sum.y) * FACTOR; }
#endif
#if HALVED == 1
const WEIGHT = vec4<f32>(1.0, 0.0625, 1.0, 0.0625);
const FACTOR = 16777216.0;
#else
const WEIGHT = vec4<f32>(1.0);
#if HALVED == 2
const FACTOR = 16384.0;
#else
const FACTOR = 1.0;
#endif
#endif

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) size: u32,
) {
    let begin = (wg.y * grid.x + wg.x) * params.span;
    if begin >= params.n { return; } // uniform per workgroup
    let index = subgroup * size + lane;
#if DECODE == 2
    let entry = bitcast<f32>(b_side[16u + lane % 16u]) / FACTOR;
#endif
#if MIDDLES
    // A grid without a zero has halves: the integer above, and what that is too much.
    let zero = ceil(params.b.zero);
    let extra = zero - params.b.zero;
    let minus = fma(vec4<f32>(zero), TIMES, vec4<f32>(MAGIC));
#endif
    let slices = (params.units + size - 1u) / size;
#if WHOLE
    let most = min(subgroups, STAGE / size);
    let chunks = (slices + most - 1u) / most;
    let width = (slices + chunks - 1u) / chunks;
#else
    let width = clamp(slices, 1u, subgroups);
#endif
    let teams = subgroups / width;
    let team = subgroup / width;
    let end = min(begin + params.span, params.n);
    let last = params.n - COLS;
    for (var chunk = 0u; chunk < slices; chunk += width) {
        let place = subgroup % width;
        let slice = chunk + place;
        let valid = slice * size + lane < params.units;
        let unit = min(slice * size + lane, params.units - 1u);
        let group0 = (unit * 32u) >> params.b.group_shift;
#if HALVES
        let group1 = min(group0 + 1u, params.b.groups - 1u);
#endif
        // Teams are whole: subgroups that are left over have nothing to do.
        var col = select(end, begin + team * COLS, team < teams);
#for r 0 COLS
#if AHEAD
#for i 0 PACKS
        var pack{r}_{i} = b_codes[((min(col, last) + {r}u) * params.units + unit) * PACKS + {i}u];
#endfor
#for h 0 HALF_SUMS
        var word{r}_{h} = word_of(min(col, last) + {r}u, group{h});
#if B_GRID == 1
        var point{r}_{h} = b_zero_word(min(col, last) + {r}u, group{h});
#endif
#endfor
#endif
#endfor
#if WHOLE
        let base = chunk * size;
        let count = min(width * size, params.units - base) * 8u;
        workgroupBarrier();
        // The second condition adds nothing to the first, but for a driver that then leaves the loop as it is: unrolled, it has NF4 with inputs in
        // f16 at 2960 GB/s of codes instead of 3045 (H200, 65536 x 4096).
        var i = index;
        loop {
            if i >= count { break; }
            let u = i / 8u;
            stage[u * 8u + ((i + u) & 7u)] = vec4<f32>(a[base * 8u + i]);
            i += LANES;
            if i >= params.units * 8u { break; }
        }
        workgroupBarrier();
        let u = unit - base;
#for h 0 2
#for i 0 2
#for e 0 2
        let x{h}_{i}_{e} = select(vec4<f32>(), stage[u * 8u + (({h}u * 4u + {i}u * 2u + {e}u + u) & 7u)], valid);
#endfor
#endfor
#endfor
#else
#for h 0 2
#for i 0 2
#for e 0 2
        var x{h}_{i}_{e} = vec4<f32>();
#endfor
#endfor
#endfor
        for (var base = chunk * size; base < min((chunk + width) * size, params.units); base += STAGE) {
            workgroupBarrier();
            let count = min(STAGE, params.units - base) * 8u;
            for (var i = index; i < count; i += LANES) {
                let u = i / 8u;
                stage[u * 8u + ((i + u) & 7u)] = vec4<f32>(a[base * 8u + i]);
            }
            workgroupBarrier();
            let u = slice * size + lane - base;
            if valid && u < STAGE {
#for h 0 2
#for i 0 2
#for e 0 2
                x{h}_{i}_{e} = stage[u * 8u + (({h}u * 4u + {i}u * 2u + {e}u + u) & 7u)];
#endfor
#endfor
#endfor
            }
        }
#endif
#if SUM
#if HALVES
        let all0 = plain((x0_0_0 + x0_0_1) + (x0_1_0 + x0_1_1));
        let all1 = plain((x1_0_0 + x1_0_1) + (x1_1_0 + x1_1_1));
#else
        let all0 = plain(((x0_0_0 + x0_0_1) + (x0_1_0 + x0_1_1)) + ((x1_0_0 + x1_0_1) + (x1_1_0 + x1_1_1)));
#endif
#endif
#for h 0 2
#for i 0 2
#for e 0 2
        let v{h}_{i}_{e} = x{h}_{i}_{e} * WEIGHT;
#endfor
#endfor
#endfor
        while col < end {
            let first = min(col, last);
            let next = min(col + teams * COLS, last);
#for r 0 COLS
#for i 0 PACKS
#if AHEAD
            let now{r}_{i} = pack{r}_{i};
            pack{r}_{i} = b_codes[((next + {r}u) * params.units + unit) * PACKS + {i}u];
#else
            let now{r}_{i} = b_codes[((first + {r}u) * params.units + unit) * PACKS + {i}u];
#endif
#endfor
#for h 0 HALF_SUMS
#if AHEAD
            let side{r}_{h} = word{r}_{h};
            word{r}_{h} = word_of(next + {r}u, group{h});
#if B_GRID == 1
            let zero{r}_{h} = b_zero_in(point{r}_{h}, group{h});
            point{r}_{h} = b_zero_word(next + {r}u, group{h});
#endif
#else
            let side{r}_{h} = word_of(first + {r}u, group{h});
#if B_GRID == 1
            let zero{r}_{h} = b_zero(first + {r}u, group{h});
#endif
#endif
#endfor
#endfor
#for h 0 HALF_SUMS
            var sums{h}: array<f32, COLS>;
#endfor
#for r 0 COLS
            {
#if B_GRID == 1
#if HALVED == 0
                let minus0 = fma(vec4<f32>(zero{r}_0), TIMES, vec4<f32>(MAGIC));
#if HALVES
                let minus1 = fma(vec4<f32>(zero{r}_1), TIMES, vec4<f32>(MAGIC));
#else
                let minus1 = minus0;
#endif
#endif
#else
#if DECODE == 1
                let minus0 = minus;
                let minus1 = minus;
#endif
#endif
                var sum = Sum();
#for h 0 2
#for i 0 2
                {
                    // Eight levels.
#if B_BITS == 4
                    let w = now{r}_0[{h}u * 2u + {i}u];
#if HALVED == 0
#if DECODE == 1
                    let low = magic_levels(w, minus{h});
                    let high = magic_levels(w >> 16u, minus{h});
#else
                    let shifts = vec4<u32>(0u, 4u, 8u, 12u);
#if LOOSE
                    let c = vec4<u32>(w) >> shifts;
                    let d = vec4<u32>(w) >> (shifts + 16u);
#else
                    let c = (vec4<u32>(w) >> shifts) & vec4<u32>(15u);
                    let d = (vec4<u32>(w) >> (shifts + 16u)) & vec4<u32>(15u);
#endif
                    let low = vec4<f32>(subgroupShuffle(entry, c.x), subgroupShuffle(entry, c.y), subgroupShuffle(entry, c.z), subgroupShuffle(entry, c.w));
                    let high = vec4<f32>(subgroupShuffle(entry, d.x), subgroupShuffle(entry, d.y), subgroupShuffle(entry, d.z), subgroupShuffle(entry, d.w));
#endif
#endif
#if HALVED == 1
                    let p0 = unpack2x16float(w & 0x000f000fu);
                    let p1 = unpack2x16float(w & 0x00f000f0u);
                    let p2 = unpack2x16float((w >> 8u) & 0x000f000fu);
                    let p3 = unpack2x16float((w >> 8u) & 0x00f000f0u);
                    let low = vec4<f32>(p0.x, p1.x, p2.x, p3.x);
                    let high = vec4<f32>(p0.y, p1.y, p2.y, p3.y);
#endif
#if HALVED == 2
                    let odd = (w & 0x80808080u) | ((w >> 3u) & 0x0e0e0e0eu);
                    let p1 = unpack2x16float((odd << 8u) & 0xff00ff00u);
                    let p3 = unpack2x16float(odd & 0xff00ff00u);
                    let low = vec4<f32>(subgroupShuffle(entry, w), p1.x, subgroupShuffle(entry, w >> 8u), p3.x);
                    let high = vec4<f32>(subgroupShuffle(entry, w >> 16u), p1.y, subgroupShuffle(entry, w >> 24u), p3.y);
#endif
#endif
#if B_BITS == 8
                    let low = magic_levels(now{r}_{h}[{i}u * 2u], minus{h});
                    let high = magic_levels(now{r}_{h}[{i}u * 2u + 1u], minus{h});
#endif
#if B_BITS == 2
                    let low = magic_levels(now{r}_0[{h}u] >> ({i}u * 16u), minus{h});
                    let high = magic_levels(now{r}_0[{h}u] >> ({i}u * 16u + 8u), minus{h});
#endif
#if B_BITS == 1
                    let low = magic_levels(now{r}_0 >> ({h}u * 16u + {i}u * 8u), minus{h});
                    let high = magic_levels(now{r}_0 >> ({h}u * 16u + {i}u * 8u + 4u), minus{h});
#endif
                    sum = add(v{h}_{i}_1, high, add(v{h}_{i}_0, low, sum));
                }
#endfor
#if HALVES
                let value{h} = total(sum);
                sum = Sum();
#endif
#endfor
#if !HALVES
                let value0 = total(sum);
#endif
#for h 0 HALF_SUMS
                // What all levels are too much, times the activations.
#if HALVED == 1
#if B_GRID == 1
                sums{h}[{r}] = fma(-zero{r}_{h}, all{h}, value{h});
#else
                sums{h}[{r}] = fma(-params.b.zero, all{h}, value{h});
#endif
#else
#if MIDDLES
                sums{h}[{r}] = fma(extra, all{h}, value{h});
#else
                sums{h}[{r}] = value{h};
#endif
#endif
#endfor
#if STORE != 5
                sums0[{r}] *= scale_of(raw_in(side{r}_0, group0), first + {r}u, group0);
#endif
            }
#endfor
#if STORE == 5
            // One branch for all: between branches loads would wait for each other.
            switch params.b.store {
#for t 0 5
                case {t}u: {
#for r 0 COLS
#for h 0 HALF_SUMS
                    sums{h}[{r}] *= b_scale_{t}(raw_in(side{r}_{h}, group{h}), first + {r}u, group{h});
#endfor
#endfor
                }
#endfor
                default: {}
            }
#endif
#if HALVES
#for r 0 COLS
            sums0[{r}] += sums1[{r}];
#endfor
#endif
            // Of two columns an invocation keeps one and hands the other to its neighbour, until it has one of COLS.
            let odd0 = (lane & 1u) != 0u;
            let odd1 = (lane & 2u) != 0u;
#for r 0 HALF_COLS
            let pair{r} = select(sums0[{r} * 2], sums0[{r} * 2 + 1], odd0) + subgroupShuffleXor(select(sums0[{r} * 2 + 1], sums0[{r} * 2], odd0), 1u);
#endfor
            var v = select(pair0, pair1, odd1) + subgroupShuffleXor(select(pair1, pair0, odd1), 2u);
#if COLS == 8
            let odd2 = (lane & 4u) != 0u;
            let other = select(pair2, pair3, odd1) + subgroupShuffleXor(select(pair3, pair2, odd1), 2u);
            v = select(v, other, odd2) + subgroupShuffleXor(select(other, v, odd2), 4u);
#endif
#if LOOSE
#if COLS == 4
            v += subgroupShuffleXor(v, 4u);
#endif
            v += subgroupShuffleXor(v, 8u);
            v += subgroupShuffleXor(v, 16u);
#else
            for (var d = COLS; d < size; d *= 2u) { v += subgroupShuffleXor(v, d); }
#endif
            let c = first + lane;
            if lane < COLS && c >= col {
                let at = place * params.span + c - begin;
                if chunk != 0u { v += parts[at]; }
                parts[at] = v;
            }
            col += teams * COLS;
        }
    }
    workgroupBarrier();
    for (var c = begin + index; c < end; c += LANES) {
        var v = 0.0;
        for (var k = 0u; k < min(width, slices); k++) { v += parts[k * params.span + c - begin]; }
        finish(0u, c, v);
    }
}
