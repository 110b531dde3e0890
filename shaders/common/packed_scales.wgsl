// Stored scales of a quantized matrix {p}, see packed.wgsl.
#import packed_info

// Stored scale number `s` of a row, with the tensor's factor.
fn {p}_stored(row: u32, s: u32) -> f32 {
    let at = 32u + row * params.{p}.scale_stride;
    switch params.{p}.store {
        case 0u: { return bitcast<f32>({p}_side[at + s]); }
        case 1u: { return f16_value(({p}_side[at + s / 2u] >> (s % 2u * 16u)) & 0xffffu); }
        case 2u: { return e8m0_value(({p}_side[at + s / 4u] >> (s % 4u * 8u)) & 255u) * bitcast<f32>({p}_side[0]); }
        case 3u: { return e4m3_value(({p}_side[at + s / 4u] >> (s % 4u * 8u)) & 255u) * bitcast<f32>({p}_side[0]); }
        default: {
            let level = bitcast<f32>({p}_side[params.{p}.map_at + (({p}_side[at + s / 4u] >> (s % 4u * 8u)) & 255u)]);
            let nested = bitcast<f32>({p}_side[params.{p}.nested_at + (row * params.{p}.groups + s) / 256u]);
            return fma(level, nested, bitcast<f32>({p}_side[3]));
        }
    }
}
// The group of a column: several columns of a unit share it unless groups are of 16.
fn {p}_group(col: u32) -> u32 { return col >> params.{p}.group_shift; }
