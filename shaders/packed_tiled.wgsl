// packed_tiled.wgsl: matrix products with a quantized right operand through workgroup memory, f32 arithmetic, for every GPU and format.
//   FORM 0: out[m, n] = sum_k a[m, k] b[n, k]    FORM 1: sum_k a[m, k] b[k, n]    FORM 2: sum_k a[k, m] b[k, n]
// The tiles and who owns what are those of matmul_tiled.wgsl; what differs is that four codes of b become a vec4 on their way into workgroup
// memory, scale and all. The left operand is f32, f16 or (InA u32, not with FORM 2) quantized too, in any format: packed_any.wgsl.
// With K split, workgroup (x, y, z) sums part z of K and writes part z of `out`.
//
// Bounds: k >= 1 (no codes otherwise). Rows of codes are clamped to the last one, columns to the last quad of a row, whose unit exists in
// full; a group's number follows from a column below `cols`. Whole steps of K are within K; what is loaded before the loop and after it is
// clamped, and so are loads of single elements (VEC false). Rows and columns beyond the edge hold something else, but only reach results that
// are not stored; the rest of K is masked. Groups are of 16 or a larger power of two and steps divide 16, so that a step is in one group of a
// row. Workgroup memory: as matmul_tiled.wgsl. The loops count up to bounds that do not change. Tier: baseline.
#import matmul_epilogue
#import packed P=B p=b
#if InA == u32
#import packed_any p=a
@group(0) @binding(1) var<storage, read> a_codes: array<u32>;
@group(0) @binding(2) var<storage, read> a_side: array<u32>;
#else
#if VEC
@group(0) @binding(1) var<storage, read> a: array<vec4<InA>>;
#else
@group(0) @binding(1) var<storage, read> a: array<InA>;
#endif
#endif
@group(0) @binding(OUT_AT - 2) var<storage, read> b_codes: array<u32>;
@group(0) @binding(OUT_AT - 1) var<storage, read> b_side: array<u32>;

const INVOCATIONS: u32 = 16u * ROWS;
const TILE: u32 = 64u * BLOCKS_N;   // = 4 ROWS BLOCKS_M
const STRIDE: u32 = TILE / 4u;      // vec4 from one k to the next
var<workgroup> tile_a: array<vec4<f32>, DEPTH * STRIDE>;
var<workgroup> tile_b: array<vec4<f32>, DEPTH * STRIDE>;

// The dense left operand counts in units of UNIT elements. edge_a clamps, load_a does so where elements are loaded one by one.
#if InA != u32
#if VEC
const UNIT: u32 = 4u;
fn edge_a(i: u32, last: u32) -> vec4<f32> { return vec4<f32>(a[min(i, last)]); }
fn load_a(i: u32, last: u32) -> vec4<f32> { return vec4<f32>(a[i]); }
#else
const UNIT: u32 = 1u;
fn load_a(i: u32, last: u32) -> vec4<f32> { return edge_a(i, last); }
fn edge_a(i: u32, last: u32) -> vec4<f32> {
    return vec4<f32>(f32(a[min(i, last)]), f32(a[min(i + 1u, last)]), f32(a[min(i + 2u, last)]), f32(a[min(i + 3u, last)]));
}
#endif
#endif

#if FORM == 2
const A_COLS: u32 = STRIDE;         // invocations side by side along the contiguous dimension
#else
const A_COLS: u32 = DEPTH / 4u;
#endif
#if FORM == 0
const B_COLS: u32 = DEPTH / 4u;
#else
const B_COLS: u32 = STRIDE;
#endif
const A_ROWS: u32 = INVOCATIONS / A_COLS;   // rows between two loads of an invocation
const B_ROWS: u32 = INVOCATIONS / B_COLS;

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let m0 = wg.y * TILE;
    let n0 = wg.x * TILE;
    let k_begin = wg.z * params.split;
    let k_end = min(params.k, k_begin + params.split);
    let steps = (k_end - k_begin) / DEPTH;
    // The last quad and the last row along K.
    let k_quad = (params.k - 1u) / 4u * 4u;
    let k_last = params.k - 1u;
    // 32 consecutive invocations cover 8 (n) x 4 (m) blocks.
    let tx = index / 32u % 2u * 8u + index % 8u;
    let ty = index / 64u * 4u + index / 8u % 4u;

    let a_col = index % A_COLS;
    let a_row = index / A_COLS;
    let b_col = index % B_COLS;
    let b_row = index / B_COLS;
