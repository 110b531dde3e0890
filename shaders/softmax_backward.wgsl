// softmax_backward.wgsl: dx = y * (dy - sum of y * dy) over each row; one workgroup per row.
#import reduce
struct Params { rows: u32, cols: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let row = wg.y * grid.x + wg.x;
    if row >= params.rows { return; }
    let base = row * params.cols;
    var sum = 0.0;
    for (var c = inv.index; c < params.cols; c += WG_SIZE) { sum += y[base + c] * dy[base + c]; }
    sum = workgroup_sum(sum, inv);
    for (var c = inv.index; c < params.cols; c += WG_SIZE) {
        var value = y[base + c] * (dy[base + c] - sum);
        if params.accumulate != 0u { value += dx[base + c]; }
        dx[base + c] = value;
    }
}
