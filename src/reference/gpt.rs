//! A GPT with its optimizer in float64, composed of the references of its parts.

use super::adamw::{self, adamw};
use super::{attention, cross_entropy, dropout, layer_norm, matmul};
use crate::kernel::matmul::{Activation, Form};
use crate::nn::GptConfig;

/// A model without biases, and AdamW's moments. Parameters are in the order of [`crate::nn::Gpt`]: token and position embedding, per block norm,
/// q k v, projection, norm, up, down, and the last norm.
#[derive(Clone, Debug)]
pub struct Gpt {
    /// The shape.
    pub config: GptConfig,
    /// Rows of the token embedding, padding included.
    pub vocab: usize,
    /// The parameters.
    pub parameters: Vec<Vec<f64>>,
    moments: Vec<[Vec<f64>; 2]>,
    updates: i32,
}

/// Seed, step and micro-batch of the dropout masks.
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    /// Key.
    pub seed: u64,
    /// Step.
    pub step: u32,
    /// Micro-batch.
    pub micro: u32,
}

/// Constants of an AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of parameters with two dimensions.
    pub weight_decay: f64,
    /// Largest global norm, 0 for none.
    pub clip: f64,
}

const EPS: f64 = 1e-5;

struct Block {
    x: Vec<f64>,
    normed1: Vec<f64>,
    qkv: Vec<f64>,
    mixed: Vec<f64>,
    x2: Vec<f64>,
    normed2: Vec<f64>,
    pre: Vec<f64>,
    act: Vec<f64>,
}

