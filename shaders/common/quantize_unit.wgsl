// Words of a unit of 32 columns that an invocation has to itself. Needs what quantize_code.wgsl needs.
// Writes the codes and the mask of a unit whose halves have scales of their own.
fn put_unit(row: u32, unit: u32, u: Unit, s0: Scale, s1: Scale) {
    let col = unit * 32u;
    let element = row * params.p.cols + col;
#for h 0 2
#for q 0 4
    var c{h}{q} = coded(u.q{h}{q}, s{h}, element + {h}u * 16u + {q}u * 4u);
#endfor
#endfor
    for (var i = 0u; i < once(col + 32u > params.p.cols); i++) {
        let left = vec4<u32>(params.p.cols - col);
#for h 0 2
#for q 0 4
        let there{h}{q} = vec4<u32>({h}u * 16u + {q}u * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < left;
        c{h}{q} = Coded(select(vec4<u32>(), c{h}{q}.code, there{h}{q}), select(vec4<u32>(), c{h}{q}.inside, there{h}{q}));
#endfor
#endfor
    }
    var at = row * params.p.row_words + unit * params.bits;
    var low = 0u;
    for (var i = 0u; i < once(params.bits == 8u); i++) {
#for h 0 2
#for q 0 4
        codes[at + {h}u * 4u + {q}u] = join(c{h}{q}.code, 8u);
#endfor
#endfor
    }
    for (var i = 0u; i < once((params.bits & 4u) != 0u); i++) {
        let low4 = vec4<u32>(15u);
#for h 0 2
        codes[at + {h}u * 2u] = join(c{h}0.code & low4, 4u) | join(c{h}1.code & low4, 4u) << 16u;
        codes[at + {h}u * 2u + 1u] = join(c{h}2.code & low4, 4u) | join(c{h}3.code & low4, 4u) << 16u;
#endfor
        at += 4u;
        low += 4u;
    }
    for (var i = 0u; i < once((params.bits & 2u) != 0u); i++) {
        let low2 = vec4<u32>(3u);
#for h 0 2
        codes[at + {h}u] = join((c{h}0.code >> vec4<u32>(low)) & low2, 2u) | join((c{h}1.code >> vec4<u32>(low)) & low2, 2u) << 8u
            | join((c{h}2.code >> vec4<u32>(low)) & low2, 2u) << 16u | join((c{h}3.code >> vec4<u32>(low)) & low2, 2u) << 24u;
#endfor
        at += 2u;
        low += 2u;
    }
    for (var i = 0u; i < once((params.bits & 1u) != 0u); i++) {
        var word = 0u;
#for h 0 2
#for q 0 4
        word |= join((c{h}{q}.code >> vec4<u32>(low)) & vec4<u32>(1u), 1u) << ({h}u * 16u + {q}u * 4u);
#endfor
#endfor
        codes[at] = word;
    }
    for (var i = 0u; i < params.masked; i++) {
        var word = 0u;
#for h 0 2
#for q 0 4
        word |= join(c{h}{q}.inside, 1u) << ({h}u * 16u + {q}u * 4u);
#endfor
#endfor
        mask[row * params.units + unit] = word;
    }
}
