// Hands the sums v{i}_{j} to finish1 as {SUM}, in which `sum` is one of them. One loop keeps the epilogue's code in one place.
    var tile: array<f32, EDGE * EDGE>;
#for i 0 EDGE
#for j 0 EDGE
    tile[{i}u * EDGE + {j}u] = v{i}_{j};
#endfor
#endfor
    for (var e = 0u; e < EDGE * EDGE; e++) {
        let at_m = m0 + e / EDGE * 16u + ty;
        let at_n = n0 + e % EDGE * 16u + tx;
        if at_m < params.m && at_n < params.n {
            let sum = tile[e];
            finish1(0u, at_m, at_n, {SUM});
        }
    }
