// Stored scales of a quantized matrix {p}, see packed.wgsl.
#import packed_info

// Stored scale number `s` of a row, with the tensor's factor.
fn {p}_stored(row: u32, s: u32) -> f32 {
    let store = params.{p}.store;
    // A word holds one, two or four. (One load, and values rather than returns: a software adapter walks through every branch.)
    let each = select(2u, store, store < 2u);
    let bits = {p}_side[32u + row * params.{p}.scale_stride + (s >> each)] >> ((s & ((1u << each) - 1u)) << (5u - each));
    var v = bitcast<f32>(bits);
    if store == 1u { v = f16_value(bits & 0xffffu); }
    if store == 2u { v = e8m0_value(bits & 255u) * bitcast<f32>({p}_side[0]); }
    if store == 3u { v = e4m3_value(bits & 255u) * bitcast<f32>({p}_side[0]); }
    if store == 4u {
        let level = bitcast<f32>({p}_side[params.{p}.map_at + (bits & 255u)]);
        let nested = bitcast<f32>({p}_side[params.{p}.nested_at + (row * params.{p}.groups + s) / 256u]);
        v = fma(level, nested, bitcast<f32>({p}_side[3]));
    }
    return v;
}
// The group of a column: several columns of a unit share it unless groups are of 16.
fn {p}_group(col: u32) -> u32 { return col >> params.{p}.group_shift; }
