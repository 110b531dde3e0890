// Sum and maximum over a workgroup: first within each subgroup, then over the subgroups' partial results in workgroup memory. Any subgroup
// size; a workgroup of one subgroup needs no barrier. Uniform control flow; every invocation gets the result.
struct Invocation {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

var<workgroup> reduce_scratch: array<f32, WG_SIZE>;

fn workgroup_sum(value: f32, inv: Invocation) -> f32 {
    let partial = subgroupAdd(value);
    if inv.subgroups == 1u { return partial; }
    workgroupBarrier(); // the scratch may still be read for an earlier reduction
    if inv.lane == 0u { reduce_scratch[inv.subgroup] = partial; }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < inv.subgroups; i++) { total += reduce_scratch[i]; }
    return total;
}

fn workgroup_max(value: f32, inv: Invocation) -> f32 {
    let partial = subgroupMax(value);
    if inv.subgroups == 1u { return partial; }
    workgroupBarrier();
    if inv.lane == 0u { reduce_scratch[inv.subgroup] = partial; }
    workgroupBarrier();
    var total = reduce_scratch[0];
    for (var i = 1u; i < inv.subgroups; i++) { total = max(total, reduce_scratch[i]); }
    return total;
}
