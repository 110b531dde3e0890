// quantize_rows_subgroup.wgsl: as quantize.wgsl for integers without zero points, with a scale per row, to the nearest. A subgroup owns a row and
// keeps it in registers, REGS vec4 per lane: lane l has vec4 l, l + size, l + 2 size and so on, so that loads, exchanges and stores are of
// neighbours and a row is read once. What is chosen at run time is chosen once per row, not per element. Bounds: a vec4 is loaded where the row
// has it, a word written where the row has its unit; what is beyond the last row is a row of nothing. Tier: subgroup, of a fixed size that
// eight divides.
#import quantize_span
@group(0) @binding(0) var<uniform> params: Recipe;
@group(0) @binding(1) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> side: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> mask: array<u32>;
@group(0) @binding(6) var<storage, read_write> scratch: array<u32>;
#import quantize_scale
#import quantize_side

struct Lane {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
}
fn sum(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn join(c: vec4<u32>, width: u32) -> u32 { return c.x | c.y << width | c.z << (2u * width) | c.w << (3u * width); }

@compute @workgroup_size(128)
fn main(lane: Lane) {
    let l = lane.lane;
    let row = (lane.wg.y * lane.grid.x + lane.wg.x) * (128u / lane.size) + lane.subgroup;
    let there = row < params.rows;
    put_header(select(0u, params.header_words, row == 0u && l == 0u));
    let quads = select(0u, params.p.cols / 4u, there);
#for r 0 REGS
    let at{r} = {r}u * lane.size + l;
    var v{r} = select(vec4<f32>(), vec4<f32>(x[select(0u, row * quads + at{r}, at{r} < quads)]), at{r} < quads);
#endfor

    if params.rotated == 1u {
        // Vec4 in a block: neighbours in a lane, then lanes, then registers.
        let span = select(4u, 8u * params.rotation_units, params.last_stage == 1u);
#for r 0 REGS
        v{r} *= params.rotation_factor;
        v{r} = vec4<f32>(v{r}.xz + v{r}.yw, v{r}.xz - v{r}.yw).xzyw;
        v{r} = vec4<f32>(v{r}.xy + v{r}.zw, v{r}.xy - v{r}.zw);
#endfor
        for (var d = 1u; d < min(span, lane.size); d *= 2u) {
            let sign = vec4<f32>(select(1.0, -1.0, (l & d) != 0u));
#for r 0 REGS
            v{r} = fma(v{r}, sign, subgroupShuffleXor(v{r}, d));
#endfor
        }
#for stage 0 3
        if span > lane.size << {stage}u {
            let before = array<vec4<f32>, REGS>(
#for r 0 REGS
                v{r},
#endfor
            );
#for r 0 REGS
#if REGS == 1
#else
            // A block that is not whole is beyond the row's end.
            v{r} = before[min({r}u ^ (1u << {stage}u), REGS - 1u)] + select(before[{r}], -before[{r}], ({r}u >> {stage}u & 1u) == 1u);
#endif
#endfor
        }
#endfor
    }
#if FLUSH
    // Subnormal numbers count as zero. Of f16 elements there are none.
#for r 0 REGS
    v{r} = select(v{r}, vec4<f32>(), (bitcast<vec4<u32>>(v{r}) & vec4<u32>(0x7f800000u)) == vec4<u32>());
#endfor
#endif

    var most = vec4<u32>();
#for r 0 REGS
    most = max(most, bitcast<vec4<u32>>(v{r}) & vec4<u32>(0x7fffffffu));
#endfor
    let m = subgroupMax(max(max(most.x, most.y), max(most.z, most.w)));
    var total = Total(m, 0u, 0.0, 0.0);
    if params.rule >= 3u {
        let power = select(1.0, 0.0, params.rule == 3u);
        var small = vec4<f32>();
        var large = vec4<f32>();
        if m <= bitcast<u32>(params.big) {
            if params.rule == 3u {
#for r 0 REGS
                small += abs(v{r});
#endfor
            } else {
#for r 0 REGS
                small = fma(v{r}, v{r}, small);
#endfor
            }
        } else {
            let mean = vec4<bool>(params.rule == 3u);
#for r 0 REGS
            {
                let beyond = abs(v{r}) > vec4<f32>(params.big);
                let s = select(v{r}, vec4<f32>(), beyond);
                let t = select(vec4<f32>(), v{r} * params.big_factor, beyond);
                small += select(s * s, abs(s), mean);
                large += select(t * t, abs(t), mean);
            }
#endfor
        }
        total.a = subgroupAdd(sum(small));
        total.b = subgroupAdd(sum(large));
    }

    let stored = stored_of(total, f32(params.p.cols), 1.0);
    if there && l == 0u { put_scale(row, 0u, stored); }
    let value = stored_value(stored.bits.x, 1.0);
    let scaling = scaling_of(select(value, stored.pick.x, params.exact == 1u));
    if params.masked == 1u {
        let limit = vec4<f32>(select(-1.0, params.bound * abs(value), stored.good));
#for r 0 REGS
        {
            var word = join(select(vec4<u32>(), vec4<u32>(1u), abs(v{r}) <= limit), 1u) << (4u * (l % 8u));
            word = select(0u, word, at{r} < quads);
#for d 0 3
            word |= subgroupShuffleXor(word, 1u << {d}u);
#endfor
            if there && l % 8u == 0u && at{r} / 8u < params.units { mask[row * params.units + at{r} / 8u] = word; }
        }
#endfor
    }

    // Where there is no scale, codes are those of zero.
    let zero = vec4<bool>(!stored.good || scaling.y == 0.0);
#for r 0 REGS
    {
        let w = select(v{r} * scaling.x * scaling.y, vec4<f32>(), zero);
        var level = round(w - params.centre);
        // One bit: w - 1/2 would lose a small w.
        if params.bits == 1u { level = select(vec4<f32>(params.low), vec4<f32>(params.high), w >= vec4<f32>()); }
        v{r} = select(vec4<f32>(), clamp(level, vec4<f32>(params.low), vec4<f32>(params.high)) + params.add, at{r} < quads);
    }
    let c{r} = vec4<u32>(v{r});
    let word{r} = (row * params.units + at{r} / 8u) * params.bits;
    let inside{r} = there && at{r} / 8u < params.units;
#endfor
    var low = 0u;
    if params.bits == 8u {
#for r 0 REGS
        if inside{r} { codes[word{r} + l % 8u] = join(c{r}, 8u); }
#endfor
    }
    if (params.bits & 4u) != 0u {
#for r 0 REGS
        {
            let field = join(c{r} & vec4<u32>(15u), 4u);
            let other = subgroupShuffleXor(field, 1u);
            if inside{r} && l % 2u == 0u { codes[word{r} + l % 8u / 2u] = field | other << 16u; }
        }
#endfor
        low = 4u;
    }
    if (params.bits & 2u) != 0u {
#for r 0 REGS
        {
            var word = join(c{r} >> vec4<u32>(low) & vec4<u32>(3u), 2u) << (8u * (l % 4u));
#for d 0 2
            word |= subgroupShuffleXor(word, 1u << {d}u);
#endfor
            if inside{r} && l % 4u == 0u { codes[word{r} + low + l % 8u / 4u] = word; }
        }
#endfor
        low += 2u;
    }
    if (params.bits & 1u) != 0u {
#for r 0 REGS
        {
            var word = join(c{r} >> vec4<u32>(low) & vec4<u32>(1u), 1u) << (4u * (l % 8u));
#for d 0 3
            word |= subgroupShuffleXor(word, 1u << {d}u);
#endfor
            if inside{r} && l % 8u == 0u { codes[word{r} + low] = word; }
        }
#endfor
    }
}
