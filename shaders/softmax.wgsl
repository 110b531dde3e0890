// softmax.wgsl: y = exp(x - max) / sum of exp(x - max) over each row; one workgroup per row.
#import reduce
struct Params { rows: u32, cols: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let row = wg.y * grid.x + wg.x;
    if row >= params.rows { return; }
    let base = row * params.cols;
    var most = x[base];
    for (var c = inv.index; c < params.cols; c += WG_SIZE) { most = max(most, x[base + c]); }
    most = workgroup_max(most, inv);
    var sum = 0.0;
    for (var c = inv.index; c < params.cols; c += WG_SIZE) { sum += exp(x[base + c] - most); }
    sum = workgroup_sum(sum, inv);
    for (var c = inv.index; c < params.cols; c += WG_SIZE) { y[base + c] = exp(x[base + c] - most) / sum; }
}
