// Adds the products of row {K} of the tiles to the sums.
#for i 0 BLOCKS_M
            let x{i} = staged_a({K} * STRIDE + {i}u * ROWS + ty);
#endfor
#for j 0 BLOCKS_N
            let y{j} = staged_b({K} * STRIDE + {j}u * 16u + tx);
#endfor
#for i 0 BLOCKS_M
#for e 0 4
#for j 0 BLOCKS_N
            c{i}_{e}_{j} = fma(vec4<f32>(x{i}[{e}]), y{j}, c{i}_{e}_{j});
#endfor
#endfor
#endfor
