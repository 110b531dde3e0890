// matmul_tiled.wgsl: matrix products through workgroup memory, f32 arithmetic, for GPUs of every tier.
//   FORM 0: out[m, n] = sum_k a[m, k] b[n, k]    (forward: x W^T)
//   FORM 1: out[m, n] = sum_k a[m, k] b[k, n]    (input gradient: dY W)
//   FORM 2: out[m, n] = sum_k a[k, m] b[k, n]    (weight gradient: dY^T X)
// A workgroup of 16 x ROWS invocations owns a square tile; an invocation owns BLOCKS_M x BLOCKS_N blocks of 4 x 4 elements, spread over the
// tile, so that the lanes of a subgroup read neighbouring vec4s. Each step stages DEPTH of K, both operands as [k][m] or [k][n]: those that
// are stored along K are transposed on the way. The next step's LOADS vec4 per operand and invocation are on their way meanwhile.
// With K split, workgroup (x, y, z) sums part z % splits of K of matrix z / splits and writes matrix z of `out`.
//
// Bounds: rows are clamped to the last one, and so are the units of columns; whole steps of K are within K. What is loaded where no whole step
// is certain, before the loop and after it, is clamped to the operand's last unit, and so is every load of single elements (VEC false). Rows and
// columns beyond the edge thereby hold something else, but only reach results that are not stored; the rest of K is masked. The index into workgroup memory of a store is at most
// (DEPTH - 1) * TILE / 4 + TILE / 4 - 1 by the ranges of `index` that its quotients and remainders leave, that of a load likewise by tx < 16
// and ty < ROWS. The loops count up to bounds that do not change.
#import matmul_operands
#import matmul_epilogue

const INVOCATIONS: u32 = 16u * ROWS;
const TILE: u32 = 64u * BLOCKS_N;   // = 4 ROWS BLOCKS_M
const STRIDE: u32 = TILE / 4u;      // vec4 from one k to the next
var<workgroup> tile_a: array<vec4<f32>, DEPTH * STRIDE>;
var<workgroup> tile_b: array<vec4<f32>, DEPTH * STRIDE>;

// Everything below that points into a or b counts units of UNIT elements. edge_ clamps, load_ does so where elements are loaded one by one
// (in the loop it costs a tenth).
#if VEC
const UNIT: u32 = 4u;
fn edge_a(i: u32, last: u32) -> vec4<f32> { return vec4<f32>(a[min(i, last)]); }
fn edge_b(i: u32, last: u32) -> vec4<f32> { return vec4<f32>(b[min(i, last)]); }
fn load_a(i: u32, last: u32) -> vec4<f32> { return vec4<f32>(a[i]); }
fn load_b(i: u32, last: u32) -> vec4<f32> { return vec4<f32>(b[i]); }
#else
const UNIT: u32 = 1u;
fn load_a(i: u32, last: u32) -> vec4<f32> { return edge_a(i, last); }
fn load_b(i: u32, last: u32) -> vec4<f32> { return edge_b(i, last); }
fn edge_a(i: u32, last: u32) -> vec4<f32> {
    return vec4<f32>(f32(a[min(i, last)]), f32(a[min(i + 1u, last)]), f32(a[min(i + 2u, last)]), f32(a[min(i + 3u, last)]));
}
fn edge_b(i: u32, last: u32) -> vec4<f32> {
    return vec4<f32>(f32(b[min(i, last)]), f32(b[min(i + 1u, last)]), f32(b[min(i + 2u, last)]), f32(b[min(i + 3u, last)]));
}
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
    let batch = wg.z / params.splits;
    let k_begin = (wg.z % params.splits) * params.split;
    let k_end = min(params.k, k_begin + params.split);
    let steps = (k_end - k_begin) / DEPTH;
    // 32 consecutive invocations cover 8 (n) x 4 (m) blocks.
    let tx = index / 32u % 2u * 8u + index % 8u;
    let ty = index / 64u * 4u + index / 8u % 4u;

    let first_a = batch * params.batch_a / UNIT;
    let first_b = batch * params.batch_b / UNIT;
    let last_a = first_a + max(params.m * params.k / UNIT, 1u) - 1u;
    let last_b = first_b + max(params.n * params.k / UNIT, 1u) - 1u;
    let a_col = index % A_COLS;
    let a_row = index / A_COLS;
    let b_col = index % B_COLS;
    let b_row = index / B_COLS;
