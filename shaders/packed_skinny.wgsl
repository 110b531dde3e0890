// packed_skinny.wgsl: out[m, n] = sum_k a[m, k] b[n, k] for up to 64 rows of f16 `a` and a quantized b, by 16 x 16 x 16 cooperative matrices
// with f32 accumulation. Tier: coop (subgroups of exactly 32 invocations).
//
// A workgroup of eight subgroups owns 16 BLOCKS columns and up to 16 BLOCKS rows. Its subgroups are BLOCKS times PARTS (8 / BLOCKS): each has
// 16 of the columns, and every PARTS-th slice of 64 of K, so that a GPU is full although there are few columns. Of a slice an invocation
// decodes a unit of one column into its subgroup's slab of workgroup memory, and brings 32 elements of a into the slab that the subgroups with
// the same slice share; the loads of AHEAD slices are on their way. At the end the parts are added in their order.
// Workgroup memory is what bounds this: no two invocations of those that write together write to one bank, and loads go 32 bytes along a row.
//
// Weights are rounded to f16: levels times the group's scale times the matrix's norm, whose reciprocal is in the epilogue; or, where a row
// has one scale (params.by_row), levels alone (integers are exact), and that scale is in the epilogue. Decoding as in packed_vector.wgsl;
// FLOAT: E2M1, whose codes become halves of words, level 2^-14, without a table.
//
// Bounds: K is at least 1 and filled up to whole units with zeros in `a`; rows and columns beyond the end repeat the last one and are not
// stored; slices beyond the end repeat the last one with weights of zero.
#enable wgpu_cooperative_matrix
#if DECODE == 0
#import packed P=B p=b
#else
#import packed_level P=B p=b
#import packed_decode
#endif
#import packed_store
#import packed_epilogue

