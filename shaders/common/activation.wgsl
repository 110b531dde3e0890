// Activations and their derivatives. ACTIVATION: 0 none, 1 GELU (erf), 2 GELU (tanh), 3 SiLU.

// erf by its Chebyshev-fitted complementary form (Numerical Recipes, 3rd ed., section 6.2.2: erfc(x) = t exp(-x^2 + P(t)),
// t = 2 / (2 + |x|)), relative error of erfc below 1.2e-7.
fn erf(x: f32) -> f32 {
    let z = abs(x);
    let t = 1.0 / (1.0 + 0.5 * z);
    let p = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807
        + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    let tail = t * exp(p - z * z);
    return select(tail - 1.0, 1.0 - tail, x >= 0.0);
}

const SQRT_HALF: f32 = 0.70710678;
const INV_SQRT_2PI: f32 = 0.39894228;
const SQRT_2_OVER_PI: f32 = 0.79788456;

fn gelu_erf(x: f32) -> f32 { return 0.5 * x * (1.0 + erf(x * SQRT_HALF)); }
fn gelu_erf_grad(x: f32) -> f32 { return 0.5 * (1.0 + erf(x * SQRT_HALF)) + x * INV_SQRT_2PI * exp(-0.5 * x * x); }

// tanh is clamped because some drivers compute it from exponentials that overflow to NaN.
fn gelu_inner(x: f32) -> f32 { return tanh(clamp(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x), -15.0, 15.0)); }
fn gelu_tanh(x: f32) -> f32 { return 0.5 * x * (1.0 + gelu_inner(x)); }
fn gelu_tanh_grad(x: f32) -> f32 {
    let t = gelu_inner(x);
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * x * x);
}

fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(-clamp(x, -87.0, 87.0))); }
fn silu(x: f32) -> f32 { return x * sigmoid(x); }
fn silu_grad(x: f32) -> f32 {
    let s = sigmoid(x);
    return s * (1.0 + x * (1.0 - s));
}

fn activate(x: f32) -> f32 {
#if ACTIVATION == 1
    return gelu_erf(x);
#else
#if ACTIVATION == 2
    return gelu_tanh(x);
#else
#if ACTIVATION == 3
    return silu(x);
#else
    return x;
#endif
#endif
#endif
}

fn activate_grad(x: f32) -> f32 {
#if ACTIVATION == 1
    return gelu_erf_grad(x);
#else
#if ACTIVATION == 2
    return gelu_tanh_grad(x);
#else
#if ACTIVATION == 3
    return silu_grad(x);
#else
    return 1.0;
#endif
#endif
#endif
}
