// Where a workgroup, a subgroup and an invocation are in the tile of coop_tile.wgsl, and the accumulators.
    let m0 = wg.y * TILE;
    let n0 = wg.x * TILE;
    let subgroup = index / 32u;
    let wm0 = subgroup / 2u * 64u;
    let wn0 = subgroup % 2u * 64u;
    let across_col = index % 32u;
    let across_row = index / 32u;
    let along_col = index % 8u;
    let along_row = index / 64u * 8u + index / 8u % 2u * 4u + index / 16u % 4u;
#for i 0 4
#for j 0 4
    var c{i}_{j} = coop_mat16x16<f32, C>();
#endfor
#endfor
