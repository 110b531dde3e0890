// Codes of a quantized matrix of integers, of any bits, as signed bytes. Import: `#import packed_bytes p=a`. Needs what packed_any.wgsl needs.
#import packed_info

// Elements k .. k + 15 of a row, less 2^(bits - 1) each; 0 beyond the last column. k is a multiple of 16.
fn {p}_bytes16(row: u32, k: u32) -> vec4<u32> {
    if k >= params.{p}.cols { return vec4<u32>(); }
    let bits = params.{p}.code & 15u;
    let half = k / 16u % 2u;
    var at = row * params.{p}.row_words + k / 32u * bits;
    var v = vec4<u32>();
    if bits == 8u {
        at += 4u * half;
        v = vec4<u32>({p}_codes[at], {p}_codes[at + 1u], {p}_codes[at + 2u], {p}_codes[at + 3u]);
    }
    if (bits & 4u) != 0u {
        let pair = vec2<u32>({p}_codes[at + 2u * half], {p}_codes[at + 2u * half + 1u]);
        v = vec4<u32>(pair.x & 0xffffu, pair.x >> 16u, pair.y & 0xffffu, pair.y >> 16u);
        v = (v | (v << vec4<u32>(8u))) & vec4<u32>(0x00ff00ffu);
        v = (v | (v << vec4<u32>(4u))) & vec4<u32>(0x0f0f0f0fu);
        at += 4u;
    }
    if (bits & 2u) != 0u {
        var two = (vec4<u32>({p}_codes[at + half]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
        two = (two | (two << vec4<u32>(12u))) & vec4<u32>(0x000f000fu);
        two = (two | (two << vec4<u32>(6u))) & vec4<u32>(0x03030303u);
        v |= two << vec4<u32>(bits & 4u);
        at += 2u;
    }
    if (bits & 1u) != 0u {
        let one = (vec4<u32>({p}_codes[at] >> (16u * half)) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
        // Bit i of four goes to bit 8 i.
        v |= ((one * vec4<u32>(0x00204081u)) & vec4<u32>(0x01010101u)) << vec4<u32>(bits & 6u);
    }
    // u - 2^(bits - 1) as two's complement: no byte carries.
    v = (v + vec4<u32>((128u - (1u << (bits - 1u))) * 0x01010101u)) ^ vec4<u32>(0x80808080u);
    let rest = params.{p}.cols - k;
    if rest < 16u {
        let left = vec4<u32>(max(vec4<i32>(i32(rest)) - vec4<i32>(0, 4, 8, 12), vec4<i32>()));
        v &= select((vec4<u32>(1u) << (min(left, vec4<u32>(3u)) * 8u)) - 1u, vec4<u32>(0xffffffffu), left >= vec4<u32>(4u));
    }
    return v;
}
// What a value is more than its byte, times {p}_units(): half-integers become integers.
fn {p}_excess(row: u32, group: u32) -> i32 {
    if ((params.{p}.code >> 4u) & 15u) == 1u {
        let at = params.{p}.zeros_at + row * params.{p}.zero_stride + group / 4u;
        return i32(1u << ((params.{p}.code & 15u) - 1u)) - i32(({p}_side[at] >> (group % 4u * 8u)) & 255u);
    }
    return {p}_units() - 1;
}
// 2 where values are half-integers, else 1.
fn {p}_units() -> i32 { return select(1, 2, fract(params.{p}.zero) != 0.0 && ((params.{p}.code >> 4u) & 15u) == 0u); }
