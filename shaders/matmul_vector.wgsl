// matmul_vector.wgsl: out[m, n] = sum_k a[m, k] b[n, k] for a few rows (decoding), f32 arithmetic. Bound by reading b once.
// A workgroup owns four columns of all rows, 16 invocations a column; each sums every 16th vec4 along K of up to ROWS rows. Rows and columns
// beyond the end repeat the last one and are not stored. More columns than a grid is wide go on in its second dimension. Tier: baseline.
#import matmul_operands
#import matmul_epilogue

var<workgroup> part: array<f32, 64u * ROWS>;   // [row][invocation][column]

// Elements k .. k + 3 of a row that starts at `base`, zero beyond its end.
#if VEC
fn load_a(base: u32, k: u32) -> vec4<f32> { return vec4<f32>(a[(base + k) / 4u]); }
fn load_b(base: u32, k: u32) -> vec4<f32> { return vec4<f32>(b[(base + k) / 4u]); }
#else
// Without branches: an early return in each of the 36 loads of eight rows takes some software drivers minutes and gigabytes to compile.
fn load_a(base: u32, k: u32) -> vec4<f32> {
    let e = params.k - 1u;
    let v = vec4<f32>(f32(a[base + k]), f32(a[base + min(k + 1u, e)]), f32(a[base + min(k + 2u, e)]), f32(a[base + min(k + 3u, e)]));
    return select(vec4<f32>(), v, vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.k));
}
fn load_b(base: u32, k: u32) -> vec4<f32> {
    let e = params.k - 1u;
    let v = vec4<f32>(f32(b[base + k]), f32(b[base + min(k + 1u, e)]), f32(b[base + min(k + 2u, e)]), f32(b[base + min(k + 3u, e)]));
    return select(vec4<f32>(), v, vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.k));
}
#endif

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let batch = wg.z;
    let first = (wg.y * grid.x + wg.x) * 4u;
    if first >= params.n { return; } // uniform per workgroup
    let lane = index % 16u;
    let column = index / 16u;
    let base_b = batch * params.batch_b + min(first + column, params.n - 1u) * params.k;
#for r 0 ROWS
    let base{r} = batch * params.batch_a + min({r}u, params.m - 1u) * params.k;
    var sum{r} = vec4<f32>();
#endfor
    for (var k = lane * 4u; k < params.k; k += 64u) {
        let y = load_b(base_b, k);
#for r 0 ROWS
        sum{r} = fma(load_a(base{r}, k), y, sum{r});
#endfor
    }
#for r 0 ROWS
    part[({r}u * 16u + lane) * 4u + column] = (sum{r}.x + sum{r}.y) + (sum{r}.z + sum{r}.w);
#endfor
    workgroupBarrier();
    if index < ROWS && index < params.m {
        var total = vec4<f32>();
        for (var i = 0u; i < 16u; i++) {
            let at = (index * 16u + i) * 4u;
            total += vec4<f32>(part[at], part[at + 1u], part[at + 2u], part[at + 3u]);
        }
#if VEC
        finish4(batch, index, first, total);
#else
        for (var at = first; at < min(first + 4u, params.n); at++) {
            finish1(batch, index, at, total.x);
            total = total.yzwx;
        }
#endif
    }
}
