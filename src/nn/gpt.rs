//! GPT as nanoGPT defines it: learned positions, pre-layer-norm blocks, GELU, the head tied to the embedding.

use super::Dropout;
use crate::format::Format;
use crate::kernel::attention::HEAD_DIMS;
use crate::kernel::attention_cached::{self, CacheDims, attention_cached, kv_append};
use crate::kernel::matmul::Activation;
use crate::kernel::packed::Packed;
use crate::op::{LayerNorm, LinearOptions, coding_of_norms, linear, normed_linear};
use crate::optim::{Init, ParameterBuilder, Parameters, Quantized, padded_len};
use crate::qat::lsq::START;
use crate::qat::{Encoded, Layer, LearnedScales, Noise, Quantizer, svid};
use crate::{Buffer, Context, DType, Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// The shape of a GPT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptConfig {
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads; `embd / heads` is one of [`HEAD_DIMS`].
    pub heads: usize,
    /// Width of the residual stream.
    pub embd: usize,
    /// Context: the most tokens that the model sees at once.
    pub block: usize,
    /// Number of different tokens.
    pub vocab: usize,
    /// Probability that dropout zeroes an element.
    pub dropout: f64,
    /// Whether linear layers and norms have a bias.
    pub bias: bool,
    /// How the linear layers of the blocks quantize their operands. Embeddings, norms, attention and the head are not quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantizer: Option<Quantizer>,
}

impl GptConfig {
    /// Checks that the fields make sense and fit together.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag.
    pub fn validate(&self) -> Result<()> {
        for (what, value, max) in [
            ("layers (--layers)", self.layers, 1 << 10),
            ("heads (--heads)", self.heads, 1 << 16),
            ("width (--embd)", self.embd, 1 << 16),
            ("context (--block)", self.block, 1 << 20),
            ("vocabulary", self.vocab, 1 << 24),
        ] {
            if value == 0 || value > max {
                return Err(Error::invalid(what, format!("1 to {max}"), value.to_string()));
            }
        }
        if !self.embd.is_multiple_of(self.heads) {
            return Err(Error::invalid(
                "heads (--heads)",
                format!("a divisor of the width {}", self.embd),
                self.heads.to_string(),
            ));
        }
        let head_dim = self.embd / self.heads;
        if !HEAD_DIMS.iter().any(|d| *d as usize == head_dim) {
            return Err(Error::invalid(
                "heads (--heads) and width (--embd)",
                format!("a width of one of {HEAD_DIMS:?} per head"),
                format!("{} / {} = {head_dim}", self.embd, self.heads),
            ));
        }
        if let Some(quantizer) = &self.quantizer {
            quantizer.validate(&self.widths())?;
            quantizer.validate_blocks(self.layers)?;
            // One that was read may ask for what its method refuses, and would train on wrong gradients.
            let Quantizer { method, weights, activations, hadamard } = *quantizer;
            Quantizer::new(method, weights, activations, hadamard)?;
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::invalid(
                "dropout (--dropout)",
                "a probability of at least 0 and below 1",
                self.dropout.to_string(),
            ));
        }
        Ok(())
    }

    /// Shapes `[n, k]` of the weights of a block's linear layers: queries, keys and values in one; their projection; the two halves of a four
    /// times wider MLP.
    #[must_use]
    pub fn projections(&self) -> [[usize; 2]; 4] {
        let c = self.embd;
        [[3 * c, c], [c, c], [4 * c, c], [c, 4 * c]]
    }

    /// Widths of the inputs of a block's linear layers.
    #[must_use]
    pub fn widths(&self) -> Vec<usize> {
        self.projections().map(|[_, k]| k).to_vec()
    }

    /// Bits that a weight of the blocks' linear layers takes on average: in its format, scales included, or `dense` bits where nothing quantizes
    /// it, as in the blocks that a method leaves in full precision.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn bits_per_weight(&self, dense: f64) -> f64 {
        let Some(quantizer) = self.quantizer else { return dense };
        let shapes = self.projections();
        let weights: usize = shapes.iter().map(|[n, k]| n * k).sum();
        let values = if self.layer() == Layer::Valued { 32.0 } else { 0.0 };
        let bits =
            |&[n, k]: &[usize; 2]| quantizer.weights.bits_per_element(n, k) * (n * k) as f64 + values * (n + k) as f64;
        let bits: f64 = shapes.iter().map(bits).sum();
        // Blocks are of one size.
        let share = quantizer.dense_blocks(self.layers) as f64 / self.layers.max(1) as f64;
        share * dense + (1.0 - share) * bits / weights as f64
    }

    fn layer(&self) -> Layer {
        self.quantizer.map_or(Layer::Plain, |quantizer| quantizer.layer())
    }

    /// Number of parameters. The head shares the embedding's.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let (c, bias) = (self.embd as u64, u64::from(self.bias));
        // Two norms; query, key and value in one; their projection; the two halves of a four times wider MLP.
        // What is learned beside the weights of the four linear layers.
        let scales = self.quantizer.map_or(0, |q| match (q.learned(), q.activations) {
            (None, _) => 0,
            (Some(_), None) => 1,
            (Some(lsq), Some(_)) => 2 + u64::from(lsq.shifts_inputs()),
        });
        let extra = match self.layer() {
            Layer::Plain => 0,
            Layer::Normed => c + 4 * c,
            Layer::Valued => self.projections().iter().flatten().map(|size| *size as u64).sum(),
        };
        let layer = 2 * c * (1 + bias) + 12 * c * c + bias * (3 + 1 + 4 + 1) * c + extra + 4 * scales;
        (self.vocab as u64 + self.block as u64) * c + self.layers as u64 * layer + c * (1 + bias)
    }
}

