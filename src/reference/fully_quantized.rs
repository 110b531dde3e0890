//! Linear layers whose backward products are quantized too: Quartet (arXiv 2505.14669) and NVIDIA's NVFP4 recipe (arXiv 2509.25149),
//! written from the papers.

use super::hadamard::{hadamard, signs};
use super::matmul::matmul;
use super::quantize::{Turn, quantized, turned};
use crate::Result;
use crate::format::{Format, Rounding, Uniform};
use crate::kernel::matmul::Form;

/// A layer `y = x W^T` and the random numbers of one pass.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Tokens, outputs, inputs.
    pub dims: [usize; 3],
    /// [tokens, inputs].
    pub x: &'a [f64],
    /// [outputs, inputs].
    pub weight: &'a [f64],
    /// The gradient of y.
    pub gradient: &'a [f64],
    /// The run's seed.
    pub seed: u64,
    /// The step.
    pub step: u32,
    /// The micro-batch.
    pub micro: u32,
    /// The layer's number.
    pub layer: u32,
}

/// The layer's result and gradients.
#[derive(Clone, Debug)]
pub struct Results {
    /// [tokens, outputs].
    pub y: Vec<f64>,
    /// [tokens, inputs].
    pub dx: Vec<f64>,
    /// [outputs, inputs].
    pub dweight: Vec<f64>,
}

/// How Quartet rounds in its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    /// To nearest.
    Nearest,
    /// To nearest, times 1.009276.
    Aligned,
    /// Stochastically.
    Stochastic,
}

impl Layer<'_> {
    /// Numbers of the operations: signs, G and W along the outputs; signs, G and X along tokens.
    fn op(&self, what: u32) -> u32 {
        (1 << 31) + (self.micro << 16) + (self.layer << 3) + what
    }

    fn uniform(&self, what: u32) -> Rounding {
        Rounding::Stochastic(Uniform { seed: self.seed, op: self.op(what), step: self.step })
    }

    /// Quartet.
    ///
    /// # Errors
    /// As [`crate::format::PackedMatrix::quantize`].
    pub fn quartet(&self, rounds: Rounds) -> Result<Results> {
        let [m, n, k] = self.dims;
        let (fitted, plain): (Format, Format) = ("mxfp4:mse".parse()?, "mxfp4".parse()?);
        // Values and the mask |v| < 6 scales.
        let forward = |v: &[f64], dims: [usize; 2]| -> Result<(Vec<f64>, Vec<f64>)> {
            let rotated = hadamard(v, 32, false);
            let packed = quantized(fitted, &rotated, dims, 1.0, false, Rounding::Nearest)?;
            let scale = |i: usize| packed.scale(i / dims[1], i % dims[1] / 32, false);
            let mask = rotated.iter().enumerate().map(|(i, v)| f64::from(u8::from(v.abs() < 6.0 * scale(i)))).collect();
            Ok((packed.dequantize(), mask))
        };
        let (x, x_mask) = forward(self.x, [m, k])?;
        let (w, w_mask) = forward(self.weight, [n, k])?;
        let backward = |v: &[f64], dims: [usize; 2], transposed: bool, what: u32| -> Result<Vec<f64>> {
            let first = what / 3 * 3;
            let signs = signs(dims[1], self.seed, self.op(first), self.step);
            let turned = turned(v, dims, Turn { transposed, signs: Some(&signs), block: Some(32) });
            let rounding = if rounds == Rounds::Stochastic { self.uniform(what) } else { Rounding::Nearest };
            let gain = if rounds == Rounds::Aligned { 1.009_276 } else { 1.0 };
            let values = quantized(plain, &turned, dims, 0.75, false, rounding)?.dequantize();
            Ok(values.into_iter().map(|v| v * gain).collect())
        };
        let product = |dims: [usize; 3], a: &[f64], b: &[f64], mask: &[f64]| {
            let sums = matmul(Form::Nt, dims, a, b);
            let masked: Vec<f64> = sums.iter().zip(mask).map(|(v, m)| 16.0 / 9.0 * v * m).collect();
            hadamard(&masked, 32, true)
        };
        let (g, wt) = (backward(self.gradient, [m, n], false, 1)?, backward(&w, [k, n], true, 2)?);
        let (gt, xt) = (backward(self.gradient, [n, m], true, 4)?, backward(&x, [k, m], true, 5)?);
        Ok(Results {
            y: matmul(Form::Nt, [m, n, k], &x, &w),
            dx: product([m, k, n], &g, &wt, &x_mask),
            dweight: product([n, k, m], &gt, &xt, &w_mask),
        })
    }

    /// NVIDIA's recipe, with a factor on the operands of the backward pass that products are divided by.
    ///
    /// # Errors
    /// As [`crate::format::PackedMatrix::quantize`].
    pub fn nvfp4(&self, factor: f64) -> Result<Results> {
        let [m, n, k] = self.dims;
        let format: Format = "nvfp4".parse()?;
        let values = |v: &[f64], dims: [usize; 2], square: bool| -> Result<Vec<f64>> {
            quantized(format, v, dims, 1.0, square, Rounding::Nearest).map(|packed| packed.dequantize())
        };
        let backward = |v: &[f64], dims: [usize; 2], rounding: Rounding| -> Result<Vec<f64>> {
            let values = quantized(format, v, dims, factor, false, rounding)?.dequantize();
            Ok(values.into_iter().map(|v| v / factor).collect())
        };
        let w = values(self.weight, [n, k], true)?;
        let x = values(self.x, [m, k], false)?;
        let g = backward(self.gradient, [m, n], self.uniform(1))?;
        let signs = signs(m, self.seed, (1 << 31) + 6, 0);
        let turn = Turn { transposed: true, signs: Some(&signs), block: Some(16) };
        let gt = backward(&turned(self.gradient, [n, m], turn), [n, m], self.uniform(4))?;
        let xt = backward(&turned(self.x, [k, m], turn), [k, m], Rounding::Nearest)?;
        Ok(Results {
            y: matmul(Form::Nt, [m, n, k], &x, &w),
            dx: matmul(Form::Nn, [m, k, n], &g, &w),
            dweight: matmul(Form::Nt, [n, k, m], &gt, &xt),
        })
    }
}
