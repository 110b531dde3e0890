// Values of other lanes of the subgroup. Invocations are counted by subgroup and lane, so that the low bits of the number are those of the
// lane whichever way the driver lays out a workgroup; WG_SIZE is a multiple of the subgroup's size wherever this is imported.
struct Invocation {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

// A number below WG_SIZE for each invocation.
fn thread_of(inv: Invocation) -> u32 { return inv.subgroup * inv.size + inv.lane; }

// `value` of the lane whose number differs in the bits of `lanes`, which are below the subgroup's size.
fn shuffle_xor(value: vec4<f32>, lanes: u32) -> vec4<f32> { return subgroupShuffleXor(value, lanes); }
