// quantize_square.wgsl: the largest magnitudes of squares of 16 rows by groups of 16 columns, for scales that a square shares. An
// invocation owns the units of 16 rows and 32 columns, two squares; nothing is rotated across rows. Bounds: rows and groups beyond the end
// are nobody's. Deterministic. Tier: baseline.
@group(0) @binding(0) var<uniform> params: Recipe;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> scratch: array<u32>;
#import quantize_load AT=1 AND=4
const STRIDE: u32 = 4u;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(local_invocation_index) index: u32, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let i = (wg.y * grid.x + wg.x) * WG_SIZE + index;
    let first = i / params.units * 16u;
    let unit = i % params.units;
    if first >= params.rows { return; }
    var left = unseen();
    var right = unseen();
    for (var row = first; row < min(first + 16u, params.rows); row++) {
        let u = unit_of(row, unit);
        left = see0(left, u, 0u);
        right = see1(right, u, 0u);
    }
    let at = params.square + first / 16u * params.p.groups + 2u * unit;
    scratch[at] = total_of(left).m;
    if 2u * unit + 1u < params.p.groups { scratch[at + 1u] = total_of(right).m; }
}
