// quantize_rows_subgroup.wgsl: as quantize.wgsl for integers without zero points, with a scale per row, to the nearest. A team of `params.pieces`
// neighbouring lanes of a subgroup, a power of two from 4 on, owns a row and keeps it in registers: lane t has halves t, t + team, .. of units,
// CHUNKS of 16 columns each. So a row is read once, and of a rotation by 128 only three stages cross lanes. (A shuffle costs as much as four
// additions, a conversion as much as eight, hence the rounding by a large addend; with whole units per lane shuffles are fewer, but so are the
// lanes: rows of 384 take twice as long.) What is chosen at run time is chosen once per row. Bounds: a vec4 is loaded where the row has it, a word
// written where the row has its unit; what is beyond the last row is a row of nothing. TALLY: with the header's norm, see
// quantize_tally.wgsl. LAYER_NORM: of the layer norm of the row, by layer_norm.wgsl's formulas; weight and bias are read where the row has the
// vec4, cols / 4 of each, and the statistics are written at rows that there are and params.rstd_at behind them, at least as many (the wrapper
// checks both). Loops over a team double up to it. Tier: subgroup, of a fixed size that eight divides.
#import quantize_span
@group(0) @binding(0) var<uniform> params: Recipe;
@group(0) @binding(1) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;
@group(0) @binding(3) var<storage, read_write> side: array<u32>;
@group(0) @binding(4) var<storage, read_write> mask: array<u32>;
#import quantize_scale
#if LAYER_NORM
@group(0) @binding(5) var<storage, read> weight: array<vec4<f32>>;          // [cols / 4]
@group(0) @binding(6) var<storage, read> bias: array<vec4<f32>>;            // the same, where there is one
@group(0) @binding(7) var<storage, read_write> statistics: array<f32>;      // means, from params.rstd_at on reciprocal standard deviations
#if TALLY
#import quantize_tally AT=8
#endif
#else
#if TALLY
#import quantize_tally AT=5
#endif
#endif