struct Params {
    b: PackedInfo,
    m: u32, n: u32,
    units: u32,          // of 32 elements in a row
    ld: u32,             // elements from one row of a to the next
    by_row: u32,
    bias: u32,           // 1: add the bias
    activation: u32, accumulate: u32,
    alpha: f32,
    pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f16>>;
#if DECODE == 0
@group(0) @binding(2) var<storage, read> b_codes: array<u32>;
#else
@group(0) @binding(2) var<storage, read> b_codes: array<Pack>;
#endif
@group(0) @binding(3) var<storage, read> b_side: array<u32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<Out>;
#if EPILOGUE == 1
@group(0) @binding(6) var<storage, read_write> pre: array<Out>;
#endif
#if EPILOGUE == 3
@group(0) @binding(6) var<storage, read> residual: array<f32>;
#endif

const PARTS: u32 = 8u / BLOCKS;
// A slab's row, in vec4: padded by 16 bytes, so that 8 rows fall on different banks.
const STRIDE: u32 = 18u;
const SLAB: u32 = 16u * STRIDE;

var<workgroup> slab_b: array<vec4<f16>, 8u * SLAB>;
var<workgroup> slab_a: array<vec4<f16>, 8u * SLAB>;   // [part][row]
var<workgroup> sums: array<f32, 2048>;
#if DECODE == 2
#if !FLOAT
var<workgroup> table: array<f32, 16>;
#endif
#endif

// What memory holds of a slice: of b a unit of one column, of a sixteen vec4 of eight rows.
struct Slice {
    unit: u32,
    valid: bool,
#if DECODE != 0
    pack: array<Pack, PACKS>,
#endif
#if B_GRID != 5
    word: array<u32, HALF_SUMS>,
#endif
#if B_GRID == 1
    zeros: array<u32, HALF_SUMS>,
#endif
    x: array<vec4<f16>, 8>,
}
struct Place {
    row: u32,    // of b
    odd: u32,    // which of the two units
    a_row: u32,  // the first of every second row
    a_col: u32,
}
fn groups_of(unit: u32) -> vec2<u32> {
    let first = (unit * 32u) >> params.b.group_shift;
    return vec2<u32>(first, min(first + 1u, params.b.groups - 1u));
}
fn fetch(pair: u32, at: Place) -> Slice {
    var s: Slice;
    let unit = pair * 2u + at.odd;
    s.valid = unit < params.units;
    s.unit = min(unit, params.units - 1u);
#if DECODE != 0
#for i 0 PACKS
    s.pack[{i}] = b_codes[(at.row * params.units + s.unit) * PACKS + {i}u];
#endfor
#endif
    let groups = groups_of(s.unit);
#for h 0 HALF_SUMS
#if B_GRID != 5
    s.word[{h}] = word_of(at.row, groups[{h}]);
#endif
#if B_GRID == 1
    s.zeros[{h}] = b_zero_word(at.row, groups[{h}]);
#endif
#endfor
    let col = min(pair * 16u + at.a_col, params.ld / 4u - 1u);
#for i 0 8
    s.x[{i}] = a[min(at.a_row + {i}u * 2u, params.m - 1u) * (params.ld / 4u) + col];
#endfor
    return s;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first = (wg.y * grid.x + wg.x) * (16u * BLOCKS);
    if first >= params.n { return; } // uniform per workgroup
    let subgroup = index / 32u;
    let lane = index % 32u;
    let block = subgroup % BLOCKS;
    let part = subgroup / BLOCKS;
    let place = Place(min(first + block * 16u + lane / 2u, params.n - 1u), lane % 2u, block * 16u + lane / 16u, lane % 16u);
    // Within a slice quads of the two units take turns, so that neighbours write to different banks.
    let at_b = subgroup * SLAB;
    let to_b = at_b + lane / 2u * STRIDE + place.odd;
    let at_a = part * BLOCKS * SLAB;
    let to_a = at_a + place.a_row * STRIDE + place.a_col % 8u * 2u + place.a_col / 8u;
#if DECODE == 2
#if !FLOAT
    if index < 16u { table[index] = bitcast<f32>(b_side[16u + index]); }
    workgroupBarrier();
#endif
#endif
#if MIDDLES
    let zero = ceil(params.b.zero);
    let extra = zero - params.b.zero;
    let minus = fma(vec4<f32>(zero), TIMES, vec4<f32>(MAGIC));
#endif
    let norm = bitcast<f32>(b_side[1]);
#for i 0 BLOCKS
    var c{i} = coop_mat16x16<f32, C>();
#endfor
    let pairs = (params.units + 1u) / 2u;
#for s 0 AHEAD
    var slice{s} = fetch({s}u * PARTS + part, place);
#endfor
    for (var round = 0u; round < pairs; round += AHEAD * PARTS) {
#for s 0 AHEAD
        {
            let now = slice{s};
            let groups = groups_of(now.unit);
#for h 0 HALF_SUMS
#if B_GRID == 5
            let factor{h} = select(vec2<f32>(), b_scale(place.row, groups[{h}]) * norm, now.valid);
#else
            let raw{h} = raw_in(now.word[{h}], groups[{h}]);
#if STORE == 5
            var scale{h} = 1.0;
            if params.by_row == 0u { scale{h} = b_meant(raw{h}, place.row, groups[{h}]) * norm; }
#else
            let scale{h} = scale_of(raw{h}, place.row, groups[{h}]) * norm;
#endif
            let factor{h} = select(0.0, scale{h}, now.valid);
#endif
#if B_GRID == 1
            let zero{h} = b_zero_in(now.zeros[{h}], groups[{h}]);
#else
#if !MIDDLES
            let zero{h} = params.b.zero;
#endif
#endif
#if DECODE == 1
#if B_GRID == 1
            let minus{h} = fma(vec4<f32>(zero{h}), TIMES, vec4<f32>(MAGIC));
            let shift{h} = vec4<f32>();
#else
            let minus{h} = minus;
            let shift{h} = vec4<f32>(extra * factor{h});
#endif
            let by{h} = OVER * factor{h};
#endif
#endfor
#if HALF_SUMS == 1
            let factor1 = factor0;
#if DECODE == 1
            let minus1 = minus0;
            let shift1 = shift0;
            let by1 = by0;
#endif
#if DECODE == 0
            let zero1 = zero0;
#endif
#endif
#for h 0 2
#for i 0 2
            {
#if DECODE == 0
                let word = place.row * params.b.row_words + now.unit * B_BITS;
                let low = b_scaled4(b_level4(b_codes4(word, {h}u * 4u + {i}u * 2u), zero{h}), factor{h});
                let high = b_scaled4(b_level4(b_codes4(word, {h}u * 4u + {i}u * 2u + 1u), zero{h}), factor{h});
#endif
#if DECODE == 1
#if B_BITS == 8
                let low = fma(magic_levels(now.pack[{h}][{i}u * 2u], minus{h}), by{h}, shift{h});
                let high = fma(magic_levels(now.pack[{h}][{i}u * 2u + 1u], minus{h}), by{h}, shift{h});
#endif
#if B_BITS == 4
                let low = fma(magic_levels(now.pack[0][{h}u * 2u + {i}u], minus{h}), by{h}, shift{h});
                let high = fma(magic_levels(now.pack[0][{h}u * 2u + {i}u] >> 16u, minus{h}), by{h}, shift{h});
#endif
#if B_BITS == 2
                let low = fma(magic_levels(now.pack[0][{h}u] >> ({i}u * 16u), minus{h}), by{h}, shift{h});
                let high = fma(magic_levels(now.pack[0][{h}u] >> ({i}u * 16u + 8u), minus{h}), by{h}, shift{h});
#endif
#if B_BITS == 1
                let low = fma(magic_levels(now.pack[0] >> ({h}u * 16u + {i}u * 8u), minus{h}), by{h}, shift{h});
                let high = fma(magic_levels(now.pack[0] >> ({h}u * 16u + {i}u * 8u + 4u), minus{h}), by{h}, shift{h});
#endif
#endif
#if DECODE == 2
                let w = now.pack[0][{h}u * 2u + {i}u];
#if FLOAT
                let even = ((w << 4u) & 0x80808080u) | ((w << 1u) & 0x0e0e0e0eu);
                let odd = (w & 0x80808080u) | ((w >> 3u) & 0x0e0e0e0eu);
                let p0 = unpack2x16float((even << 8u) & 0xff00ff00u);
                let p1 = unpack2x16float((odd << 8u) & 0xff00ff00u);
                let p2 = unpack2x16float(even & 0xff00ff00u);
                let p3 = unpack2x16float(odd & 0xff00ff00u);
                let low = vec4<f32>(p0.x, p1.x, p2.x, p3.x) * (factor{h} * 16384.0);
                let high = vec4<f32>(p0.y, p1.y, p2.y, p3.y) * (factor{h} * 16384.0);
#else
                let c = (vec4<u32>(w) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
                let d = (vec4<u32>(w) >> vec4<u32>(16u, 20u, 24u, 28u)) & vec4<u32>(15u);
                let low = vec4<f32>(table[c.x], table[c.y], table[c.z], table[c.w]) * factor{h};
                let high = vec4<f32>(table[d.x], table[d.y], table[d.z], table[d.w]) * factor{h};
#endif
#endif
                slab_b[to_b + {h}u * 8u + {i}u * 4u] = vec4<f16>(low);
                slab_b[to_b + {h}u * 8u + {i}u * 4u + 2u] = vec4<f16>(high);
            }
#endfor
#endfor
#for i 0 8
            slab_a[to_a + {i}u * 2u * STRIDE] = now.x[{i}];
#endfor
            // The next of these registers; there is no load where all of it would be beyond the end.
            slice{s}.valid = false;
            if round + ({s}u + AHEAD) * PARTS < pairs { slice{s} = fetch(round + ({s}u + AHEAD) * PARTS + part, place); }
            workgroupBarrier();
#for d 0 4
            {
                let y = coopLoad<coop_mat16x16<f16, B>>(&slab_b[at_b + {d}u * 4u], STRIDE);
#for i 0 BLOCKS
                let x{i} = coopLoadT<coop_mat16x16<f16, A>>(&slab_a[at_a + {i}u * SLAB + {d}u * 4u], STRIDE);
                c{i} = coopMultiplyAdd(x{i}, y, c{i});
#endfor
            }
#endfor
            workgroupBarrier();
        }
#endfor
    }
    let own = subgroup * 256u;
#for i 0 BLOCKS
    {
        let d = c{i};
        let o = own;
        coopStoreT(d, &sums[o], 16u);
    }
    workgroupBarrier();
    // Of BLOCKS blocks of 16 rows and 16 columns each.
    for (var e = index; e < 256u * BLOCKS; e += 256u) {
        let columns = e / 256u;
        var v = 0.0;
        for (var p = 0u; p < PARTS; p++) { v += sums[(p * BLOCKS + columns) * 256u + e % 256u]; }
        let at_m = {i}u * 16u + e % 256u / 16u;
        let at_n = first + columns * 16u + e % 16u;
        if at_m < params.m && at_n < params.n {
#if B_GRID == 5
            let factor = bitcast<f32>(b_side[2]);
#else
            var factor = bitcast<f32>(b_side[2]);
            if params.by_row != 0u { factor = b_scale(at_n, 0u); }
#endif
            finish(at_m, at_n, v * factor);
        }
    }
    workgroupBarrier();
#endfor
}
