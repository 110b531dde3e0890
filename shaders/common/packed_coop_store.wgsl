// Of packed_coop.wgsl: writes slice {SLICE} to workgroup memory.
#if A_PACKED
#for q 0 8
        tile_a[to_a + {q}u] = decoded_a[{q}];
#endfor
#else
#for i 0 8
        tile_a[to_a + {i}u * (A_ROWS * A_STRIDE)] = a{i};
#endfor
#endif
#for q 0 8
        tile_b[to_b + {q}u] = decoded_b[{q}];
#endfor
#if !FULL
        if {SLICE} * DEPTH + DEPTH > k_length {
            // Across the end of K.
            let inside = k_length - min({SLICE} * DEPTH, k_length);
#if FORM == 2
#for i 0 8
            if across_row + {i}u * A_ROWS >= inside { tile_a[to_a + {i}u * (A_ROWS * A_STRIDE)] = vec4<f16>(); }
#endfor
#else
#if A_PACKED
            for (var q = inside / 4u; q < 8u; q++) {
                let keep = (vec4<u32>(q * 4u) + vec4<u32>(0u, 1u, 2u, 3u)) < vec4<u32>(inside);
                tile_a[to_a + q] = select(vec4<f16>(), tile_a[to_a + q], keep);
            }
#else
            if along_col * 4u >= inside {
#for i 0 8
                tile_a[to_a + {i}u * (A_ROWS * A_STRIDE)] = vec4<f16>();
#endfor
            }
#endif
#endif
        }
#endif
