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

#import tiled
#if InA != u32
#import tiled_load p=a
#endif

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let k_begin = wg.z * params.split;
    let k_end = min(params.k, k_begin + params.split);
    let steps = (k_end - k_begin) / DEPTH;
    // The last quad and the last row along K.
    let k_quad = (params.k - 1u) / 4u * 4u;
    let k_last = params.k - 1u;
#import tiled_begin
#if InA == u32
#import tiled_codes P=A p=a m=m
#else
    let first_a = 0u;
    let last_a = max(params.m * params.k / UNIT, 1u) - 1u;
#if FORM == 2
#import tiled_across P=A p=a m=m
#else
#import tiled_along P=A p=a m=m
#endif
#endif
#if FORM == 0
#import tiled_codes P=B p=b m=n
#else
    let to_b = b_row * STRIDE + b_col;
    let col_b = min(n0 + b_col * 4u, (params.n - 1u) / 4u * 4u);
    let code_b = col_b / 32u * B_BITS;
    let quad_b = col_b % 32u / 4u;
    let group_b = b_group(col_b);
#endif

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
#import tiled_stage AT=loop
        workgroupBarrier();
        k0 += DEPTH;
#if InA != u32
        at_a += next_a;
#endif
        if step + 1u < steps {
#if InA == u32
#import tiled_group p=a
#endif
#if FORM == 0
#import tiled_group p=b
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
#import tiled_multiply K={k}u
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
        group_b = b_group(k_b);
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
        next_b{i} = b_scaled4(b_level4(b_codes4(code_b{i} + k_b / 32u * B_BITS, k_b % 32u / 4u), b_zero(row_b{i}, group_b)), b_scale(row_b{i}, group_b));
        next_b{i} = select(zero, next_b{i}, vec4<u32>(k0 + b_col * 4u) + ahead < vec4<u32>(k_end));
#else
        let k_b{i} = min(k0 + b_row + {i}u * B_ROWS, k_last);
        next_b{i} = b_scaled4(b_level4(b_codes4(k_b{i} * params.b.row_words + code_b, quad_b), b_zero(k_b{i}, group_b)), b_scale(k_b{i}, group_b));
        next_b{i} = select(zero, next_b{i}, vec4<bool>(k0 + b_row + {i}u * B_ROWS < k_end));
#endif
#endfor
        workgroupBarrier();
#import tiled_stage AT=rest
        workgroupBarrier();
        for (var k = 0u; k < k_end - k0; k++) {
#import tiled_multiply K=k
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
