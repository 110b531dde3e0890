// The header's norm without a dispatch of its own: the last workgroup to get here knows the largest scale that any of them stored, and leaves
// `tally` as zeros, as it found it. That a workgroup counts itself hangs on what its maximum returned, so its maximum is there before its
// count. Needs `params: Recipe`, `Lane` and quantize_scale.
struct Tally { largest: atomic<u32>, done: atomic<u32> }
@group(0) @binding({AT}) var<storage, read_write> tally: Tally;
var<workgroup> tally_tops: array<u32, 32>; // a workgroup has up to 256 lanes, a subgroup eight at least

// What a stored scale counts as, see `norms`; one that is not finite as nothing.
fn tallied(bits: u32) -> u32 {
    switch params.p.store {
        case 1u: { return select(0u, bits & 0x7fffu, (bits & 0x7fffu) < 0x7c00u); }
        case 2u: { return select(0u, bits + 1u, bits < 255u); }
        case 3u: { return select(0u, bits, bits < 127u); }
        default: { return select(0u, bits & 0x7fffffffu, (bits & 0x7fffffffu) < 0x7f800000u); }
    }
}

struct TallyEnd { last: bool, norm: vec2<u32> }

// In uniform control flow, by all lanes; for the first one of the last workgroup `last` is true. `factor`: that of the header, as bits.
fn tally_up(mine: u32, lane: Lane, subgroups: u32, factor: u32) -> TallyEnd {
    let top = subgroupMax(mine);
    if lane.lane == 0u { tally_tops[lane.subgroup] = top; }
    workgroupBarrier();
    var end = TallyEnd(false, vec2<u32>());
    if lane.subgroup == 0u && lane.lane == 0u {
        var most = top;
        for (var i = 1u; i < subgroups; i++) { most = max(most, tally_tops[i]); }
        // Its highest bit is never set.
        let before = atomicMax(&tally.largest, most);
        end.last = atomicAdd(&tally.done, 1u + (before >> 31u)) + 1u == lane.grid.x * lane.grid.y;
        if end.last {
            end.norm = norms(atomicExchange(&tally.largest, 0u), factor);
            atomicStore(&tally.done, 0u);
        }
    }
    return end;
}
