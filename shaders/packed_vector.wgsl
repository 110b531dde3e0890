// packed_vector.wgsl: out[m, n] = sum_k a[m, k] b[n, k] for few rows of a and a quantized b, f32 arithmetic. Bound by reading b once.
//
// A team of `team` invocations owns COLS neighbouring columns of ROWS rows; LANES / team teams are a workgroup. An invocation takes every
// team-th unit of 32 elements along K: it loads the unit's activations once for all its columns, and all its codes with one load a column.
// Row blocks of ROWS are the grid's third dimension. The sums of a team's invocations are added in a fixed order: by a subgroup operation
// where SUBGROUP is set (a workgroup is one subgroup of LANES invocations and one team: adapters that run shaders on a CPU), else through
// workgroup memory.
//
// How codes become levels (DECODE):
// 1, integers of 1, 2, 4 or 8 bits: the code i of four, left where it stands (bits p i, at most 23 bits), is or-ed into the mantissa of 2^23.
//    Subtracting 2^23 + z 2^(p i) leaves (u - z) 2^(p i) exactly, without a shift or a conversion; the powers leave a sum of four at its end.
//    Grids without a zero are u - z + 1/2 with an integer z: the sum of the unit's activations, halved, is added.
// 2, other grids of 4 bits: a table in workgroup memory, 16 distinct banks; with SUBGROUP the eight invocations hold two entries each and hand
//    them out, which CPUs have an instruction for (trees of selects, or a table in memory, take two to ten times as long).
// 0, the rest: as packed.wgsl has it.
// Scales are multiplied with a unit's sum (HALVES: groups are of 16, and a unit has two scales), NF3's with the levels; with several rows
// with the levels, too. MIDDLES is DECODE 1 without zero points.
//
// Bounds: K is filled up to whole units with zeros in `a` (params.ld elements a row); rows and columns beyond the end repeat the last one and
// are not stored; a unit's second group is clamped to the last one. Tier: baseline (SUBGROUP: subgroup).
#if DECODE == 0
#import packed P=B p=b
#else
#import packed_level P=B p=b
#import packed_decode
#endif
#import packed_epilogue

