// How many of 7 ascending numbers are below v.
fn rank7(v: vec4<f32>, t: array<f32, 7>) -> vec4<u32> {
    let b2 = v > vec4<f32>(t[3]);
    let b1 = v > select(vec4<f32>(t[1]), vec4<f32>(t[5]), b2);
    let b0 = v > select(
        select(vec4<f32>(t[0]), vec4<f32>(t[2]), b1),
        select(vec4<f32>(t[4]), vec4<f32>(t[6]), b1), b2);
    let one = vec4<u32>(1u);
    return select(vec4<u32>(), one * 4u, b2) | select(vec4<u32>(), one * 2u, b1) | select(vec4<u32>(), one, b0);
}
