// packed_binary.wgsl: out[m, n] = sum_k a[m, k] b[n, k] of two matrices of signs: values are +-1/2 in units of the scale, so a sum of `length`
// products is (length - 2 differences) / 4, and differences are counted 32 at a time.
// A workgroup of 256 owns a square tile, an invocation EDGE x EDGE elements that lie 16 apart. Each step stages PARTS runs of 128 of K: an
// invocation loads the four words of one run of a row of each operand. Counting bits is the slow instruction of GPUs: eight words go through
// four full adders first, so that four counts serve for eight. GROUPED: scales differ along K, in groups of at least 128; where one ends, the
// count is scaled and added up in f32. Else that happens once.
//
// Bounds: as packed_integer.wgsl; words beyond the last one of a row are 0 and not loaded, bits beyond the last column are cleared, both in both
// operands: they do not differ. Tier: baseline.
#import matmul_epilogue
@group(0) @binding(1) var<storage, read> a_codes: array<u32>;
@group(0) @binding(2) var<storage, read> a_side: array<u32>;
@group(0) @binding(3) var<storage, read> b_codes: array<u32>;
@group(0) @binding(4) var<storage, read> b_side: array<u32>;
#import packed_scales p=a
#import packed_scales p=b

const TILE: u32 = 16u * EDGE;
const PARTS: u32 = 16u / EDGE;
const DEPTH: u32 = 128u * PARTS;
var<workgroup> tile_a: array<vec4<u32>, 256>;
var<workgroup> tile_b: array<vec4<u32>, 256>;
#if GROUPED
var<workgroup> scales_a: array<f32, 256>;   // by row and part
var<workgroup> scales_b: array<f32, 256>;
#endif

// Eight neighbouring rows of one part fall on different banks.
fn slot(row: u32, part: u32) -> u32 { return row * PARTS + (part ^ (row * PARTS / 8u % PARTS)); }

// The bits of a row that has `cols`, from column k on.
fn load_a(row: u32, k: u32) -> vec4<u32> {
    var v = vec4<u32>();
    let words = params.a.row_words;
#for e 0 4
    if k / 32u + {e}u < words { v[{e}] = a_codes[row * words + k / 32u + {e}u]; }
#endfor
    return v & inside(k);
}
fn load_b(row: u32, k: u32) -> vec4<u32> {
    var v = vec4<u32>();
    let words = params.b.row_words;
#for e 0 4
    if k / 32u + {e}u < words { v[{e}] = b_codes[row * words + k / 32u + {e}u]; }
#endfor
    return v & inside(k);
}
// The bits from k on that are before the end of K.
fn inside(k: u32) -> vec4<u32> {
    let left = vec4<u32>(clamp(vec4<i32>(i32(params.k) - i32(k)) - vec4<i32>(0, 32, 64, 96), vec4<i32>(), vec4<i32>(32)));
    return select((vec4<u32>(1u) << (left & vec4<u32>(31u))) - 1u, vec4<u32>(0xffffffffu), left == vec4<u32>(32u));
}