#if InA == u32
    let to_a = a_col * 4u * STRIDE + a_row / 4u;
    let part_a = a_row % 4u;
    var group_a = a_group(min(k_begin + a_col * 4u, k_quad));
#for i 0 LOADS
    let row_a{i} = min(m0 + a_row + {i}u * A_ROWS, params.m - 1u);
    let code_a{i} = row_a{i} * params.a.row_words;
    var scale_a{i} = a_scale(row_a{i}, group_a);
    var zero_a{i} = a_zero(row_a{i}, group_a);
#endfor
#else
    let last_a = max(params.m * params.k / UNIT, 1u) - 1u;
#if FORM == 2
    let ld_a = params.m / UNIT;
    var at_a = (k_begin + a_row) * ld_a + min((m0 + a_col * 4u) / UNIT, ld_a - 1u);
    let next_a = DEPTH * ld_a;
    let to_a = a_row * STRIDE + a_col;
#for i 0 LOADS
    let row_a{i} = {i}u * A_ROWS * ld_a;
#endfor
#else
    let ld_a = params.k / UNIT;
    var at_a = (k_begin + a_col * 4u) / UNIT;
    let next_a = DEPTH / UNIT;
    let to_a = a_col * 4u * STRIDE + a_row / 4u;
    let part_a = a_row % 4u;
#for i 0 LOADS
    let row_a{i} = min(m0 + a_row + {i}u * A_ROWS, params.m - 1u) * ld_a;
#endfor
#endif
#endif
#if FORM == 0
    let to_b = b_col * 4u * STRIDE + b_row / 4u;
    let part_b = b_row % 4u;
    var group_b_now = b_group(min(k_begin + b_col * 4u, k_quad));
#for i 0 LOADS
    let row_b{i} = min(n0 + b_row + {i}u * B_ROWS, params.n - 1u);
    let code_b{i} = row_b{i} * params.b.row_words;
    var scale_b{i} = b_scale(row_b{i}, group_b_now);
    var zero_b{i} = b_zero(row_b{i}, group_b_now);
#endfor
#else
    let to_b = b_row * STRIDE + b_col;
    let col_b = min(n0 + b_col * 4u, (params.n - 1u) / 4u * 4u);
    let code_b = col_b / 32u * B_BITS;
    let quad_b = col_b % 32u / 4u;
    let group_b = b_group(col_b);
#endif

#for i 0 BLOCKS_M
#for e 0 4
#for j 0 BLOCKS_N
    var c{i}_{e}_{j} = vec4<f32>();
#endfor
#endfor
#endfor
    var k0 = k_begin;
#for i 0 LOADS
#if InA == u32
    var next_a{i} = a_scaled4(a_level4(a_codes4(code_a{i} + min(k0 + a_col * 4u, k_quad) / 32u * (params.a.code & 15u), min(k0 + a_col * 4u, k_quad) % 32u / 4u), zero_a{i}), scale_a{i});
#else
    var next_a{i} = edge_a(at_a + row_a{i}, last_a);
#endif
#if FORM == 0
    var next_b{i} = b_scaled4(b_level4(b_codes4(code_b{i} + min(k0 + b_col * 4u, k_quad) / 32u * B_BITS, min(k0 + b_col * 4u, k_quad) % 32u / 4u), zero_b{i}), scale_b{i});
