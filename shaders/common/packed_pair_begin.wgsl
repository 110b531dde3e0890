// The places of an invocation in the tiles of packed_pair.wgsl.
    let m0 = wg.y * TILE;
    let n0 = wg.x * TILE;
    // 32 consecutive invocations cover 8 (n) x 4 (m).
    let tx = index / 32u % 2u * 8u + index % 8u;
    let ty = index / 64u * 4u + index / 8u % 4u;
    let row = index / PARTS;
    let part = index % PARTS;
    let to = slot(row, part);
    let row_a = min(m0 + row, params.m - 1u);
    let row_b = min(n0 + row, params.n - 1u);