fn carry(a: u32, b: u32, c: u32) -> u32 { return (a & b) | (c & (a ^ b)); }
// How many bits two runs of 256 differ in.
fn differences(x0: vec4<u32>, x1: vec4<u32>, y0: vec4<u32>, y1: vec4<u32>) -> u32 {
    let p = x0 ^ y0;
    let q = x1 ^ y1;
    let s0 = p.x ^ p.y ^ p.z;
    let s1 = p.w ^ q.x ^ q.y;
    let ones = s0 ^ s1 ^ q.z;
    let c0 = carry(p.x, p.y, p.z);
    let c1 = carry(p.w, q.x, q.y);
    let c2 = carry(s0, s1, q.z);
    let twos = c0 ^ c1 ^ c2;
    return countOneBits(q.w) + countOneBits(ones) + 2u * countOneBits(twos) + 4u * countOneBits(carry(c0, c1, c2));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let m0 = wg.y * TILE;
    let n0 = wg.x * TILE;
    // 32 consecutive invocations cover 8 (n) x 4 (m).
    let tx = index / 32u % 2u * 8u + index % 8u;
    let ty = index / 64u * 4u + index / 8u % 4u;
    let row = index / PARTS;
    let part = index % PARTS;
    let to = slot(row, part);
    let row_a = min(m0 + row, params.m - 1u);
    let row_b = min(n0 + row, params.n - 1u);
#for i 0 EDGE
#for j 0 EDGE
    var c{i}_{j} = 0u;
#if GROUPED
    var v{i}_{j} = 0.0;
#endif
#endfor
#endfor
#if GROUPED
    let shift = min(params.a.group_shift, params.b.group_shift);
#endif
    var next_a = load_a(row_a, part * 128u);
    var next_b = load_b(row_b, part * 128u);
    for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
        workgroupBarrier();
        tile_a[to] = next_a;
        tile_b[to] = next_b;
#if GROUPED
        let at = min(k0 + part * 128u, params.k - 1u);
        scales_a[index] = a_stored(row_a, at >> params.a.group_shift);
        scales_b[index] = b_stored(row_b, at >> params.b.group_shift);
#endif
        workgroupBarrier();
        next_a = load_a(row_a, k0 + DEPTH + part * 128u);
        next_b = load_b(row_b, k0 + DEPTH + part * 128u);
#if GROUPED
        for (var v = 0u; v < PARTS; v++) {
#for j 0 EDGE
            let y{j} = tile_b[slot({j}u * 16u + tx, v)];
#endfor
#for i 0 EDGE
            {
                let x = tile_a[slot({i}u * 16u + ty, v)];
#for j 0 EDGE
                {
                    let counts = countOneBits(x ^ y{j});
                    c{i}_{j} += counts.x + counts.y + counts.z + counts.w;
                }
#endfor
            }
#endfor
            let begin = k0 + v * 128u;
            let end = begin + 128u;
            if begin < params.k && (end >= params.k || (end & ((1u << shift) - 1u)) == 0u) {
                let length = i32(min(end, params.k) - ((begin >> shift) << shift));
#for j 0 EDGE
                let s{j} = scales_b[({j}u * 16u + tx) * PARTS + v] * 0.25;
#endfor
#for i 0 EDGE
                {
                    let s = scales_a[({i}u * 16u + ty) * PARTS + v];
#for j 0 EDGE
                    v{i}_{j} += f32(length - 2 * i32(c{i}_{j})) * s * s{j};
                    c{i}_{j} = 0u;
#endfor
                }
#endfor
            }
        }
#else
        for (var v = 0u; v < PARTS; v += 2u) {
#for j 0 EDGE
            let y{j} = tile_b[slot({j}u * 16u + tx, v)];
            let z{j} = tile_b[slot({j}u * 16u + tx, v + 1u)];
#endfor
#for i 0 EDGE
            {
                let x = tile_a[slot({i}u * 16u + ty, v)];
                let w = tile_a[slot({i}u * 16u + ty, v + 1u)];
#for j 0 EDGE
                c{i}_{j} += differences(x, w, y{j}, z{j});
#endfor
            }
#endfor
        }
#endif
    }
    // One loop keeps the epilogue's code in one place.
    var tile: array<f32, EDGE * EDGE>;
#for i 0 EDGE
#for j 0 EDGE
#if GROUPED
    tile[{i}u * EDGE + {j}u] = v{i}_{j};
#else
    tile[{i}u * EDGE + {j}u] = f32(i32(params.k) - 2 * i32(c{i}_{j}));
#endif
#endfor
#endfor
    for (var e = 0u; e < EDGE * EDGE; e++) {
        let at_m = m0 + e / EDGE * 16u + ty;
        let at_n = n0 + e % EDGE * 16u + tx;
        if at_m < params.m && at_n < params.n {
#if GROUPED
            finish1(0u, at_m, at_n, tile[e]);
#else
            finish1(0u, at_m, at_n, tile[e] * (0.25 * a_stored(at_m, 0u)) * b_stored(at_n, 0u));
#endif
        }
    }
}