fn multiply(x: &mut [f64], factors: Option<&Vec<f64>>) {
    if let Some(factors) = factors {
        x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

impl Gpt {
    /// A model with these parameters.
    #[must_use]
    pub fn new(config: GptConfig, vocab: usize, parameters: Vec<Vec<f64>>) -> Self {
        let moments = parameters.iter().map(|p| [vec![0.0; p.len()], vec![0.0; p.len()]]).collect();
        Self { config, vocab, parameters, moments, updates: 0 }
    }

    /// The mean loss over `batch` sequences and its gradients.
    #[must_use]
    pub fn loss_and_gradients(
        &self,
        tokens: &[u32],
        targets: &[u32],
        batch: usize,
        masks: Option<Masks>,
    ) -> (f64, Vec<Vec<f64>>) {
        let GptConfig { layers, heads, embd: c, vocab, dropout: p, .. } = self.config;
        let t = tokens.len() / batch;
        let rows = tokens.len();
        let w = &self.parameters;
        let zeros = vec![0.0; c];
        let mut op = 0;
        let mut mask = |len: usize| {
            op += 1;
            masks.filter(|_| p > 0.0).map(|m| dropout::factors(len, p, m.seed, op, m.step, m.micro))
        };
        let dims = attention::Dims { batch, seq: t, heads, head_dim: c / heads, causal: true };
        let linear = |x: &[f64], w: &[f64], n: usize, k: usize| matmul::matmul(Form::Nt, [rows, n, k], x, w);

        let mut x: Vec<f64> = Vec::with_capacity(rows * c);
        for (row, token) in tokens.iter().enumerate() {
            x.extend((0..c).map(|i| w[0][*token as usize * c + i] + w[1][row % t * c + i]));
        }
        let embedding_mask = mask(rows * c);
        multiply(&mut x, embedding_mask.as_ref());
        let mut blocks = Vec::new();
        let mut block_masks = Vec::new();
        for layer in 0..layers {
            let w = &w[2 + 6 * layer..];
            let normed1 = layer_norm::forward(&x, &w[0], &zeros, EPS).out;
            let qkv = linear(&normed1, &w[1], 3 * c, c);
            let attention_mask = mask(batch * heads * t * t.next_multiple_of(4));
            let mixed = attention::attention(&qkv, dims, attention_mask.as_deref()).0;
            let mut x2 = linear(&mixed, &w[2], c, c);
            let out_mask = mask(rows * c);
            multiply(&mut x2, out_mask.as_ref());
            add(&mut x2, &x);
            let normed2 = layer_norm::forward(&x2, &w[3], &zeros, EPS).out;
            let pre = linear(&normed2, &w[4], 4 * c, c);
            let act: Vec<f64> = pre.iter().map(|v| matmul::activate(Activation::Gelu, *v)).collect();
            let mut next = linear(&act, &w[5], c, 4 * c);
            let down_mask = mask(rows * c);
            multiply(&mut next, down_mask.as_ref());
            add(&mut next, &x2);
            blocks.push(Block { x: std::mem::replace(&mut x, next), normed1, qkv, mixed, x2, normed2, pre, act });
            block_masks.push((attention_mask, out_mask, down_mask));
        }
        let last = 2 + 6 * layers;
        let normed = layer_norm::forward(&x, &w[last], &zeros, EPS).out;
        let logits = matmul::matmul(Form::Nt, [rows, vocab, c], &normed, &w[0][..vocab * c]);
        let loss = cross_entropy::cross_entropy(&logits, targets, vocab);

        let mut grads: Vec<Vec<f64>> = w.iter().map(|p| vec![0.0; p.len()]).collect();
        let dnormed = matmul::matmul(Form::Nn, [rows, c, vocab], &loss.grad, &w[0][..vocab * c]);
        add(&mut grads[0], &matmul::matmul(Form::Tn, [vocab, c, rows], &loss.grad, &normed));
        let norm = layer_norm::backward(&dnormed, &x, &w[last], EPS);
        add(&mut grads[last], &norm.dweight);
        let mut dx = norm.dx;
        for layer in (0..layers).rev() {
            let (block, (attention_mask, out_mask, down_mask)) = (&blocks[layer], &block_masks[layer]);
            let at = 2 + 6 * layer;
            // Gradients of input and weight of y = x w^T.
            let back = |dy: &[f64], x: &[f64], index: usize, n: usize, k: usize, grads: &mut Vec<Vec<f64>>| {
                add(&mut grads[at + index], &matmul::matmul(Form::Tn, [n, k, rows], dy, x));
                matmul::matmul(Form::Nn, [rows, k, n], dy, &w[at + index])
            };
            let mut dy = dx.clone();
            multiply(&mut dy, down_mask.as_ref());
            let mut dpre = back(&dy, &block.act, 5, c, 4 * c, &mut grads);
            dpre.iter_mut().zip(&block.pre).for_each(|(d, v)| *d *= matmul::activate_grad(Activation::Gelu, *v));
            let dnormed2 = back(&dpre, &block.normed2, 4, 4 * c, c, &mut grads);
            let norm2 = layer_norm::backward(&dnormed2, &block.x2, &w[at + 3], EPS);
            add(&mut grads[at + 3], &norm2.dweight);
            add(&mut dx, &norm2.dx);
            let mut dy = dx.clone();
            multiply(&mut dy, out_mask.as_ref());
            let dmixed = back(&dy, &block.mixed, 2, c, c, &mut grads);
            let dqkv = attention::attention_backward(&block.qkv, &dmixed, dims, attention_mask.as_deref());
            let dnormed1 = back(&dqkv, &block.normed1, 1, 3 * c, c, &mut grads);
            let norm1 = layer_norm::backward(&dnormed1, &block.x, &w[at], EPS);
            add(&mut grads[at], &norm1.dweight);
            add(&mut dx, &norm1.dx);
        }
        multiply(&mut dx, embedding_mask.as_ref());
        for (row, token) in tokens.iter().enumerate() {
            for i in 0..c {
                grads[0][*token as usize * c + i] += dx[row * c + i];
                grads[1][row % t * c + i] += dx[row * c + i];
            }
        }
        (loss.loss, grads)
    }

    /// One AdamW step; returns the global norm of the gradients before clipping.
    pub fn update(&mut self, grads: &[Vec<f64>], update: Update, decays: impl Fn(usize) -> bool) -> f64 {
        let norm = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let factor = if update.clip > 0.0 { (update.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.updates += 1;
        let Update { lr, betas, eps, weight_decay, .. } = update;
        for (index, parameter) in self.parameters.iter_mut().enumerate() {
            let weight_decay = if decays(index) { weight_decay } else { 0.0 };
            let clipped: Vec<f64> = grads[index].iter().map(|g| g * factor).collect();
            let update = adamw::Update { lr, betas, eps, weight_decay };
            adamw(parameter, &mut self.moments[index], &clipped, self.updates, update, None);
        }
        norm
    }
}
