// The places of an invocation in the tiles of tiled.wgsl, and its sums.
    let m0 = wg.y * TILE;
    let n0 = wg.x * TILE;
    // 32 consecutive invocations cover 8 (n) x 4 (m) blocks.
    let tx = index / 32u % 2u * 8u + index % 8u;
    let ty = index / 64u * 4u + index / 8u % 4u;
    let a_col = index % A_COLS;
    let a_row = index / A_COLS;
    let b_col = index % B_COLS;
    let b_row = index / B_COLS;
#for i 0 BLOCKS_M
#for e 0 4
#for j 0 BLOCKS_N
    var c{i}_{e}_{j} = vec4<f32>();
#endfor
#endfor
#endfor
