// Tiles of 4 HALVES units for teams of eight invocations of a subgroup: invocation l has vec4 number l of each unit, so that loads, exchanges and
// stores of a team are of neighbours. Needs X, `params: Recipe`, `x`, and HALVES, and what quantize_code.wgsl needs.
const STRIDE: u32 = 32u;
#import quantize_signs
struct Lane {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
}
// Where a tile is: its first unit, counted over the matrix, its first vec4 of x, and how many vec4 and units there are from there on.
struct Tile { unit: u32, quad: u32, quads: u32, units: u32 }
fn tile_of_row(row: u32, tile: u32) -> Tile {
    let first = min(tile * 4u * HALVES, params.units);
    return Tile(row * params.units + first, row * (params.p.cols / 4u) + first * 8u, params.p.cols / 4u - min(first * 8u, params.p.cols / 4u),
        params.units - first);
}
// Random signs: invocation l finds those of one unit in eight.
fn flipped_tile(v: Unit, t: Tile, l: u32, lane: u32) -> Unit {
    var u = v;
    let low = sign_word((t.unit + l) % params.units);
#if HALVES < 3
    let high = low;
#else
    let high = sign_word((t.unit + 8u + l) % params.units);
#endif
#for h 0 HALVES
#for q 0 4
    let signs{h}{q} = subgroupShuffle(select(low, high, {h}u >= 2u), lane - l + {h}u % 2u * 4u + {q}u);
    u.q{h}{q} = flipped(u.q{h}{q}, signs{h}{q} >> (4u * l));
#endfor
#endfor
    return u;
}
fn load_tile(t: Tile, l: u32, lane: u32) -> Unit {
    var u: Unit;
#for h 0 HALVES
#for q 0 4
    let there{h}{q} = {h}u * 32u + {q}u * 8u + l < t.quads;
    u.q{h}{q} = select(vec4<f32>(), vec4<f32>(x[select(0u, t.quad + {h}u * 32u + {q}u * 8u + l, there{h}{q})]), there{h}{q});
#endfor
#endfor
    if params.flips == 1u { u = flipped_tile(u, t, l, lane); }
    if params.rotated == 1u { u = rotated_tile(u, l); }
    // Subnormal numbers count as zero.
#for h 0 HALVES
#for q 0 4
    u.q{h}{q} = select(u.q{h}{q}, vec4<f32>(), (bitcast<vec4<u32>>(u.q{h}{q}) & vec4<u32>(0x7f800000u)) == vec4<u32>());
#endfor
#endfor
    return u;
}
fn across(v: Unit, l: u32, d: u32) -> Unit {
    var u = v;
    let sign = vec4<f32>(select(1.0, -1.0, (l & d) != 0u));
#for h 0 HALVES
#for q 0 4
    u.q{h}{q} = fma(u.q{h}{q}, sign, subgroupShuffleXor(u.q{h}{q}, d));
#endfor
#endfor
    return u;
}
// The transform of each block of columns, all of which the team has: a block of 256 needs HALVES of 2 or 4.
fn rotated_tile(v: Unit, l: u32) -> Unit {
    var u = v;
#for h 0 HALVES
#for q 0 4
    u.q{h}{q} *= params.rotation_factor;
    u.q{h}{q} = vec4<f32>(u.q{h}{q}.xz + u.q{h}{q}.yw, u.q{h}{q}.xz - u.q{h}{q}.yw).xzyw;
    u.q{h}{q} = vec4<f32>(u.q{h}{q}.xy + u.q{h}{q}.zw, u.q{h}{q}.xy - u.q{h}{q}.zw);
#endfor
#endfor
    u = across(across(u, l, 1u), l, 2u);
    if params.last_stage == 1u { u = across(u, l, 4u); }
    if params.rotation_units >= 2u {
#for h 0 HALVES
        let a{h} = u.q{h}0;
        let b{h} = u.q{h}2;
        u.q{h}0 = a{h} + u.q{h}1;
        u.q{h}1 = a{h} - u.q{h}1;
        u.q{h}2 = b{h} + u.q{h}3;
        u.q{h}3 = b{h} - u.q{h}3;
#endfor
    }
    if params.rotation_units >= 4u {
#for h 0 HALVES
        let a{h} = u.q{h}0;
        let b{h} = u.q{h}1;
        u.q{h}0 = a{h} + u.q{h}2;
        u.q{h}2 = a{h} - u.q{h}2;
        u.q{h}1 = b{h} + u.q{h}3;
        u.q{h}3 = b{h} - u.q{h}3;
#endfor
    }
#if HALVES == 2
    if params.rotation_units >= 8u {
#for q 0 4
        let a{q} = u.q0{q};
        u.q0{q} = a{q} + u.q1{q};
        u.q1{q} = a{q} - u.q1{q};
#endfor
    }
#endif
#if HALVES == 4
    if params.rotation_units >= 8u {
#for q 0 4
        let a{q} = u.q0{q};
        u.q0{q} = a{q} + u.q1{q};
        u.q1{q} = a{q} - u.q1{q};
#endfor
    }
    if params.rotation_units >= 8u {
#for q 0 4
        let a{q} = u.q2{q};
        u.q2{q} = a{q} + u.q3{q};
        u.q3{q} = a{q} - u.q3{q};
#endfor
    }
#endif
    return u;
}

