// quantize_tensor.wgsl: the statistics of all of x, for a scale that a tensor shares or E4M3's factor. Each of params.partials workgroups totals
// its units of 32 columns; a single one, or with PARTIALS the second dispatch, writes header and scale. Deterministic: the order is fixed.
// Bounds: loops end at the number of units and of partial totals. Tiers: baseline, subgroup for the reduction.
@group(0) @binding(0) var<uniform> params: Recipe;
@group(0) @binding(1) var<storage, read_write> side: array<atomic<u32>>;
// The scale before it was rounded (two for NF3), two words of nothing, totals of workgroups.
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>;
#import quantize_span
#import quantize_total
#import quantize_scale
#import quantize_side
#if !PARTIALS
@group(0) @binding(4) var<storage, read> state: array<u32>;
#import quantize_load AT=3 AND=5
const STRIDE: u32 = 4u;
#endif

fn finish(t: Total) {
    put_header(32u);
    if params.p.store == 3u {
        let factor = max(bitcast<f32>(t.m) / (params.max * 448.0), 1.1754943508222875e-38); // 2^-126
        atomicStore(&side[0], select(0x3f800000u, bitcast<u32>(factor), t.m >= 0x00800000u));
        return;
    }
    let s = stored_of(t, f32(params.rows) * f32(params.p.cols), 1.0);
    put_scale(0u, 0u, s);
    scratch[0] = bitcast<u32>(s.pick.x);
    scratch[1] = bitcast<u32>(s.pick.y);
    put_norm(s);
}

@compute @workgroup_size(WG_SIZE)
fn main(inv: Invocation, @builtin(workgroup_id) wg: vec3<u32>) {
#if PARTIALS
    var mine = nothing();
    for (var i = inv.index; i < params.partials; i += WG_SIZE) {
        let at = 4u + 4u * i;
        mine = join_totals(mine, Total(scratch[at], scratch[at + 1u], bitcast<f32>(scratch[at + 2u]), bitcast<f32>(scratch[at + 3u])));
    }
    let total = workgroup_total(mine, inv);
    if inv.index == 0u { finish(total); }
#else
    var seen = unseen();
    for (var i = wg.x * WG_SIZE + inv.index; i < params.rows * params.units; i += params.partials * WG_SIZE) {
#if TRANSPOSED
        let row = i % params.rows;
        let unit = i / params.rows;
#else
        let row = i / params.units;
        let unit = i % params.units;
#endif
        let place = row * params.p.cols + unit * 32u;
        let u = unit_of(row, unit);
        seen = see1(see0(seen, u, place), u, place);
    }
    let total = workgroup_total(total_of(seen), inv);
    if inv.index == 0u {
        if params.partials == 1u {
            finish(total);
        } else {
            let at = 4u + 4u * wg.x;
            scratch[at] = total.m;
            scratch[at + 1u] = total.key;
            scratch[at + 2u] = bitcast<u32>(total.a);
            scratch[at + 3u] = bitcast<u32>(total.b);
        }
    }
#endif
}
