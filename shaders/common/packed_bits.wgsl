// Codes of a matrix of signs {p} as bits. Needs params.k, `params.{p}: PackedInfo`; a binding {p}_codes: array<u32>.
#import packed_info

// Columns k .. k + 127 of a row; 0 beyond the last one. k is a multiple of 128.
fn {p}_bits128(row: u32, k: u32) -> vec4<u32> {
    var v = vec4<u32>();
    let words = params.{p}.row_words;
#for e 0 4
    if k / 32u + {e}u < words { v[{e}] = {p}_codes[row * words + k / 32u + {e}u]; }
#endfor
    return v & {p}_inside(k);
}
// The bits from k on that are before the end of K.
fn {p}_inside(k: u32) -> vec4<u32> {
    let left = vec4<u32>(clamp(vec4<i32>(i32(params.k) - i32(k)) - vec4<i32>(0, 32, 64, 96), vec4<i32>(), vec4<i32>(32)));
    return select((vec4<u32>(1u) << (left & vec4<u32>(31u))) - 1u, vec4<u32>(0xffffffffu), left == vec4<u32>(32u));
}