/// What a training pass needs besides tokens.
#[derive(Clone, Copy, Debug)]
pub struct TrainPass<'a> {
    /// The optimizer's state ([`crate::optim::AdamW::state`]).
    pub state: &'a Buffer,
    /// Seed of the dropout masks.
    pub seed: u64,
    /// Which micro-batch of the step this is.
    pub micro: u32,
}

/// The input of a linear layer that quantizes.
#[derive(Clone, Copy, Debug)]
pub struct ProbedInput<'a> {
    /// The index of the layer's weight.
    pub index: usize,
    /// `[batch, t, k]`: what the layer's product is given, after a norm or values of its own; or, of a norm that it quantizes without
    /// writing it, that norm in f32.
    pub values: &'a Tensor,
    /// Of such a norm, what it is quantized to, and the mask of what the gradient passes ([`crate::kernel::quantize::Options::mask`]).
    pub codes: Option<(&'a Packed, Option<&'a Tensor>)>,
}

/// Is told of the input of a linear layer.
pub type InputProbe<'a> = &'a dyn Fn(ProbedInput<'_>) -> Result<()>;

/// How a pass is looked at from within.
#[derive(Clone, Copy, Default)]
pub struct Probe<'a> {
    /// Nothing is quantized, whatever the configuration says.
    pub dense: bool,
    /// Is told of each linear layer that quantizes, before it multiplies.
    pub input: Option<InputProbe<'a>>,
    /// Where methods that quantize the backward pass too have random numbers from, in a pass that is none of training: what is rounded
    /// stochastically is, and there is no dropout.
    pub rounding: Option<TrainPass<'a>>,
}

impl std::fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dense, input, rounding } = self;
        let mut text = f.debug_struct("Probe");
        text.field("dense", dense).field("input", &input.is_some()).field("rounding", rounding).finish()
    }
}

/// Tells of what the product of a layer that quantizes is about to be given, or to make of the norm of it. `before` is what the method
/// puts before the product.
fn probe_input(
    x: &Tensor,
    norm: Option<LayerNorm<'_>>,
    l: &Projection,
    quantizer: &Quantizer,
    before: impl Fn(&Tensor) -> Result<Tensor>,
    input: InputProbe<'_>,
) -> Result<()> {
    let index = l.weight;
    let fused = norm.filter(|_| matches!(l.extra, Extra::None));
    let Some((norm, coding)) = fused.zip(coding_of_norms(x, Some(quantizer))) else {
        let values = x.context().no_grad(|| before(&norm.map_or(Ok(x.clone()), |norm| norm.of(x))?))?;
        return input(ProbedInput { index, values: &values, codes: None });
    };
    let values = x.context().no_grad(|| LayerNorm { out: DType::F32, ..norm }.of(x))?;
    // By the kernel of the layer itself: the same codes.
    let (_, Encoded { packed, mask }) = x.encoded_layer_norm(norm, &coding)?;
    let mask = mask.map(|mask| Tensor::new(x.context(), mask.clone(), &[mask.len()]));
    input(ProbedInput { index, values: &values, codes: Some((&packed, mask.as_ref())) })
}

/// Epsilon of the layer norms.
pub const LAYER_NORM_EPSILON: f32 = EPS;
const EPS: f32 = 1e-5;
/// The vocabulary is padded to a multiple of this, so that the head's products need no ragged edge; the loss ignores the padding.
const VOCAB_ALIGN: usize = 16;

#[derive(Debug)]
struct Norm {
    weight: usize,
    bias: Option<usize>,
}

