// Activations and their derivatives. ACTIVATION: 0 none, 1 GELU (erf), 2 GELU (tanh), 3 SiLU, 4 the one that params.activation says.

// The normal distribution function, Phi(x) = erfc(-x / sqrt 2) / 2. With z = |x| / sqrt 2 and t = 1 / (1 + z / 2), erfc(z) exp(z^2) / (2 t) is
// smooth in t; Q interpolates it at the Chebyshev nodes of degree 9 on z in [0, 10]. Its relative error there is below 4.1e-8 in exact
// arithmetic, checked against 30 digits at 400 points; evaluated in f32 with correctly rounded exp, Phi is within 1.6e-7 absolutely, and
// relatively 6.0e-7 for x > -5.5 (beyond, the rounding of x^2 / 2 in the exponent adds x^2 / 2 * 2^-24). The tail for negative x is not
// computed as 1 - (1 - tail), which would lose it.
fn normal_cdf(x: f32) -> f32 {
    let a = min(abs(x), 14.0); // Phi(-14) = 8e-45 is below the smallest normal f32
    let t = 1.0 / (1.0 + 0.5 * SQRT_HALF * a);
    let q = 0.1410271397 + t * (0.1415428523 + t * (0.1182453243 + t * (0.1183847076 + t * (-0.06704179322
        + t * (0.2468614853 + t * (-0.3818384896 + t * (0.2518518783 + t * (-0.07841634152 + t * 0.009383233865))))))));
    let tail = t * q * exp(-0.5 * a * a);
    return select(1.0 - tail, tail, x < 0.0);
}

const SQRT_HALF: f32 = 0.70710678;
const INV_SQRT_2PI: f32 = 0.39894228;
const SQRT_2_OVER_PI: f32 = 0.79788456;

fn gelu_erf(x: f32) -> f32 { return x * normal_cdf(x); }
fn gelu_erf_grad(x: f32) -> f32 {
    let a = min(abs(x), 14.0);
    return normal_cdf(x) + x * INV_SQRT_2PI * exp(-0.5 * a * a);
}

// The exponent is clamped because some drivers turn infinities into NaN.
fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(-clamp(x, -87.0, 87.0))); }
fn silu(x: f32) -> f32 { return x * sigmoid(x); }
fn silu_grad(x: f32) -> f32 {
    let s = sigmoid(x);
    return s * (1.0 + x * (1.0 - s));
}

// 0.5 (1 + tanh(u)) = sigmoid(2 u), which keeps its relative accuracy for negative u.
fn gelu_tanh(x: f32) -> f32 { return x * sigmoid(2.0 * SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)); }
fn gelu_tanh_grad(x: f32) -> f32 {
    let s = sigmoid(2.0 * SQRT_2_OVER_PI * (x + 0.044715 * x * x * x));
    return s + x * s * (1.0 - s) * 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * x * x);
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
#if ACTIVATION == 4
    switch params.activation {
        case 1u: { return gelu_erf(x); }
        case 2u: { return gelu_tanh(x); }
        default: { return silu(x); }
    }
#else
    return x;
#endif
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
#if ACTIVATION == 4
    switch params.activation {
        case 1u: { return gelu_erf_grad(x); }
        case 2u: { return gelu_tanh_grad(x); }
        default: { return silu_grad(x); }
    }
#else
    return 1.0;
#endif
#endif
#endif
#endif
}
