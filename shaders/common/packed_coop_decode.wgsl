// Of packed_coop.wgsl: decodes what was fetched.
#if A_PACKED
        let decoded_a = a_decode(fetched_a, row_a, min(unit_a + {SLICE}, last_unit_a), scaling_a);
#endif
        let decoded_b = b_decode(fetched_b, min(row_b + {SLICE} * row_step, last_row_b), min(unit_b + {SLICE} * unit_step, last_unit_b), scaling_b);
