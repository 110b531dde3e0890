// Codes of 1, 2, 4 or 8 bits (DECODE 1 and 2) as they are loaded and become levels. Needs B_BITS, and MAGIC's users DECODE.
// The words of a unit that are loaded at once; 8 bits take two loads.
#if B_BITS == 1
alias Pack = u32;
#endif
#if B_BITS == 2
alias Pack = vec2<u32>;
#endif
#if B_BITS == 4
alias Pack = vec4<u32>;
#endif
#if B_BITS == 8
alias Pack = vec4<u32>;
#endif
#if DECODE == 1
// Of four codes as they stand in a word: where, and by how much they are thereby too large.
#if B_BITS == 8
const MASK = vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u);
const TIMES = vec4<f32>(1.0, 256.0, 1.0, 256.0);
#else
const MASK = vec4<u32>((1u << B_BITS) - 1u) << (vec4<u32>(0u, 1u, 2u, 3u) * B_BITS);
const TIMES = vec4<f32>(vec4<u32>(1u) << (vec4<u32>(0u, 1u, 2u, 3u) * B_BITS));
#endif
const OVER = vec4<f32>(1.0) / TIMES;
const MAGIC = 8388608.0;
// Levels of the four codes at the low end of a word, the i-th times TIMES[i]: exact. `minus` is MAGIC plus the zero times TIMES.
fn magic_levels(word: u32, minus: vec4<f32>) -> vec4<f32> {
#if B_BITS == 8
    let bits = vec4<u32>(word, word, word >> 16u, word >> 16u) & MASK;
#else
    let bits = vec4<u32>(word) & MASK;
#endif
    return bitcast<vec4<f32>>(bits | vec4<u32>(0x4b000000u)) - minus;
}
#endif
// Half of a unit.
#if B_BITS == 1
alias HalfPack = u32;
#endif
#if B_BITS == 2
alias HalfPack = u32;
#endif
#if B_BITS == 4
alias HalfPack = vec2<u32>;
#endif
#if B_BITS == 8
alias HalfPack = vec4<u32>;
#endif
