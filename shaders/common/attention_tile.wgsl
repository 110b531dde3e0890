// Tiles of the GPU attention kernels: 256 invocations as 16 x 16 (ty, tx), a 64 x 64 tile of scores as 4 x 4 per invocation, rows 4 ty + r,
// columns 4 tx + c. Operands pass through workgroup memory, CHUNK elements of the contraction at a time: `tile` holds a 64 x CHUNK
// operand and behind it a second one, 64 x CHUNK or CHUNK x HEAD_DIM, at most 16 KiB in all. Per four steps of the contraction an invocation
// reads 8 vec4 for 64 multiply-adds.
//
// The importing shader defines fetch(head, part, t, i): vec4 i of row t of q, k, v or dout (part 0 to 3), zeros where t >= seq.
//
// Bounds of `tile`: rows < 64, k4 < C4 and the exclusive or keeps k4 below C4, a power of two; groups are clamped below D4.
#import attention
const C4: u32 = CHUNK / 4u;
const SECOND: u32 = 64u * C4;
const TILE: u32 = SECOND + max(64u * C4, CHUNK * D4);
var<workgroup> tile: array<vec4<f32>, TILE>;

// Columns of an output row are shared out as vec4 groups over the 16 tx. Heads with fewer than 16 groups leave room for SLICES invocations
// per group, which split the contraction and are added up at the end (`gather`); more than 16 groups (WIDE) give each invocation two.
const SLICES: u32 = select(1u, 16u / D4, D4 < 16u && 16u % D4 == 0u);
const LANES: u32 = 16u / SLICES;

struct Quad { r0: vec4<f32>, r1: vec4<f32>, r2: vec4<f32>, r3: vec4<f32> }
struct Place { index: u32, ty: u32, tx: u32, slice: u32, lane: u32 }
struct Head { b: u32, h: u32 }

fn place(index: u32) -> Place {
    let tx = index % 16u;
    return Place(index, index / 16u, tx, tx / LANES, tx % LANES);
}

// Where vec4 k4 of row `row` of a 64 x CHUNK operand lies. The exclusive or spreads rows 4 tx + c over the memory banks.
fn at(row: u32, k4: u32) -> u32 { return row * C4 + (k4 ^ ((row / 4u) & (C4 - 1u))); }

// The tile of products of rows a_first .. +64 of part a with rows b_first .. +64 of part b, over HEAD_DIM.
fn products(head: Head, a: u32, a_first: u32, b: u32, b_first: u32, me: Place) -> Quad {
    var s: Quad;
    for (var start = 0u; start < D4; start += C4) {
        workgroupBarrier(); // what was there may still be read
        for (var i = me.index; i < SECOND; i += 256u) {
            let row = i / C4;
            let k4 = i % C4;
            tile[at(row, k4)] = fetch(head, a, a_first + row, start + k4);
            tile[SECOND + at(row, k4)] = fetch(head, b, b_first + row, start + k4);
        }
        workgroupBarrier();
        let a_row = me.ty * 4u * C4;
        let b_row = SECOND + me.tx * 4u * C4;
        for (var k4 = 0u; k4 < C4; k4++) {
            let a_at = a_row + (k4 ^ (me.ty & (C4 - 1u)));
            let b_at = b_row + (k4 ^ (me.tx & (C4 - 1u)));
            let a0 = tile[a_at];
            let a1 = tile[a_at + C4];
            let a2 = tile[a_at + 2u * C4];
            let a3 = tile[a_at + 3u * C4];
            let b = transpose(mat4x4<f32>(tile[b_at], tile[b_at + C4], tile[b_at + 2u * C4], tile[b_at + 3u * C4]));
            s.r0 += a0.x * b[0]; s.r0 += a0.y * b[1]; s.r0 += a0.z * b[2]; s.r0 += a0.w * b[3];
            s.r1 += a1.x * b[0]; s.r1 += a1.y * b[1]; s.r1 += a1.z * b[2]; s.r1 += a1.w * b[3];
            s.r2 += a2.x * b[0]; s.r2 += a2.y * b[1]; s.r2 += a2.z * b[2]; s.r2 += a2.w * b[3];
            s.r3 += a3.x * b[0]; s.r3 += a3.y * b[1]; s.r3 += a3.z * b[2]; s.r3 += a3.w * b[3];
        }
    }
    return s;
}

