// packed_vector_subgroup.wgsl: packed_vector.wgsl for one row of a on GPUs with subgroups. What that says of decoding holds here.
//
// A subgroup owns COLS neighbouring columns and takes a block of them after the other; an invocation takes every unit of 32 elements that
// its place in the subgroup tells, all columns of it together. The row of a lies in workgroup memory, CHUNK units at a time: where it fits,
// it is brought there once, and the subgroups never wait for each other. A unit's eight vec4 are rotated by the unit's number, so that eight
// neighbouring invocations read from different banks. Table entries are handed out by the invocations that hold them.
//
// STORE: how scales are stored, 5 where that is told at run time. LOOSE is for GPUs that are known to keep subnormal halves and to take an
// invocation's number modulo the subgroup's size, 32. Integers of 4 bits: two codes, masked, are two subnormal halves u 2^-24 (or 2^-20, where
// they stand four bits higher), which become floats by a conversion each; the zero times the sum of the activations is subtracted from the
// sum (HALF_CODES). Tables: codes need no mask to be an invocation's number.
//
// Bounds: as in packed_vector.wgsl; units are clamped when a is brought. Tier: subgroup (of at least 16 invocations, of one size).
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
    pad0: u32, pad1: u32, pad2: u32,
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

var<workgroup> x: array<vec4<f32>, CHUNK * 8u>;


fn plain(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }
// The sum of a vector of products with levels.
fn total(products: vec4<f32>) -> f32 {
#if HALF_CODES
    return fma(products.x + products.z, 16777216.0, (products.y + products.w) * 1048576.0);
#else
#if DECODE == 1
    return plain(products * OVER);
#else
    return plain(products);
#endif
#endif
}

