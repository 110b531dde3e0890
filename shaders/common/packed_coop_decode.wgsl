// Of packed_coop.wgsl: decodes slice {SLICE}, which was fetched.
#if A_PACKED
#if A_FOLD
        let decoded_a = a_decode(fetched_a, scales_a, row_a, next_a, scaling_a);
#else
        let decoded_a = a_decode(fetched_a, next_a);
#endif
#endif
#if B_FOLD
        let decoded_b = b_decode(fetched_b, scales_b, next_row_b, next_b, scaling_b);
#else
        let decoded_b = b_decode(fetched_b, next_b);
#endif
