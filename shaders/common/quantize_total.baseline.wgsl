// The total of a workgroup of WG_SIZE (a power of two) invocations, through workgroup memory. Uniform control flow; every invocation gets it;
// the order of additions is fixed.
struct Invocation { @builtin(local_invocation_index) index: u32 }
var<workgroup> totals: array<vec4<u32>, WG_SIZE>;
fn packed_total(t: Total) -> vec4<u32> { return vec4<u32>(t.m, t.key, bitcast<u32>(t.a), bitcast<u32>(t.b)); }
fn unpacked_total(v: vec4<u32>) -> Total { return Total(v.x, v.y, bitcast<f32>(v.z), bitcast<f32>(v.w)); }
fn workgroup_total(mine: Total, inv: Invocation) -> Total {
    totals[inv.index] = packed_total(mine);
    workgroupBarrier();
    for (var span = WG_SIZE / 2u; span > 0u; span /= 2u) {
        if inv.index < span {
            totals[inv.index] = packed_total(join_totals(unpacked_total(totals[inv.index]), unpacked_total(totals[inv.index + span])));
        }
        workgroupBarrier();
    }
    return unpacked_total(totals[0]);
}
