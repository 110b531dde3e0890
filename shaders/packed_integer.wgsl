// packed_integer.wgsl: out[m, n] = sum_k a[m, k] b[n, k] of two matrices of integers, half-integers or integers with zero points, 1 to 8 bits
// each: exact integer sums of four products an instruction, then the scales.
// With a = (q_a + h_a) s_a and b likewise, the q signed bytes: sum a b = s_a s_b (sum q_a q_b + h_a sum q_b + h_b sum q_a + length h_a h_b);
// where h is a half, twice everything is an integer.
// A workgroup of 256 owns a square tile, an invocation EDGE x EDGE elements that lie 16 apart. Each step stages PARTS runs of 16 of K: an
// invocation unpacks one run of a row of each operand, and sums it. GROUPED: scales differ along K; where a group of either operand ends, the
// integer sums are scaled and added up in f32. Else that happens once.
//
// Bounds: rows are clamped to the last one, runs beyond the last column are 0 and not loaded, and so the group of a run exists, or is clamped
// (its sum is 0). Slots are a permutation of 0 .. 255: rows are below TILE, parts below PARTS, TILE PARTS = 256, and the exclusive or of a part
// stays below PARTS. The host has checked that no sum leaves i32. The loops count up to bounds that do not change. Tier: baseline.
#import matmul_epilogue
#import packed_pair RUN=16u
#import packed_bytes p=a
#import packed_bytes p=b

// By row and part: sums of the bytes since the group's start, scales per unit, and what values are more than bytes.
var<workgroup> sums_a: array<i32, 256>;
var<workgroup> sums_b: array<i32, 256>;
var<workgroup> excess_a: array<i32, 256>;
var<workgroup> excess_b: array<i32, 256>;
var<workgroup> scales_a: array<f32, 256>;
var<workgroup> scales_b: array<f32, 256>;

fn total(v: vec4<u32>) -> i32 {
    let ones = 0x01010101u;
    return dot4I8Packed(v.x, ones) + dot4I8Packed(v.y, ones) + dot4I8Packed(v.z, ones) + dot4I8Packed(v.w, ones);
}

// Sums of a row over those parts that are in the same group as part `v`.
fn sum_a(row: u32, v: u32, shift: u32) -> i32 {
    var sum = 0;
    for (var p = 0u; p < PARTS; p++) { sum += select(0, sums_a[row * PARTS + p], (p * 16u) >> shift == (v * 16u) >> shift); }
    return sum;
}
fn sum_b(row: u32, v: u32, shift: u32) -> i32 {
    var sum = 0;
    for (var p = 0u; p < PARTS; p++) { sum += select(0, sums_b[row * PARTS + p], (p * 16u) >> shift == (v * 16u) >> shift); }
    return sum;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
#import packed_pair_begin
    let units_a = a_units();
    let units_b = b_units();
    let shift = min(params.a.group_shift, params.b.group_shift);
#for i 0 EDGE
#for j 0 EDGE
    var c{i}_{j} = 0;
    var v{i}_{j} = 0.0;
#endfor
#endfor
    var run_a = 0;
    var run_b = 0;
    var next_a = a_bytes16(row_a, part * 16u);
    var next_b = b_bytes16(row_b, part * 16u);
    for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
        workgroupBarrier();
        tile_a[to] = next_a;
        tile_b[to] = next_b;
#if GROUPED
        let first = (k0 & ((1u << shift) - 1u)) == 0u;
        run_a = select(run_a, 0, first) + total(next_a);
        run_b = select(run_b, 0, first) + total(next_b);
        let at = min(k0 + part * 16u, params.k - 1u);
        sums_a[index] = run_a;
        sums_b[index] = run_b;
        excess_a[index] = a_excess(row_a, at >> params.a.group_shift);
        excess_b[index] = b_excess(row_b, at >> params.b.group_shift);
        scales_a[index] = a_stored(row_a, at >> params.a.group_shift) / f32(units_a);
        scales_b[index] = b_stored(row_b, at >> params.b.group_shift) / f32(units_b);
#else
        run_a += total(next_a);
        run_b += total(next_b);
#endif
        workgroupBarrier();
        next_a = a_bytes16(row_a, k0 + DEPTH + part * 16u);
        next_b = b_bytes16(row_b, k0 + DEPTH + part * 16u);
        for (var v = 0u; v < PARTS; v++) {
#for j 0 EDGE
            let y{j} = tile_b[slot({j}u * 16u + tx, v)];
#endfor
#for i 0 EDGE
            {
                let x = tile_a[slot({i}u * 16u + ty, v)];
#for j 0 EDGE
                c{i}_{j} += dot4I8Packed(x.x, y{j}.x) + dot4I8Packed(x.y, y{j}.y) + dot4I8Packed(x.z, y{j}.z) + dot4I8Packed(x.w, y{j}.w);
#endfor
            }
#endfor
#if GROUPED
            let begin = k0 + v * 16u;
            let end = begin + 16u;
            if begin < params.k && (end >= params.k || (end & ((1u << shift) - 1u)) == 0u) {
                let length = i32(min(end, params.k) - ((begin >> shift) << shift));
#import packed_integer_scale
            }
#endif
        }
    }
#if !GROUPED
    sums_a[index] = run_a;
    sums_b[index] = run_b;
    excess_a[index] = a_excess(row_a, 0u);
    excess_b[index] = b_excess(row_b, 0u);
    scales_a[index] = a_stored(row_a, 0u) / f32(units_a);
    scales_b[index] = b_stored(row_b, 0u) / f32(units_b);
    workgroupBarrier();
    let v = 0u;
    let length = i32(params.k);
#import packed_integer_scale
#endif
#import packed_pair_finish SUM=sum
}
