// Which rows a workgroup, a subgroup and an invocation own, and the invocation's places in `scores` and `weights`. {TURN} is which block of
// rows the workgroup takes: those with the longest loops come first.
    let id = wg.y * grid.x + wg.x;
    let heads = params.batch * params.heads;
    let blocks = (params.seq + ROWS - 1u) / ROWS;
    if id >= heads * blocks { return; }
    let bh = id % heads;
    let block = ROWS * {TURN}; // first row of the workgroup
    let head = Head(bh / params.heads, bh % params.heads);
    let lane = index % 32u;
    let sub = index / 32u;
    let own = block + 16u * sub;   // first row of the subgroup
    let row = lane / 2u;
    let side = lane % 2u;
    let s_base = sub * S_SIZE;
    let w_base = sub * W_SIZE;
    let s_at = s_base + row * S_STRIDE + side * 2u;
    let w_at = w_base + row * W_STRIDE + side * 2u;
