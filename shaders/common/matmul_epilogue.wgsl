// What every matmul kernel shares: parameters, bindings, and what happens to a finished sum on its way to memory.
// Defines: InA, InB, Out (element types; A, B and C are the roles of cooperative matrices), VEC (true: rows are read and written as vec4, so every contiguous dimension is a multiple of 4),
// BIAS, EPILOGUE (0 none; 1 activation, keeping the sum before it in `pre`; 2 times the activation's derivative at `pre`;
// 3 residual, added after the dropout), DROPOUT, ACTIVATION, OUT_AT (the binding of `out`; the operands come before it), EXTRA (that of `pre` or
// of the residual).
// PACKED: an operand is quantized. Such kernels have many variants by format, so there BIAS and DROPOUT say what may be, and params.flags what
// is; ACTIVATION may be 4, by params.activation; FORM 1 has a mask in place of the bias.
#import activation
#if PACKED
#import packed_info
#endif
#if DROPOUT
#import philox
#import step_state
#endif

struct MatmulParams {
    m: u32, n: u32, k: u32,
    batch_a: u32, batch_b: u32, batch_out: u32,  // elements from one matrix of a batch to the next
    accumulate: u32,                             // 1: out += result
    alpha: f32,                                  // factor on the product
    split: u32, splits: u32,                     // length of K that one workgroup sums, and how many share a result; k and 1 where K is whole
    threshold: u32, keep_scale: f32,             // dropout: drop where bits < threshold, else multiply by keep_scale
    op: u32, micro: u32, seed0: u32, seed1: u32,
    one: u32,                                    // 1: a loop step that compilers cannot see
    flags: u32,                                  // PACKED: 1 there is a bias, 2 dropout, 4 a mask
    activation: u32,                             // PACKED: as ACTIVATION
    pad: u32,
#if PACKED
    b: PackedInfo, a: PackedInfo,
#endif
}
@group(0) @binding(0) var<uniform> params: MatmulParams;
#if VEC
@group(0) @binding(OUT_AT) var<storage, read_write> out: array<vec4<Out>>;
#else
@group(0) @binding(OUT_AT) var<storage, read_write> out: array<Out>;
#endif
#if BIAS
#if VEC
@group(0) @binding(OUT_AT + 1) var<storage, read> bias: array<vec4<f32>>;
#else
@group(0) @binding(OUT_AT + 1) var<storage, read> bias: array<f32>;
#endif
#endif
#if PACKED
#if FORM == 1
@group(0) @binding(OUT_AT + 1) var<storage, read> mask: array<u32>;   // [m][ceil(n / 32)], first column in the lowest bit
#endif
#endif
#if EPILOGUE == 1
#if VEC
@group(0) @binding(EXTRA) var<storage, read_write> pre: array<vec4<Out>>;
#else
@group(0) @binding(EXTRA) var<storage, read_write> pre: array<Out>;
#endif
#endif
#if EPILOGUE == 2
#if VEC
@group(0) @binding(EXTRA) var<storage, read> pre: array<vec4<Out>>;
#else
@group(0) @binding(EXTRA) var<storage, read> pre: array<Out>;
#endif
#endif
#if EPILOGUE == 3
#if VEC
@group(0) @binding(EXTRA) var<storage, read> residual: array<vec4<f32>>;
#else
@group(0) @binding(EXTRA) var<storage, read> residual: array<f32>;
#endif
#endif
#if DROPOUT
@group(0) @binding(EXTRA + 1) var<storage, read> state: StepState;
// The factors on elements 4 i .. 4 i + 3.
fn kept(i: u32) -> vec4<f32> {
#if PACKED
    if (params.flags & 2u) == 0u { return vec4<f32>(1.0); }
#endif
    return dropout_factors(vec2<u32>(params.seed0, params.seed1), i, params.op, state.step, params.micro, params.threshold, params.keep_scale);
}
#endif

// A bit each for columns col .. col + 3 of a row: 1 where the mask, if there is one, lets them pass. A select instead of a branch, since a branch
// ends what the compiler schedules together.
fn open_of(row: u32, col: u32) -> u32 {
#if PACKED
#if FORM == 1
    let masked = (params.flags & 4u) != 0u;
    return select(15u, mask[select(0u, row * ((params.n + 31u) / 32u) + col / 32u, masked)] >> (col % 32u), masked);
#endif
#endif
    return 15u;
}
#if VEC
// The bias of columns col .. col + 3; col is a multiple of 4.
fn bias_of(col: u32) -> vec4<f32> {
#if BIAS
#if PACKED
    if (params.flags & 1u) == 0u { return vec4<f32>(); }
#endif
    return bias[col / 4u];
#else
    return vec4<f32>(0.0);
#endif
}
// What the epilogue reads at columns col .. col + 3 of a row: `pre`, or the residual.
fn extra_of(batch: u32, row: u32, col: u32) -> vec4<f32> {
#if EPILOGUE == 2
    return vec4<f32>(pre[(batch * params.batch_out + row * params.n + col) / 4u]);
#else
#if EPILOGUE == 3
    return residual[(batch * params.batch_out + row * params.n + col) / 4u];
#else
    return vec4<f32>(0.0);
#endif
#endif
}
// Columns col .. col + 3 of a row; col is a multiple of 4.
fn finish4(batch: u32, row: u32, col: u32, sum: vec4<f32>) {
    finish4_with(batch, row, col, sum, bias_of(col), extra_of(batch, row, col), open_of(row, col));
}
// The same for kernels that load the three beforehand.
fn finish4_with(batch: u32, row: u32, col: u32, sum: vec4<f32>, shift: vec4<f32>, extra: vec4<f32>, open: u32) {
    let i = (batch * params.batch_out + row * params.n + col) / 4u;
    var v = sum * params.alpha;
#if BIAS
    v += shift;
#endif
#if EPILOGUE == 1
    pre[i] = vec4<Out>(v);
    v = vec4<f32>(activate(v.x), activate(v.y), activate(v.z), activate(v.w));
#endif
#if EPILOGUE == 2
    v *= vec4<f32>(activate_grad(extra.x), activate_grad(extra.y), activate_grad(extra.z), activate_grad(extra.w));
#endif
#if DROPOUT
    v *= kept(i);
#endif
#if EPILOGUE == 3
    v += extra;
#endif
#if PACKED
#if FORM == 1
    v = select(vec4<f32>(), v, (vec4<u32>(open) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>());
#endif
#endif
    if params.accumulate != 0u { v += vec4<f32>(out[i]); }
    out[i] = vec4<Out>(v);
}
#else
fn finish1(batch: u32, row: u32, col: u32, sum: f32) {
    let i = batch * params.batch_out + row * params.n + col;
    var v = sum * params.alpha;
#if BIAS
#if PACKED
    if (params.flags & 1u) != 0u { v += bias[col]; }
#else
    v += bias[col];
#endif
#endif
#if EPILOGUE == 1
    pre[i] = Out(v);
    v = activate(v);
#endif
#if EPILOGUE == 2
    v *= activate_grad(f32(pre[i]));
#endif
#if DROPOUT
    v *= kept(i / 4u)[i % 4u];
#endif
#if EPILOGUE == 3
    v += residual[i];
#endif
#if PACKED
#if FORM == 1
    if (open_of(row, col) & 1u) == 0u { v = 0.0; }
#endif
#endif
    if params.accumulate != 0u { v += f32(out[i]); }
    out[i] = Out(v);
}
#endif
