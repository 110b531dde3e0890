// HALVES times four vec4 of elements and what is seen of them. Needs HALVES, STRIDE and `params: Recipe`.
#import quantize_span
struct Unit {
#for h 0 HALVES
#for q 0 4
    q{h}{q}: vec4<f32>,
#endfor
#endfor
}
#for h 0 HALVES
// Takes in four of the vec4, which are STRIDE elements apart; the first one of all has number `place` of the span.
fn see{h}(before: Seen, u: Unit, place: u32) -> Seen {
    var s = before;
#for q 0 4
    var m{q} = bitcast<vec4<u32>>(u.q{h}{q}) & vec4<u32>(0x7fffffffu);
#endfor
    for (var i = 0u; i < params.finite_only; i++) {
#for q 0 4
        m{q} = select(m{q}, vec4<u32>(), m{q} >= vec4<u32>(0x7f800000u));
#endfor
    }
    for (var i = 0u; i < once(params.rule == 1u); i++) {
#for q 0 4
        let key{q} = vec4<u32>(place + {h}u * 4u * STRIDE + {q}u * STRIDE) + vec4<u32>(0u, 1u, 2u, 3u);
        s.key = select(s.key, key{q} * 2u + (bitcast<vec4<u32>>(u.q{h}{q}) >> vec4<u32>(31u)), m{q} > s.m);
        s.m = max(s.m, m{q});
#endfor
    }
    for (var i = 0u; i < once(params.rule == 2u); i++) {
#for q 0 4
        s.a = max(s.a, u.q{h}{q});
        s.b = max(s.b, -u.q{h}{q});
#endfor
    }
    for (var i = 0u; i < once(params.rule == 3u); i++) {
#for q 0 4
        let v{q} = abs(u.q{h}{q});
        s.a += select(v{q}, vec4<f32>(), v{q} > vec4<f32>(params.big));
        s.b += select(vec4<f32>(), v{q} * params.big_factor, v{q} > vec4<f32>(params.big));
#endfor
    }
    for (var i = 0u; i < once(params.rule == 4u); i++) {
        let most = max(max(m0, m1), max(m2, m3));
        if max(max(most.x, most.y), max(most.z, most.w)) <= bitcast<u32>(params.big) {
#for q 0 4
            s.a = fma(u.q{h}{q}, u.q{h}{q}, s.a);
#endfor
        } else {
#for q 0 4
            let large{q} = abs(u.q{h}{q}) > vec4<f32>(params.big);
            let small{q} = select(u.q{h}{q}, vec4<f32>(), large{q});
            let scaled{q} = select(vec4<f32>(), u.q{h}{q} * params.big_factor, large{q});
            s.a = fma(small{q}, small{q}, s.a);
            s.b = fma(scaled{q}, scaled{q}, s.b);
#endfor
        }
    }
#for q 0 4
    s.m = max(s.m, m{q});
#endfor
    return s;
}
#endfor