// Invocation l gets field l, of four bits, of all eight invocations.
fn exchange8(t: u32, l: u32) -> u32 {
    var word = ((t >> (4u * l)) & 15u) << (4u * l);
#for d 1 8
    word |= ((subgroupShuffleXor(t, {d}u) >> (4u * l)) & 15u) << (4u * (l ^ {d}u));
#endfor
    return word;
}
// Invocation l gets byte l % 4 of its four neighbours.
fn exchange4(t: u32, l: u32) -> u32 {
    let r = l & 3u;
    var word = ((t >> (8u * r)) & 255u) << (8u * r);
#for d 1 4
    word |= ((subgroupShuffleXor(t, {d}u) >> (8u * r)) & 255u) << (8u * (r ^ {d}u));
#endfor
    return word;
}
// What is beyond the tile's own units is another team's.
fn put1(t: Tile, l: u32, fields: u32, at: u32, first: u32) {
    let word = exchange8(fields, l);
    let unit = first + l;
    if unit < min(t.units, 4u * HALVES) { codes[(t.unit + unit) * params.bits + at] = word; }
}
fn put2(t: Tile, l: u32, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, low: u32, at: u32, first: u32) {
    let shift = vec4<u32>(low);
    let three = vec4<u32>(3u);
    let fields = join((a >> shift) & three, 2u) | join((b >> shift) & three, 2u) << 8u | join((c >> shift) & three, 2u) << 16u
        | join((d >> shift) & three, 2u) << 24u;
    let word = exchange4(fields, l);
    let unit = first + (l & 3u);
    if unit < t.units { codes[(t.unit + unit) * params.bits + at + l / 4u] = word; }
}
// Even invocations end with the first of two units, odd ones with the second.
fn put4(t: Tile, l: u32, a: vec4<u32>, b: vec4<u32>, first: u32) {
    let fields = join(a & vec4<u32>(15u), 4u) | join(b & vec4<u32>(15u), 4u) << 16u;
    let other = subgroupShuffleXor(fields, 1u);
    let word = select((fields & 0xffffu) | other << 16u, other >> 16u | (fields & 0xffff0000u), (l & 1u) == 1u);
    let unit = first + (l & 1u);
    if unit < t.units { codes[(t.unit + unit) * params.bits + l / 2u] = word; }
}
fn put8(t: Tile, l: u32, a: vec4<u32>, unit: u32) {
    if unit < t.units { codes[(t.unit + unit) * params.bits + l] = join(a, 8u); }
}
// Codes of a tile's vec4; bits of the mask, 16 for each four.
struct Codes {
#for h 0 HALVES
#for q 0 4
    c{h}{q}: vec4<u32>,
#endfor
#endfor
    inside: vec4<u32>,
}
// Writes codes and the mask. Uniform control flow within a subgroup.
fn put_tile(t: Tile, l: u32, c: Codes) {
    var low = 0u;
    var at = 0u;
    if params.bits == 8u {
#for h 0 HALVES
#for q 0 4
        put8(t, l, c.c{h}{q}, {h}u * 4u + {q}u);
#endfor
#endfor
    }
    if (params.bits & 4u) != 0u {
#for h 0 HALVES
        put4(t, l, c.c{h}0, c.c{h}1, {h}u * 4u);
        put4(t, l, c.c{h}2, c.c{h}3, {h}u * 4u + 2u);
#endfor
        low = 4u;
        at = 4u;
    }
    if (params.bits & 2u) != 0u {
#for h 0 HALVES
        put2(t, l, c.c{h}0, c.c{h}1, c.c{h}2, c.c{h}3, low, at, {h}u * 4u);
#endfor
        low += 2u;
        at += 2u;
    }
    if (params.bits & 1u) != 0u {
        var fields = vec4<u32>();
#for h 0 HALVES
#for q 0 4
        fields[{h}] |= join((c.c{h}{q} >> vec4<u32>(low)) & vec4<u32>(1u), 1u) << ({q}u * 4u);
#endfor
#endfor
        put1(t, l, fields.x | fields.y << 16u, at, 0u);
#if HALVES < 3
#else
        put1(t, l, fields.z | fields.w << 16u, at, 8u);
#endif
    }
    if params.masked == 1u {
        let word = exchange8(c.inside.x | c.inside.y << 16u, l);
        if l < min(t.units, 4u * HALVES) { mask[t.unit + l] = word; }
#if HALVES < 3
#else
        let next = exchange8(c.inside.z | c.inside.w << 16u, l);
        if l + 8u < min(t.units, 4u * HALVES) { mask[t.unit + l + 8u] = next; }
#endif
    }
}
// Whether the tile has vec4 number l of unit j, and its first element, counted over the matrix.
fn has(t: Tile, l: u32, j: u32) -> bool { return j * 8u + l < t.quads; }
fn element_of(t: Tile, l: u32, j: u32) -> u32 { return 4u * (t.quad + j * 8u + l); }
