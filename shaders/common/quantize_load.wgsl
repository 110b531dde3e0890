// Units of 32 elements of x, rotated where asked for, and the statistics of those that share a scale. Needs X, WIDTH (4: rows start on a
// multiple of four elements), `params: Recipe` and `state`, see quantize_signs.wgsl; x is at binding {AT}: `#import quantize_load AT=1
// AND=7`. TRANSPOSED: rows are the columns of x, which is f32, f16 or (X u32) quantized, its side data at binding {AND}. Neighbouring rows
// are then neighbours in memory.
#import quantize_info
#import quantize_signs
#if TRANSPOSED
#if X == u32
#import packed_any p=a
@group(0) @binding({AT}) var<storage, read> a_codes: array<u32>;
@group(0) @binding({AND}) var<storage, read> a_side: array<u32>;
// The code of element i of the unit that starts at `word`.
fn a_code(word: u32, i: u32) -> u32 {
    let bits = params.a.code & 15u;
    var code = 0u;
    for (var n = 0u; n < once(bits == 8u); n++) { code = (a_codes[word + i / 4u] >> (i % 4u * 8u)) & 255u; }
    for (var n = 0u; n < once((bits & 4u) != 0u); n++) { code = (a_codes[word + i / 8u] >> (i % 8u * 4u)) & 15u; }
    for (var n = 0u; n < once((bits & 2u) != 0u); n++) {
        let low = bits & 4u;
        code |= ((a_codes[word + low + i / 16u] >> (i % 16u * 2u)) & 3u) << low;
    }
    for (var n = 0u; n < once((bits & 1u) != 0u); n++) {
        let low = bits & 6u;
        code |= ((a_codes[word + low] >> i) & 1u) << low;
    }
    return code;
}
// One element at a time, and below one vec4: software adapters take a second for each decoder that they compile.
fn load4(row: u32, col: u32) -> vec4<f32> {
    let group = a_group(row);
    let unit = row / 32u * (params.a.code & 15u);
    let integers = ((params.a.code >> 4u) & 15u) < 2u;
    var code = vec4<u32>();
    var zero = vec4<f32>();
    var positive = vec4<f32>();
    var negative = vec4<f32>();
    for (var j = 0u; j < 4u; j++) {
        let line = min(col + j, params.p.cols - 1u);
        let scale = a_scale(line, group);
        code[j] = a_code(line * params.a.row_words + unit, row % 32u);
        zero[j] = select(0.0, a_zero(line, group), integers);
        positive[j] = scale.x;
        negative[j] = scale.y;
    }
    let level = a_level4(code, 0.0) - zero;
    let there = vec4<u32>(col) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.p.cols);
    return select(vec4<f32>(), level * select(positive, negative, level < vec4<f32>()), there);
}
#else
@group(0) @binding({AT}) var<storage, read> x: array<X>;
fn load4(row: u32, col: u32) -> vec4<f32> {
    let columns = vec4<u32>(col) + vec4<u32>(0u, 1u, 2u, 3u);
    let there = columns < vec4<u32>(params.p.cols);
    let at = select(vec4<u32>(), columns * params.rows + vec4<u32>(row), there);
    return select(vec4<f32>(), vec4<f32>(vec4<X>(x[at.x], x[at.y], x[at.z], x[at.w])), there);
}
#endif
#else
#if WIDTH == 4
@group(0) @binding({AT}) var<storage, read> x: array<vec4<X>>;
#else
@group(0) @binding({AT}) var<storage, read> x: array<X>;
#endif

fn load4(row: u32, col: u32) -> vec4<f32> {
    // Beyond the last column: any element that there is, and then zero.
#if WIDTH == 4
    let there = col < params.p.cols;
    return select(vec4<f32>(), vec4<f32>(x[select(0u, (row * params.p.cols + col) / 4u, there)]), there);
#else
    let columns = vec4<u32>(col) + vec4<u32>(0u, 1u, 2u, 3u);
    let there = columns < vec4<u32>(params.p.cols);
    let at = select(vec4<u32>(), vec4<u32>(row * params.p.cols) + columns, there);
    return select(vec4<f32>(), vec4<f32>(vec4<X>(x[at.x], x[at.y], x[at.z], x[at.w])), there);
#endif
}
#endif
fn load_unit(row: u32, unit: u32) -> Unit {
    var u: Unit;
#if X == u32
    var all: array<vec4<f32>, 8>;
    for (var q = 0u; q < 8u; q++) { all[q] = load4(row, unit * 32u + q * 4u); }
#for h 0 2
#for q 0 4
    u.q{h}{q} = all[{h}u * 4u + {q}u];
#endfor
#endfor
#else
#for h 0 2
#for q 0 4
    u.q{h}{q} = load4(row, unit * 32u + {h}u * 16u + {q}u * 4u);
#endfor
#endfor
#endif
    for (var i = 0u; i < params.flips; i++) {
        let signs = sign_word(unit);
#for h 0 2
#for q 0 4
        u.q{h}{q} = flipped(u.q{h}{q}, signs >> ({h}u * 16u + {q}u * 4u));
#endfor
#endfor
    }
    return u;
}
// The transform of 16 or 32 elements, unscaled.
fn butterflies(v: Unit) -> Unit {
    var u = v;
#for h 0 2
#for q 0 4
    u.q{h}{q} = vec4<f32>(u.q{h}{q}.xz + u.q{h}{q}.yw, u.q{h}{q}.xz - u.q{h}{q}.yw).xzyw;
    u.q{h}{q} = vec4<f32>(u.q{h}{q}.xy + u.q{h}{q}.zw, u.q{h}{q}.xy - u.q{h}{q}.zw);
#endfor
    let a{h} = u.q{h}0 + u.q{h}1;
    let b{h} = u.q{h}0 - u.q{h}1;
    let c{h} = u.q{h}2 + u.q{h}3;
    let d{h} = u.q{h}2 - u.q{h}3;
    u.q{h}0 = a{h} + c{h};
    u.q{h}1 = b{h} + d{h};
    u.q{h}2 = a{h} - c{h};
    u.q{h}3 = b{h} - d{h};
#endfor
    for (var i = 0u; i < params.last_stage; i++) {
#for q 0 4
        let e{q} = u.q0{q};
        u.q0{q} = e{q} + u.q1{q};
        u.q1{q} = e{q} - u.q1{q};
#endfor
    }
    return u;
}
// Unit `unit` of a row as it is quantized. A rotated one of a block of several is the transform of the sum of all of them, each with the sign
// that the block's matrix has for the two.
fn unit_of(row: u32, unit: u32) -> Unit {
    let first = unit & ~(params.rotation_units - 1u);
    var u: Unit;
    for (var k = 0u; k < params.rotation_units; k++) {
        let other = load_unit(row, first + k);
        let sign = select(1.0, -1.0, (countOneBits(k & unit) & 1u) == 1u);
#for h 0 2
#for q 0 4
        u.q{h}{q} = fma(other.q{h}{q}, vec4<f32>(sign), u.q{h}{q});
#endfor
#endfor
    }
    for (var i = 0u; i < params.rotated; i++) {
        u = butterflies(u);
#for h 0 2
#for q 0 4
        u.q{h}{q} *= params.rotation_factor;
#endfor
#endfor
    }
    // Subnormal numbers count as zero.
#for h 0 2
#for q 0 4
    u.q{h}{q} = select(u.q{h}{q}, vec4<f32>(), (bitcast<vec4<u32>>(u.q{h}{q}) & vec4<u32>(0x7f800000u)) == vec4<u32>());
#endfor
#endfor
    return u;
}
#import quantize_see
