// As tiled_along.wgsl, for an operand whose rows are along K.
    let ld_{p} = params.{m} / UNIT;
    var at_{p} = first_{p} + (k_begin + {p}_row) * ld_{p} + min(({m}0 + {p}_col * 4u) / UNIT, ld_{p} - 1u);
    let next_{p} = DEPTH * ld_{p};
    let to_{p} = {p}_row * STRIDE + {p}_col;
#for i 0 LOADS
    let row_{p}{i} = {i}u * {P}_ROWS * ld_{p};
#endfor
