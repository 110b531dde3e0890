// mask.wgsl: out[row, col] = x[row, col] where the mask's bit is set, else 0, or out += that. An invocation owns one element.
// Bounds: elements beyond the end are left alone. Tier: baseline.
struct Params { rows: u32, cols: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read> mask: array<u32>;   // [rows][ceil(cols / 32)], first column in the lowest bit
@group(0) @binding(3) var<storage, read_write> out: array<Elem>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let i = id.y * grid.x * 64u + id.x;
    if i >= params.rows * params.cols { return; }
    let row = i / params.cols;
    let col = i % params.cols;
    let passes = (mask[row * ((params.cols + 31u) / 32u) + col / 32u] >> (col % 32u) & 1u) != 0u;
    var v = 0.0;
    if passes { v = f32(x[i]); }
    if params.accumulate != 0u { v += f32(out[i]); }
    out[i] = Elem(v);
}
