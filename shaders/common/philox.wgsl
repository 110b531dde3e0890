// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four random words from a 64-bit key and a
// 128-bit counter; the same numbers as walsh::random on the host.
fn mul_hi(a: u32, b: u32) -> u32 {
    let al = a & 0xffffu; let ah = a >> 16u;
    let bl = b & 0xffffu; let bh = b >> 16u;
    let mid = ah * bl + ((al * bl) >> 16u);
    let low = al * bh + (mid & 0xffffu);
    return ah * bh + (mid >> 16u) + (low >> 16u);
}

fn philox(key_in: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var c = counter;
    var key = key_in;
    for (var round = 0u; round < 10u; round++) {
        c = vec4<u32>(
            mul_hi(0xCD9E8D57u, c.z) ^ c.y ^ key.x, 0xCD9E8D57u * c.z,
            mul_hi(0xD2511F53u, c.x) ^ c.w ^ key.y, 0xD2511F53u * c.x,
        );
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// Keep-or-drop factors of inverted dropout for elements 4 * quad .. 4 * quad + 3: 0 with probability drop = threshold / 2^32, else scale.
fn dropout_factors(seed: vec2<u32>, quad: u32, op: u32, step: u32, micro: u32, threshold: u32, scale: f32) -> vec4<f32> {
    let bits = philox(seed, vec4<u32>(quad, op, step, micro));
    return select(vec4<f32>(scale), vec4<f32>(0.0), bits < vec4<u32>(threshold));
}
