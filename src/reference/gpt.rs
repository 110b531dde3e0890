//! A GPT with its optimizer in float64, composed of the references of its parts. What its blocks' linear layers multiply, and what becomes of their
//! gradients, is [`super::quantized_linear`]'s.

use super::adamw::{self, adamw};
use super::learned_scale_backward::{Learned, lsq_start};
use super::quantized_linear::{Gradients, Operand, Product, Quantizer, Rule, ScaleGradient};
use super::{attention, cross_entropy, dropout, layer_norm, matmul};
use crate::kernel::matmul::{Activation, Form};
use crate::nn::GptConfig;

/// A model without biases, and AdamW's moments. Parameters are in the order of [`crate::nn::Gpt`]: token and position embedding, per block norm,
/// q k v, projection, norm, up, down, and the last norm; then, for each of a block's linear layers, the learned scales of weight and input.
#[derive(Clone, Debug)]
pub struct Gpt {
    /// The shape; its quantizer is not looked at.
    pub config: GptConfig,
    /// Rows of the token embedding, padding included.
    pub vocab: usize,
    /// The parameters.
    pub parameters: Vec<Vec<f64>>,
    /// How the blocks' linear layers quantize.
    pub quantizer: Quantizer,
    /// AdamW's, first and second.
    pub moments: Vec<[Vec<f64>; 2]>,
    /// Updates so far.
    pub updates: i32,
}

/// What a step knows before the update.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The mean loss.
    pub loss: f64,
    /// Of all parameters.
    pub gradients: Vec<Vec<f64>>,
    /// The blocks' linear layers, four each.
    pub products: Vec<Product>,
    /// The learned scales' parameters and gradients.
    pub scales: Vec<(usize, ScaleGradient)>,
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
    /// CAGE's pull of the blocks' weights.
    pub pull: Option<Pull>,
}

/// CAGE's correction in one step.
#[derive(Clone, Copy, Debug)]
pub struct Pull {
    /// The step's [`adamw::lambda`].
    pub lambda: f64,
    /// Whether it joins the gradient.
    pub coupled: bool,
}

const EPS: f64 = 1e-5;

/// The blocks' linear layers, by their weights' places in a block.
const QKV: usize = 1;
const OUT: usize = 2;
const UP: usize = 4;
const DOWN: usize = 5;
/// All of them, in the order of the scales.
const LINEAR: [usize; 4] = [QKV, OUT, UP, DOWN];

struct Block {
    x: Vec<f64>,
    qkv: Product,
    out: Product,
    x2: Vec<f64>,
    up: Product,
    down: Product,
}

impl Block {
    fn products(self) -> [Product; 4] {
        [self.qkv, self.out, self.up, self.down]
    }
}

/// Is given each linear layer's input before it is multiplied, and may take other decisions where two are as good.
pub type Decide<'a> = &'a mut dyn FnMut(usize, &mut Operand);

struct Forward {
    blocks: Vec<Block>,
    masks: Vec<BlockMasks>,
    embedding_mask: Option<Vec<f64>>,
    /// Before and after the last norm.
    x: Vec<f64>,
    normed: Vec<f64>,
    logits: Vec<f64>,
}

/// Dropout of attention, of its result and of the block's.
#[derive(Default)]
struct BlockMasks {
    attention: Option<Vec<f64>>,
    out: Option<Vec<f64>>,
    down: Option<Vec<f64>>,
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
    /// A model with these parameters, in full precision.
    #[must_use]
    pub fn new(config: GptConfig, vocab: usize, parameters: Vec<Vec<f64>>) -> Self {
        let moments = parameters.iter().map(|p| [vec![0.0; p.len()], vec![0.0; p.len()]]).collect();
        Self { config, vocab, parameters, quantizer: Quantizer::DENSE, moments, updates: 0 }
    }

    /// The same, quantized.
    #[must_use]
    pub fn quantized(self, quantizer: Quantizer) -> Self {
        Self { quantizer, ..self }
    }

    /// The parameter that is the weight of linear layer `linear`, four to a block.
    #[must_use]
    pub fn weight_index(&self, linear: usize) -> usize {
        2 + 6 * (linear / 4) + LINEAR[linear % 4]
    }

    /// The parameters that are the learned scales of its weight and of its input.
    #[must_use]
    pub fn scale_indices(&self, linear: usize) -> [Option<usize>; 2] {
        let learns @ [weight, input] = self.quantizer.learns();
        let first = 3 + 6 * self.config.layers + linear * learns.iter().filter(|learns| **learns).count();
        [weight.then_some(first), input.then_some(first + usize::from(weight))]
    }

