// column_sum.wgsl: out[c] = factor * (sum over r of x[r, c]), or out[c] += that. A workgroup sums `chunk` rows of TILE_X column units;
// TILE_Y invocations share a unit and are added up through workgroup memory. With several chunks `out` is a workspace [chunks, columns]
// that a second dispatch sums. OUTPUTS 2: the columns from unit `split` on go to `second`. Order of additions fixed. Baseline.
//
// Bounds: r < rows and c < units wherever x is read, so r * stride + first + c is below its length (first + units <= stride); out has chunks * units units (the second output
// and the first add up to units). Scratch indices are below TILE_X * TILE_Y. Loops advance to fixed ends.
#import elem
struct Params {
    rows: u32, units: u32, chunk: u32, tiles: u32, chunks: u32, split: u32, accumulate: u32, factor: f32,
    stride: u32, first: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<E>;             // [rows, stride], units of it from unit `first` on
@group(0) @binding(2) var<storage, read_write> out: array<V>;
#if OUTPUTS == 2
@group(0) @binding(3) var<storage, read_write> second: array<V>;
#endif
const WG_SIZE: u32 = TILE_X * TILE_Y;
#if TILE_Y != 1
var<workgroup> scratch: array<V, WG_SIZE>;
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
    let c = (id % params.tiles) * TILE_X + index % TILE_X;
    let units = params.units;
    let stride = params.stride;
    let end = min((chunk + 1u) * params.chunk, params.rows);
    var sum = V(0.0);
    if c < units {
        let column = params.first + c;
        // Four rows at a time, so that four loads are under way together.
        var r = chunk * params.chunk + index / TILE_X;
        var s0 = V(0.0); var s1 = V(0.0); var s2 = V(0.0); var s3 = V(0.0);
        for (; r + 3u * TILE_Y < end; r += 4u * TILE_Y) {
            s0 += V(x[r * stride + column]);
            s1 += V(x[(r + TILE_Y) * stride + column]);
            s2 += V(x[(r + 2u * TILE_Y) * stride + column]);
            s3 += V(x[(r + 3u * TILE_Y) * stride + column]);
        }
        for (; r < end; r += TILE_Y) { s0 += V(x[r * stride + column]); }
        sum = (s0 + s1) + (s2 + s3);
    }
#if TILE_Y != 1
    scratch[index] = sum;
    workgroupBarrier();
    for (var span = TILE_Y / 2u; span > 0u; span /= 2u) {
        if index < span * TILE_X { scratch[index] += scratch[index + span * TILE_X]; }
        workgroupBarrier();
    }
    if index >= TILE_X { return; }
    sum = scratch[index];
#endif
    if c >= units { return; }
    sum *= params.factor;
#if OUTPUTS == 2
    if c >= params.split {
        let i = c - params.split;
        if params.accumulate != 0u { sum += second[i]; }
        second[i] = sum;
        return;
    }
#endif
    let i = chunk * units + c;
    if params.accumulate != 0u { sum += out[i]; }
    out[i] = sum;
}
