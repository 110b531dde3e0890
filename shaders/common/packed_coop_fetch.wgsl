// Of packed_coop.wgsl: loads this invocation's part of slice {SLICE}.
#if FORM == 2
#for i 0 8
        let a{i} = a[min((k_begin + {SLICE} * DEPTH + across_row + {i}u * A_ROWS) * ld_a + edge_a, last_a)];
#endfor
#else
#if A_PACKED
        let fetched_a = a_fetch(row_a, min(unit_a + {SLICE}, last_unit_a), scaling_a);
#else
        let col_a = min((k_begin + {SLICE} * DEPTH) / 4u + along_col, ld_a - 1u);
#for i 0 8
        let a{i} = a[row_a{i} + col_a];
#endfor
#endif
#endif
        let fetched_b = b_fetch(min(row_b + {SLICE} * row_step, last_row_b), min(unit_b + {SLICE} * unit_step, last_unit_b), scaling_b);
