// packed_coop.wgsl: matrix products whose right operand is quantized, and in forms Nt and Nn maybe the left one too (A_PACKED), by 16 x 16
// x 16 cooperative
// matrices: f16 operands, f32 accumulation. FORM as in matmul_tiled.wgsl; k > 0, and contiguous dimensions of what is not quantized are multiples
// of 4. Tier: coop (subgroups of exactly 32 invocations).
//
// Tiles, slices and what shapes the code are those of matmul_coop.wgsl. A slice of the tile of a quantized operand is 128 units of 32 codes: a
// row each in form Nt, a quarter of a row in the others. An invocation fetches the words of one before the multiplication and decodes them
// between the barriers after it (up to 6 % faster than before the first). In form Nt the tiles and `block` take all of the 24 KiB, so tables of
// levels live in `block`: 64 bytes more halve the speed.
// Rows, columns and slices beyond the end are the last ones again on load; in the slice that crosses the end of K the left operand is zero
// there, whatever finite value the right one has. What is beyond the end shares the scale of a neighbour, so a NaN comes from nowhere else.
// FULL: m and n are multiples of 128 and the length of K of each workgroup is one of 32, so results are stored and slices multiplied as they are.
//
// {A,B}_FOLD: scales are in the f16 values, normalised (see packed_unit), else they are factors on rows and columns of the result. With FORM != 0
// B_FOLD is set: there a row's scale is one of the sum's terms'.
//
// Bounds: places in tiles are sums of the constants above and of parts of index < 128; units, rows and columns are clamped on load, and so is
// what the epilogue reads; it stores only what is inside. The loop counts to a number of slices.
#enable wgpu_cooperative_matrix
#enable f16
#if A_PACKED
#import packed_unit P=A p=a LUT=4u
@group(0) @binding(1) var<storage, read> a_codes: array<AWord>;
@group(0) @binding(2) var<storage, read> a_side: array<u32>;
@group(0) @binding(3) var<storage, read> b_codes: array<BWord>;
@group(0) @binding(4) var<storage, read> b_side: array<u32>;
#else
@group(0) @binding(1) var<storage, read> a: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read> b_codes: array<BWord>;
@group(0) @binding(3) var<storage, read> b_side: array<u32>;
#endif
#import packed_unit P=B p=b LUT=0u
#import matmul_epilogue
#import coop_tile

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let k_begin = wg.z * params.split;
    let k_length = min(params.k, k_begin + params.split) - k_begin;
    let slices = (k_length + DEPTH - 1u) / DEPTH;
#import coop_begin
#if B_FOLD
    let scaling_b = b_scaling();
#endif
    b_prepare(index);
#if A_PACKED
#if A_FOLD
    let scaling_a = a_scaling();
#endif
    a_prepare(index);
#endif

    // Where this invocation reads and writes (to_), and where its subgroup's blocks start (from_).
#if FORM == 2
    let ld_a = params.m / 4u;
    let edge_a = min(m0 / 4u + across_col, ld_a - 1u);
    let last_a = (params.k - 1u) * ld_a + edge_a;
    let to_a = across_row * A_STRIDE + across_col;
    let from_a = wm0 / 4u;
#else
    let from_a = wm0 * A_STRIDE;
#if A_PACKED
    let unit_a = k_begin / DEPTH;
    let row_a = min(m0 + index, params.m - 1u);
    let last_unit_a = (params.k + 31u) / 32u - 1u;
    let to_a = index * A_STRIDE;
#else
    let ld_a = params.k / 4u;
    let to_a = along_row * A_STRIDE + along_col;
#for i 0 8
    let row_a{i} = min(m0 + along_row + {i}u * A_ROWS, params.m - 1u) * ld_a;
#endfor
#endif
#endif
#if FORM == 0
    let unit_b = k_begin / DEPTH;
    let last_unit_b = (params.k + 31u) / 32u - 1u;
    let row_b = min(n0 + index, params.n - 1u);
    let to_b = index * B_STRIDE;
    let from_b = wn0 * B_STRIDE;
#else
    let unit_b = min(n0 / 32u + index % 4u, (params.n + 31u) / 32u - 1u);
    let row_b = k_begin + index / 4u;
    let last_row_b = params.k - 1u;
    let to_b = index / 4u * B_STRIDE + index % 4u * 8u;
    let from_b = wn0 / 4u;
#endif
    // Which word of scales an operand has, and the word.
#if A_FOLD
    var held_a = 0xffffffffu;
    var scales_a = vec2<u32>();
#endif
#if B_FOLD
#if FORM == 0
    var held_b = 0xffffffffu;
    var scales_b = vec2<u32>();
#endif
#endif

    workgroupBarrier();
    {
#import packed_coop_fetch SLICE=0u
#import packed_coop_decode SLICE=0u
#import packed_coop_store SLICE=0u
    }
    workgroupBarrier();
    for (var slice = 0u; slice < slices; slice += params.one) {
        let next = slice + 1u;
#import packed_coop_fetch SLICE=next
#import coop_multiply AT=loop
        workgroupBarrier();
#import packed_coop_decode SLICE=next
#import packed_coop_store SLICE=next
        workgroupBarrier();
    }

    // Scales of whole rows: `block` is free until the sums leave through it.
#if B_FOLD
    let inverse_b = bitcast<f32>(b_side[2]);
#else
    block[index / 4u][index % 4u] = b_stored(min(n0 + index, params.n - 1u), 0u);
#endif
#if A_PACKED
#if A_FOLD
    let inverse_a = bitcast<f32>(a_side[2]);
#else
    block[32u + index / 4u][index % 4u] = a_stored(min(m0 + index, params.m - 1u), 0u);
#endif
#endif
    workgroupBarrier();
#for j 0 4
#if B_FOLD
    let right{j} = inverse_b;
#else
    let right{j} = block[wn0 / 4u + {j}u * 4u + index % 4u];
#endif
#endfor
#for i 0 4
#for q 0 2
#if A_PACKED
#if A_FOLD
    let left{i}_{q} = inverse_a;
#else
    let row{i}_{q} = wm0 + {i}u * 16u + {q}u * 8u + index % 32u / 4u;
    let left{i}_{q} = block[32u + row{i}_{q} / 4u][row{i}_{q} % 4u];
#endif
#else
    let left{i}_{q} = 1.0;
#endif
#endfor
#endfor
#import coop_finish SUM=sum*right{j}*left{i}_{q}
}
