// grad_norm.wgsl: partial sums of squares of the gradients, one per workgroup and chunk of CHUNK elements, for the global norm. A chunk
// that holds a NaN or an infinity gets one as its sum, which `optimizer_step` tests by its bits.
#import reduce   // Invocation, workgroup_sum
struct Params { len: u32, first_partial: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let chunk = wg.y * grid.x + wg.x;
    let first = chunk * (CHUNK / 4u);
    let end = min(first + CHUNK / 4u, params.len / 4u);
    if first >= end { return; } // uniform per workgroup
    var sum = 0.0;
    for (var i = first + inv.index; i < end; i += WG_SIZE) { sum += dot(grads[i], grads[i]); }
    let total = workgroup_sum(sum, inv);
    if inv.index == 0u { partials[params.first_partial + chunk] = total; }
}
