// The header's norm without a dispatch of its own: the last workgroup to get here knows the largest scale that any of them stored, and leaves
// `tally` as zeros, as it found it. A workgroup's count hangs on what its maximum returned. WGSL does not order atomics of two places by that;
// devices do, since both are done where all of them meet; the header's check in tests/quantize.rs would see one that does not. For scales of rows,
// f32 or f16. Needs `params: Recipe`, `Lane` and quantize_scale.
struct Tally { largest: atomic<u32>, done: atomic<u32> }
@group(0) @binding({AT}) var<storage, read_write> tally: Tally;
var<workgroup> tally_tops: array<u32, 16>; // a workgroup has 128 lanes, a subgroup eight at least

// What a stored scale counts as, see `norms`; one that is not finite as nothing.
fn tallied(bits: u32) -> u32 {
    let half = params.p.store == 1u;
    let magnitude = bits & select(0x7fffffffu, 0x7fffu, half);
    return select(0u, magnitude, magnitude < select(0x7f800000u, 0x7c00u, half));
}

struct TallyEnd { last: bool, norm: vec2<u32> }

// In uniform control flow, by all lanes; for the first one of the last workgroup `last` is true.
fn tally_up(mine: u32, lane: Lane) -> TallyEnd {
    let top = subgroupMax(mine);
    if lane.lane == 0u { tally_tops[lane.subgroup] = top; }
    workgroupBarrier();
    var end = TallyEnd(false, vec2<u32>());
    if lane.subgroup == 0u && lane.lane == 0u {
        var most = top;
        for (var i = 1u; i < 128u / lane.size; i++) { most = max(most, tally_tops[i]); }
        // Its highest bit is never set.
        let before = atomicMax(&tally.largest, most);
        end.last = atomicAdd(&tally.done, 1u + (before >> 31u)) + 1u == lane.grid.x * lane.grid.y;
        if end.last {
            end.norm = norms(atomicExchange(&tally.largest, 0u), 0x3f800000u);
            atomicStore(&tally.done, 0u);
        }
    }
    return end;
}
