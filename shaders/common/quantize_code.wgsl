// From elements to codes and their words. Needs CLASS (0 integers, 1 small floats, 2 NF4, 3 FP4, 4 NF3), STOCHASTIC, WIDTH, `params: Recipe`, `state` (its
// first word is the step), `codes` and `mask`.
#import philox

// How a span's elements are scaled, and up to which magnitude the mask has ones; the second component is NF3's for negative values.
struct Scale { first: vec2<f32>, second: vec2<f32>, limit: vec2<f32>, zero: f32, good: bool }

fn scale_of(s: Stored, factor: f32) -> Scale {
    var scale: Scale;
    scale.good = s.good;
    scale.zero = f32(s.zero);
#if CLASS == 4
    let both = array<u32, 2>(s.bits.x, s.bits.y);
#for i 0 2
    {
        let value = stored_value(both[{i}], factor);
        let scaling = scaling_of(select(value, s.pick[{i}], params.exact == 1u));
        scale.first[{i}] = scaling.x;
        scale.second[{i}] = scaling.y;
        scale.limit[{i}] = params.bound * value;
    }
#endfor
#else
    let value = stored_value(s.bits.x, factor);
    let scaling = scaling_of(select(value, s.pick.x, params.exact == 1u));
    scale.first.x = scaling.x;
    scale.second.x = scaling.y;
    scale.limit.x = params.bound * abs(value);
    for (var i = 0u; i < once(params.p.store == 2u); i++) {
        let e = 127 - i32(s.bits.x) + i32(params.unit_log2);
        scale.first.x = power_of_two(e / 2);
        scale.second.x = power_of_two(e - e / 2);
        scale.limit.x = params.bound * power_of_two(-(e / 2)) * power_of_two(e / 2 - e);
    }
#endif
#if CLASS == 4
    scale.first *= vec2<f32>(params.factor);
#else
    scale.first.x *= params.factor;
#endif
    if !s.good {
        scale.first = vec2<f32>();
        scale.second = vec2<f32>();
        scale.limit = vec2<f32>(-1.0);
    }
    return scale;
}

// Random numbers of elements `element` .. `element + 3`, counted over the matrix, in [0, 1).
fn random4(element: u32) -> vec4<f32> {
    let step = select(params.step, state[0], params.step_at_state == 1u);
    let key = vec2<u32>(params.seed_low, params.seed_high);
    var r = philox(key, vec4<u32>(element / 4u, params.op, step, 0u));
#if WIDTH != 4
    let n = philox(key, vec4<u32>(element / 4u + 1u, params.op, step, 0u));
    let shift = element % 4u;
    r = select(r, vec4<u32>(r.yzw, n.x), shift == 1u);
    r = select(r, vec4<u32>(r.zw, n.xy), shift == 2u);
    r = select(r, vec4<u32>(r.w, n.xyz), shift == 3u);
#endif
    return vec4<f32>(r >> vec4<u32>(8u)) * 5.9604644775390625e-8;
}

