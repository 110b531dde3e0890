// The total of a workgroup of WG_SIZE invocations: of each subgroup, then of the subgroups through workgroup memory. ONE_SUBGROUP: the
// workgroup is at most one subgroup, and there is no barrier. Uniform control flow; every invocation gets it.
fn subgroup_total(t: Total) -> Total {
    let m = subgroupMax(t.m);
    let key = subgroupMin(select(0xffffffffu, t.key, t.m == m));
    if params.rule >= 3u { return Total(m, key, subgroupAdd(t.a), subgroupAdd(t.b)); }
    return Total(m, key, subgroupMax(t.a), subgroupMax(t.b));
}
#if ONE_SUBGROUP
struct Invocation { @builtin(local_invocation_index) index: u32 }
fn workgroup_total(mine: Total, inv: Invocation) -> Total { return subgroup_total(mine); }
#else
struct Invocation {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}
var<workgroup> totals: array<vec4<u32>, WG_SIZE>;
fn workgroup_total(mine: Total, inv: Invocation) -> Total {
    let part = subgroup_total(mine);
    if inv.lane == 0u { totals[inv.subgroup] = vec4<u32>(part.m, part.key, bitcast<u32>(part.a), bitcast<u32>(part.b)); }
    workgroupBarrier();
    var total = nothing();
    for (var i = 0u; i < inv.subgroups; i++) {
        let v = totals[i];
        total = join_totals(total, Total(v.x, v.y, bitcast<f32>(v.z), bitcast<f32>(v.w)));
    }
    return total;
}
#endif
