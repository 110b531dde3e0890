// embedding_backward.wgsl: gradients of table and positions for small vocabularies, without atomics. A workgroup owns one tile of columns
// and one chunk of rows; each of its WG_SIZE invocations owns one unit of columns and adds its rows one after another, in order, to its own
// sums for every token, kept in workgroup memory but never shared. The sums go to `partial_sums` [chunks, vocab, units], which column_sum
// adds up. With POSITIONS a chunk is `chunk` positions of every sequence, so that it knows the whole gradient of those positions; without,
// it is `chunk` successive rows. DROPOUT: 0 none; 1 every invocation draws the factors of its unit; 2 (32 invocations of one column each,
// rows a multiple of 4 columns) the invocations draw a batch's factors together and exchange them. Tokens beyond the table are summed
// apart and dropped. Baseline.
//
// Bounds: row < rows wherever tokens or dout are read, because seq * batch = rows and t < seq, b < batch (or b < the chunk's rows);
// column < units where dout is read, c < units is checked before dpositions and partial_sums are indexed; sums are indexed by a token
// <= vocab <= VOCAB, which the wrapper checks. Loops advance to fixed ends.
#import vector
struct Params {
    rows: u32, units: u32, vocab: u32, seq: u32, batch: u32, chunk: u32, chunks: u32, tiles: u32, accumulate: u32,
    seed_low: u32, seed_high: u32, op: u32, micro: u32, threshold: u32, keep_scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;               // [rows]
@group(0) @binding(2) var<storage, read> dout: array<V>;                   // [rows, units]
@group(0) @binding(3) var<storage, read_write> partial_sums: array<V>;     // [chunks, vocab, units]
#if POSITIONS
@group(0) @binding(4) var<storage, read_write> dpositions: array<V>;       // [block, units], the first seq rows are written
#endif
#if DROPOUT != 0
#if POSITIONS
@group(0) @binding(5) var<storage, read> state: StepState;
#else
@group(0) @binding(4) var<storage, read> state: StepState;
#endif
#import dropout
#endif
const BATCH: u32 = 8u;
// VOCAB, and one more for tokens beyond the table, times 32 columns, and a batch of factors: at most 16 KiB.
var<workgroup> sums: array<V, (VOCAB + 1u) * WG_SIZE>;
#if DROPOUT == 2
var<workgroup> factors: array<vec4<f32>, 2u * WG_SIZE>;
#endif

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let id = wg.y * grid.x + wg.x;
    let chunk = id / params.tiles;
    if chunk >= params.chunks { return; } // uniform per workgroup
    let units = params.units;
    let first_unit = (id % params.tiles) * WG_SIZE;
    let c = first_unit + index;
    let mine = c < units;
    let column = min(c, units - 1u);
    for (var v = 0u; v <= params.vocab; v++) { sums[v * WG_SIZE + index] = V(0.0); }
    // Rows are start + b * stride for b below length.
    let begin = chunk * params.chunk;
#if POSITIONS
    let stride = params.seq;
    let length = params.batch;
    let end = min(begin + params.chunk, params.seq);
#else
    let stride = 1u;
    let length = min(params.chunk, params.rows - begin);
    let end = begin + 1u;
#endif
    for (var start = begin; start < end; start++) {
        var sum = V(0.0);
        for (var b = 0u; b < length; b += BATCH) {
            // Several rows at a time and without branches, so that their loads are under way together. Rows beyond the last repeat it, with
            // value 0 and the token behind the last.
            let r0 = start + min(b + 0u, length - 1u) * stride;
            let r1 = start + min(b + 1u, length - 1u) * stride;
            let r2 = start + min(b + 2u, length - 1u) * stride;
            let r3 = start + min(b + 3u, length - 1u) * stride;
            let r4 = start + min(b + 4u, length - 1u) * stride;
            let r5 = start + min(b + 5u, length - 1u) * stride;
            let r6 = start + min(b + 6u, length - 1u) * stride;
            let r7 = start + min(b + 7u, length - 1u) * stride;
            let v0 = dout[r0 * units + column];
            let v1 = dout[r1 * units + column];
            let v2 = dout[r2 * units + column];
            let v3 = dout[r3 * units + column];
            let v4 = dout[r4 * units + column];
            let v5 = dout[r5 * units + column];
            let v6 = dout[r6 * units + column];
            let v7 = dout[r7 * units + column];
            let t0 = tokens[r0];
            let t1 = tokens[r1];
            let t2 = tokens[r2];
            let t3 = tokens[r3];
            let t4 = tokens[r4];
            let t5 = tokens[r5];
            let t6 = tokens[r6];
            let t7 = tokens[r7];
            let token = array<u32, BATCH>(t0, t1, t2, t3, t4, t5, t6, t7);
            var value = array<V, BATCH>(v0, v1, v2, v3, v4, v5, v6, v7);
            for (var j = 0u; j < BATCH; j++) { value[j] = select(V(0.0), value[j], b + j < length); }
#if DROPOUT == 1
            for (var j = 0u; j < BATCH; j++) { value[j] *= keep((start + (b + j) * stride) * units + column); }
#endif
#if DROPOUT == 2
            // Invocation i draws for row b + i / 8, and the fourth after it, the factors of columns 4 (i % 8) .. + 3 of the tile; those of
            // rows and columns that do not exist are not used.
            let drawn = (start + (b + index / 8u) * stride) * units + first_unit + index % 8u * 4u;
            let seed = vec2<u32>(params.seed_low, params.seed_high);
            workgroupBarrier();
            for (var h = 0u; h < 2u; h++) {
                let quad = (drawn + h * 4u * stride * units) / 4u;
                factors[h * WG_SIZE + index] =
                    dropout_factors(seed, quad, params.op, state.step, params.micro, params.threshold, params.keep_scale);
            }
            workgroupBarrier();
            for (var j = 0u; j < BATCH; j++) { value[j] *= factors[j * 8u + index / 4u][index % 4u]; }
#endif
            for (var j = 0u; j < BATCH; j++) {
                sum += value[j];
                sums[min(token[j], params.vocab) * WG_SIZE + index] += value[j];
            }
        }
#if POSITIONS
        if mine {
            let at = start * units + c;
            if params.accumulate != 0u { sum += dpositions[at]; }
            dpositions[at] = sum;
        }
#endif
    }
    if mine {
        for (var v = 0u; v < params.vocab; v++) {
            partial_sums[(chunk * params.vocab + v) * units + c] = sums[v * WG_SIZE + index];
        }
    }
}