struct Lane {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
}
fn sum(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn team_sum(part: f32, team: u32) -> f32 {
    var all = part;
    for (var d = 1u; d < team; d *= 2u) { all += subgroupShuffleXor(all, d); }
    return all;
}
fn join(c: vec4<u32>, width: u32) -> u32 { return c.x | c.y << width | c.z << (2u * width) | c.w << (3u * width); }

@compute @workgroup_size(128)
fn main(lane: Lane) {
    let team = params.pieces;
    let thread = lane.subgroup * lane.size + lane.lane;
    let t = thread % team;
    let row = (lane.wg.y * lane.grid.x + lane.wg.x) * (128u / team) + thread / team;
    let there = row < params.rows;
    if row == 0u && t == 0u {
        for (var i = 0u; i < params.header_words; i++) {
            // Words 1 and 2 are the norm, the last workgroup's.
            if !TALLY || i == 0u || i > 2u { side[i] = params.header[i / 4u][i % 4u]; }
        }
    }
    let quads = select(0u, params.p.cols / 4u, there);
#for u 0 CHUNKS
    let half{u} = {u}u * team + t;
#for q 0 4
    let has{u}_{q} = half{u} * 4u + {q}u < quads;
    var v{u}_{q} = select(vec4<f32>(), vec4<f32>(x[select(0u, row * quads + half{u} * 4u + {q}u, has{u}_{q})]), has{u}_{q});
#endfor
#endfor
#if LAYER_NORM
    var sums = vec4<f32>();
#for u 0 CHUNKS
#for q 0 4
    sums += v{u}_{q};
#endfor
#endfor
    let mean = team_sum(sum(sums), team) * params.inv_cols;
    var squares = vec4<f32>();
    var rest = vec4<f32>();
#for u 0 CHUNKS
#for q 0 4
    v{u}_{q} = select(vec4<f32>(), v{u}_{q} - mean, has{u}_{q});
    squares = fma(v{u}_{q}, v{u}_{q}, squares);
    rest += v{u}_{q};
#endfor
#endfor
    let correction = team_sum(sum(rest), team) * params.inv_cols;
    let rstd = inverseSqrt(max(team_sum(sum(squares), team) * params.inv_cols - correction * correction, 0.0) + params.layer_norm_eps);
#for u 0 CHUNKS
#for q 0 4
    if has{u}_{q} {
        v{u}_{q} = (v{u}_{q} - correction) * rstd * weight[half{u} * 4u + {q}u];
        if params.biased == 1u { v{u}_{q} += bias[half{u} * 4u + {q}u]; }
    }
#endfor
#endfor
    if there && t == 0u {
        statistics[row] = mean + correction;
        statistics[params.rstd_at + row] = rstd;
    }
#endif

    if params.rotated == 1u {
#for u 0 CHUNKS
#for q 0 4
        v{u}_{q} *= params.rotation_factor;
        v{u}_{q} = vec4<f32>(v{u}_{q}.xz + v{u}_{q}.yw, v{u}_{q}.xz - v{u}_{q}.yw).xzyw;
        v{u}_{q} = vec4<f32>(v{u}_{q}.xy + v{u}_{q}.zw, v{u}_{q}.xy - v{u}_{q}.zw);
#endfor
        { let a = v{u}_0; v{u}_0 = a + v{u}_1; v{u}_1 = a - v{u}_1; }
        { let a = v{u}_2; v{u}_2 = a + v{u}_3; v{u}_3 = a - v{u}_3; }
        { let a = v{u}_0; v{u}_0 = a + v{u}_2; v{u}_2 = a - v{u}_2; }
        { let a = v{u}_1; v{u}_1 = a + v{u}_3; v{u}_3 = a - v{u}_3; }
#endfor
        // Of further stages halves of units are the elements.
        let halves = select(1u, 2u * params.rotation_units, params.last_stage == 1u);
        for (var d = 1u; d < halves; d *= 2u) {
            let sign = vec4<f32>(select(1.0, -1.0, (t & d) != 0u));
#for u 0 CHUNKS
#for q 0 4
            v{u}_{q} = fma(v{u}_{q}, sign, subgroupShuffleXor(v{u}_{q}, d));
#endfor
#endfor
        }
    }
#if FLUSH
    // Subnormal numbers count as zero. Of f16 elements there are none.
#for u 0 CHUNKS
#for q 0 4
    v{u}_{q} = select(v{u}_{q}, vec4<f32>(), (bitcast<vec4<u32>>(v{u}_{q}) & vec4<u32>(0x7f800000u)) == vec4<u32>());
#endfor
#endfor
#endif

    var most = vec4<u32>();
#for u 0 CHUNKS
#for q 0 4
    most = max(most, bitcast<vec4<u32>>(v{u}_{q}) & vec4<u32>(0x7fffffffu));
#endfor
#endfor
    var m = max(max(most.x, most.y), max(most.z, most.w));
    for (var d = 1u; d < team; d *= 2u) { m = max(m, subgroupShuffleXor(m, d)); }
    var total = Total(m, 0u, 0.0, 0.0);
    if params.rule >= 3u {
        let mean = params.rule == 3u;
        var small = vec4<f32>();
        var large = vec4<f32>();
        if m <= bitcast<u32>(params.big) {
            if mean {
#for u 0 CHUNKS
#for q 0 4
                small += abs(v{u}_{q});
#endfor
#endfor
            } else {
#for u 0 CHUNKS
#for q 0 4
                small = fma(v{u}_{q}, v{u}_{q}, small);
#endfor
#endfor
            }
        } else {
#for u 0 CHUNKS
#for q 0 4
            {
                let beyond = abs(v{u}_{q}) > vec4<f32>(params.big);
                let a = select(v{u}_{q}, vec4<f32>(), beyond);
                let b = select(vec4<f32>(), v{u}_{q} * params.big_factor, beyond);
                small += select(a * a, abs(a), mean);
                large += select(b * b, abs(b), mean);
            }
#endfor
#endfor
        }
        total.a = team_sum(sum(small), team);
        total.b = team_sum(sum(large), team);
    }

    let stored = stored_of(total, f32(params.p.cols), 1.0);
    // A row's one scale fills its word, also where it is of 16 bits.
    if there && t == 0u { side[32u + row * params.p.scale_stride] = stored.bits.x; }
    let value = stored_value(stored.bits.x, 1.0);
    let scaling = scaling_of(select(value, stored.pick.x, params.exact == 1u));
    if params.masked == 1u {
        let limit = vec4<f32>(select(-1.0, params.bound * abs(value), stored.good));
#for u 0 CHUNKS
        {
            var bits = 0u;
#for q 0 4
            bits |= select(0u, join(select(vec4<u32>(), vec4<u32>(1u), abs(v{u}_{q}) <= limit), 1u) << ({q}u * 4u), has{u}_{q});
#endfor
            bits |= subgroupShuffleXor(bits, 1u) << 16u;
            if there && t % 2u == 0u && half{u} / 2u < params.units { mask[row * params.units + half{u} / 2u] = bits; }
        }
#endfor
    }

    // Where there is no scale, codes are those of zero.
    let without = vec4<bool>(!stored.good || scaling.y == 0.0);
    let low = vec4<f32>(params.low);
    let high = vec4<f32>(params.high);
    let one = params.bits == 1u;
    // Its last bits count by 1; the sum with what is less than 2^22 is rounded to the nearest, ties to even.
    let magic = 12582912.0;
    let minus = vec4<u32>(bitcast<u32>(magic) - u32(params.add));
#for u 0 CHUNKS
#for q 0 4
    {
        let w = select(v{u}_{q} * scaling.x * scaling.y, vec4<f32>(), without);
        // With one bit, w - 1/2 would lose a small w.
        var level = clamp(w - params.centre, low, high);
        if one { level = select(low, high, w >= vec4<f32>()); }
        v{u}_{q} = bitcast<vec4<f32>>(select(vec4<u32>(), bitcast<vec4<u32>>(level + magic) - minus, has{u}_{q}));
    }
    let c{u}_{q} = bitcast<vec4<u32>>(v{u}_{q});
#endfor
    let inside{u} = there && half{u} / 2u < params.units;
    var word{u} = (row * params.units + half{u} / 2u) * params.bits;
#endfor
    var shift = 0u;
    if params.bits == 8u {
#for u 0 CHUNKS
        if inside{u} {
#for q 0 4
            codes[word{u} + t % 2u * 4u + {q}u] = join(c{u}_{q}, 8u);
#endfor
        }
#endfor
    }
    if (params.bits & 4u) != 0u {
        let four = vec4<u32>(15u);
#for u 0 CHUNKS
        if inside{u} {
            codes[word{u} + t % 2u * 2u] = join(c{u}_0 & four, 4u) | join(c{u}_1 & four, 4u) << 16u;
            codes[word{u} + t % 2u * 2u + 1u] = join(c{u}_2 & four, 4u) | join(c{u}_3 & four, 4u) << 16u;
        }
        word{u} += 4u;
#endfor
        shift = 4u;
    }
    if (params.bits & 2u) != 0u {
        let two = vec4<u32>(3u);
        let by = vec4<u32>(shift);
#for u 0 CHUNKS
        if inside{u} {
            codes[word{u} + t % 2u] = join(c{u}_0 >> by & two, 2u) | join(c{u}_1 >> by & two, 2u) << 8u
                | join(c{u}_2 >> by & two, 2u) << 16u | join(c{u}_3 >> by & two, 2u) << 24u;
        }
        word{u} += 2u;
#endfor
        shift += 2u;
    }
    if (params.bits & 1u) != 0u {
        let by = vec4<u32>(shift);
#for u 0 CHUNKS
        {
            var bits = 0u;
#for q 0 4
            bits |= join(c{u}_{q} >> by & vec4<u32>(1u), 1u) << ({q}u * 4u);
#endfor
            bits |= subgroupShuffleXor(bits, 1u) << 16u;
            if inside{u} && t % 2u == 0u { codes[word{u}] = bits; }
        }
#endfor
    }
#if TALLY
    let mine = select(0u, tallied(stored.bits.x), there);
    let end = tally_up(mine, lane);
    if end.last {
        side[1] = end.norm.x;
        side[2] = end.norm.y;
    }
#endif
}
