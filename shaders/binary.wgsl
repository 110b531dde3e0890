// binary.wgsl: out = a op b with broadcasting over four merged dimensions: element (i0, i1, i2, i3) of an operand is at the dot product with its
// strides, 0 where it is broadcast. Op 0 add, 1 subtract, 2 multiply, 3 divide. VEC: both operands contiguous and alike, four elements
// per invocation; else one.
struct Params { sizes: vec4<u32>, a_strides: vec4<u32>, b_strides: vec4<u32>, len: u32, op: u32, reserved0: u32, reserved1: u32 }
@group(0) @binding(0) var<uniform> params: Params;
#if VEC
alias Item = vec4<f32>;
alias Stored = vec4<Elem>;
#else
alias Item = f32;
alias Stored = Elem;
#endif
@group(0) @binding(1) var<storage, read> a: array<Stored>;
@group(0) @binding(2) var<storage, read> b: array<Stored>;
@group(0) @binding(3) var<storage, read_write> out: array<Stored>;

fn apply(x: Item, y: Item) -> Item {
    switch params.op {
        case 0u: { return x + y; }
        case 1u: { return x - y; }
        case 2u: { return x * y; }
        default: { return x / y; }
    }
}

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
#if VEC
    if i * 4u >= params.len { return; }
    out[i] = Stored(apply(Item(a[i]), Item(b[i])));
#else
    if i >= params.len { return; }
    let i3 = i % params.sizes.w;
    let r2 = i / params.sizes.w;
    let i2 = r2 % params.sizes.z;
    let r1 = r2 / params.sizes.z;
    let at = vec4<u32>(r1 / params.sizes.y, r1 % params.sizes.y, i2, i3);
    let from_a = at * params.a_strides;
    let from_b = at * params.b_strides;
    out[i] = Stored(apply(Item(a[from_a.x + from_a.y + from_a.z + from_a.w]), Item(b[from_b.x + from_b.y + from_b.z + from_b.w])));
#endif
}
