// rope.wgsl: rotary position embedding of `heads` heads per token; every pair (x, y) turns by sign * position * frequency[i]. Pairs are
// (i, i + dim / 2) (half-split) or (2 i, 2 i + 1) (interleaved); sign -1 is the inverse, which is also the gradient.
// Four pairs per invocation. In place (x and out are one binding, IN_PLACE) or from x to out, each with a stride and an offset per token. Vec4 units.
struct Params {
    rows: u32,          // tokens, batch * seq
    seq: u32,
    heads: u32,
    groups: u32,        // vec4 per head, even
    x_stride: u32,
    x_offset: u32,
    out_stride: u32,
    out_offset: u32,
    interleaved: u32,
    sign: f32,
    use_offset: u32,
    reserved: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> frequencies: array<vec4<f32>>; // [head_dim / 2]
@group(0) @binding(3) var<storage, read> position_offset: array<u32>;   // read where use_offset
#if !IN_PLACE
@group(0) @binding(4) var<storage, read> x: array<vec4<Elem>>;
#endif

fn fetch(i: u32) -> vec4<f32> {
#if IN_PLACE
    return vec4<f32>(out[i]);
#else
    return vec4<f32>(x[i]);
#endif
}

// Cosine and sine of position * frequency. WGSL allows its own an absolute error of 2^-11, so they are computed here: the nearest multiple
// of pi / 2 is taken off in three parts (the first two have 8 and 12 significant bits, so their products with up to 2^12 quarters are exact), and
// Taylor series on [-pi/4, pi/4] are cut off where the next term is below 2e-9. The second fma recovers what rounding the product lost.
fn turn(position: f32, frequency: f32) -> vec2<f32> {
    let angle = position * frequency;
    let rest = fma(position, frequency, -angle);
    let quarters = round(angle * 0.63661977236758134);
    var a = fma(quarters, -1.5703125, angle);
    a = fma(quarters, -4.837512969970703125e-4, a);
    a = fma(quarters, -7.5497899548918e-8, a) + rest;
    let z = a * a;
    let s = a + a * z * (-0.16666666666666667 + z * (0.0083333333333333333 + z * (-1.9841269841269841e-4 + z * 2.7557319223985891e-6)));
    let c = 1.0 - 0.5 * z + z * z * (0.041666666666666667 + z * (-0.0013888888888888889 + z * (2.4801587301587302e-5 - z * 2.7557319223985891e-7)));
    let n = u32(i32(quarters)) & 3u;
    let swapped = select(vec2<f32>(c, s), vec2<f32>(s, c), (n & 1u) == 1u);
    return vec2<f32>(select(swapped.x, -swapped.x, n == 1u || n == 2u), select(swapped.y, -swapped.y, n >= 2u));
}

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let id = (wg.y * grid.x + wg.x) * WG_SIZE + index;
    let quads = params.groups / 2u;
    if id >= params.rows * params.heads * quads { return; }
    let i = id % quads;
    let h = (id / quads) % params.heads;
    let row = id / (quads * params.heads);
    var position = row % params.seq;
    if params.use_offset != 0u { position += position_offset[0]; }
    let f = frequencies[i];
    let p = f32(position);
    let t0 = turn(p, f.x);
    let t1 = turn(p, f.y);
    let t2 = turn(p, f.z);
    let t3 = turn(p, f.w);
    let c = vec4<f32>(t0.x, t1.x, t2.x, t3.x);
    let s = vec4<f32>(t0.y, t1.y, t2.y, t3.y) * params.sign;
    let first = select(i, 2u * i, params.interleaved != 0u);
    let second = select(i + quads, 2u * i + 1u, params.interleaved != 0u);
    let start = row * params.x_stride + params.x_offset + h * params.groups;
    let to = row * params.out_stride + params.out_offset + h * params.groups;
    let u = fetch(start + first);
    let v = fetch(start + second);
    if params.interleaved != 0u {
        let a = vec4<f32>(u.xz, v.xz);
        let b = vec4<f32>(u.yw, v.yw);
        let ra = a * c - b * s;
        let rb = a * s + b * c;
        out[to + first] = vec4<Elem>(vec4<f32>(ra.x, rb.x, ra.y, rb.y));
        out[to + second] = vec4<Elem>(vec4<f32>(ra.z, rb.z, ra.w, rb.w));
    } else {
        out[to + first] = vec4<Elem>(u * c - v * s);
        out[to + second] = vec4<Elem>(u * s + v * c);
    }
}
