// sign_gradient.wgsl: out = f(w) dq, or out += that: the gradient of weights from that of the signs, or scaled signs, that stood for them.
//   RULE 0: f = [|w| <= 1];  1: f = 1 / cols + alpha [|w| <= 1], alpha half the row's stored scale;
//   RULE 2: f = 1.001 - tanh(w)^2, as 0.001 + 4 e / (1 + e)^2 with e = exp(-2 |w|), which neither cancels nor overflows.
// The rule is a parameter. A weight that is NaN passes nothing by rules 0 and 1, since it has neither a sign nor a magnitude in alpha, and
// makes a NaN by rule 2; an infinity is beyond the bound and acts through alpha alone. An invocation owns an element.
// Bounds: elements beyond the end are left alone. Tier: baseline.
struct Params { rows: u32, cols: u32, rule: u32, accumulate: u32, scales_at: u32, inv_cols: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dq: array<Elem>;          // [rows, cols]
@group(0) @binding(2) var<storage, read> w: array<Elem>;           // [rows, cols]
@group(0) @binding(3) var<storage, read> side: array<u32>;         // side data of the signs; from scales_at on one f32 scale per row
@group(0) @binding(4) var<storage, read_write> out: array<Elem>;   // [rows, cols]

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let i = (wg.y * grid.x + wg.x) * 256u + index;
    if i >= params.rows * params.cols { return; }
    let x = f32(w[i]);
    let magnitude = bitcast<u32>(x) & 0x7fffffffu;
    let within = magnitude <= 0x3f800000u;
    var f = select(0.0, 1.0, within);
    if params.rule == 1u {
        let alpha = 0.5 * bitcast<f32>(side[params.scales_at + i / params.cols]);
        f = select(params.inv_cols, 0.0, magnitude > 0x7f800000u) + select(0.0, alpha, within);
    }
    if params.rule == 2u {
        let e = exp(-2.0 * abs(x));
        f = 0.001 + 4.0 * e / ((1.0 + e) * (1.0 + e));
    }
    var v = f * f32(dq[i]);
    if params.accumulate != 0u { v += f32(out[i]); }
    out[i] = Elem(v);
}
