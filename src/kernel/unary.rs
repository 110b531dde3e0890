//! Elementwise functions and their gradients.

use super::{FLOATS, dim, expect};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "unary",
    source: include_str!("../../shaders/unary.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for activation in 0..4 {
        for elem in [Scalar::F32, Scalar::F16] {
            for grad in [false, true] {
                all.push(defines(activation, elem.into(), grad));
            }
        }
    }
    all
}

fn defines(activation: u32, elem: Define, grad: bool) -> Defines {
    vec![("ACTIVATION", activation.into()), ("Elem", elem), ("GRAD", grad.into())]
}

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// `x Phi(x)` with the normal distribution's Phi.
    GeluErf,
    /// Its approximation by tanh (GPT-2's).
    GeluTanh,
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `exp(x)`.
    Exp,
    /// `-x`.
    Neg,
    /// `max(x, 0)`; the derivative at 0 is 0.
    Relu,
    /// `x^2`.
    Square,
    /// `sqrt(x)`.
    Sqrt,
    /// `1 / x`.
    Reciprocal,
    /// `ln(x)`.
    Log,
    /// `tanh(x)`.
    Tanh,
    /// A constant times `x`.
    Scale(f32),
}

impl Unary {
    /// The define, and the run-time number and factor.
    fn code(self) -> (u32, u32, f32) {
        match self {
            Self::GeluErf => (1, 0, 0.0),
            Self::GeluTanh => (2, 0, 0.0),
            Self::Silu => (3, 0, 0.0),
            Self::Exp => (0, 0, 0.0),
            Self::Neg => (0, 1, 0.0),
            Self::Relu => (0, 2, 0.0),
            Self::Square => (0, 3, 0.0),
            Self::Sqrt => (0, 4, 0.0),
            Self::Reciprocal => (0, 5, 0.0),
            Self::Log => (0, 6, 0.0),
            Self::Tanh => (0, 7, 0.0),
            Self::Scale(factor) => (0, 8, factor),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    len: u32,
    op: u32,
    factor: f32,
    accumulate: u32,
}

/// `out = f(x)`; `x` and `out` have one length and type, f32 or f16.
///
/// # Errors
/// [`crate::Error::Shape`] for other buffers.
///
/// # Numerics
/// Computed in f32 with WGSL's built-in functions.
pub fn unary(context: &Context, function: Unary, x: &Buffer, out: &Buffer) -> Result<()> {
    expect("unary", "x", x, x.len(), FLOATS)?;
    expect("unary", "out", out, x.len(), &[x.dtype()])?;
    let (activation, op, factor) = function.code();
    context.dispatch(
        &KERNEL,
        &defines(activation, x.dtype().into(), false),
        &Params { len: dim(x.len())?, op, factor, accumulate: 0 },
        &[x.read(), out.write()],
        Grid::Linear((x.len() as u64).div_ceil(1024)),
    )
}

/// `dx = dy * f'(x)`, or `dx += ..`; all of one length and type, f32 or f16.
///
/// # Errors
/// [`crate::Error::Shape`] for other buffers.
pub fn unary_backward(
    context: &Context,
    function: Unary,
    x: &Buffer,
    dy: &Buffer,
    dx: &Buffer,
    accumulate: bool,
) -> Result<()> {
    expect("unary_backward", "x", x, x.len(), FLOATS)?;
    expect("unary_backward", "dy", dy, x.len(), &[x.dtype()])?;
    expect("unary_backward", "dx", dx, x.len(), &[x.dtype()])?;
    let (activation, op, factor) = function.code();
    context.dispatch(
        &KERNEL,
        &defines(activation, x.dtype().into(), true),
        &Params { len: dim(x.len())?, op, factor, accumulate: accumulate.into() },
        &[x.read(), dy.read(), dx.write()],
        Grid::Linear((x.len() as u64).div_ceil(1024)),
    )
}
