// matmul_tiled.wgsl: matrix products through workgroup memory, f32 arithmetic, for GPUs.
//   FORM 0: out[m, n] = sum_k a[m, k] b[n, k]    (forward: x W^T)
//   FORM 1: out[m, n] = sum_k a[m, k] b[k, n]    (input gradient: dY W)
//   FORM 2: out[m, n] = sum_k a[k, m] b[k, n]    (weight gradient: dY^T X)
// A workgroup owns a TILE x TILE tile of one matrix of the batch, an invocation 4 x 4 elements of it.
#import matmul_epilogue

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const STRIDE: u32 = TILE + 4u;   // a column of padding spreads the banks and keeps vec4 alignment

var<workgroup> tile_a: array<f32, DEPTH * STRIDE>;   // [k][m]
var<workgroup> tile_b: array<f32, DEPTH * STRIDE>;   // [k][n]

#if VEC
// Four elements that are contiguous in memory, zero beyond the edge.
fn load_a(batch: u32, outer: u32, inner: u32, outers: u32, inners: u32) -> vec4<f32> {
    if outer >= outers || inner >= inners { return vec4<f32>(0.0); }
    return vec4<f32>(a[(batch * params.batch_a + outer * inners + inner) / 4u]);
}
fn load_b(batch: u32, outer: u32, inner: u32, outers: u32, inners: u32) -> vec4<f32> {
    if outer >= outers || inner >= inners { return vec4<f32>(0.0); }
    return vec4<f32>(b[(batch * params.batch_b + outer * inners + inner) / 4u]);
}
#else
fn element_a(batch: u32, outer: u32, inner: u32, outers: u32, inners: u32) -> f32 {
    if outer >= outers || inner >= inners { return 0.0; }
    return f32(a[batch * params.batch_a + outer * inners + inner]);
}
fn element_b(batch: u32, outer: u32, inner: u32, outers: u32, inners: u32) -> f32 {
    if outer >= outers || inner >= inners { return 0.0; }
    return f32(b[batch * params.batch_b + outer * inners + inner]);
}
fn load_a(batch: u32, outer: u32, inner: u32, outers: u32, inners: u32) -> vec4<f32> {
    return vec4<f32>(
        element_a(batch, outer, inner, outers, inners), element_a(batch, outer, inner + 1u, outers, inners),
        element_a(batch, outer, inner + 2u, outers, inners), element_a(batch, outer, inner + 3u, outers, inners));
}
fn load_b(batch: u32, outer: u32, inner: u32, outers: u32, inners: u32) -> vec4<f32> {
    return vec4<f32>(
        element_b(batch, outer, inner, outers, inners), element_b(batch, outer, inner + 1u, outers, inners),
        element_b(batch, outer, inner + 2u, outers, inners), element_b(batch, outer, inner + 3u, outers, inners));
}
#endif

fn read_a(i: u32) -> vec4<f32> { return vec4<f32>(tile_a[i], tile_a[i + 1u], tile_a[i + 2u], tile_a[i + 3u]); }
fn read_b(i: u32) -> vec4<f32> { return vec4<f32>(tile_b[i], tile_b[i + 1u], tile_b[i + 2u], tile_b[i + 3u]); }

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) index: u32, @builtin(workgroup_id) wg: vec3<u32>) {
    let batch = wg.z;
    let m0 = wg.y * TILE;
    let n0 = wg.x * TILE;
    // Where each invocation's four loaded elements go: along k for operands stored K-contiguous, else along m or n.
    let along_k = vec2<u32>(index % 4u * 4u, index / 4u);
    let across = vec2<u32>(index / 16u, index % 16u * 4u);
    let row = index / 16u * 4u;
    let col = index % 16u * 4u;
    var sum: array<vec4<f32>, 4>;
    for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
#if FORM == 2
        let va = load_a(batch, k0 + across.x, m0 + across.y, params.k, params.m);
#else
        let va = load_a(batch, m0 + along_k.y, k0 + along_k.x, params.m, params.k);
#endif
#if FORM == 0
        let vb = load_b(batch, n0 + along_k.y, k0 + along_k.x, params.n, params.k);
#else
        let vb = load_b(batch, k0 + across.x, n0 + across.y, params.k, params.n);
#endif
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
#if FORM == 2
            tile_a[across.x * STRIDE + across.y + i] = va[i];
#else
            tile_a[(along_k.x + i) * STRIDE + along_k.y] = va[i];
#endif
#if FORM == 0
            tile_b[(along_k.x + i) * STRIDE + along_k.y] = vb[i];
#else
            tile_b[across.x * STRIDE + across.y + i] = vb[i];
#endif
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let x = read_a(k * STRIDE + row);
            let y = read_b(k * STRIDE + col);
            sum[0] += x.x * y;
            sum[1] += x.y * y;
            sum[2] += x.z * y;
            sum[3] += x.w * y;
        }
    }
    for (var i = 0u; i < 4u; i++) {
        if m0 + row + i >= params.m { break; }
#if VEC
        if n0 + col < params.n { finish4(batch, m0 + row + i, n0 + col, sum[i]); }
#else
        for (var j = 0u; j < 4u; j++) {
            if n0 + col + j < params.n { finish1(batch, m0 + row + i, n0 + col + j, sum[i][j]); }
        }
#endif
    }
}
