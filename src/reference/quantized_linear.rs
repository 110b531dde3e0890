//! Linear layers whose operands are quantized: QuEST (arXiv 2502.05003), straight-through estimation, clipped and not, and LSQ
//! (arXiv 1902.08153), written from the papers; and how near they are to a jump. Values that are half-way between two levels go where the code of
//! QuEST's training takes them; the formats of this crate take them to the other one, as the code of its inference does.

use super::hadamard::hadamard;
use super::learned_scale_backward::{Learned, learned_scale_backward, lsq_factor};
use super::matmul::matmul;
use crate::kernel::matmul::Form;

/// The largest level of 1 to 4 bits in standard deviations of normal data, for the least squared error.
pub const CLIP: [f64; 4] =
    [0.797_884_558_714_091_3, 1.493_534_620_001_591_3, 2.051_068_354_131_873, 2.513_930_578_568_423];

/// Which elements the gradient of their quantized values passes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Passes {
    /// All.
    Everywhere,
    /// Magnitudes up to this factor on the largest level.
    Within(f64),
    /// Those that moved by at most half a step; with one bit those within 1.25 times the level, 1.30 where operands are rotated.
    Trusted,
}

/// How an operand is quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Not at all.
    Dense,
    /// To `2^bits` levels none of which is zero, by one scale per row: the largest is [`CLIP`] times the row's root mean square.
    Rows {
        /// At most 4.
        bits: usize,
        /// Of the gradient.
        passes: Passes,
    },
    /// To the integers of `bits` bits, two's complement, by one scale per tensor that is learned.
    Learned {
        /// At least 2.
        bits: u32,
    },
}

/// How the operands of linear layers are quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantizer {
    /// Along their rows.
    pub weights: Rule,
    /// Along the width of the layer.
    pub inputs: Rule,
    /// Block of the orthonormal Walsh-Hadamard transform that both go through first.
    pub block: Option<usize>,
}

impl Quantizer {
    /// None.
    pub const DENSE: Self = Self { weights: Rule::Dense, inputs: Rule::Dense, block: None };

    /// Whether the scales of weights and of inputs are learned.
    #[must_use]
    pub fn learns(&self) -> [bool; 2] {
        [self.weights, self.inputs].map(|rule| matches!(rule, Rule::Learned { .. }))
    }
}

/// An operand as it is multiplied.
#[derive(Clone, Debug)]
pub struct Operand {
    /// What was quantized.
    pub original: Vec<f64>,
    /// The same, rotated, if it is.
    pub rotated: Vec<f64>,
    /// What is multiplied.
    pub values: Vec<f64>,
    /// By how much each of [`Self::rotated`] may change, at least, before another level or another gradient is chosen: as a share of the sum of
    /// its magnitude and of its row's root mean square.
    pub clearance: Vec<f64>,
    block: Option<usize>,
    /// Columns; between two levels of each row.
    cols: usize,
    steps: Vec<f64>,
    back: Back,
}

/// What the gradient of the values that are multiplied meets first.
#[derive(Clone, Debug)]
enum Back {
    Mask(Vec<bool>),
    /// The scale is the magnitude of a parameter of this sign.
    Learned {
        learned: Learned,
        factor: f64,
        sign: f64,
    },
}

/// Gradients of an operand.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Of what was quantized.
    pub original: Vec<f64>,
    /// Of its scale, if that is learned.
    pub scale: Option<ScaleGradient>,
}

/// The gradient of a learned scale.
#[derive(Clone, Copy, Debug)]
pub struct ScaleGradient {
    /// The gradient.
    pub value: f64,
    /// The sum of the magnitudes of what it is a sum of, where rounding counts as a whole place and its row's root mean square.
    pub size: f64,
}

fn mean_square(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64
}

/// The distance of `place` to the nearest integer from -`last` to `last`.
fn from_integer(place: f64, last: f64) -> f64 {
    (place - place.round().clamp(-last, last)).abs()
}

