// A row of HEAD_DIM elements that all invocations of a subgroup want: each lane loads one vec4 of FAN (4 or 8, at most the subgroup's
// size), and broadcasts give it to the others. On adapters that run lanes one after another for every load this saves most loads.
struct Invocation {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}
alias Row = array<vec4<f32>, HEAD_DIM / 4u>;
const FAN_STEP: u32 = FAN;

// Which of the FAN vec4 this invocation loads.
fn fan_lane(inv: Invocation) -> u32 { return inv.lane & (FAN - 1u); }

// row[i .. i + FAN] = the FAN lanes' `part`s.
fn fan_out(part: vec4<f32>, row: ptr<function, Row>, i: u32) {
    (*row)[i] = subgroupBroadcast(part, 0u);
    (*row)[i + 1u] = subgroupBroadcast(part, 1u);
    (*row)[i + 2u] = subgroupBroadcast(part, 2u);
    (*row)[i + 3u] = subgroupBroadcast(part, 3u);
#if FAN == 8
    (*row)[i + 4u] = subgroupBroadcast(part, 4u);
    (*row)[i + 5u] = subgroupBroadcast(part, 5u);
    (*row)[i + 6u] = subgroupBroadcast(part, 6u);
    (*row)[i + 7u] = subgroupBroadcast(part, 7u);
#endif
}