#else
    let first_b{i} = min(k0 + b_row + {i}u * B_ROWS, k_last);
    var next_b{i} = b_scaled4(b_level4(b_codes4(first_b{i} * params.b.row_words + code_b, quad_b), b_zero(first_b{i}, group_b)), b_scale(first_b{i}, group_b));
#endif
#endfor
    for (var step = 0u; step < steps; step++) {
        workgroupBarrier();
#for i 0 LOADS
#if FORM == 2
        tile_a[to_a + {i}u * A_ROWS * STRIDE] = next_a{i};
#else
#for e 0 4
        tile_a[to_a + {i}u * A_ROWS / 4u + {e}u * STRIDE][part_a] = next_a{i}[{e}];
#endfor
#endif
#if FORM == 0
#for e 0 4
        tile_b[to_b + {i}u * B_ROWS / 4u + {e}u * STRIDE][part_b] = next_b{i}[{e}];
#endfor
#else
        tile_b[to_b + {i}u * B_ROWS * STRIDE] = next_b{i};
#endif
#endfor
        workgroupBarrier();
        k0 += DEPTH;
#if InA != u32
        at_a += next_a;
#endif
        if step + 1u < steps {
#if InA == u32
            let k_a = k0 + a_col * 4u;
            if a_group(k_a) != group_a {
                group_a = a_group(k_a);
#for i 0 LOADS
                scale_a{i} = a_scale(row_a{i}, group_a);
                zero_a{i} = a_zero(row_a{i}, group_a);
#endfor
            }
#endif
#if FORM == 0
            let k_b = k0 + b_col * 4u;
            if b_group(k_b) != group_b_now {
                group_b_now = b_group(k_b);
#for i 0 LOADS
                scale_b{i} = b_scale(row_b{i}, group_b_now);
                zero_b{i} = b_zero(row_b{i}, group_b_now);
#endfor
            }
#endif
#for i 0 LOADS
#if InA == u32
            next_a{i} = a_scaled4(a_level4(a_codes4(code_a{i} + k_a / 32u * (params.a.code & 15u), k_a % 32u / 4u), zero_a{i}), scale_a{i});
#else
            next_a{i} = load_a(at_a + row_a{i}, last_a);
#endif
#if FORM == 0
            next_b{i} = b_scaled4(b_level4(b_codes4(code_b{i} + k_b / 32u * B_BITS, k_b % 32u / 4u), zero_b{i}), scale_b{i});
#else
            let k_b{i} = k0 + b_row + {i}u * B_ROWS;
            next_b{i} = b_scaled4(b_level4(b_codes4(k_b{i} * params.b.row_words + code_b, quad_b), b_zero(k_b{i}, group_b)), b_scale(k_b{i}, group_b));
#endif
#endfor
        }
#for k 0 DEPTH
        {
#for i 0 BLOCKS_M
            let x{i} = tile_a[{k}u * STRIDE + {i}u * ROWS + ty];
#endfor
#for j 0 BLOCKS_N
            let y{j} = tile_b[{k}u * STRIDE + {j}u * 16u + tx];
#endfor
#for i 0 BLOCKS_M
#for e 0 4
#for j 0 BLOCKS_N
            c{i}_{e}_{j} = fma(vec4<f32>(x{i}[{e}]), y{j}, c{i}_{e}_{j});
#endfor
#endfor
#endfor
        }
#endfor
    }
    // What is left of K, less than a step.
    if k0 < k_end {
        let zero = vec4<f32>();
        let ahead = vec4<u32>(0u, 1u, 2u, 3u);
#if InA == u32
        let k_a = min(k0 + a_col * 4u, k_quad);
        group_a = a_group(k_a);
#endif
#if FORM == 0
        let k_b = min(k0 + b_col * 4u, k_quad);
        group_b_now = b_group(k_b);
#endif
#for i 0 LOADS
#if InA == u32
        next_a{i} = a_scaled4(a_level4(a_codes4(code_a{i} + k_a / 32u * (params.a.code & 15u), k_a % 32u / 4u), a_zero(row_a{i}, group_a)), a_scale(row_a{i}, group_a));
        next_a{i} = select(zero, next_a{i}, vec4<u32>(k0 + a_col * 4u) + ahead < vec4<u32>(k_end));
#else
#if FORM == 2
        next_a{i} = select(zero, edge_a(at_a + row_a{i}, last_a), vec4<bool>(k0 + a_row + {i}u * A_ROWS < k_end));
#else
        next_a{i} = select(zero, edge_a(at_a + row_a{i}, last_a), vec4<u32>(k0 + a_col * 4u) + ahead < vec4<u32>(k_end));
#endif
#endif
#if FORM == 0
        next_b{i} = b_scaled4(b_level4(b_codes4(code_b{i} + k_b / 32u * B_BITS, k_b % 32u / 4u), b_zero(row_b{i}, group_b_now)), b_scale(row_b{i}, group_b_now));
        next_b{i} = select(zero, next_b{i}, vec4<u32>(k0 + b_col * 4u) + ahead < vec4<u32>(k_end));
#else
        let k_b{i} = min(k0 + b_row + {i}u * B_ROWS, k_last);
        next_b{i} = b_scaled4(b_level4(b_codes4(k_b{i} * params.b.row_words + code_b, quad_b), b_zero(k_b{i}, group_b)), b_scale(k_b{i}, group_b));
        next_b{i} = select(zero, next_b{i}, vec4<bool>(k0 + b_row + {i}u * B_ROWS < k_end));
#endif
#endfor
        workgroupBarrier();
#for i 0 LOADS
#if FORM == 2
        tile_a[to_a + {i}u * A_ROWS * STRIDE] = next_a{i};
#else
#for e 0 4
        tile_a[to_a + {i}u * A_ROWS / 4u + {e}u * STRIDE][part_a] = next_a{i}[{e}];
#endfor
#endif
#if FORM == 0
#for e 0 4
        tile_b[to_b + {i}u * B_ROWS / 4u + {e}u * STRIDE][part_b] = next_b{i}[{e}];
#endfor
#else
        tile_b[to_b + {i}u * B_ROWS * STRIDE] = next_b{i};
#endif
#endfor
        workgroupBarrier();
        for (var k = 0u; k < k_end - k0; k++) {
#for i 0 BLOCKS_M
            let x{i} = tile_a[k * STRIDE + {i}u * ROWS + ty];
#endfor
#for j 0 BLOCKS_N
            let y{j} = tile_b[k * STRIDE + {j}u * 16u + tx];
#endfor
#for i 0 BLOCKS_M
#for e 0 4
#for j 0 BLOCKS_N
            c{i}_{e}_{j} = fma(vec4<f32>(x{i}[{e}]), y{j}, c{i}_{e}_{j});
#endfor
#endfor
#endfor
        }
    }
    // One loop keeps the epilogue's code in one place.
    var tile: array<vec4<f32>, BLOCKS_M * 4u * BLOCKS_N>;
#for i 0 BLOCKS_M
#for e 0 4
#for j 0 BLOCKS_N
    tile[({i}u * 4u + {e}u) * BLOCKS_N + {j}u] = c{i}_{e}_{j};
#endfor
#endfor
#endfor
    for (var e = 0u; e < BLOCKS_M * 4u * BLOCKS_N; e++) {
        let line = e / BLOCKS_N;
        let row = m0 + (line / 4u * ROWS + ty) * 4u + line % 4u;
        let col = n0 + (e % BLOCKS_N * 16u + tx) * 4u;
        if row < params.m && col < params.n {
#if VEC
            finish4(wg.z, row, col, tile[e]);
#else
            for (var j = 0u; j < min(4u, params.n - col); j++) { finish1(wg.z, row, col + j, tile[e][j]); }
#endif
        }
    }
}
