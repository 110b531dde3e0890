// Reductions over the WG_SIZE invocations that share a row: within each subgroup, then over the subgroups' results in workgroup memory.
// ONE_SUBGROUP is set where WG_SIZE is at most the smallest subgroup size: the workgroup is then one subgroup, and the shader has no
// barrier at all (a software adapter pays for those that are never reached, too). ROWS above 1 (only where subgroups have exactly WG_SIZE
// invocations): the workgroup is ROWS subgroups, each with a row of its own, so that short rows need fewer workgroups. Uniform control flow; every invocation gets the result.
#if ONE_SUBGROUP
#if ROWS == 1
struct Invocation { @builtin(local_invocation_index) index: u32 }
fn row_slot(inv: Invocation) -> u32 { return 0u; }
#else
struct Invocation { @builtin(subgroup_invocation_id) index: u32, @builtin(subgroup_id) slot: u32 }
fn row_slot(inv: Invocation) -> u32 { return inv.slot; }
#endif

fn row_sum2(value: vec2<f32>, inv: Invocation) -> vec2<f32> { return subgroupAdd(value); }
fn row_sum(value: f32, inv: Invocation) -> f32 { return subgroupAdd(value); }
fn row_max(value: f32, inv: Invocation) -> f32 { return subgroupMax(value); }
#else
struct Invocation {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

fn row_slot(inv: Invocation) -> u32 { return 0u; }

var<workgroup> row_scratch: array<vec2<f32>, WG_SIZE>;

fn row_sum2(value: vec2<f32>, inv: Invocation) -> vec2<f32> {
    let partial = subgroupAdd(value);
    if inv.subgroups == 1u { return partial; }
    workgroupBarrier(); // the scratch may still be read for an earlier reduction
    if inv.lane == 0u { row_scratch[inv.subgroup] = partial; }
    workgroupBarrier();
    var sum = vec2<f32>(0.0);
    for (var i = 0u; i < inv.subgroups; i++) { sum += row_scratch[i]; }
    return sum;
}

fn row_sum(value: f32, inv: Invocation) -> f32 { return row_sum2(vec2<f32>(value, 0.0), inv).x; }

fn row_max(value: f32, inv: Invocation) -> f32 {
    let partial = subgroupMax(value);
    if inv.subgroups == 1u { return partial; }
    workgroupBarrier();
    if inv.lane == 0u { row_scratch[inv.subgroup] = vec2<f32>(partial); }
    workgroupBarrier();
    var largest = row_scratch[0].x;
    for (var i = 1u; i < inv.subgroups; i++) { largest = max(largest, row_scratch[i].x); }
    return largest;
}
#endif