#[derive(Debug)]
struct Projection {
    weight: usize,
    bias: Option<usize>,
    extra: Extra,
    scales: Option<Scales>,
}

/// What a method adds to a linear layer.
#[derive(Clone, Copy, Debug)]
enum Extra {
    None,
    /// The weight of an RMS norm of its input.
    Norm(usize),
    /// Values that its inputs and its outputs are multiplied by, before a norm without parameters.
    Values {
        input: usize,
        output: usize,
    },
}

/// Parameters of a quantizer that learns its scales.
#[derive(Debug)]
struct Scales {
    weight: usize,
    input: Option<usize>,
    offset: Option<usize>,
}

#[derive(Debug)]
struct Block {
    norm1: Norm,
    qkv: Projection,
    out: Projection,
    norm2: Norm,
    up: Projection,
    down: Projection,
}

impl Extra {
    /// That of one layer of `[n, k]`, added by name; `normed`: there is a norm before it already.
    fn of(config: &GptConfig, builder: &mut ParameterBuilder, name: &str, [n, k]: [usize; 2], normed: bool) -> Self {
        match config.layer() {
            Layer::Valued => Self::Values {
                input: builder.add(format!("{name}.input_values"), &[k], Init::Ones),
                output: builder.add(format!("{name}.output_values"), &[n], Init::Ones),
            },
            Layer::Normed if !normed => Self::Norm(builder.add(format!("{name}.norm.weight"), &[k], Init::Ones)),
            Layer::Normed | Layer::Plain => Self::None,
        }
    }

    /// The parameters.
    fn indices(self) -> Vec<usize> {
        match self {
            Self::None => Vec::new(),
            Self::Norm(weight) => vec![weight],
            Self::Values { input, output } => vec![input, output],
        }
    }
}

impl Scales {
    /// Those of one layer, added by name.
    fn of(config: &GptConfig, mut add: impl FnMut(&str, Init) -> usize) -> Option<Self> {
        let quantizer = config.quantizer.as_ref()?;
        let lsq = quantizer.learned()?;
        let start = || Init::Values(vec![START]);
        let inputs = quantizer.activations.is_some();
        Some(Self {
            weight: add("weight_scale", start()),
            input: inputs.then(|| add("input_scale", start())),
            offset: (inputs && lsq.shifts_inputs()).then(|| add("input_offset", Init::Zeros)),
        })
    }

    fn learned<'a>(&self, p: &'a Parameters, initialize: bool) -> LearnedScales<'a> {
        let (weight, input, offset) = (&p[self.weight], self.input.map(|i| &p[i]), self.offset.map(|i| &p[i]));
        LearnedScales { weight, input, offset, initialize }
    }
}

/// A GPT and its parameters.
#[derive(Debug)]
pub struct Gpt {
    config: GptConfig,
    dtype: DType,
    parameters: Parameters,
    tokens: usize,
    positions: usize,
    blocks: Vec<Block>,
    norm: Norm,
    /// Quantized weights that were given, by parameter.
    given: HashMap<usize, Packed>,
}

impl Gpt {
    /// A GPT with nanoGPT's initialisation, drawn from `seed`: N(0, 0.02), and N(0, 0.02 / sqrt(2 layers)) for the two projections onto the
    /// residual stream. `dtype` is that of products and stored activations: f32, or f16 with f32 sums, statistics, parameters and residual
    /// stream.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a shape that makes no sense; [`Error::Limit`], [`Error::OutOfMemory`]; [`Error::Unsupported`] for f16 without
    /// `SHADER_F16`.
    pub fn new(context: &Context, config: GptConfig, seed: u64, dtype: DType) -> Result<Self> {
        Self::build(context, config, seed, dtype, HashMap::new())
    }

    /// A GPT whose quantized weights, all of them, were made before and come by the names of their parameters. These have no other memory and
    /// get no gradient; what else there is starts as by [`Gpt::new`].
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the tensor, where one is missing, or has another shape or format than the configuration says, or no place in
    /// the model; as [`Gpt::new`].
    pub fn from_quantized(
        context: &Context,
        config: GptConfig,
        seed: u64,
        dtype: DType,
        weights: HashMap<String, Packed>,
    ) -> Result<Self> {
        let names: Vec<String> = weights.keys().cloned().collect();
        let gpt = Self::build(context, config, seed, dtype, weights)?;
        let known: HashSet<&str> = gpt.parameters.iter().map(|(info, _)| info.name.as_str()).collect();
        if let Some(name) = names.iter().find(|name| !known.contains(name.as_str())) {
            return Err(Error::invalid(format!("tensor `{name}`"), "a parameter of the model", "another tensor"));
        }
        for (index, (info, tensor)) in gpt.parameters.iter().enumerate() {
            let quantizer = gpt.config.quantizer.filter(|_| gpt.is_quantized(index));
            let expected = quantizer.map(|quantizer| (tensor.shape().to_vec(), quantizer.weights));
            let given = gpt.given.get(&index);
            let got = given.map(|packed| (vec![packed.layout().rows, packed.layout().cols], packed.format()));
            if expected != got {
                let text = |weight: Option<(Vec<usize>, Format)>| {
                    weight.map_or("no codes".to_owned(), |(shape, format)| format!("codes {shape:?} in {format}"))
                };
                return Err(Error::invalid(format!("tensor `{}`", info.name), text(expected), text(got)));
            }
        }
        Ok(gpt)
    }

