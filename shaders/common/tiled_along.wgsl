// Where a dense operand {p} that is stored along K is read and staged; {m} is its other dimension. Needs first_{p}, its first unit.
    let ld_{p} = params.k / UNIT;
    var at_{p} = first_{p} + (k_begin + {p}_col * 4u) / UNIT;
    let next_{p} = DEPTH / UNIT;
    let to_{p} = {p}_col * 4u * STRIDE + {p}_row / 4u;
    let part_{p} = {p}_row % 4u;
#for i 0 LOADS
    let row_{p}{i} = min({m}0 + {p}_row + {i}u * {P}_ROWS, params.{m} - 1u) * ld_{p};
#endfor