impl Operand {
    /// `x`, rows of `cols` elements; `scale` where it is learned.
    ///
    /// # Panics
    /// Without a scale where it is learned.
    #[must_use]
    pub fn new(rule: Rule, x: &[f64], cols: usize, block: Option<usize>, scale: Option<f64>) -> Self {
        let rotated = block.map_or(x.to_vec(), |n| hadamard(x, n, false));
        let (mut values, mut clearance) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
        let mut all_steps = Vec::new();
        let back = match rule {
            Rule::Dense => {
                values.clone_from(&rotated);
                clearance.resize(x.len(), f64::INFINITY);
                Back::Mask(vec![true; x.len()])
            }
            Rule::Rows { bits, passes } => {
                let (clip, steps) = (CLIP[bits - 1], 2f64.powi(bits as i32) - 1.0);
                let mut mask = Vec::with_capacity(x.len());
                for row in rotated.chunks_exact(cols) {
                    let deviation = mean_square(row).sqrt();
                    let scale = clip * deviation + 1e-8;
                    let step = 2.0 * scale / steps;
                    all_steps.push(step);
                    let factor = match passes {
                        Passes::Within(factor) => Some(factor),
                        Passes::Trusted if bits == 1 => Some(if block.is_some() { 1.30 } else { 1.25 }),
                        Passes::Everywhere | Passes::Trusted => None,
                    };
                    for v in row {
                        let value = (v.clamp(-scale, scale) / step + 0.5).round_ties_even() * step - step / 2.0;
                        values.push(value);
                        mask.push(match (factor, passes) {
                            (Some(factor), _) => v.abs() <= factor * scale,
                            (None, Passes::Trusted) => (value - v).abs() <= deviation * clip / steps,
                            (None, _) => true,
                        });
                        // Levels are half-way between integers, and trust ends half a step beyond the last one.
                        let (place, middles) = (v / step, (steps - 1.0) / 2.0);
                        let distance = match (factor, passes) {
                            (Some(factor), _) => {
                                from_integer(place, middles).min((place.abs() - factor * steps / 2.0).abs())
                            }
                            (None, Passes::Trusted) => from_integer(place, middles + 1.0),
                            (None, _) => from_integer(place, middles),
                        };
                        clearance.push(distance * step / (v.abs() + deviation));
                    }
                }
                Back::Mask(mask)
            }
            Rule::Learned { bits } => {
                let parameter = scale.expect("a scale where it is learned");
                let learned = Learned::integers(bits, parameter.abs());
                for row in rotated.chunks_exact(cols) {
                    let deviation = mean_square(row).sqrt();
                    for v in row {
                        values.push(learned.value(*v));
                        let place = learned.place(*v);
                        // Middles between levels; the ends of the range, which are levels.
                        let middle = (place - 0.5).round().clamp(learned.low, learned.high - 1.0) + 0.5;
                        let edges = [middle, learned.low, learned.high];
                        let distance = edges.into_iter().map(|edge| (place - edge).abs()).fold(f64::INFINITY, f64::min);
                        clearance.push(distance * learned.scale / (v.abs() + deviation));
                    }
                }
                Back::Learned { learned, factor: lsq_factor(x.len(), learned.high), sign: parameter.signum() }
            }
        };
        Self { original: x.to_vec(), rotated, values, clearance, block, cols, steps: all_steps, back }
    }

    /// Takes the level that is nearest to `value` and this gradient for element `at`, where the scale is a row's: for elements with so little
    /// clearance that another computation decides otherwise.
    ///
    /// # Panics
    /// Where the scale is not a row's.
    pub fn choose(&mut self, at: usize, value: f64, passes: bool) {
        let step = self.steps[at / self.cols];
        self.values[at] = ((value / step - 0.5).round() + 0.5) * step;
        if let Back::Mask(mask) = &mut self.back {
            mask[at] = passes;
        }
    }

    /// The quantized values beside [`Self::original`]: rotated back.
    #[must_use]
    pub fn nearest(&self) -> Vec<f64> {
        self.rotated_back(&self.values)
    }

    fn rotated_back(&self, x: &[f64]) -> Vec<f64> {
        self.block.map_or(x.to_vec(), |n| hadamard(x, n, true))
    }

    /// The gradients from that of [`Self::values`].
    #[must_use]
    pub fn backward(&self, gradient: &[f64]) -> Gradients {
        match &self.back {
            Back::Mask(mask) => {
                let masked: Vec<f64> = gradient.iter().zip(mask).map(|(g, m)| if *m { *g } else { 0.0 }).collect();
                Gradients { original: self.rotated_back(&masked), scale: None }
            }
            Back::Learned { learned, factor, sign } => {
                let (masked, scale, _) = learned_scale_backward(&self.rotated, gradient, *learned, *factor);
                let unit = mean_square(&self.rotated).sqrt() / learned.scale;
                let terms = self.rotated.iter().zip(gradient).map(|(x, g)| {
                    let place = learned.place(*x).abs();
                    g.abs() * (learned.derivatives(*x)[1].abs() + place + unit)
                });
                let scale = ScaleGradient { value: sign * scale, size: factor * terms.sum::<f64>() };
                Gradients { original: self.rotated_back(&masked), scale: Some(scale) }
            }
        }
    }
}

/// A layer `y = Q(x H) Q(W H)^T`.
#[derive(Clone, Debug)]
pub struct Product {
    dims: [usize; 3],
    /// [m, n].
    pub y: Vec<f64>,
    /// The weight, [n, k].
    pub weight: Operand,
    /// The input, [m, k].
    pub input: Operand,
}

impl Product {
    /// Of an input `[m, k]` and a weight `[n, k]`; `dims` are m, n and k.
    #[must_use]
    pub fn new(dims: [usize; 3], weight: Operand, input: Operand) -> Self {
        let y = matmul(Form::Nt, dims, &input.values, &weight.values);
        Self { dims, y, weight, input }
    }

    /// The gradients of weight and input from that of the result.
    #[must_use]
    pub fn backward(&self, dy: &[f64]) -> [Gradients; 2] {
        let [m, n, k] = self.dims;
        let weight = self.weight.backward(&matmul(Form::Tn, [n, k, m], dy, &self.input.values));
        let input = self.input.backward(&matmul(Form::Nn, [m, k, n], dy, &self.weight.values));
        [weight, input]
    }
}
