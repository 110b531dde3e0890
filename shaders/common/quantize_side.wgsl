// Writes scales, zero points and the header. Needs CLASS, `params: Recipe` and `side: array<atomic<u32>>`: a word of scales has up to four
// writers, and each of them sets its own bits of it, whatever was there.

// The last field of a row takes the rest of its word.
fn put_field(word: u32, shift: u32, width: u32, bits: u32, last: bool) {
    let rest = select(0xffffffffu >> (32u - width), 0xffffffffu, last);
    atomicAnd(&side[word], ~(rest << shift));
    atomicOr(&side[word], bits << shift);
}
fn put_scale(row: u32, group: u32, s: Stored) {
    let at = 32u + row * params.p.scale_stride;
    let last = group + 1u == params.p.groups;
    switch params.p.store {
#if CLASS == 4
        case 0u: {
            atomicStore(&side[at + 2u * group], s.bits.x);
            atomicStore(&side[at + 2u * group + 1u], s.bits.y);
        }
        default: { atomicStore(&side[at + group], s.bits.x | s.bits.y << 16u); }
#else
        case 0u: { atomicStore(&side[at + group], s.bits.x); }
        case 1u: { put_field(at + group / 2u, group % 2u * 16u, 16u, s.bits.x, last); }
        // Double quantization needs all scales first.
        case 4u: { scratch[row * params.p.groups + group] = s.bits.x; }
        default: { put_field(at + group / 4u, group % 4u * 8u, 8u, s.bits.x, last); }
#endif
    }
#if CLASS == 0
    for (var i = 0u; i < params.zero_points; i++) {
        put_field(params.p.zeros_at + row * params.p.zero_stride + group / 4u, group % 4u * 8u, 8u, s.zero, last);
    }
#endif
}
// The header's norm, for the only scale that there is.
fn put_norm(s: Stored) {
    let magnitude = s.bits & vec2<u32>(select(0x7fffffffu, 0x7fffu, params.p.store == 1u));
    let norm = norms(select(0u, max(magnitude.x, magnitude.y), s.good), 0x3f800000u);
    atomicStore(&side[1], norm.x);
    atomicStore(&side[2], norm.y);
}
fn put_header(words: u32) {
    for (var i = 0u; i < words; i++) { atomicStore(&side[i], params.header[i / 4u][i % 4u]); }
}
