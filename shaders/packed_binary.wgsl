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
#import packed_pair RUN=128u
#import packed_bits p=a
#import packed_bits p=b

#if GROUPED
var<workgroup> scales_a: array<f32, 256>;   // by row and part
var<workgroup> scales_b: array<f32, 256>;
#endif

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
#import packed_pair_begin
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
    var next_a = a_bits128(row_a, part * 128u);
    var next_b = b_bits128(row_b, part * 128u);
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
        next_a = a_bits128(row_a, k0 + DEPTH + part * 128u);
        next_b = b_bits128(row_b, k0 + DEPTH + part * 128u);
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
#if GROUPED
#import packed_pair_finish SUM=sum
#else
#for i 0 EDGE
#for j 0 EDGE
    let v{i}_{j} = f32(i32(params.k) - 2 * i32(c{i}_{j}));
#endfor
#endfor
#import packed_pair_finish SUM=sum*(0.25*a_stored(at_m,0u))*b_stored(at_n,0u)
#endif
}