#if CLASS == 0
// Codes of v, in units of the scale.
fn code4(v: vec4<f32>, negative: vec4<bool>, zero: f32, element: u32) -> vec4<u32> {
    let w = v - params.centre;
    var level = round(w);
    for (var i = 0u; i < once(params.ties != 0u); i++) {
        // A centred value is half-way where it is an integer; v - 1/2 would lose that.
        let whole = floor(v);
        let centred = params.centre > 0.0;
        let lower = whole - ceil(params.centre);
        let share = select(v - whole, select(vec4<f32>(0.75), vec4<f32>(0.5), v == whole), centred);
        let below = select(v, lower, centred) < vec4<f32>();
        var up = vec4<bool>(params.ties == 1u);
        up = select(up, below, params.ties == 3u);
        up = select(up, !below, params.ties == 4u);
        up = (share > vec4<f32>(0.5)) | ((share == vec4<f32>(0.5)) & up);
        level = lower + select(vec4<f32>(), vec4<f32>(1.0), up);
    }
#if STOCHASTIC
    let lower = floor(w);
    level = lower + select(vec4<f32>(), vec4<f32>(1.0), random4(element) < w - lower);
#endif
    return vec4<u32>(clamp(level + zero, vec4<f32>(params.low), vec4<f32>(params.high)) + params.add);
}
#endif
#if CLASS != 0
// Whether magnitudes half-way go up.
fn magnitude_tie(negative: vec4<bool>) -> vec4<bool> {
    return (vec4<bool>(params.ties == 1u) & !negative) | (vec4<bool>(params.ties == 2u) & negative) | vec4<bool>(params.ties == 4u);
}
// Whether a magnitude goes up that is `share` of the way to the next level.
fn magnitude_up(share: vec4<f32>, negative: vec4<bool>, element: u32) -> vec4<bool> {
    let random = random4(element);
    return select(random < share, vec4<f32>(1.0) - random <= share, negative);
}
#endif
#if CLASS == 1
fn code4(v: vec4<f32>, negative: vec4<bool>, zero: f32, element: u32) -> vec4<u32> {
    let a = abs(v);
    let bits = bitcast<vec4<u32>>(a);
    let tiny = a < vec4<f32>(params.least_normal);
    let shift = vec4<u32>(23u - params.mantissa);
    let offset = vec4<u32>((128u - (1u << (params.exponent - 1u))) << params.mantissa);
    let rest = vec4<u32>((1u << (23u - params.mantissa)) - 1u);
    let steps = min(a, vec4<f32>(params.least_normal)) * params.subnormals;
    var code = vec4<u32>();
#if STOCHASTIC
    let whole = floor(steps);
    let lower = select((bits >> shift) - offset, vec4<u32>(whole), tiny);
    let share = select(vec4<f32>(bits & rest) * params.fraction, steps - whole, tiny);
    code = lower + select(vec4<u32>(), vec4<u32>(1u), magnitude_up(share, negative, element));
#else
    let even = ((bits + (rest >> vec4<u32>(1u)) + ((bits >> shift) & vec4<u32>(1u))) >> shift) - offset;
    code = select(even, vec4<u32>(round(steps)), tiny);
    for (var i = 0u; i < once(params.ties != 0u); i++) {
        let whole = floor(steps);
        let lower = select((bits >> shift) - offset, vec4<u32>(whole), tiny);
        let share = select(vec4<f32>(bits & rest) * params.fraction, steps - whole, tiny);
        let up = (share > vec4<f32>(0.5)) | ((share == vec4<f32>(0.5)) & magnitude_tie(negative));
        code = lower + select(vec4<u32>(), vec4<u32>(1u), up);
    }
#endif
    code = min(code, vec4<u32>(params.max_code));
    // A value that ties take to zero has no sign.
    let signed = negative & ((code != vec4<u32>()) | vec4<bool>(params.ties != 3u));
    return code | select(vec4<u32>(), vec4<u32>(1u << (params.bits - 1u)), signed);
}
#endif
#if CLASS == 2
// How many of 15 ascending numbers are below v.
fn rank15(v: vec4<f32>, t: array<f32, 15>) -> vec4<u32> {
    let b3 = v > vec4<f32>(t[7]);
    let b2 = v > select(vec4<f32>(t[3]), vec4<f32>(t[11]), b3);
    let b1 = v > select(
        select(vec4<f32>(t[1]), vec4<f32>(t[5]), b2),
        select(vec4<f32>(t[9]), vec4<f32>(t[13]), b2), b3);
    let b0 = v > select(
        select(select(vec4<f32>(t[0]), vec4<f32>(t[2]), b1), select(vec4<f32>(t[4]), vec4<f32>(t[6]), b1), b2),
        select(select(vec4<f32>(t[8]), vec4<f32>(t[10]), b1), select(vec4<f32>(t[12]), vec4<f32>(t[14]), b1), b2), b3);
    let one = vec4<u32>(1u);
    let none = vec4<u32>();
    return select(none, one * 8u, b3) | select(none, one * 4u, b2) | select(none, one * 2u, b1) | select(none, one, b0);
}
fn code4(v: vec4<f32>, negative: vec4<bool>, zero: f32, element: u32) -> vec4<u32> {
    var w = v;
    for (var i = 0u; i < once(params.ties != 2u); i++) {
        // Where ties go up, the next number above decides.
        let up = vec4<bool>(params.ties == 1u) | (vec4<bool>(params.ties == 3u) & negative) | (vec4<bool>(params.ties == 4u) & !negative);
        let bits = bitcast<vec4<u32>>(v);
        w = select(v, bitcast<vec4<f32>>(select(bits + 1u, bits - 1u, negative)), up);
    }
    var code = rank15(w, array<f32, 15>(-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
        -0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513,
        0.2035212516784668, 0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784178118011));
#if STOCHASTIC
    let above = rank15(v, array<f32, 15>(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023));
    let below = max(above, vec4<u32>(1u)) - 1u;
    let lower = nf4_level(below);
    let share = (v - lower) / (nf4_level(max(above, vec4<u32>(1u))) - lower);
    code = select(below, above, (random4(element) < share) & (above > vec4<u32>()));
#endif
    return code;
}
#endif
#if CLASS == 3
#import quantize_rank
fn code4(v: vec4<f32>, negative: vec4<bool>, zero: f32, element: u32) -> vec4<u32> {
    let a = abs(v);
    var w = a;
    for (var i = 0u; i < once(params.ties != 3u); i++) {
        w = select(a, bitcast<vec4<f32>>(bitcast<vec4<u32>>(a) + 1u), magnitude_tie(negative));
    }
    var rank = rank7(w, array<f32, 7>(0.0026041667442768812, 0.0859375, 0.2083333432674408, 0.2916666865348816, 0.4166666865348816,
        0.5833333730697632, 0.8333333730697632));
#if STOCHASTIC
    let above = rank7(a, array<f32, 7>(0.0, 0.005208333488553762, 0.1666666716337204, 0.25, 0.3333333432674408, 0.5, 0.6666666865348816));
    let below = max(above, vec4<u32>(1u)) - 1u;
    let lower = fp4_level(fp4_code(below));
    let share = (a - lower) / (fp4_level(fp4_code(max(above, vec4<u32>(1u)))) - lower);
    rank = select(below, above, magnitude_up(share, negative, element) & (above > vec4<u32>()));
#endif
    return fp4_code(rank) | select(vec4<u32>(), vec4<u32>(8u), negative);
}
// The code of the magnitude of a rank: they do not ascend.
fn fp4_code(rank: vec4<u32>) -> vec4<u32> { return (vec4<u32>(0x32547610u) >> (rank * 4u)) & vec4<u32>(15u); }
#endif
#if CLASS == 4
#import quantize_rank
fn code4(v: vec4<f32>, negative: vec4<bool>, zero: f32, element: u32) -> vec4<u32> {
    let a = abs(v);
    var w = a;
    for (var i = 0u; i < once(params.ties != 3u); i++) {
        w = select(a, bitcast<vec4<f32>>(bitcast<vec4<u32>>(a) + 1u), magnitude_tie(negative));
    }
    let far = 3e38;
    let up = rank7(w, array<f32, 7>(0.0916687622666359, 0.2826657369732857, 0.5024898052215576, 0.8114928305149078, far, far, far));
    let down = rank7(w, array<f32, 7>(0.1234657019376755, 0.39097706973552704, 0.7675113677978516, far, far, far, far));
    var code = select(vec4<u32>(3u) + up, vec4<u32>(3u) - down, negative);
#if STOCHASTIC
    let above = rank7(v, array<f32, 7>(-1.0, -0.5350227355957031, -0.2469314038753510, 0.0, 0.1833375245332718, 0.3819939494132996,
        0.6229856610298157));
    let below = max(above, vec4<u32>(1u)) - 1u;
    let lower = nf3_level(below);
    let share = (v - lower) / (nf3_level(max(above, vec4<u32>(1u))) - lower);
    code = select(below, above, (random4(element) < share) & (above > vec4<u32>()));
#endif
    return code;
}
#endif

// Codes of four elements; bits of the mask, one in each.
struct Coded { code: vec4<u32>, inside: vec4<u32> }
fn coded(x: vec4<f32>, s: Scale, element: u32) -> Coded {
    let below = x < vec4<f32>();
#if CLASS == 4
    let v = x * select(vec4<f32>(s.first.x), vec4<f32>(s.first.y), below) * select(vec4<f32>(s.second.x), vec4<f32>(s.second.y), below);
    let limit = select(vec4<f32>(s.limit.x), vec4<f32>(s.limit.y), below);
    // Without a scale of its sign a value counts as zero.
    let negative = below & (v < vec4<f32>());
#else
    let v = x * s.first.x * s.second.x;
    let limit = vec4<f32>(s.limit.x);
    let negative = below & vec4<bool>(s.second.x != 0.0);
#endif
    let inside = select(vec4<u32>(), vec4<u32>(1u), (abs(x) <= limit) & vec4<bool>(s.good));
    return Coded(code4(select(vec4<f32>(), v, s.good), negative, s.zero, element), inside);
}
fn join(c: vec4<u32>, width: u32) -> u32 { return c.x | c.y << width | c.z << (2u * width) | c.w << (3u * width); }