#if FORM == 2
    let ld_a = params.m / UNIT;
    var at_a = first_a + (k_begin + a_row) * ld_a + min((m0 + a_col * 4u) / UNIT, ld_a - 1u);
    let next_a = DEPTH * ld_a;
    let to_a = a_row * STRIDE + a_col;
#for i 0 LOADS
    let row_a{i} = {i}u * A_ROWS * ld_a;
#endfor
#else
    let ld_a = params.k / UNIT;
    var at_a = first_a + (k_begin + a_col * 4u) / UNIT;
    let next_a = DEPTH / UNIT;
    let to_a = a_col * 4u * STRIDE + a_row / 4u;
    let part_a = a_row % 4u;
#for i 0 LOADS
    let row_a{i} = min(m0 + a_row + {i}u * A_ROWS, params.m - 1u) * ld_a;
#endfor
#endif
#if FORM == 0
    let ld_b = params.k / UNIT;
    var at_b = first_b + (k_begin + b_col * 4u) / UNIT;
    let next_b = DEPTH / UNIT;
    let to_b = b_col * 4u * STRIDE + b_row / 4u;
    let part_b = b_row % 4u;
#for i 0 LOADS
    let row_b{i} = min(n0 + b_row + {i}u * B_ROWS, params.n - 1u) * ld_b;
#endfor
#else
    let ld_b = params.n / UNIT;
    var at_b = first_b + (k_begin + b_row) * ld_b + min((n0 + b_col * 4u) / UNIT, ld_b - 1u);
    let next_b = DEPTH * ld_b;
    let to_b = b_row * STRIDE + b_col;
#for i 0 LOADS
    let row_b{i} = {i}u * B_ROWS * ld_b;
#endfor
#endif

#for i 0 BLOCKS_M
#for e 0 4
#for j 0 BLOCKS_N
    var c{i}_{e}_{j} = vec4<f32>();
#endfor
#endfor
#endfor
    // Not under a condition, which costs a fifth; without a whole step nothing uses these.
#for i 0 LOADS
    var next_a{i} = edge_a(at_a + row_a{i}, last_a);
    var next_b{i} = edge_b(at_b + row_b{i}, last_b);
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
        at_a += next_a;
        at_b += next_b;
        if step + 1u < steps {
#for i 0 LOADS
            next_a{i} = load_a(at_a + row_a{i}, last_a);
            next_b{i} = load_b(at_b + row_b{i}, last_b);
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
    let k0 = k_begin + steps * DEPTH;
    if k0 < k_end {
        let zero = vec4<f32>();
#for i 0 LOADS
#if FORM == 2
        next_a{i} = select(zero, edge_a(at_a + row_a{i}, last_a), vec4<bool>(k0 + a_row + {i}u * A_ROWS < k_end));
#else
        next_a{i} = select(zero, edge_a(at_a + row_a{i}, last_a), vec4<u32>(k0 + a_col * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(k_end));
#endif
#if FORM == 0
        next_b{i} = select(zero, edge_b(at_b + row_b{i}, last_b), vec4<u32>(k0 + b_col * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(k_end));
#else
        next_b{i} = select(zero, edge_b(at_b + row_b{i}, last_b), vec4<bool>(k0 + b_row + {i}u * B_ROWS < k_end));
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
#for i 0 BLOCKS_M
#for e 0 4
#for j 0 BLOCKS_N
    {
        let row = m0 + ({i}u * ROWS + ty) * 4u + {e}u;
        let col = n0 + ({j}u * 16u + tx) * 4u;
#if VEC
        if row < params.m && col < params.n { finish4(wg.z, row, col, c{i}_{e}_{j}); }
#else
        if row < params.m {
            var rest = c{i}_{e}_{j};
            for (var at = col; at < min(col + 4u, params.n); at++) {
                finish1(wg.z, row, at, rest.x);
                rest = rest.yzwx;
            }
        }
#endif
    }
#endfor
#endfor
#endfor
}
