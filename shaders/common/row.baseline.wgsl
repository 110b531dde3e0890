// Reductions over the WG_SIZE (a power of two) invocations that share a row, through workgroup memory. Uniform control flow; every
// invocation gets the result; the order of additions is fixed. ONE_SUBGROUP and ROWS are for the subgroup tier; here a workgroup
// has one row.
struct Invocation { @builtin(local_invocation_index) index: u32 }

// Which of the workgroup's ROWS rows the invocation works on.
fn row_slot(inv: Invocation) -> u32 { return 0u; }

var<workgroup> row_scratch: array<vec2<f32>, WG_SIZE>;

fn row_sum2(value: vec2<f32>, inv: Invocation) -> vec2<f32> {
    workgroupBarrier(); // the scratch may still be read for an earlier reduction
    row_scratch[inv.index] = value;
    workgroupBarrier();
    for (var span = WG_SIZE / 2u; span > 0u; span /= 2u) {
        if inv.index < span { row_scratch[inv.index] += row_scratch[inv.index + span]; }
        workgroupBarrier();
    }
    return row_scratch[0];
}

fn row_sum(value: f32, inv: Invocation) -> f32 { return row_sum2(vec2<f32>(value, 0.0), inv).x; }

fn row_max(value: f32, inv: Invocation) -> f32 {
    workgroupBarrier();
    // Whole: a store of one component is not safe to be that alone.
    row_scratch[inv.index] = vec2<f32>(value);
    workgroupBarrier();
    for (var span = WG_SIZE / 2u; span > 0u; span /= 2u) {
        if inv.index < span { row_scratch[inv.index] = max(row_scratch[inv.index], row_scratch[inv.index + span]); }
        workgroupBarrier();
    }
    return row_scratch[0].x;
}
