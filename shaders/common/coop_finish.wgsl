// Hands the accumulators c{i}_{j} to finish4_with as {SUM}, in which `sum` is what was accumulated. Needs FULL, wg, index, subgroup, m0, n0,
// wm0, wn0.
    // One block per subgroup at a time: 8 rows of four vec4 in each of two rounds. The sums of part z of a split K go to matrix z of `out`.
    let lane = index % 32u;
    let own = subgroup * 64u;
    let block_row = lane / 4u;
    let block_col = lane % 4u;
#for j 0 4
    let col{j} = n0 + wn0 + {j}u * 16u + block_col * 4u;
#if FULL
    let shift{j} = bias_of(col{j});
#else
    let shift{j} = bias_of(min(col{j}, params.n - 4u));
#endif
#endfor
    // The epilogue's reads of four blocks are on their way together: between the barriers each would be waited for.
#for i 0 4
#for j 0 4
#for q 0 2
#if FULL
    let row{i}_{j}_{q} = m0 + wm0 + {i}u * 16u + {q}u * 8u + block_row;
    let extra{i}_{j}_{q} = extra_of(wg.z, row{i}_{j}_{q}, col{j});
    let open{i}_{j}_{q} = open_of(row{i}_{j}_{q}, col{j});
#else
    let row{i}_{j}_{q} = min(m0 + wm0 + {i}u * 16u + {q}u * 8u + block_row, params.m - 1u);
    let extra{i}_{j}_{q} = extra_of(wg.z, row{i}_{j}_{q}, min(col{j}, params.n - 4u));
    let open{i}_{j}_{q} = open_of(row{i}_{j}_{q}, min(col{j}, params.n - 4u));
#endif
#endfor
#endfor
#for j 0 4
    workgroupBarrier();
    {
        let d = c{i}_{j};
        let o = own;
        coopStoreT(d, &block[o], 4u);
    }
    workgroupBarrier();
#for q 0 2
    {
        let row = m0 + wm0 + {i}u * 16u + {q}u * 8u + block_row;
        let sum = block[own + (block_row + {q}u * 8u) * 4u + block_col];
#if FULL
        finish4_with(wg.z, row, col{j}, {SUM}, shift{j}, extra{i}_{j}_{q}, open{i}_{j}_{q});
#else
        if row < params.m && col{j} < params.n { finish4_with(wg.z, row, col{j}, {SUM}, shift{j}, extra{i}_{j}_{q}, open{i}_{j}_{q}); }
#endif
    }
#endfor
#endfor
#endfor
