// Scales of a matrix `b` whose store kernels are specialised by: STORE as PackedInfo has it, 5 where it is told at run time. LOOSE: subnormal
// halves are known to be kept. Needs what packed_level.wgsl does.
// The word that holds a group's stored scale, the scale's bits in it, and what they mean.
fn word_of(row: u32, s: u32) -> u32 {
#if STORE == 5
    return b_word(row, s);
#else
    return b_side[32u + row * params.b.scale_stride + (s >> STORE)];
#endif
}
fn raw_in(word: u32, s: u32) -> u32 {
#if STORE == 0
    return word;
#endif
#if STORE == 1
    return (word >> (s % 2u * 16u)) & 0xffffu;
#endif
#if STORE == 2
    return (word >> (s % 4u * 8u)) & 255u;
#endif
#if STORE == 5
    return b_raw_in(word, s);
#endif
}
fn raw_of(row: u32, s: u32) -> u32 { return raw_in(word_of(row, s), s); }
#if STORE != 5
fn scale_of(raw: u32, row: u32, s: u32) -> f32 {
#if STORE == 1
#if LOOSE
    return unpack2x16float(raw).x;
#else
    return f16_value(raw);
#endif
#else
#if STORE == 0
    return b_scale_0(raw, row, s);
#else
    return b_scale_2(raw, row, s);
#endif
#endif
}
#endif
