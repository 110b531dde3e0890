// matmul_coop.wgsl: matrix products by 16 x 16 x 16 cooperative matrices, f16 operands, f32 accumulation. FORM as in matmul_tiled.wgsl;
// contiguous dimensions are multiples of 4 (VEC). Tier: coop (subgroups of exactly 32 invocations).
//
// A workgroup of four subgroups owns a 128 x 128 tile, a subgroup 64 x 64 of it: 4 x 4 matrices, 128 accumulators per invocation. Each step
// stages a slice of 32 of K in workgroup memory. With K split, workgroup (x, y, z) sums part z % splits of K of matrix z / splits.
// FULL: m and n are multiples of 128 and the length of K of each workgroup is one of 32. Else rows and columns are clamped to the last one
// on load, their results are not stored, and the slice that crosses the end of K is filled up with zeros.
//
// What the shape of the code is for (each is worth 5 to 50 % on the GPUs of one maker, the only ones known to offer this tier):
// - At most 24 KiB of workgroup memory, so that two workgroups share a multiprocessor.
// - Rows are padded by 8 elements: they stay 16-byte aligned, and 8 consecutive ones fall on different banks.
// - The next slice is loaded before the multiplication and written after it, in `let`s of one iteration: values that live round the loop in
//   a `var` are split into halves and spilled.
// - The step of the loop is params.one, which is 1: with a constant step the compiler unrolls by 8 and runs the rest in a slower loop.
// - Operands along K: 8 lanes read the 64 bytes of one row, and neighbouring groups of 8 lanes take rows 4 apart, so that the 8-byte writes of
//   16 lanes do not meet on a bank.
// - Results leave through a 16 x 16 block of workgroup memory per subgroup, because coopStore to storage writes 4 scattered bytes at a time.
// - Accumulators are single variables: nothing is indexed at run time.
#enable wgpu_cooperative_matrix
#import matmul_operands
#import matmul_epilogue

#import coop_tile

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let batch = wg.z / params.splits;
    let k_begin = (wg.z % params.splits) * params.split;
    let k_length = min(params.k, k_begin + params.split) - k_begin;
    let slices = k_length / DEPTH;
#import coop_begin

    // Where this invocation reads (at_) and writes (to_), and where its subgroup's blocks start (from_).
#if FORM == 2
    let ld_a = params.m / 4u;
#if FULL
    let edge_a = m0 / 4u + across_col;
#else
    let edge_a = min(m0 / 4u + across_col, ld_a - 1u);
#endif
    var at_a = batch * params.batch_a / 4u + (k_begin + across_row) * ld_a + edge_a;
    let to_a = across_row * A_STRIDE + across_col;
    let from_a = wm0 / 4u;
#else
    let ld_a = params.k / 4u;
    var at_a = batch * params.batch_a / 4u + (m0 + along_row) * ld_a + k_begin / 4u + along_col;
    let to_a = along_row * A_STRIDE + along_col;
    let from_a = wm0 * A_STRIDE;
#endif
#for i 0 8
#if FORM == 2
    let row_a{i} = {i}u * A_ROWS * ld_a;
#else
#if FULL
    let row_a{i} = {i}u * A_ROWS * ld_a;
#else
    let row_a{i} = (min(m0 + along_row + {i}u * A_ROWS, params.m - 1u) - (m0 + along_row)) * ld_a;
#endif
#endif
#endfor
#if FORM == 0
    let ld_b = params.k / 4u;
    var at_b = batch * params.batch_b / 4u + (n0 + along_row) * ld_b + k_begin / 4u + along_col;
    let to_b = along_row * B_STRIDE + along_col;
    let from_b = wn0 * B_STRIDE;
#else
    let ld_b = params.n / 4u;
#if FULL
    let edge_b = n0 / 4u + across_col;
#else
    let edge_b = min(n0 / 4u + across_col, ld_b - 1u);
#endif
    var at_b = batch * params.batch_b / 4u + (k_begin + across_row) * ld_b + edge_b;
    let to_b = across_row * B_STRIDE + across_col;
    let from_b = wn0 / 4u;
#endif
#for i 0 8
#if FORM == 0
#if FULL
    let row_b{i} = {i}u * B_ROWS * ld_b;
#else
    let row_b{i} = (min(n0 + along_row + {i}u * B_ROWS, params.n - 1u) - (n0 + along_row)) * ld_b;
#endif
#else
    let row_b{i} = {i}u * B_ROWS * ld_b;
#endif
#endfor
    // From one slice of K to the next.
#if FORM == 2
    let next_a = DEPTH * ld_a;
#else
    let next_a = DEPTH / 4u;
#endif
#if FORM == 0
    let next_b = DEPTH / 4u;
#else
    let next_b = DEPTH * ld_b;
#endif

    if slices > 0u {
#for i 0 8
        let a{i} = a[at_a + row_a{i}];
#endfor
#for i 0 8
        let b{i} = b[at_b + row_b{i}];
#endfor
#for i 0 8
        tile_a[to_a + {i}u * (A_ROWS * A_STRIDE)] = a{i};
#endfor
#for i 0 8
        tile_b[to_b + {i}u * (B_ROWS * B_STRIDE)] = b{i};
#endfor
    }
    workgroupBarrier();
    for (var slice = 0u; slice < slices; slice += params.one) {
        // The last iteration loads its own slice again.
        let more = select(0u, 1u, slice + 1u < slices);
        at_a += more * next_a;
        at_b += more * next_b;
#for i 0 8
        let a{i} = a[at_a + row_a{i}];
#endfor
#for i 0 8
        let b{i} = b[at_b + row_b{i}];
#endfor
#import coop_multiply AT=loop
        workgroupBarrier();
#for i 0 8
        tile_a[to_a + {i}u * (A_ROWS * A_STRIDE)] = a{i};
#endfor
#for i 0 8
        tile_b[to_b + {i}u * (B_ROWS * B_STRIDE)] = b{i};
#endfor
        workgroupBarrier();
    }
#if !FULL
    // The slice that crosses the end.
    let done = slices * DEPTH;
    if done < k_length {
        let more = min(slices, 1u);
        at_a += more * next_a;
        at_b += more * next_b;
#for i 0 8
        var a{i} = vec4<f16>();
#if FORM == 2
        if done + across_row + {i}u * A_ROWS < k_length { a{i} = a[at_a + row_a{i}]; }
#else
        if done + along_col * 4u < k_length { a{i} = a[at_a + row_a{i}]; }
#endif
        var b{i} = vec4<f16>();
#if FORM == 0
        if done + along_col * 4u < k_length { b{i} = b[at_b + row_b{i}]; }
#else
        if done + across_row + {i}u * B_ROWS < k_length { b{i} = b[at_b + row_b{i}]; }
#endif
#endfor
        workgroupBarrier();
#for i 0 8
        tile_a[to_a + {i}u * (A_ROWS * A_STRIDE)] = a{i};
        tile_b[to_b + {i}u * (B_ROWS * B_STRIDE)] = b{i};
#endfor
        workgroupBarrier();
#import coop_multiply AT=rest
    }
#endif

#import coop_finish SUM=sum
}
