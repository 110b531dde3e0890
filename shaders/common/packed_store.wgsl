// Scales of a matrix `b` whose store kernels are specialised by: STORE as PackedInfo has it, 5 where it is told at run time. LOOSE: subnormal
// halves are known to be kept. Needs what packed_level.wgsl does.
// A group's stored scale, and what it means.
fn raw_of(row: u32, s: u32) -> u32 {
#if STORE == 0
    return b_side[32u + row * params.b.scale_stride + s];
#endif
#if STORE == 1
    return (b_side[32u + row * params.b.scale_stride + s / 2u] >> (s % 2u * 16u)) & 0xffffu;
#endif
#if STORE == 2
    return (b_side[32u + row * params.b.scale_stride + s / 4u] >> (s % 4u * 8u)) & 255u;
#endif
#if STORE == 5
    return b_raw(row, s);
#endif
}
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
