// matmul_lanes.wgsl: matrix products for adapters that run shaders on a CPU, in the subgroup tier. FORM as in matmul_tiled.wgsl.
//
// There, an invocation is a lane of a vector register, a load from memory is a loop over the lanes wherever it stands in a loop of the
// shader, and workgroup memory and barriers cost more still. So a workgroup is one subgroup of LANES lanes that owns 4 LANES rows and
// 4 LANES columns of the result; each lane loads vec4s of its own and a broadcast from a constant lane, which is one instruction, hands
// the left operand to all of them. Lane l holds columns 4 l .. 4 l + 3 of every row.
//
// Bounds: rows, columns and k are clamped to the last valid one on load; what was clamped is multiplied by zero (k; an infinity in the last
// row of K thereby becomes a NaN where K is no multiple of four, and selecting would cost the loop more than that is worth) or not stored
// (rows and columns). All sizes are at least 1 (VEC: contiguous sizes at least 4). Every loop counts up to a bound that does not change.
#import matmul_operands
#import matmul_epilogue

#if VEC
// Elements inner .. inner + 3 of a row that starts at `base`.
fn load_a_row(base: u32, inner: u32, inners: u32) -> vec4<f32> { return vec4<f32>(a[(base + inner) / 4u]); }
fn load_b_row(base: u32, inner: u32, inners: u32) -> vec4<f32> { return vec4<f32>(b[(base + inner) / 4u]); }
#else
// Elements inner .. inner + 3 of a row of `inners` that starts at `base`, repeating the last one beyond the end.
fn load_a_row(base: u32, inner: u32, inners: u32) -> vec4<f32> {
    let e = inners - 1u;
    return vec4<f32>(f32(a[base + min(inner, e)]), f32(a[base + min(inner + 1u, e)]), f32(a[base + min(inner + 2u, e)]), f32(a[base + min(inner + 3u, e)]));
}
fn load_b_row(base: u32, inner: u32, inners: u32) -> vec4<f32> {
    let e = inners - 1u;
    return vec4<f32>(f32(b[base + min(inner, e)]), f32(b[base + min(inner + 1u, e)]), f32(b[base + min(inner + 2u, e)]), f32(b[base + min(inner + 3u, e)]));
}
#endif

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let batch = wg.z;
    let m0 = wg.y * (4u * LANES);
    let n0 = wg.x * (4u * LANES);
    let first_a = batch * params.batch_a;
    let first_b = batch * params.batch_b;
    // Where this lane reads from.
#if FORM == 2
#if VEC
    let col_a = min(m0 + 4u * lane, params.m - 4u);
#else
    let col_a = m0 + 4u * lane;
#endif
#else
#for g 0 4
    let row_a{g} = first_a + min(m0 + {g}u * LANES + lane, params.m - 1u) * params.k;
#endfor
#endif
#if FORM == 0
#for c 0 4
    let row_b{c} = first_b + min(n0 + 4u * lane + {c}u, params.n - 1u) * params.k;
#endfor
#else
#if VEC
    let col_b = min(n0 + 4u * lane, params.n - 4u);
#else
    let col_b = n0 + 4u * lane;
#endif
#endif
#for g 0 4
#for l 0 LANES
    var sum{g}_{l} = vec4<f32>(0.0);
#endfor
#endfor
    for (var k = 0u; k < params.k; k += 4u) {
        let end = params.k - 1u;
        // b{i}: the lane's four columns of row k + i of the right operand.
#if FORM == 0
#for c 0 4
        let r{c} = load_b_row(row_b{c}, k, params.k);
#endfor
        let b0 = vec4<f32>(r0.x, r1.x, r2.x, r3.x);
        let b1 = vec4<f32>(r0.y, r1.y, r2.y, r3.y);
        let b2 = vec4<f32>(r0.z, r1.z, r2.z, r3.z);
        let b3 = vec4<f32>(r0.w, r1.w, r2.w, r3.w);
#else
#for i 0 4
        let b{i} = load_b_row(first_b + min(k + {i}u, end) * params.n, col_b, params.n);
#endfor
#endif
        // Rows of k beyond the end count nothing. (VEC: K is a multiple of four where it is contiguous.)
#if FORM == 2
        let valid = vec4<f32>(vec4<u32>(k, k + 1u, k + 2u, k + 3u) <= vec4<u32>(end));
#else
#if !VEC
        let valid = vec4<f32>(vec4<u32>(k, k + 1u, k + 2u, k + 3u) <= vec4<u32>(end));
#endif
#endif
#if FORM == 2
#for i 0 4
        let t{i} = load_a_row(first_a + min(k + {i}u, end) * params.m, col_a, params.m) * valid[{i}];
#endfor
#for l 0 LANES
#for g 0 4
        sum{g}_{l} += subgroupBroadcast(t0[{g}], {l}u) * b0 + subgroupBroadcast(t1[{g}], {l}u) * b1
            + subgroupBroadcast(t2[{g}], {l}u) * b2 + subgroupBroadcast(t3[{g}], {l}u) * b3;
#endfor
#endfor
#else
#for g 0 4
#if VEC
        let t{g} = load_a_row(row_a{g}, k, params.k);
#else
        let t{g} = load_a_row(row_a{g}, k, params.k) * valid;
#endif
#endfor
#for g 0 4
#for l 0 LANES
        let x{g}_{l} = subgroupBroadcast(t{g}, {l}u);
        sum{g}_{l} += x{g}_{l}.x * b0 + x{g}_{l}.y * b1 + x{g}_{l}.z * b2 + x{g}_{l}.w * b3;
#endfor
#endfor
#endif
    }
    // One loop over the rows keeps the epilogue's code in one place: unrolled, it would be compiled once per row.
    var tile: array<vec4<f32>, 4u * LANES>;
#for g 0 4
#for l 0 LANES
#if FORM == 2
    tile[4u * {l}u + {g}u] = sum{g}_{l};
#else
    tile[{g}u * LANES + {l}u] = sum{g}_{l};
#endif
#endfor
#endfor
    let col = n0 + 4u * lane;
    for (var i = 0u; i < 4u * LANES; i++) {
        let row = m0 + i;
        if row < params.m && col < params.n {
#if VEC
            finish4(batch, row, col, tile[i]);
#else
#for j 0 4
            if col + {j}u < params.n { finish1(batch, row, col + {j}u, tile[i][{j}]); }
#endfor
#endif
        }
    }
}
