// Sum and maximum over a workgroup through workgroup memory. Needs WG_SIZE, a power of two. Uniform control flow; every invocation gets
// the result. The order of additions is fixed, so results repeat to the bit.
struct Invocation { @builtin(local_invocation_index) index: u32 }

var<workgroup> reduce_scratch: array<f32, WG_SIZE>;

fn workgroup_sum(value: f32, inv: Invocation) -> f32 {
    workgroupBarrier(); // the scratch may still be read for an earlier reduction
    reduce_scratch[inv.index] = value;
    workgroupBarrier();
    for (var half = WG_SIZE / 2u; half > 0u; half /= 2u) {
        if inv.index < half { reduce_scratch[inv.index] += reduce_scratch[inv.index + half]; }
        workgroupBarrier();
    }
    return reduce_scratch[0];
}

fn workgroup_max(value: f32, inv: Invocation) -> f32 {
    workgroupBarrier();
    reduce_scratch[inv.index] = value;
    workgroupBarrier();
    for (var half = WG_SIZE / 2u; half > 0u; half /= 2u) {
        if inv.index < half { reduce_scratch[inv.index] = max(reduce_scratch[inv.index], reduce_scratch[inv.index + half]); }
        workgroupBarrier();
    }
    return reduce_scratch[0];
}
