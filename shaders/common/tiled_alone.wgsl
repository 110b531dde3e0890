// The tile of an operand {p} that is stored along K. Of each of its vec4, four invocations stage a number: where that may spoil the others', the tile is
// of numbers.
#if LONE_COMPONENTS
var<workgroup> tile_{p}: array<vec4<f32>, DEPTH * STRIDE>;
fn stage_{p}(i: u32, part: u32, v: f32) { tile_{p}[i][part] = v; }
fn staged_{p}(i: u32) -> vec4<f32> { return tile_{p}[i]; }
#else
var<workgroup> tile_{p}: array<f32, 4u * DEPTH * STRIDE>;
fn stage_{p}(i: u32, part: u32, v: f32) { tile_{p}[4u * i + part] = v; }
fn staged_{p}(i: u32) -> vec4<f32> {
    return vec4<f32>(tile_{p}[4u * i], tile_{p}[4u * i + 1u], tile_{p}[4u * i + 2u], tile_{p}[4u * i + 3u]);
}
#endif
