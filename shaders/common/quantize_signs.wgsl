// Random signs of the columns of a unit, a bit each, as walsh::kernel::hadamard::Signs. Needs `params: Recipe` and `state`, whose first
// word is the step.
#import philox
fn sign_word(unit: u32) -> u32 {
    let step = select(params.flip_step, state[0], params.flip_at_state == 1u);
    return philox(vec2<u32>(params.flip_low, params.flip_high), vec4<u32>(unit / 4u, params.flip_op, step, 0u))[unit % 4u];
}
// Four elements with the signs in the lowest bits of `word`.
fn flipped(v: vec4<f32>, word: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) ^ ((vec4<u32>(word) << vec4<u32>(31u, 30u, 29u, 28u)) & vec4<u32>(0x80000000u)));
}
