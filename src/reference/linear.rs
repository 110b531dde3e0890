//! A linear layer with what may follow it.

use super::matmul::{activate, activate_grad, matmul};
use crate::kernel::matmul::{Activation, Form};

/// `residual + factors * act(x W^T + bias)`; parts that are `None` are left out.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// Rows of x, rows of the weight, columns of both.
    pub dims: [usize; 3],
    /// [m, k].
    pub x: &'a [f64],
    /// [n, k].
    pub weight: &'a [f64],
    /// `[n]`.
    pub bias: Option<&'a [f64]>,
    /// Applied to the sum.
    pub activation: Option<Activation>,
    /// [m, n], those of dropout.
    pub factors: Option<&'a [f64]>,
    /// [m, n].
    pub residual: Option<&'a [f64]>,
}

/// Gradients; that of the residual is the one given.
#[derive(Debug)]
pub struct Backward {
    /// Of the sum before the activation, [m, n].
    pub dpre: Vec<f64>,
    /// [m, k].
    pub dx: Vec<f64>,
    /// [n, k].
    pub dweight: Vec<f64>,
    /// `[n]`.
    pub dbias: Vec<f64>,
}

impl Linear<'_> {
    /// The sum before the activation, and the result.
    #[must_use]
    pub fn forward(&self) -> (Vec<f64>, Vec<f64>) {
        let n = self.dims[1];
        let mut pre = matmul(Form::Nt, self.dims, self.x, self.weight);
        for (i, v) in pre.iter_mut().enumerate() {
            *v += self.bias.map_or(0.0, |b| b[i % n]);
        }
        let out = pre.iter().enumerate().map(|(i, v)| {
            let active = self.activation.map_or(*v, |act| activate(act, *v));
            self.residual.map_or(0.0, |r| r[i]) + active * self.factors.map_or(1.0, |f| f[i])
        });
        let out = out.collect();
        (pre, out)
    }

    /// The gradients from that of the result.
    #[must_use]
    pub fn backward(&self, dy: &[f64]) -> Backward {
        let [m, n, k] = self.dims;
        let (pre, _) = self.forward();
        let slope = |v: f64| self.activation.map_or(1.0, |act| activate_grad(act, v));
        let dpre: Vec<f64> = (0..m * n).map(|i| dy[i] * self.factors.map_or(1.0, |f| f[i]) * slope(pre[i])).collect();
        let dx = matmul(Form::Nn, [m, k, n], &dpre, self.weight);
        let dweight = matmul(Form::Tn, [n, k, m], &dpre, self.x);
        let dbias = (0..n).map(|j| dpre.iter().skip(j).step_by(n).sum()).collect();
        Backward { dpre, dx, dweight, dbias }
    }
}
