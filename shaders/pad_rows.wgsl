// pad_rows.wgsl: out[row, col] = x[row, col], zero beyond x's rows and columns: operands of kernels that take whole tiles only. An invocation
// owns one element. Tier: baseline.
struct Params { rows: u32, cols: u32, width: u32, elements: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<In>;
@group(0) @binding(2) var<storage, read_write> out: array<Out>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = (wg.y * grid.x + wg.x) * 64u + index;
    if i >= params.elements { return; }
    let row = i / params.width;
    let col = i % params.width;
    var v = Out(0.0);
    if row < params.rows && col < params.cols { v = Out(x[row * params.cols + col]); }
    out[i] = v;
}
