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
#import tiled
#import tiled_load p=a
#import tiled_load p=b

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let batch = wg.z / params.splits;
    let k_begin = (wg.z % params.splits) * params.split;
    let k_end = min(params.k, k_begin + params.split);
    let steps = (k_end - k_begin) / DEPTH;
    let first_a = batch * params.batch_a / UNIT;
    let first_b = batch * params.batch_b / UNIT;
    let last_a = first_a + max(params.m * params.k / UNIT, 1u) - 1u;
    let last_b = first_b + max(params.n * params.k / UNIT, 1u) - 1u;
#import tiled_begin
#if FORM == 2
#import tiled_across P=A p=a m=m
#else
#import tiled_along P=A p=a m=m
#endif
#if FORM == 0
#import tiled_along P=B p=b m=n
#else
#import tiled_across P=B p=b m=n
#endif

    // Not under a condition, which costs a fifth; without a whole step nothing uses these.
#for i 0 LOADS
    var next_a{i} = edge_a(at_a + row_a{i}, last_a);
    var next_b{i} = edge_b(at_b + row_b{i}, last_b);
#endfor
    for (var step = 0u; step < steps; step++) {
        workgroupBarrier();
#import tiled_stage AT=loop
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
#import tiled_multiply K={k}u
        }
#endfor
    }
    // What is left of K, less than a step.
    let k0 = k_begin + steps * DEPTH;
    if k0 < k_end {
        let zero = vec4<f32>();
        let ahead = vec4<u32>(0u, 1u, 2u, 3u);
#for i 0 LOADS
#if FORM == 2
        next_a{i} = select(zero, edge_a(at_a + row_a{i}, last_a), vec4<bool>(k0 + a_row + {i}u * A_ROWS < k_end));
#else
        next_a{i} = select(zero, edge_a(at_a + row_a{i}, last_a), vec4<u32>(k0 + a_col * 4u) + ahead < vec4<u32>(k_end));
#endif
#if FORM == 0
        next_b{i} = select(zero, edge_b(at_b + row_b{i}, last_b), vec4<u32>(k0 + b_col * 4u) + ahead < vec4<u32>(k_end));
#else
        next_b{i} = select(zero, edge_b(at_b + row_b{i}, last_b), vec4<bool>(k0 + b_row + {i}u * B_ROWS < k_end));
#endif
#endfor
        workgroupBarrier();
#import tiled_stage AT=rest
        workgroupBarrier();
        for (var k = 0u; k < k_end - k0; k++) {
#import tiled_multiply K=k
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
