// packed_skinny.wgsl: out[m, n] = sum_k a[m, k] b[n, k] for up to 64 rows of f16 `a` and a quantized b, by 16 x 16 x 16 cooperative matrices
// with f32 accumulation. Tier: coop (subgroups of exactly 32 invocations).
//
// A workgroup of eight subgroups owns 16 BLOCKS columns and up to 16 BLOCKS rows. Its subgroups are BLOCKS times PARTS (8 / BLOCKS): each has
// 16 of the columns, and every PARTS-th slice of 32 of K, so that a GPU is full although there are few columns. Of a slice an invocation
// decodes half a unit of one column into its subgroup's slab of workgroup memory, and brings 16 elements of a into the slab that the
// subgroups with the same slice share; the loads of AHEAD slices are on their way together. At the end the parts are added in their order.
//
// Weights are rounded to f16: levels times the group's scale times the matrix's norm, whose reciprocal is in the epilogue; or, where a row
// has one scale (params.by_row), levels alone (integers are exact), and that scale is in the epilogue. Decoding as in packed_vector.wgsl.
//
// Bounds: K is filled up to whole units with zeros in `a`; rows and columns beyond the end repeat the last one and are not stored; slices
// beyond the end repeat the last one with weights of zero.
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
@group(0) @binding(2) var<storage, read> b_codes: array<HalfPack>;
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
const STRIDE: u32 = 10u;
const SLAB: u32 = 16u * STRIDE;

var<workgroup> slab_b: array<vec4<f16>, 8u * SLAB>;
var<workgroup> slab_a: array<vec4<f16>, 8u * SLAB>;   // [part][row]
var<workgroup> sums: array<f32, 2048>;
#if DECODE == 2
var<workgroup> table: array<f32, 16>;
#endif

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
    // The column and the half of a unit that this invocation decodes.
    let half = lane % 2u;
    let row = min(first + block * 16u + lane / 2u, params.n - 1u);
    let to_b = subgroup * SLAB + lane / 2u * STRIDE + half * 4u;
    let at_b = subgroup * SLAB;
    // Four times a vec4 of a: rows of eight.
    let a_col = lane % 8u;
    let a_row = block * 16u + lane / 8u;
    let to_a = part * BLOCKS * SLAB + a_row * STRIDE + a_col;
    let at_a = part * BLOCKS * SLAB;
#for i 0 4
    let from_a{i} = min(a_row + {i}u * 4u, params.m - 1u) * (params.ld / 4u) + a_col;
#endfor
#if DECODE == 2
    if index < 16u { table[index] = bitcast<f32>(b_side[16u + index]); }
    workgroupBarrier();
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
    for (var round = 0u; round < params.units; round += AHEAD * PARTS) {
#for s 0 AHEAD
        let unit{s} = min(round + {s}u * PARTS + part, params.units - 1u);
        let valid{s} = round + {s}u * PARTS + part < params.units;
#if DECODE != 0
#if B_BITS == 1
        let pack{s} = b_codes[row * params.units + unit{s}] >> (half * 16u);
#else
        let pack{s} = b_codes[(row * params.units + unit{s}) * 2u + half];
#endif
#endif
        let group{s} = min((unit{s} * 32u + half * 16u) >> params.b.group_shift, params.b.groups - 1u);
#if B_GRID != 5
        let raw{s} = raw_of(row, group{s});
#endif
#for i 0 4
        let x{s}_{i} = a[from_a{i} + unit{s} * 8u];
#endfor
#endfor
        // Factors on levels. One branch for all: between branches loads would wait for each other.
#if B_GRID == 5
#for s 0 AHEAD
        let scale{s} = b_scale(row, group{s}) * norm;
#endfor
#else
#if STORE != 5
#for s 0 AHEAD
        let scale{s} = scale_of(raw{s}, row, group{s}) * norm;
#endfor
#else
#for s 0 AHEAD
        var scale{s} = 1.0;
#endfor
        switch select(params.b.store, 5u, params.by_row != 0u) {
#for t 0 5
            case {t}u: {
#for s 0 AHEAD
                scale{s} = b_scale_{t}(raw{s}, row, group{s}) * norm;
#endfor
            }
#endfor
            default: {}
        }
#endif
#endif
#for s 0 AHEAD
        {
#if B_GRID == 5
            let factor = select(vec2<f32>(), scale{s}, valid{s});
#else
            let factor = select(0.0, scale{s}, valid{s});
#endif
#if DECODE == 1
#if B_GRID == 1
            let minus = fma(vec4<f32>(b_zero(row, group{s})), TIMES, vec4<f32>(MAGIC));
            let extra = 0.0;
#endif
            let by = OVER * factor;
            let shift = vec4<f32>(extra * factor);
#endif
#if DECODE == 0
            let zero = b_zero(row, group{s});
#endif
#for q 0 4
#if DECODE == 0
            let y{q} = b_scaled4(b_level4(b_codes4(row * params.b.row_words + unit{s} * B_BITS, half * 4u + {q}u), zero), factor);
#endif
#if DECODE == 1
#if B_BITS == 8
            let y{q} = fma(magic_levels(pack{s}[{q}], minus), by, shift);
#endif
#if B_BITS == 4
            let y{q} = fma(magic_levels(pack{s}[{q}u / 2u] >> ({q}u % 2u * 16u), minus), by, shift);
#endif
#if B_BITS == 2
            let y{q} = fma(magic_levels(pack{s} >> ({q}u * 8u), minus), by, shift);
#endif
#if B_BITS == 1
            let y{q} = fma(magic_levels(pack{s} >> ({q}u * 4u), minus), by, shift);
#endif
#endif
#if DECODE == 2
            let w{q} = vec4<u32>(pack{s}[{q}u / 2u]) >> (vec4<u32>(0u, 4u, 8u, 12u) + {q}u % 2u * 16u) & vec4<u32>(15u);
            let y{q} = vec4<f32>(table[w{q}.x], table[w{q}.y], table[w{q}.z], table[w{q}.w]) * factor;
#endif
            slab_b[to_b + {q}u] = vec4<f16>(y{q});
            slab_a[to_a + {q}u * 4u * STRIDE] = x{s}_{q};
#endfor
        }
        workgroupBarrier();
#for d 0 2
        {
            let y = coopLoad<coop_mat16x16<f16, B>>(&slab_b[at_b + {d}u * 4u], STRIDE);
#for i 0 BLOCKS
            let x{i} = coopLoadT<coop_mat16x16<f16, A>>(&slab_a[at_a + {i}u * SLAB + {d}u * 4u], STRIDE);
            c{i} = coopMultiplyAdd(x{i}, y, c{i});
#endfor
        }
#endfor
        workgroupBarrier();
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
