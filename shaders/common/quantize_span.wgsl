// Statistics of elements that share a scale, and how those of parts come together. Needs `params: Recipe`.
#import quantize_info
// What four interleaved parts of a span have shown so far: bits of the largest magnitude (an infinity or NaN has more than any number);
// 2 place + sign of the first one that large; two sums of magnitudes or squares, small ones and large ones, or both ends.
struct Seen { m: vec4<u32>, key: vec4<u32>, a: vec4<f32>, b: vec4<f32> }
// The same of a whole span.
struct Total { m: u32, key: u32, a: f32, b: f32 }

fn nothing() -> Total { return Total(0u, 0xffffffffu, 0.0, 0.0); }
fn join_totals(x: Total, y: Total) -> Total {
    let sums = params.rule >= 3u;
    let key = select(select(y.key, min(x.key, y.key), x.m == y.m), x.key, x.m > y.m);
    return Total(max(x.m, y.m), key, select(max(x.a, y.a), x.a + y.a, sums), select(max(x.b, y.b), x.b + y.b, sums));
}
fn total_of(s: Seen) -> Total {
    return join_totals(
        join_totals(Total(s.m.x, s.key.x, s.a.x, s.b.x), Total(s.m.y, s.key.y, s.a.y, s.b.y)),
        join_totals(Total(s.m.z, s.key.z, s.a.z, s.b.z), Total(s.m.w, s.key.w, s.a.w, s.b.w)),
    );
}
fn unseen() -> Seen { return Seen(vec4<u32>(), vec4<u32>(0xffffffffu), vec4<f32>(), vec4<f32>()); }
