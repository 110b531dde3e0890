// unary.wgsl: out = f(x), four elements per invocation; with GRAD out = dy * f'(x), optionally added to what is there. ACTIVATION 1 to 3 is an
// activation (see activation.wgsl); 0 leaves f to params.op, see `apply`. The last vec4 may be partly padding,
// where zeros are stored: a gradient may be a part of the gradient arena, whose norm counts the padding.
#import activation
struct Params { len: u32, op: u32, factor: f32, accumulate: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
#if GRAD
@group(0) @binding(2) var<storage, read> dy: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<Elem>>;
#else
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Elem>>;
#endif

fn apply(v: vec4<f32>) -> vec4<f32> {
#if ACTIVATION != 0
    return vec4<f32>(activate(v.x), activate(v.y), activate(v.z), activate(v.w));
#else
    switch params.op {
        case 0u: { return exp(v); }
        case 1u: { return -v; }
        case 2u: { return max(v, vec4<f32>()); }
        case 3u: { return v * v; }
        case 4u: { return sqrt(v); }
        case 5u: { return 1.0 / v; }
        case 6u: { return log(v); }
        case 7u: { return tanh(clamp(v, vec4<f32>(-15.0), vec4<f32>(15.0))); } // some drivers' tanh overflows beyond
        default: { return params.factor * v; }
    }
#endif
}

fn derivative(v: vec4<f32>) -> vec4<f32> {
#if ACTIVATION != 0
    return vec4<f32>(activate_grad(v.x), activate_grad(v.y), activate_grad(v.z), activate_grad(v.w));
#else
    switch params.op {
        case 0u: { return exp(v); }
        case 1u: { return vec4<f32>(-1.0); }
        case 2u: { return select(vec4<f32>(), vec4<f32>(1.0), v > vec4<f32>()); }
        case 3u: { return 2.0 * v; }
        case 4u: { return 0.5 / sqrt(v); }
        case 5u: { return -1.0 / (v * v); }
        case 6u: { return 1.0 / v; }
        case 7u: {
            let t = tanh(clamp(v, vec4<f32>(-15.0), vec4<f32>(15.0)));
            return (1.0 - t) * (1.0 + t);
        }
        default: { return vec4<f32>(params.factor); }
    }
#endif
}

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i * 4u >= params.len { return; }
    let v = vec4<f32>(x[i]);
#if GRAD
    var value = vec4<f32>(dy[i]) * derivative(v);
    if params.accumulate != 0u { value += vec4<f32>(out[i]); }
#else
    let value = apply(v);
#endif
    let inside = vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.len);
    out[i] = vec4<Elem>(select(vec4<f32>(), value, inside));
}
