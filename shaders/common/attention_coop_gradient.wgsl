    // Takes unit {I} of part {PART} of the rows that the subgroup owns, the sum {SUM}, to dqkv.
    {
        let done = {SUM};
        coopStoreT(done, &scores[s_base], S_STRIDE);
        workgroupBarrier();
        let t = own + row;
        let at = s_base + row * S_STRIDE + 2u * side;
        if t < params.seq {
            let to = row_index(head.b, t, {PART}, head.h) + 4u * {I}u + 2u * side;
            dqkv[to] = vec4<f16>(scores[at]);
            dqkv[to + 1u] = vec4<f16>(scores[at + 1u]);
        }
        workgroupBarrier();
    }
