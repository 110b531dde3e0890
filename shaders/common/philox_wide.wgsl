// philox with 64-bit products where the device has them (INT64): a fifth of the instructions.
#if INT64
fn philox_wide(key_in: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var c = counter;
    var key = key_in;
#for i 0 10
    {
        let x = 0xCD9E8D57lu * u64(c.z);
        let y = 0xD2511F53lu * u64(c.x);
        c = vec4<u32>(u32(x >> 32u) ^ c.y ^ key.x, u32(x), u32(y >> 32u) ^ c.w ^ key.y, u32(y));
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
#endfor
    return c;
}
#else
fn philox_wide(key: vec2<u32>, counter: vec4<u32>) -> vec4<u32> { return philox(key, counter); }
#endif