struct Params {
    b: PackedInfo,
    m: u32, n: u32,
    units: u32,          // of 32 elements in a row of b
    ld: u32,             // elements from one row of a to the next
    team: u32,           // invocations that share columns, a power of two from 16 to LANES
    bias: u32,           // 1: add the bias
    activation: u32, accumulate: u32,
    alpha: f32,
    pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<InA>>;
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

// The sum of a vector of products with levels.
fn total(products: vec4<f32>) -> f32 {
#if DECODE == 1
    let p = products * OVER;
#else
    let p = products;
#endif
    return (p.x + p.y) + (p.z + p.w);
}

#if DECODE == 2
#if !SUBGROUP
var<workgroup> table: array<f32, 16>;
#endif
#endif
#if !SUBGROUP
// Q sums at a time are added up: Q = ROWS, or COLS where there is one row.
var<workgroup> part: array<f32, Q * (LANES + 1u)>;
var<workgroup> part2: array<f32, LANES>;
#endif

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
#if SUBGROUP
    @builtin(subgroup_invocation_id) index: u32,
#else
    @builtin(local_invocation_index) index: u32,
#endif
) {
#if SUBGROUP
    let team = LANES;
    let lane = index;
    let first = (wg.y * grid.x + wg.x) * COLS;
    if first >= params.n { return; }
#else
    let team = params.team;
    let lane = index & (team - 1u);
    let block = (wg.y * grid.x + wg.x) * (LANES / team * COLS);
    if block >= params.n { return; } // uniform per workgroup
    let first = block + index / team * COLS;
#endif
    let block_m = wg.z * ROWS;
#if DECODE == 2
#if SUBGROUP
    let lower = bitcast<f32>(b_side[16u + lane]);
    let upper = bitcast<f32>(b_side[24u + lane]);
#else
    if index < 16u { table[index] = bitcast<f32>(b_side[16u + index]); }
    workgroupBarrier();
#endif
#endif
#for r 0 COLS
    let row{r} = min(first + {r}u, params.n - 1u);
#for m 0 ROWS
    var sum{r}_{m} = 0.0;
#endfor
#endfor
#for m 0 ROWS
    let a_row{m} = min(block_m + {m}u, params.m - 1u) * params.ld / 4u;
#endfor
#if MIDDLES
    // A grid without a zero has halves: the integer above, and what that is too much.
    let zero = ceil(params.b.zero);
    let extra = zero - params.b.zero;
    let minus = fma(vec4<f32>(zero), TIMES, vec4<f32>(MAGIC));
#endif
#if HANDED
    // All invocations take part to the end, since shuffles read from all; units beyond the end repeat the last one and count nothing.
    for (var at = lane; at - lane < params.units; at += team) {
        let unit = min(at, params.units - 1u);
        let counts = at < params.units;
#else
    for (var unit = lane; unit < params.units; unit += team) {
#endif
        let group = (unit * 32u) >> params.b.group_shift;
#if DECODE == 0
        // Kept short by loops over half-units and quads: software drivers compile it at the first dispatch.
        for (var h = 0u; h < 2u; h++) {
#if HALVES
            let group = min((unit * 32u + h * 16u) >> 4u, params.b.groups - 1u);
#endif
#for r 0 COLS
            let scale{r} = b_scale(row{r}, group);
            let zero{r} = b_zero(row{r}, group);
#if ROWS == 1
            var dot{r} = vec4<f32>();
#endif
#endfor
            for (var q = h * 4u; q < h * 4u + 4u; q++) {
#for m 0 ROWS
                let x{m} = vec4<f32>(a[a_row{m} + unit * 8u + q]);
#endfor
#for r 0 COLS
                {
                    let level = b_level4(b_codes4(row{r} * params.b.row_words + unit * B_BITS, q), zero{r});
#if ROWS == 1
#if B_GRID == 5
                    dot{r} = fma(x0, b_scaled4(level, scale{r}), dot{r});
#else
                    dot{r} = fma(x0, level, dot{r});
#endif
#else
                    let y = b_scaled4(level, scale{r});
#for m 0 ROWS
                    sum{r}_{m} += dot(x{m}, y);
#endfor
#endif
                }
#endfor
            }
#if ROWS == 1
#for r 0 COLS
#if B_GRID == 5
            sum{r}_0 += total(dot{r});
#else
            sum{r}_0 = fma(total(dot{r}), scale{r}, sum{r}_0);
#endif
#endfor
#endif
        }
#else
#if HALVES
        let group1 = min(group + 1u, params.b.groups - 1u);
#endif
        // All loads of codes and scales, well ahead of their use.
#for r 0 COLS
#for i 0 PACKS
        let pack{r}_{i} = b_codes[(row{r} * params.units + unit) * PACKS + {i}u];
#endfor
#if !SUBGROUP
        let raw{r}_0 = b_raw(row{r}, group);
#if HALVES
        let raw{r}_1 = b_raw(row{r}, group1);
#endif
#endif
#endfor
#if SUBGROUP
        // A loop: software drivers compile this at the first dispatch.
        var scales: array<f32, 2u * COLS>;
        for (var r = 0u; r < COLS; r++) {
            let row = min(first + r, params.n - 1u);
            scales[r] = b_scale(row, group);
#if HALVES
            scales[COLS + r] = b_scale(row, group1);
#endif
        }
#for r 0 COLS
        let scale{r}_0 = scales[{r}u];
        let scale{r}_1 = scales[COLS + {r}u];
#endfor
#else
        // One branch for all: between branches loads would wait for each other.
#for r 0 COLS
        var scale{r}_0 = 0.0;
#if HALVES
        var scale{r}_1 = 0.0;
#endif
#endfor
        switch params.b.store {
#for s 0 5
            case {s}u: {
#for r 0 COLS
                scale{r}_0 = b_scale_{s}(raw{r}_0, row{r}, group);
#if HALVES
                scale{r}_1 = b_scale_{s}(raw{r}_1, row{r}, group1);
#endif
#endfor
            }
#endfor
            default: {}
        }
#endif
#if ROWS == 1
        // Half-units are named 0 and 1, their quads 0 to 3.
#for h 0 2
#for q 0 4
        let x{h}_{q} = vec4<f32>(a[a_row0 + unit * 8u + {h}u * 4u + {q}u]);
#endfor
#endfor
#for h 0 2
#if MIDDLES
        let all{h} = (x{h}_0 + x{h}_1) + (x{h}_2 + x{h}_3);
        let half{h} = extra * ((all{h}.x + all{h}.y) + (all{h}.z + all{h}.w));
#else
        let half{h} = 0.0;
#endif
#endfor
#endif
#for r 0 COLS
        {
#if ROWS == 1
            var dot = vec4<f32>();
#endif
#for h 0 2
#if HALVES
            let scale{h} = scale{r}_{h};
            let zero_group{h} = select(group1, group, {h}u == 0u);
#else
            let scale{h} = scale{r}_0;
            let zero_group{h} = group;
#endif
#if DECODE == 1
#if B_GRID == 1
            let minus{h} = fma(vec4<f32>(b_zero(row{r}, zero_group{h})), TIMES, vec4<f32>(MAGIC));
#else
            let minus{h} = minus;
#endif
#endif
#for q 0 4
            // Levels of four elements, the i-th times TIMES[i].
#if DECODE == 1
#if B_BITS == 8
            let v{h}_{q} = magic_levels(pack{r}_{h}[{q}], minus{h});
#endif
#if B_BITS == 4
            let v{h}_{q} = magic_levels(pack{r}_0[{h}u * 2u + {q}u / 2u] >> ({q}u % 2u * 16u), minus{h});
#endif
#if B_BITS == 2
            let v{h}_{q} = magic_levels(pack{r}_0[{h}u] >> ({q}u * 8u), minus{h});
#endif
#if B_BITS == 1
            let v{h}_{q} = magic_levels(pack{r}_0 >> ({h}u * 16u + {q}u * 4u), minus{h});
#endif
#endif
#if DECODE == 2
            let w{h}_{q} = vec4<u32>(pack{r}_0[{h}u * 2u + {q}u / 2u]) >> (vec4<u32>(0u, 4u, 8u, 12u) + {q}u % 2u * 16u) & vec4<u32>(15u);
#if HANDED
            let c{h}_{q} = w{h}_{q} & vec4<u32>(7u);
            let l{h}_{q} = vec4<f32>(subgroupShuffle(lower, c{h}_{q}.x), subgroupShuffle(lower, c{h}_{q}.y), subgroupShuffle(lower, c{h}_{q}.z), subgroupShuffle(lower, c{h}_{q}.w));
            let u{h}_{q} = vec4<f32>(subgroupShuffle(upper, c{h}_{q}.x), subgroupShuffle(upper, c{h}_{q}.y), subgroupShuffle(upper, c{h}_{q}.z), subgroupShuffle(upper, c{h}_{q}.w));
            let v{h}_{q} = select(l{h}_{q}, u{h}_{q}, w{h}_{q} > vec4<u32>(7u));
#else
            let v{h}_{q} = vec4<f32>(table[w{h}_{q}.x], table[w{h}_{q}.y], table[w{h}_{q}.z], table[w{h}_{q}.w]);
#endif
#endif
#endfor
#if ROWS == 1
#for q 0 4
            dot = fma(x{h}_{q}, v{h}_{q}, dot);
#endfor
#if HALVES
            {
#if HANDED
                let value = select(0.0, total(dot), counts);
#else
                let value = total(dot) + half{h};
#endif
                sum{r}_0 = fma(value, scale{h}, sum{r}_0);
                dot = vec4<f32>();
            }
#endif
#endif
#endfor
#if ROWS == 1
#if !HALVES
#if HANDED
            let value = select(0.0, total(dot), counts);
#else
            let value = total(dot) + (half0 + half1);
#endif
            sum{r}_0 = fma(value, scale{r}_0, sum{r}_0);
#endif
#else
#for h 0 2
#for q 0 4
#if DECODE == 1
#if MIDDLES
            let y{h}_{q} = fma(v{h}_{q}, OVER, vec4<f32>(extra)) * scale{h};
#else
            let y{h}_{q} = v{h}_{q} * OVER * scale{h};
#endif
#else
            let y{h}_{q} = v{h}_{q} * scale{h};
#endif
#for m 0 ROWS
#if HANDED
            sum{r}_{m} += select(0.0, dot(y{h}_{q}, vec4<f32>(a[a_row{m} + unit * 8u + {h}u * 4u + {q}u])), counts);
#else
            sum{r}_{m} += dot(y{h}_{q}, vec4<f32>(a[a_row{m} + unit * 8u + {h}u * 4u + {q}u]));
#endif
#endfor
#endfor
#endfor
#endif
        }
#endfor
#endif
    }
#if SUBGROUP
#for r 0 COLS
#for m 0 ROWS
    let all{r}_{m} = subgroupAdd(sum{r}_{m});
#endfor
#endfor
    // Sum q of COLS * ROWS is finished by lane q % LANES.
    for (var q = index; q < COLS * ROWS; q += LANES) {
        var v = 0.0;
#for r 0 COLS
#for m 0 ROWS
        v = select(v, all{r}_{m}, q == {r}u * ROWS + {m}u);
#endfor
#endfor
        let row = block_m + q % ROWS;
        let col = first + q / ROWS;
        if row < params.m && col < params.n { finish(row, col, v); }
    }
#else
    // Invocation t adds sum t % Q of Q neighbouring invocations (team >= Q), then of the invocations of a team.
    let q = index % Q;
    let start = index / Q * Q;
#if ROWS == 1
#for r 0 COLS
    part[{r}u * (LANES + 1u) + index] = sum{r}_0;
#endfor
    workgroupBarrier();
    var v = 0.0;
    for (var i = 0u; i < Q; i++) { v += part[q * (LANES + 1u) + start + i]; }
    part2[index] = v;
    workgroupBarrier();
    if index < LANES / team * Q {
        v = 0.0;
        let begin = start * (team / Q);
        for (var i = 0u; i < team / Q; i++) { v += part2[begin + i * Q + q]; }
        let col = block + start / Q * COLS + q;
        if col < params.n { finish(block_m, col, v); }
    }
#else
#for r 0 COLS
    workgroupBarrier();
#for m 0 ROWS
    part[{m}u * (LANES + 1u) + index] = sum{r}_{m};
#endfor
    workgroupBarrier();
    {
        var v = 0.0;
        for (var i = 0u; i < Q; i++) { v += part[q * (LANES + 1u) + start + i]; }
        part2[index] = v;
        workgroupBarrier();
        if index < LANES / team * Q {
            v = 0.0;
            let begin = start * (team / Q);
            for (var i = 0u; i < team / Q; i++) { v += part2[begin + i * Q + q]; }
            let col = block + start / Q * COLS + {r}u;
            if col < params.n && block_m + q < params.m { finish(block_m + q, col, v); }
        }
    }
#endfor
#endif
#endif
}
