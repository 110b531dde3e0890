// Adds the product of the slice in workgroup memory to the accumulators c{i}_{j} of the subgroup, whose blocks start at from_a and from_b. AT
// tells several places of a shader apart.
#for k 0 2
        {
#for i 0 4
#if FORM == 2
            let x{i} = coopLoad<coop_mat16x16<f16, A>>(&tile_a[from_a + {i}u * A_ALONG + {k}u * A_DOWN], A_STRIDE);
#else
            let x{i} = coopLoadT<coop_mat16x16<f16, A>>(&tile_a[from_a + {i}u * A_ALONG + {k}u * A_DOWN], A_STRIDE);
#endif
#endfor
#for j 0 4
#if FORM == 0
            let y{j} = coopLoad<coop_mat16x16<f16, B>>(&tile_b[from_b + {j}u * B_ALONG + {k}u * B_DOWN], B_STRIDE);
#else
            let y{j} = coopLoadT<coop_mat16x16<f16, B>>(&tile_b[from_b + {j}u * B_ALONG + {k}u * B_DOWN], B_STRIDE);
#endif
#for i 0 4
            c{i}_{j} = coopMultiplyAdd(x{i}, y{j}, c{i}_{j});
#endfor
#endfor
        }
#endfor