    fn build(
        context: &Context,
        config: GptConfig,
        seed: u64,
        dtype: DType,
        mut given: HashMap<String, Packed>,
    ) -> Result<Self> {
        config.validate()?;
        let (c, std) = (config.embd, 0.02);
        #[expect(clippy::cast_precision_loss, reason = "a number of layers")]
        let residual_std = std / (2.0 * config.layers as f64).sqrt();
        let mut builder = ParameterBuilder::new();
        let mut padded = Vec::new();
        let vocab = config.vocab.next_multiple_of(VOCAB_ALIGN);
        let name = "transformer.wte.weight";
        // Its values are drawn here and not when memory is laid out: the host must not fill what the device cannot hold.
        padded_len(context, name, &[vocab, c])?;
        Init::Normal(std).fill(config.vocab * c, seed, 0, &mut padded)?;
        padded.resize(vocab * c, 0.0);
        let tokens = builder.add(name, &[vocab, c], Init::Values(padded));
        let positions = builder.add("transformer.wpe.weight", &[config.block, c], Init::Normal(std));
        let norm = |builder: &mut ParameterBuilder, name: &str| Norm {
            weight: builder.add(format!("{name}.weight"), &[c], Init::Ones),
            bias: config.bias.then(|| builder.add(format!("{name}.bias"), &[c], Init::Zeros)),
        };
        let within_one = config.quantizer.is_some_and(|quantizer| quantizer.keeps_within_one());
        let projection = |builder: &mut ParameterBuilder, name: &str, [n, k]: [usize; 2], std: f64| {
            let weight = builder.add(format!("{name}.weight"), &[n, k], Init::Normal(std));
            if within_one {
                builder.keep_within_one(weight);
            }
            let bias = config.bias.then(|| builder.add(format!("{name}.bias"), &[n], Init::Zeros));
            Projection { weight, bias, extra: Extra::None, scales: None }
        };
        let [qkv, out, up, down] = config.projections();
        let mut blocks: Vec<Block> = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let name = |part: &str| format!("transformer.h.{layer}.{part}");
            blocks.push(Block {
                norm1: norm(&mut builder, &name("ln_1")),
                qkv: projection(&mut builder, &name("attn.c_attn"), qkv, std),
                out: projection(&mut builder, &name("attn.c_proj"), out, residual_std),
                norm2: norm(&mut builder, &name("ln_2")),
                up: projection(&mut builder, &name("mlp.c_fc"), up, std),
                down: projection(&mut builder, &name("mlp.c_proj"), down, residual_std),
            });
        }
        let norm = norm(&mut builder, "transformer.ln_f");
        // After all others, so that the weights of a seed are the same with every method.
        for (layer, block) in blocks.iter_mut().enumerate() {
            let parts = [
                ("attn.c_attn", &mut block.qkv, qkv, true),
                ("attn.c_proj", &mut block.out, out, false),
                ("mlp.c_fc", &mut block.up, up, true),
                ("mlp.c_proj", &mut block.down, down, false),
            ];
            for (part, projection, shape, normed) in parts {
                let name = format!("transformer.h.{layer}.{part}");
                projection.extra = Extra::of(&config, &mut builder, &name, shape, normed);
                let add = |what: &str, init: Init| builder.add(format!("{name}.{what}"), &[1], init);
                projection.scales = Scales::of(&config, add);
            }
        }

