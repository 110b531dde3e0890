// What follows a product with few rows: finish() takes a finished sum to memory. Bias, activation and accumulation are chosen at run time,
// since the kernels that import this have variants enough. Needs: params.n, alpha, bias, activation and accumulate; bindings bias (any
// buffer where there is none), out and, where EPILOGUE is 1, pre, where it is 3, residual. ACTIVATION is 0.
#if EPILOGUE == 1
#import activation
#endif
fn finish(row: u32, col: u32, sum: f32) {
    let i = row * params.n + col;
    var v = sum * params.alpha;
    if params.bias != 0u { v += bias[col]; }
#if EPILOGUE == 1
    pre[i] = Out(v);
    if params.activation == 1u { v = gelu_erf(v); } else if params.activation == 2u { v = gelu_tanh(v); } else { v = silu(v); }
#endif
#if EPILOGUE == 3
    v += residual[i];
#endif
    if params.accumulate != 0u { v += f32(out[i]); }
    out[i] = Out(v);
}
