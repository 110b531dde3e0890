// A scale and an offset that a caller has on the device, such as learned ones; and elements in units of them. All in bits where a value may
// be no number.
fn handed_good(bits: u32) -> bool { return (bits & 0x7fffffffu) < 0x7f800000u; }
// The scale is the magnitude, at least 2^-100.
fn handed_magnitude(bits: u32) -> u32 { return clamp(bits & 0x7fffffffu, 0x0d800000u, 0x7f7fffffu); }
fn handed_number(bits: u32) -> f32 { return bitcast<f32>(select(0u, bits, handed_good(bits))); }
// 2^20 scales: beyond the ends of every format.
fn handed_limit(bits: u32) -> f32 { return bitcast<f32>(min(handed_magnitude(bits), 0x71800000u)) * 1048576.0; }
// The distances from the offset, within the limit; NaN counts as the offset.
fn handed_element(x: vec4<f32>, offset: f32, limit: f32) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let finite = bitcast<vec4<f32>>(min(magnitude, vec4<u32>(0x7effffffu)) | (bits & vec4<u32>(0x80000000u)));
    let distance = clamp(finite - vec4<f32>(clamp(offset, -1.7e38, 1.7e38)), vec4<f32>(-limit), vec4<f32>(limit));
    return select(distance, vec4<f32>(), magnitude > vec4<u32>(0x7f800000u));
}
