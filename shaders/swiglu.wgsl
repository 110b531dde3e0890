// swiglu.wgsl: out = silu(gate) * up, row by row from packed [rows, 2 * width]: gate, then up. With GRAD the gradient of both, packed alike.
// One vec4 per invocation if width is a multiple of 4 (VEC), else one element.
#import activation
struct Params { rows: u32, width: u32 } // width in units of Item
@group(0) @binding(0) var<uniform> params: Params;
#if VEC
alias Item = vec4<f32>;
alias Stored = vec4<Elem>;
fn silu_of(v: Item) -> Item { return Item(silu(v.x), silu(v.y), silu(v.z), silu(v.w)); }
fn silu_grad_of(v: Item) -> Item { return Item(silu_grad(v.x), silu_grad(v.y), silu_grad(v.z), silu_grad(v.w)); }
#else
alias Item = f32;
alias Stored = Elem;
fn silu_of(v: Item) -> Item { return silu(v); }
fn silu_grad_of(v: Item) -> Item { return silu_grad(v); }
#endif
@group(0) @binding(1) var<storage, read> x: array<Stored>;
#if GRAD
@group(0) @binding(2) var<storage, read> dy: array<Stored>;
@group(0) @binding(3) var<storage, read_write> dx: array<Stored>;
#else
@group(0) @binding(2) var<storage, read_write> out: array<Stored>;
#endif

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i >= params.rows * params.width { return; }
    let at = i + i / params.width * params.width;
    let gate = Item(x[at]);
    let up = Item(x[at + params.width]);
#if GRAD
    let d = Item(dy[i]);
    dx[at] = Stored(d * up * silu_grad_of(gate));
    dx[at + params.width] = Stored(d * silu_of(gate));
#else
    out[i] = Stored(silu_of(gate) * up);
#endif
}