        let builder = builder.without(|name| given.contains_key(name));
        let parameters = builder.build(context, seed, dtype == DType::F16)?;
        let given = parameters.iter().enumerate().filter_map(|(i, (info, _))| Some((i, given.remove(&info.name)?)));
        let given = given.collect();
        Ok(Self { config, dtype, parameters, tokens, positions, blocks, norm, given })
    }

    /// Takes over the parameters of a model in full precision of the same shape, by name: as they are, but for layers of signs and values, which
    /// become its decomposition ([`crate::qat::svid`]).
    ///
    /// # Errors
    /// What `values` returns, which is given names and shapes; [`Error::Shape`] where it gives another number of values; as
    /// [`crate::qat::svid`].
    pub fn start_from(&self, mut values: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>) -> Result<()> {
        let projections = || self.blocks.iter().flat_map(|b| [&b.qkv, &b.out, &b.up, &b.down]);
        let set = |index: usize, values: &[f32]| self.parameters[index].write(bytemuck::cast_slice(values));
        let extras: Vec<usize> = projections().flat_map(|l| l.extra.indices()).collect();
        for (index, (info, _)) in self.parameters.iter().enumerate().filter(|(index, _)| !extras.contains(index)) {
            let values = values(&info.name, &info.shape)?;
            let layer = projections().find(|l| l.weight == index);
            match (layer.map(|l| l.extra), info.shape.as_slice()) {
                (Some(Extra::Values { input, output }), &[_, k]) => {
                    let start = svid(&values, k)?;
                    set(index, &start.weight)?;
                    set(input, &start.input_values)?;
                    set(output, &start.output_values)?;
                }
                _ => set(index, &values)?,
            }
        }
        Ok(())
    }

    /// The shape.
    #[must_use]
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// Element type of products and stored activations.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The parameters. The embedding's rows beyond the vocabulary are padding and zero.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Columns of the logits: the vocabulary, padded.
    #[must_use]
    pub fn logit_columns(&self) -> usize {
        self.config.vocab.next_multiple_of(VOCAB_ALIGN)
    }

    /// Logits of the next token at every position.
    ///
    /// # Shapes
    /// `tokens` `[batch, t]` u32 with `t` at most the context; the result is `[batch, t, vocabulary padded]` f32.
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes; [`Error::Invalid`] without `train` where gradients are on and the method quantizes the backward
    /// pass too ([`Quantizer::backward`]), which draws random numbers; [`Error::ContextMismatch`]; [`Error::Limit`],
    /// [`Error::OutOfMemory`].
    pub fn logits(&self, tokens: &Tensor, train: Option<TrainPass<'_>>) -> Result<Tensor> {
        self.probed_logits(tokens, train, Probe::default())
    }

    /// Sets learned scales to what their method starts from, by the weights and by what a forward pass makes of `tokens`, layer after
    /// layer; does nothing where none are learned.
    ///
    /// # Shapes
    /// `tokens` `[batch, t]` u32 with `t` at most the context.
    ///
    /// # Errors
    /// As [`Gpt::logits`].
    pub fn initialize_scales(&self, tokens: &Tensor) -> Result<()> {
        if self.config.quantizer.and_then(|quantizer| quantizer.learned()).is_none() {
            return Ok(());
        }
        self.parameters.context().no_grad(|| self.forward(tokens, None, Probe::default(), true, |_| {})).map(drop)
    }

    /// The learned scales of the linear layer whose weight is parameter `index`.
    pub(crate) fn learned_scales(&self, index: usize) -> Option<LearnedScales<'_>> {
        let projection = self.quantized_projections().find(|l| l.weight == index)?;
        projection.scales.as_ref().map(|scales| scales.learned(&self.parameters, false))
    }

    /// As [`Gpt::logits`], looked at from within.
    ///
    /// # Errors
    /// As [`Gpt::logits`], where the probe's `rounding` does for `train`; what the probe returns; [`Error::Shape`] for a dense pass of a
    /// model whose weights are codes only.
    pub fn probed_logits(&self, tokens: &Tensor, train: Option<TrainPass<'_>>, probe: Probe<'_>) -> Result<Tensor> {
        self.forward(tokens, train, probe, false, |_| {})
    }

    /// The same, and the residual stream before each block: the embedding's output, and those of all blocks but the last.
    ///
    /// # Shapes
    /// As [`Gpt::logits`]; hidden states `[batch, t, embd]` f32.
    ///
    /// # Errors
    /// As [`Gpt::logits`].
    pub fn logits_and_hidden(&self, tokens: &Tensor, train: Option<TrainPass<'_>>) -> Result<(Tensor, Vec<Tensor>)> {
        let mut hidden = Vec::with_capacity(self.blocks.len());
        let logits = self.forward(tokens, train, Probe::default(), false, |x| hidden.push(x.clone()))?;
        Ok((logits, hidden))
    }

    fn forward(
        &self,
        tokens: &Tensor,
        train: Option<TrainPass<'_>>,
        probe: Probe<'_>,
        initialize: bool,
        mut before_block: impl FnMut(&Tensor),
    ) -> Result<Tensor> {
        let &[_, t] = tokens.shape() else {
            return Err(Error::shape("gpt", "tokens of shape [batch, t]", format!("{:?}", tokens.shape())));
        };
        if t > self.config.block {
            return Err(Error::shape(
                "gpt",
                format!("at most {} tokens of context", self.config.block),
                format!("{t}"),
            ));
        }
        let p = &self.parameters;
        let mut op = 0;
        let mut dropout = || {
            op += 1;
            let pass = train.filter(|_| self.config.dropout > 0.0)?;
            #[expect(clippy::cast_possible_truncation, reason = "a probability")]
            let p = self.config.dropout as f32;
            Some(Dropout { p, seed: pass.seed, op, micro: pass.micro, state: pass.state.clone() })
        };
        // One linear layer, or a norm and it; what it does besides multiplying is the caller's.
        let given = !self.given.is_empty();
        let project = |x: &Tensor, n: Option<&Norm>, l: &Projection, options: LinearOptions<'_>| {
            let quantizer = self.quantizer(l).filter(|q| given || train.is_none() || q.trains_quantized());
            let quantizer = quantizer.filter(|_| !probe.dense);
            let norm = n.map(|n| self.layer_norm(n));
            if let (Some(quantizer), Some(input)) = (quantizer, probe.input) {
                probe_input(x, norm, l, &quantizer, |x| self.before_product(x, l.extra), input)?;
            }
            let noise = train.or(probe.rounding).map(|pass| Noise {
                seed: pass.seed,
                state: pass.state.clone(),
                micro: pass.micro,
                layer: l.weight as u32,
            });
            let packed_weight = self.given.get(&l.weight).filter(|_| !probe.dense);
            let learned = quantizer.and(l.scales.as_ref()).map(|scales| scales.learned(p, initialize));
            let noise = noise.as_ref();
            self.project(x, norm, l, LinearOptions { quantizer, packed_weight, learned, noise, ..options })
        };
        let mut x = tokens.embedding(&p[self.tokens], Some(&p[self.positions]), dropout().as_ref())?; // [b, t, c]
        for block in &self.blocks {
            before_block(&x);
            let qkv = project(&x, Some(&block.norm1), &block.qkv, LinearOptions::default())?; // [b, t, 3c]
            let mixed = qkv.attention(self.config.heads, true, dropout().as_ref())?; // [b, t, c]
            let drop = dropout();
            x = project(
                &mixed,
                None,
                &block.out,
                LinearOptions { residual: Some(&x), dropout: drop.as_ref(), ..Default::default() },
            )?;
            let gelu = LinearOptions { activation: Some(Activation::Gelu), ..Default::default() };
            let hidden = project(&x, Some(&block.norm2), &block.up, gelu)?; // [b, t, 4c]
            let drop = dropout();
            x = project(
                &hidden,
                None,
                &block.down,
                LinearOptions { residual: Some(&x), dropout: drop.as_ref(), ..Default::default() },
            )?;
        }
        self.head(&x)
    }

    /// Logits of the last block's output.
    fn head(&self, x: &Tensor) -> Result<Tensor> {
        let options = LinearOptions { out_f32: true, ..Default::default() };
        normed_linear(x, self.layer_norm(&self.norm), &self.parameters[self.tokens], options)
    }

    fn layer_norm(&self, n: &Norm) -> LayerNorm<'_> {
        let p = &self.parameters;
        LayerNorm { weight: &p[n.weight], bias: n.bias.map(|b| &p[b]), eps: EPS, out: self.dtype }
    }

    /// What the product of a layer is given where the layer is given `x`.
    fn before_product(&self, x: &Tensor, extra: Extra) -> Result<Tensor> {
        let p = &self.parameters;
        match extra {
            Extra::None => Ok(x.clone()),
            Extra::Norm(weight) => x.rms_norm(&p[weight], EPS, self.dtype),
            Extra::Values { input, .. } => x.scale_columns(&p[input]),
        }
    }

    /// One linear layer, of the norm of `x` if there is one, with what its method adds to it.
    fn project(
        &self,
        x: &Tensor,
        norm: Option<LayerNorm<'_>>,
        l: &Projection,
        options: LinearOptions<'_>,
    ) -> Result<Tensor> {
        let p = &self.parameters;
        let options = LinearOptions { bias: l.bias.map(|b| &p[b]), ..options };
        let x = match (norm, l.extra) {
            (Some(norm), Extra::None) => return normed_linear(x, norm, &p[l.weight], options),
            (Some(norm), _) => &norm.of(x)?,
            (None, _) => x,
        };
        let x = &self.before_product(x, l.extra)?;
        match l.extra {
            Extra::None | Extra::Norm(_) => linear(x, &p[l.weight], options),
            Extra::Values { output, .. } => {
                let LinearOptions { bias, activation, dropout, residual, .. } = options;
                let product = LinearOptions { bias: None, activation: None, dropout: None, residual: None, ..options };
                let sums = linear(x, &p[l.weight], product)?;
                let dtype = if residual.is_some() { DType::F32 } else { self.dtype };
                let mut y = sums.value_norm(&p[output], bias, EPS, dtype)?;
                if let Some(activation) = activation {
                    y = y.unary(activation.into())?;
                }
                if let Some(dropout) = dropout {
                    y = y.dropout(dropout)?;
                }
                residual.map_or(Ok(y.clone()), |residual| residual.add(&y))
            }
        }
    }

    /// The linear layers whose weights are quantized.
    fn quantized_projections(&self) -> impl Iterator<Item = &Projection> {
        let all = self.blocks.iter().flat_map(|b| [&b.qkv, &b.out, &b.up, &b.down]);
        all.filter(|projection| self.quantizer(projection).is_some())
    }

    /// Whether parameter `index` is one that forward passes multiply in quantized form.
    #[must_use]
    pub fn is_quantized(&self, index: usize) -> bool {
        self.quantized_projections().any(|l| l.weight == index)
    }

    /// Parameter `index` as forward passes multiply it, if it is quantized: as it was given, or as the quantizer makes it now.
    ///
    /// # Errors
    /// [`Error::Limit`], [`Error::OutOfMemory`].
    pub fn packed_weight(&self, index: usize) -> Result<Option<Packed>> {
        if let Some(packed) = self.given.get(&index) {
            return Ok(Some(packed.clone()));
        }
        let projection = self.quantized_projections().find(|l| l.weight == index);
        let Some((quantizer, projection)) = self.config.quantizer.zip(projection) else { return Ok(None) };
        let p = &self.parameters;
        let scale = projection.scales.as_ref().map(|scales| &p[scales.weight]);
        quantizer.weight_by(&p[index], scale).map(Some)
    }

    /// Row, group and scale of the first group of parameter `index`, if it had these values and were quantized, whose scale saturates: as
    /// [`Quantizer::saturated_scale`].
    ///
    /// # Errors
    /// [`Error::Shape`] where these are not as many values as the parameter has.
    pub fn saturated_scale(&self, index: usize, values: &[f32]) -> Result<Option<(usize, usize, f64)>> {
        match (self.config.quantizer.filter(|_| self.is_quantized(index)), self.parameters[index].shape()) {
            (Some(quantizer), &[n, k]) => quantizer.saturated_scale(values, [n, k]),
            _ => Ok(None),
        }
    }

    /// Whether parameter `index` is nothing but codes, which were given.
    pub(crate) fn is_given(&self, index: usize) -> bool {
        self.given.contains_key(&index)
    }

    /// All parameters as [`Gpt::packed_weight`] has them, those that are quantized.
    fn packed_weights(&self) -> Result<HashMap<usize, Packed>> {
        let all = self.quantized_projections();
        all.filter_map(|l| Some(self.packed_weight(l.weight).transpose()?.map(|packed| (l.weight, packed)))).collect()
    }

    /// The quantizer of one layer, if it has one: some methods leave the last blocks as they are.
    fn quantizer(&self, l: &Projection) -> Option<Quantizer> {
        let quantizer = self.config.quantizer?;
        let quantized = self.blocks.len() - quantizer.dense_blocks(self.blocks.len());
        // Parameters count upward through the blocks.
        let dense = self.blocks.get(quantized).is_some_and(|block| l.weight >= block.norm1.weight);
        (!dense).then_some(quantizer)
    }

    /// Adds `token` to `cache` and returns the logits of the next one.
    ///
    /// # Shapes
    /// The result is `[1, 1, vocabulary padded]` f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if the cache is full or was made for a model of another shape; [`Error::Invalid`] for a token beyond the vocabulary;
    /// [`Error::ContextMismatch`]. The cache is then as it was.
    pub fn decode(&self, token: u32, cache: &mut KvCache) -> Result<Tensor> {
        let context = self.parameters.context().clone();
        if cache.len >= self.config.block {
            return Err(Error::shape("gpt", format!("at most {} tokens of context", self.config.block), "one more"));
        }
        if token as usize >= self.config.vocab {
            return Err(Error::invalid(
                "gpt: token",
                format!("below the vocabulary of {}", self.config.vocab),
                token.to_string(),
            ));
        }
        if !context.same(cache.tokens.context()) {
            return Err(Error::ContextMismatch { op: "gpt" });
        }
        let own = CacheShape::of(self);
        if cache.shape != own {
            return Err(Error::shape("gpt", format!("a cache of {own:?}"), format!("{:?}", cache.shape)));
        }
        if cache.len == 0 {
            cache.weights = self.packed_weights()?;
        }
        cache.tokens.write(bytemuck::bytes_of(&token))?;
        cache.length.write(bytemuck::bytes_of(&(cache.len as u32)))?;
        let logits = context.no_grad(|| {
            let p = &self.parameters;
            let c = self.config.embd;
            let weights = &cache.weights;
            let project = |x: &Tensor, n: Option<&Norm>, l: &Projection, options: LinearOptions<'_>| {
                let (quantizer, packed_weight) = (self.quantizer(l), weights.get(&l.weight));
                let learned = l.scales.as_ref().map(|scales| scales.learned(p, false));
                let norm = n.map(|n| self.layer_norm(n));
                self.project(x, norm, l, LinearOptions { quantizer, learned, packed_weight, ..options })
            };
            let dims = CacheDims {
                batch: 1,
                heads: self.config.heads,
                head_dim: c / self.config.heads,
                max_seq: self.config.block,
            };
            let mut x =
                cache.tokens.embed(&p[self.tokens], Some(&p[self.positions]), Some(cache.length.buffer()), None)?;
            for (block, [keys, values]) in self.blocks.iter().zip(&cache.layers) {
                let qkv = project(&x, Some(&block.norm1), &block.qkv, LinearOptions::default())?;
                let view = attention_cached::KvCache { keys, values, length: cache.length.buffer() };
                kv_append(&context, qkv.buffer(), view, dims)?;
                let mixed = Tensor::empty(&context, &[1, 1, c], self.dtype)?;
                attention_cached(&context, qkv.buffer(), view, mixed.buffer(), dims)?;
                x = project(&mixed, None, &block.out, LinearOptions { residual: Some(&x), ..Default::default() })?;
                let gelu = LinearOptions { activation: Some(Activation::Gelu), ..Default::default() };
                let hidden = project(&x, Some(&block.norm2), &block.up, gelu)?;
                x = project(&hidden, None, &block.down, LinearOptions { residual: Some(&x), ..Default::default() })?;
            }
            self.head(&x)
        })?;
        // Only now: after a failure the next token takes this place.
        cache.len += 1;
        Ok(logits)
    }
}

