// quantize_rows_tile.wgsl: as quantize.wgsl with a scale per row. A team of eight invocations owns a row, or with LONG all teams of a workgroup
// share one; see quantize_tile.wgsl. Every invocation of a workgroup goes through all of it, since the team's exchanges need them: what is
// beyond the last row is a tile of nothing. Bounds: loads, codes and the mask ask the tile; scales the row. Tier: subgroup, of a fixed
// size that eight divides.
@group(0) @binding(0) var<uniform> params: Recipe;
@group(0) @binding(1) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> side: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> mask: array<u32>;
@group(0) @binding(6) var<storage, read_write> scratch: array<u32>;
#import quantize_see
#import quantize_scale
#import quantize_code
#import quantize_side
#import quantize_tile

fn joined(t: Total, d: u32) -> Total {
    var key = 0u;
    var a = 0.0;
    var b = 0.0;
    if params.rule == 1u { key = subgroupShuffleXor(t.key, d); }
    if params.rule >= 2u {
        a = subgroupShuffleXor(t.a, d);
        b = subgroupShuffleXor(t.b, d);
    }
    return join_totals(t, Total(subgroupShuffleXor(t.m, d), key, a, b));
}
#if LONG
const TEAMS: u32 = 32u;
var<workgroup> totals: array<vec4<u32>, TEAMS>;
#endif

@compute @workgroup_size(256)
fn main(lane: Lane) {
    let l = lane.lane & 7u;
    let team = (lane.subgroup * lane.size + lane.lane) / 8u;
    let wg = lane.wg.y * lane.grid.x + lane.wg.x;
    put_header(select(0u, params.header_words, wg == 0u && team == 0u && l == 0u));
#if LONG
    let row = wg;
    let first = team;
    let step = TEAMS;
    // A subgroup without a tile only waits.
    let busy = lane.subgroup * lane.size / 8u * 4u * HALVES < params.units;
#else
    let row = wg * 32u + team;
    let first = 0u;
    let step = 1u;
    let busy = true;
#endif
    let there = row < params.rows;
    let rounds = (params.units + 4u * HALVES * step - 1u) / (4u * HALVES * step);
    var seen = unseen();
    var scale: Scale;
    for (var t = 0u; t + 1u < 2u * rounds; t++) {
        let number = first + min(t, 2u * rounds - 2u - t) * step;
        var tile = tile_of_row(row, number);
        if !there { tile = Tile(0u, 0u, 0u, 0u); }
        var u: Unit;
        if busy { u = load_tile(tile, l, lane.lane); }
        if busy && t < rounds {
            let place = number * 128u * HALVES + l * 4u;
#for h 0 HALVES
            seen = see{h}(seen, u, place);
#endfor
        }
        if t + 1u == rounds {
            var total = joined(joined(joined(total_of(seen), 1u), 2u), 4u);
#if LONG
            if l == 0u { totals[team] = vec4<u32>(total.m, total.key, bitcast<u32>(total.a), bitcast<u32>(total.b)); }
            workgroupBarrier();
            total = nothing();
            for (var i = 0u; i < TEAMS; i++) {
                let v = totals[i];
                total = join_totals(total, Total(v.x, v.y, bitcast<f32>(v.z), bitcast<f32>(v.w)));
            }
#endif
            let stored = stored_of(total, f32(params.p.cols), 1.0);
            if there && l == 0u && first == 0u { put_scale(row, 0u, stored); }
            scale = scale_of(stored, 1.0);
        }
        if busy && t + 1u >= rounds {
            var c: Codes;
#for h 0 HALVES
#for q 0 4
            let coded{h}{q} = coded(u.q{h}{q}, scale, element_of(tile, l, {h}u * 4u + {q}u));
            let there{h}{q} = has(tile, l, {h}u * 4u + {q}u);
            c.c{h}{q} = select(vec4<u32>(), coded{h}{q}.code, there{h}{q});
            c.inside[{h}] |= select(0u, join(coded{h}{q}.inside, 1u), there{h}{q}) << ({q}u * 4u);
#endfor
#endfor
            put_tile(tile, l, c);
        }
    }
}