    /// Its weight as it is multiplied.
    #[must_use]
    pub fn weight(&self, linear: usize) -> Operand {
        let [scale, _] = self.scale_indices(linear);
        let cols = if LINEAR[linear % 4] == DOWN { 4 * self.config.embd } else { self.config.embd };
        self.operand(self.quantizer.weights, &self.parameters[self.weight_index(linear)], cols, scale)
    }

    fn operand(&self, rule: Rule, x: &[f64], cols: usize, scale: Option<usize>) -> Operand {
        Operand::new(rule, x, cols, self.quantizer.block, scale.map(|index| self.parameters[index][0]))
    }

    fn product(&self, linear: usize, x: &[f64], cols: usize, decide: Decide<'_>) -> Product {
        let weight = self.weight(linear);
        let [_, scale] = self.scale_indices(linear);
        let dims = [x.len() / cols, weight.values.len() / cols, cols];
        let mut input = self.operand(self.quantizer.inputs, x, cols, scale);
        decide(linear, &mut input);
        Product::new(dims, weight, input)
    }

    fn forward(&self, tokens: &[u32], batch: usize, masks: Option<Masks>, decide: Decide<'_>) -> Forward {
        let GptConfig { layers, embd: c, vocab, dropout: p, .. } = self.config;
        let t = tokens.len() / batch;
        let rows = tokens.len();
        let w = &self.parameters;
        let zeros = vec![0.0; c];
        let mut op = 0;
        let mut mask = |len: usize| {
            op += 1;
            masks.filter(|_| p > 0.0).map(|m| dropout::factors(len, p, m.seed, op, m.step, m.micro))
        };
        let dims = self.attention_dims(batch, t);

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
            let mut product = |n: usize, x: &[f64]| self.product(4 * layer + n, x, x.len() / rows, decide);
            let normed = layer_norm::forward(&x, &w[0], &zeros, EPS).out;
            let qkv = product(0, &normed);
            let attention = mask(batch * dims.heads * t * t.next_multiple_of(4));
            let out = product(1, &attention::attention(&qkv.y, dims, attention.as_deref()).0);
            let mut x2 = out.y.clone();
            let out_mask = mask(rows * c);
            multiply(&mut x2, out_mask.as_ref());
            add(&mut x2, &x);
            let normed = layer_norm::forward(&x2, &w[3], &zeros, EPS).out;
            let up = product(2, &normed);
            let act: Vec<f64> = up.y.iter().map(|v| matmul::activate(Activation::Gelu, *v)).collect();
            let down = product(3, &act);
            let mut next = down.y.clone();
            let down_mask = mask(rows * c);
            multiply(&mut next, down_mask.as_ref());
            add(&mut next, &x2);
            blocks.push(Block { x: std::mem::replace(&mut x, next), qkv, out, x2, up, down });
            block_masks.push(BlockMasks { attention, out: out_mask, down: down_mask });
        }
        let normed = layer_norm::forward(&x, &w[2 + 6 * layers], &zeros, EPS).out;
        let logits = matmul::matmul(Form::Nt, [rows, vocab, c], &normed, &w[0][..vocab * c]);
        Forward { blocks, masks: block_masks, embedding_mask, x, normed, logits }
    }

    fn attention_dims(&self, batch: usize, seq: usize) -> attention::Dims {
        let GptConfig { heads, embd, .. } = self.config;
        attention::Dims { batch, seq, heads, head_dim: embd / heads, causal: true }
    }

    /// Sets learned scales to what LSQ starts from, by the weights and by what a forward pass makes of `tokens`, layer after layer.
    pub fn initialize_scales(&mut self, tokens: &[u32], batch: usize) {
        for linear in 0..4 * self.config.layers {
            // Of the layers before it the scales are set by now, and those behind it do not matter to it.
            let block = self.forward(tokens, batch, None, &mut |_, _| {}).blocks.swap_remove(linear / 4);
            let Product { weight, input, .. } = block.products().into_iter().nth(linear % 4).expect("four to a block");
            let rules = [self.quantizer.weights, self.quantizer.inputs];
            for ((rule, operand), index) in rules.into_iter().zip([weight, input]).zip(self.scale_indices(linear)) {
                if let (Rule::Learned { bits }, Some(index)) = (rule, index) {
                    self.parameters[index] = vec![lsq_start(&operand.rotated, Learned::integers(bits, 1.0).high)];
                }
            }
        }
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
        let Pass { loss, gradients, .. } = self.pass(tokens, targets, batch, masks, &mut |_, _| {});
        (loss, gradients)
    }

    /// The same, with what the layers saw, where `decide` may have chosen.
    pub fn pass(
        &self,
        tokens: &[u32],
        targets: &[u32],
        batch: usize,
        masks: Option<Masks>,
        decide: Decide<'_>,
    ) -> Pass {
        let GptConfig { layers, embd: c, vocab, .. } = self.config;
        let rows = tokens.len();
        let t = rows / batch;
        let w = &self.parameters;
        let forward = self.forward(tokens, batch, masks, decide);
        let dims = self.attention_dims(batch, t);
        let last = 2 + 6 * layers;
        let loss = cross_entropy::cross_entropy(&forward.logits, targets, vocab);

        let mut grads: Vec<Vec<f64>> = w.iter().map(|p| vec![0.0; p.len()]).collect();
        let mut scales = Vec::new();
        let dnormed = matmul::matmul(Form::Nn, [rows, c, vocab], &loss.grad, &w[0][..vocab * c]);
        add(&mut grads[0], &matmul::matmul(Form::Tn, [vocab, c, rows], &loss.grad, &forward.normed));
        let norm = layer_norm::backward(&dnormed, &forward.x, &w[last], EPS);
        add(&mut grads[last], &norm.dweight);
        let mut dx = norm.dx;
        for layer in (0..layers).rev() {
            let (block, masks) = (&forward.blocks[layer], &forward.masks[layer]);
            let at = 2 + 6 * layer;
            // Hands a result's gradient on to the layer's parameters and returns that of its input.
            let mut back = |n: usize, product: &Product, dy: &[f64], grads: &mut Vec<Vec<f64>>| {
                let linear = 4 * layer + n;
                let [weight, input] = product.backward(dy);
                add(&mut grads[self.weight_index(linear)], &weight.original);
                for (index, Gradients { scale, .. }) in self.scale_indices(linear).into_iter().zip([&weight, &input]) {
                    if let (Some(index), Some(scale)) = (index, *scale) {
                        grads[index][0] += scale.value;
                        scales.push((index, scale));
                    }
                }
                input.original
            };
            let mut dy = dx.clone();
            multiply(&mut dy, masks.down.as_ref());
            let mut dpre = back(3, &block.down, &dy, &mut grads);
            dpre.iter_mut().zip(&block.up.y).for_each(|(d, v)| *d *= matmul::activate_grad(Activation::Gelu, *v));
            let dnormed = back(2, &block.up, &dpre, &mut grads);
            let norm = layer_norm::backward(&dnormed, &block.x2, &w[at + 3], EPS);
            add(&mut grads[at + 3], &norm.dweight);
            add(&mut dx, &norm.dx);
            let mut dy = dx.clone();
            multiply(&mut dy, masks.out.as_ref());
            let dmixed = back(1, &block.out, &dy, &mut grads);
            let dqkv = attention::attention_backward(&block.qkv.y, &dmixed, dims, masks.attention.as_deref());
            let dnormed = back(0, &block.qkv, &dqkv, &mut grads);
            let norm = layer_norm::backward(&dnormed, &block.x, &w[at], EPS);
            add(&mut grads[at], &norm.dweight);
            add(&mut dx, &norm.dx);
        }
        multiply(&mut dx, forward.embedding_mask.as_ref());
        for (row, token) in tokens.iter().enumerate() {
            for i in 0..c {
                grads[0][*token as usize * c + i] += dx[row * c + i];
                grads[1][row % t * c + i] += dx[row * c + i];
            }
        }
        let products = forward.blocks.into_iter().flat_map(Block::products).collect();
        Pass { loss: loss.loss, gradients: grads, products, scales }
    }

    /// One AdamW step, with CAGE's correction where there is a pull; returns the global norm of the gradients before clipping.
    pub fn update(&mut self, grads: &[Vec<f64>], update: Update, decays: impl Fn(usize) -> bool) -> f64 {
        let norm = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let factor = if update.clip > 0.0 { (update.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.updates += 1;
        let Update { lr, betas, eps, weight_decay, pull, .. } = update;
        // All of them before any update: a scale may be a parameter too.
        let mut targets = vec![None; self.parameters.len()];
        for linear in (0..4 * self.config.layers).filter(|_| pull.is_some()) {
            targets[self.weight_index(linear)] = Some(self.weight(linear).nearest());
        }
        for (index, parameter) in self.parameters.iter_mut().enumerate() {
            let weight_decay = if decays(index) { weight_decay } else { 0.0 };
            let clipped: Vec<f64> = grads[index].iter().map(|g| g * factor).collect();
            let update = adamw::Update { lr, betas, eps, weight_decay };
            let pull = targets[index].as_deref().zip(pull).map(|(targets, Pull { lambda, coupled })| adamw::Pull {
                targets,
                lambda,
                coupled,
            });
            adamw(parameter, &mut self.moments[index], &clipped, self.updates, update, pull);
        }
        norm
    }
}
