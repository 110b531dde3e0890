// Of packed_coop.wgsl: loads this invocation's part of slice {SLICE}. Along K neighbouring units share a word of scales, which is kept.
#if FORM == 2
#for i 0 8
        let a{i} = a[min((k_begin + {SLICE} * DEPTH + across_row + {i}u * A_ROWS) * ld_a + edge_a, last_a)];
#endfor
#else
#if A_PACKED
        let next_a = min(unit_a + {SLICE}, last_unit_a);
        let fetched_a = a_fetch(row_a, next_a);
#if A_FOLD
        if a_scales_of(next_a, scaling_a) != held_a {
            held_a = a_scales_of(next_a, scaling_a);
            scales_a = a_scales(row_a, next_a, scaling_a);
        }
#endif
#else
        let col_a = min((k_begin + {SLICE} * DEPTH) / 4u + along_col, ld_a - 1u);
#for i 0 8
        let a{i} = a[row_a{i} + col_a];
#endfor
#endif
#endif
#if FORM == 0
        let next_row_b = row_b;
        let next_b = min(unit_b + {SLICE}, last_unit_b);
#if B_FOLD
        if b_scales_of(next_b, scaling_b) != held_b {
            held_b = b_scales_of(next_b, scaling_b);
            scales_b = b_scales(next_row_b, next_b, scaling_b);
        }
#endif
#else
        let next_row_b = min(row_b + {SLICE} * DEPTH, last_row_b);
        let next_b = unit_b;
        let scales_b = b_scales(next_row_b, next_b, scaling_b);
#endif
        let fetched_b = b_fetch(next_row_b, next_b);