// Brings CHUNK units of a from unit `begin` on, zero beyond the end.
fn bring(begin: u32, index: u32) {
    for (var i = index; i < min(CHUNK, params.units - begin) * 8u; i += LANES) {
        let unit = i / 8u;
        x[unit * 8u + ((i + unit) & 7u)] = vec4<f32>(a[begin * 8u + i]);
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) size: u32,
) {
    let whole = params.units <= CHUNK;
#if DECODE == 2
    let entry = bitcast<f32>(b_side[16u + lane % 16u]);
#endif
#if MIDDLES
    // A grid without a zero has halves: the integer above, and what that is too much.
    let zero = ceil(params.b.zero);
    let extra = zero - params.b.zero;
    let minus = fma(vec4<f32>(zero), TIMES, vec4<f32>(MAGIC));
#endif
    if whole {
        bring(0u, index);
        workgroupBarrier();
    }
    for (var block = wg.x * subgroups * COLS; block < params.n; block += grid.x * subgroups * COLS) {
        let first = block + subgroup * COLS;
#for r 0 COLS
        let row{r} = min(first + {r}u, params.n - 1u);
        var sum{r} = 0.0;
#endfor
        for (var begin = 0u; begin < params.units; begin += CHUNK) {
            if !whole {
                workgroupBarrier();
                bring(begin, index);
                workgroupBarrier();
            }
            // All invocations take part to the end, since shuffles read from all; units beyond the end repeat the last one and count nothing.
            for (var at = begin; at < min(begin + CHUNK, params.units); at += size) {
                let unit = min(at + lane, params.units - 1u);
                let group = (unit * 32u) >> params.b.group_shift;
#if HALVES
                let group1 = min(group + 1u, params.b.groups - 1u);
#endif
                // All loads of codes and scales, well ahead of their use.
#for r 0 COLS
#for i 0 PACKS
                let pack{r}_{i} = b_codes[(row{r} * params.units + unit) * PACKS + {i}u];
#endfor
                let raw{r}_0 = raw_of(row{r}, group);
#if HALVES
                let raw{r}_1 = raw_of(row{r}, group1);
#endif
#if B_GRID == 1
                let zero{r}_0 = b_zero(row{r}, group);
#if HALVES
                let zero{r}_1 = b_zero(row{r}, group1);
#else
                let zero{r}_1 = zero{r}_0;
#endif
#endif
#endfor
                let local = unit - begin;
#for h 0 HALF_SUMS
                var all{h} = vec4<f32>();
#for r 0 COLS
                var dot{r}_{h} = vec4<f32>();
#endfor
#endfor
#for h 0 2
#for q 0 4
                {
                    let v = x[local * 8u + (({h}u * 4u + {q}u + local) & 7u)];
#if SUM
#if HALVES
                    all{h} += v;
#else
                    all0 += v;
#endif
#endif
#for r 0 COLS
                    {
#if HALF_CODES
                        let w = pack{r}_0[{h}u * 2u + {q}u / 2u];
                        let p0 = unpack2x16float(w & 0x000f000fu);
                        let p1 = unpack2x16float(w & 0x00f000f0u);
                        let p2 = unpack2x16float((w >> 8u) & 0x000f000fu);
                        let p3 = unpack2x16float((w >> 8u) & 0x00f000f0u);
                        let level = vec4<f32>(p0[{q}u % 2u], p1[{q}u % 2u], p2[{q}u % 2u], p3[{q}u % 2u]);
#else
#if DECODE == 1
#if B_GRID == 1
                        let minus = fma(vec4<f32>(zero{r}_{h}), TIMES, vec4<f32>(MAGIC));
#endif
#if B_BITS == 8
                        let level = magic_levels(pack{r}_{h}[{q}], minus);
#endif
#if B_BITS == 4
                        let level = magic_levels(pack{r}_0[{h}u * 2u + {q}u / 2u] >> ({q}u % 2u * 16u), minus);
#endif
#if B_BITS == 2
                        let level = magic_levels(pack{r}_0[{h}u] >> ({q}u * 8u), minus);
#endif
#if B_BITS == 1
                        let level = magic_levels(pack{r}_0 >> ({h}u * 16u + {q}u * 4u), minus);
#endif
#else
                        let u = vec4<u32>(pack{r}_0[{h}u * 2u + {q}u / 2u]) >> (vec4<u32>(0u, 4u, 8u, 12u) + {q}u % 2u * 16u);
#if LOOSE
                        let w = u;
#else
                        let w = u & vec4<u32>(15u);
#endif
                        let level = vec4<f32>(subgroupShuffle(entry, w.x), subgroupShuffle(entry, w.y), subgroupShuffle(entry, w.z), subgroupShuffle(entry, w.w));
#endif
#endif
#if HALVES
                        dot{r}_{h} = fma(v, level, dot{r}_{h});
#else
                        dot{r}_0 = fma(v, level, dot{r}_0);
#endif
                    }
#endfor
                }
#endfor
#endfor
#for h 0 HALF_SUMS
                // What all levels are too much, times the activations.
                let all_of{h} = plain(all{h});
#for r 0 COLS
#if HALF_CODES
#if B_GRID == 1
                let off{r}_{h} = -zero{r}_{h} * all_of{h};
#else
                let off{r}_{h} = -params.b.zero * all_of{h};
#endif
#else
#if MIDDLES
                let off{r}_{h} = extra * all_of{h};
#else
                let off{r}_{h} = 0.0;
#endif
#endif
                let value{r}_{h} = select(0.0, total(dot{r}_{h}) + off{r}_{h}, at + lane < params.units);
#endfor
#endfor
#if STORE == 5
                // One branch for all: between branches loads would wait for each other.
                switch params.b.store {
#for t 0 5
                    case {t}u: {
#for r 0 COLS
                        sum{r} = fma(value{r}_0, b_scale_{t}(raw{r}_0, row{r}, group), sum{r});
#if HALVES
                        sum{r} = fma(value{r}_1, b_scale_{t}(raw{r}_1, row{r}, group1), sum{r});
#endif
#endfor
                    }
#endfor
                    default: {}
                }
#else
#for r 0 COLS
                sum{r} = fma(value{r}_0, scale_of(raw{r}_0, row{r}, group), sum{r});
#if HALVES
                sum{r} = fma(value{r}_1, scale_of(raw{r}_1, row{r}, group1), sum{r});
#endif
#endfor
#endif
            }
        }
        // Invocation r of the subgroup finishes column r.
        var v = 0.0;
#for r 0 COLS
        let sum_of{r} = subgroupAdd(sum{r});
        v = select(v, sum_of{r}, lane == {r}u);
#endfor
        if lane < COLS && first + lane < params.n { finish(0u, first + lane, v); }
    }
}