impl Quantized for Gpt {
    /// The weights of the blocks' linear layers, if there is a quantizer.
    fn quantized(&self) -> Vec<usize> {
        self.quantized_projections().map(|projection| projection.weight).collect()
    }

    fn nearest(&self, index: usize, out: &Tensor) -> Result<()> {
        match self.config.quantizer.zip(self.packed_weight(index)?) {
            Some((quantizer, packed)) => quantizer.dequantize(&packed, out),
            None => Err(Error::shape("gpt", "a parameter that is quantized", index.to_string())),
        }
    }
}

/// What a cache and its model must agree on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CacheShape {
    layers: usize,
    heads: usize,
    embd: usize,
    block: usize,
    dtype: DType,
    quantizer: Option<Quantizer>,
}

impl CacheShape {
    fn of(gpt: &Gpt) -> Self {
        let GptConfig { layers, heads, embd, block, quantizer, .. } = gpt.config;
        Self { layers, heads, embd, block, dtype: gpt.dtype, quantizer }
    }
}

/// Keys and values of the tokens that a [`Gpt`] has seen, one sequence; and its weights as they were quantized at the first of them.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    /// Quantized weights by parameter.
    weights: HashMap<usize, Packed>,
    layers: Vec<[Buffer; 2]>,
    tokens: Tensor,
    length: Tensor,
    len: usize,
}

impl KvCache {
    /// An empty cache for `gpt`, with room for its whole context.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(gpt: &Gpt) -> Result<Self> {
        let context = gpt.parameters.context();
        let room = gpt.config.block * gpt.config.embd;
        let layer =
            || -> Result<[Buffer; 2]> { Ok([context.alloc(room, gpt.dtype)?, context.alloc(room, gpt.dtype)?]) };
        Ok(Self {
            shape: CacheShape::of(gpt),
            weights: HashMap::new(),
            layers: (0..gpt.config.layers).map(|_| layer()).collect::<Result<_>>()?,
            tokens: Tensor::zeros(context, &[1, 1], DType::U32)?,
            length: Tensor::zeros(context, &[1], DType::U32)?,
            len: 0,
        })
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Number of tokens seen.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no token was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
