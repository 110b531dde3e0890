// Stored scales of a quantized matrix {p}, see packed.wgsl. Needs: `params.{p}: PackedInfo`; a binding {p}_side: array<u32>.
#import packed_info

// Stored scale number `s` of a row: the word it is in, its bits, and what they mean with the tensor's factor, by the number of the store.
// Kernels that want many scales load all the words first.
fn {p}_word(row: u32, s: u32) -> u32 {
    // A word holds one, two or four.
    return {p}_side[32u + row * params.{p}.scale_stride + (s >> min(params.{p}.store, 2u))];
}
fn {p}_raw_in(word: u32, s: u32) -> u32 {
    let log = min(params.{p}.store, 2u);
    return (word >> ((s & ((1u << log) - 1u)) << (5u - log))) & (0xffffffffu >> (32u - (32u >> log)));
}
fn {p}_raw(row: u32, s: u32) -> u32 { return {p}_raw_in({p}_word(row, s), s); }
fn {p}_scale_0(raw: u32, row: u32, s: u32) -> f32 { return bitcast<f32>(raw); }
fn {p}_scale_1(raw: u32, row: u32, s: u32) -> f32 { return f16_value(raw); }
fn {p}_scale_2(raw: u32, row: u32, s: u32) -> f32 { return e8m0_value(raw) * bitcast<f32>({p}_side[0]); }
fn {p}_scale_3(raw: u32, row: u32, s: u32) -> f32 { return e4m3_value(raw) * bitcast<f32>({p}_side[0]); }
fn {p}_scale_4(raw: u32, row: u32, s: u32) -> f32 {
    let level = bitcast<f32>({p}_side[params.{p}.map_at + raw]);
    let nested = bitcast<f32>({p}_side[params.{p}.nested_at + (row * params.{p}.groups + s) / 256u]);
    return fma(level, nested, bitcast<f32>({p}_side[3]));
}
fn {p}_meant(raw: u32, row: u32, s: u32) -> f32 {
    let store = params.{p}.store;
    // Values rather than returns: a software adapter walks through every branch.
    var v = {p}_scale_0(raw, row, s);
#for t 1 5
    if store == {t}u { v = {p}_scale_{t}(raw, row, s); }
#endfor
    return v;
}
fn {p}_stored(row: u32, s: u32) -> f32 { return {p}_meant({p}_raw(row, s), row, s); }
// The group of a column: several columns of a unit share it unless groups are of 16.
fn {p}_group(col: u32) -> u32 { return col >> params.{p}.group_shift; }
