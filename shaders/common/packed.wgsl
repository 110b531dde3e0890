// Reads a quantized matrix; see src/format/packed.rs for its layout. Import with parameters, once per matrix: `#import packed P=B p=b`.
// Needs what packed_level.wgsl does, and a binding {p}_codes: array<u32>.
#import packed_level P={P} p={p}

// Codes of elements 4 quad .. 4 quad + 3 of the unit of 32 that starts at `word`.
fn {p}_codes4(word: u32, quad: u32) -> vec4<u32> {
#if {P}_BITS == 8
    return (vec4<u32>({p}_codes[word + quad]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
#endif
#if {P}_BITS == 4
    return {p}_plane4(word, quad);
#endif
#if {P}_BITS == 2
    return {p}_plane2(word, quad);
#endif
#if {P}_BITS == 1
    return {p}_plane1(word, quad);
#endif
#if {P}_BITS == 3
    return {p}_plane2(word, quad) | ({p}_plane1(word + 2u, quad) << vec4<u32>(2u));
#endif
#if {P}_BITS == 5
    return {p}_plane4(word, quad) | ({p}_plane1(word + 4u, quad) << vec4<u32>(4u));
#endif
#if {P}_BITS == 6
    return {p}_plane4(word, quad) | ({p}_plane2(word + 4u, quad) << vec4<u32>(4u));
#endif
#if {P}_BITS == 7
    return {p}_plane4(word, quad) | ({p}_plane2(word + 4u, quad) << vec4<u32>(4u)) | ({p}_plane1(word + 6u, quad) << vec4<u32>(6u));
#endif
}
fn {p}_plane4(word: u32, quad: u32) -> vec4<u32> {
    let bits = {p}_codes[word + quad / 2u] >> (quad % 2u * 16u);
    return (vec4<u32>(bits) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
}
fn {p}_plane2(word: u32, quad: u32) -> vec4<u32> {
    let bits = {p}_codes[word + quad / 4u] >> (quad % 4u * 8u);
    return (vec4<u32>(bits) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u);
}
fn {p}_plane1(word: u32, quad: u32) -> vec4<u32> {
    let bits = {p}_codes[word] >> (quad * 4u);
    return (vec4<u32>(bits) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u);
}

// Elements col .. col + 3 of a row; col is a multiple of 4. Beyond the last column there are values of code 0.
fn {p}_value4(row: u32, col: u32) -> vec4<f32> {
    let group = {p}_group(col);
    let code = {p}_codes4(row * params.{p}.row_words + col / 32u * {P}_BITS, col % 32u / 4u);
    return {p}_scaled4({p}_level4(code, {p}_zero(row, group)), {p}_scale(row, group));
}
