// As tiled_along.wgsl, for a quantized operand. Needs k_quad.
    let to_{p} = {p}_col * 4u * STRIDE + {p}_row / 4u;
    let part_{p} = {p}_row % 4u;
    var group_{p} = {p}_group(min(k_begin + {p}_col * 4u, k_quad));
#for i 0 LOADS
    let row_{p}{i} = min({m}0 + {p}_row + {i}u * {P}_ROWS, params.{m} - 1u);
    let code_{p}{i} = row_{p}{i} * params.{p}.row_words;
    var scale_{p}{i} = {p}_scale(row_{p}{i}, group_{p});
    var zero_{p}{i} = {p}_zero(row_{p}{i}, group_{p});
#endfor