struct Acc {
    low: Quad,  // columns 4 lane ..
#if WIDE
    high: Quad, // columns 64 + 4 lane ..
#endif
}

fn multiply_add(s: ptr<function, Quad>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, start: u32) {
    let x0 = tile[start];
    let x1 = tile[start + D4];
    let x2 = tile[start + 2u * D4];
    let x3 = tile[start + 3u * D4];
    (*s).r0 += w0.x * x0; (*s).r0 += w0.y * x1; (*s).r0 += w0.z * x2; (*s).r0 += w0.w * x3;
    (*s).r1 += w1.x * x0; (*s).r1 += w1.y * x1; (*s).r1 += w1.z * x2; (*s).r1 += w1.w * x3;
    (*s).r2 += w2.x * x0; (*s).r2 += w2.y * x1; (*s).r2 += w2.z * x2; (*s).r2 += w2.w * x3;
    (*s).r3 += w3.x * x0; (*s).r3 += w3.y * x1; (*s).r3 += w3.z * x2; (*s).r3 += w3.w * x3;
}

// acc += weights (64 x 64, as `products` lays them out) times rows first .. first + 64 of `part`.
fn add_weighted(acc: ptr<function, Acc>, weights: Quad, head: Head, part: u32, first: u32, me: Place) {
    var low = (*acc).low;
#if WIDE
    var high = (*acc).high;
#endif
    for (var chunk = 0u; chunk < 64u / CHUNK; chunk++) {
        workgroupBarrier();
        if me.tx / C4 == chunk {
            let to = me.ty * 4u * C4 + ((me.tx % C4) ^ (me.ty & (C4 - 1u)));
            tile[to] = weights.r0;
            tile[to + C4] = weights.r1;
            tile[to + 2u * C4] = weights.r2;
            tile[to + 3u * C4] = weights.r3;
        }
        for (var i = me.index; i < CHUNK * D4; i += 256u) {
            tile[SECOND + i] = fetch(head, part, first + chunk * CHUNK + i / D4, i % D4);
        }
        workgroupBarrier();
        let w_row = me.ty * 4u * C4;
        for (var k4 = me.slice; k4 < C4; k4 += SLICES) {
            let w_at = w_row + (k4 ^ (me.ty & (C4 - 1u)));
            let w0 = tile[w_at];
            let w1 = tile[w_at + C4];
            let w2 = tile[w_at + 2u * C4];
            let w3 = tile[w_at + 3u * C4];
            let x_row = SECOND + 4u * k4 * D4;
            multiply_add(&low, w0, w1, w2, w3, x_row + min(me.lane, D4 - 1u));
#if WIDE
            multiply_add(&high, w0, w1, w2, w3, x_row + min(me.lane + 16u, D4 - 1u));
#endif
        }
    }
    (*acc).low = low;
#if WIDE
    (*acc).high = high;
#endif
}

// The sum over slices, for slice 0.
fn gather(mine: Quad, me: Place) -> Quad {
    var sum = mine;
    for (var s = 1u; s < SLICES; s++) {
        let to = me.ty * 4u * D4 + min(me.lane, D4 - 1u);
        workgroupBarrier();
        if me.slice == s {
            tile[to] = mine.r0;
            tile[to + D4] = mine.r1;
            tile[to + 2u * D4] = mine.r2;
            tile[to + 3u * D4] = mine.r3;
        }
        workgroupBarrier();
        if me.slice == 0u {
            sum.r0 += tile[to];
            sum.r1 += tile[to + D4];
            sum.r2 += tile[to + 2u * D4];
            sum.r3 += tile[to + 3u * D4];
        }
    }
    return sum;
}

// Work of this workgroup: x = batch * heads + head, y = first row of its block of 64; the longest blocks come first. x is out of range for the
// workgroups that fold the grid.
fn assignment(id: u32, long_last: bool) -> vec2<u32> {
    let blocks = (params.seq + 63u) / 64u;
    let heads = params.batch * params.heads;
    let block = id / heads;
    if block >= blocks { return vec2<u32>(heads, 0u); }
    return vec2<u32>(id % heads, 64u * select(block, blocks - 1u - block, long_last));
}
