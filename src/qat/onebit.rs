//! OneBit (Xu et al., arXiv 2402.11295): a matrix of signs between two vectors of values, distilled from a model in full precision.

use super::{Asked, Coding, Distillation, Layer, Operand, Rule, Scale, only};
use crate::format::Format;
use crate::kernel::sign_gradient::Factor;
use crate::{Error, Result};
use std::fmt;

/// `y = norm([(x . g) Sign(W)^T] . h) + bias` with a layer norm without parameters over a layer's outputs, `Sign(0) = 1`; inputs stay
/// dense. The signs' gradient becomes the weights' by `1.001 - tanh(W)^2`, as in the authors' code; `g` and `h` (`<module>.input_values`
/// and `<module>.output_values`) are trained by plain gradients.
///
/// It starts from a teacher, a finished run in full precision: `|W| ~ h g^T` by the first singular vectors ([`svid`]), and behind the signs
/// `W = 0.01 Sign(W)`; all else is the teacher's. Trained is the mean over tokens of the cross-entropy with the teacher's distribution plus
/// `hidden` times the sum over layers of `|a / |a| - b / |b||^2` for the hidden states `a` and the teacher's `b`, from the embedding's
/// output to that of the last block but one.
///
/// The paper weighs the two parts alike, `hidden` = 1, which is the default. The authors' code multiplies the divergence, summed over the
/// tokens of a sequence, by 0.01; for sequences of 100 tokens that is the same, for longer ones the hidden states count for less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneBit {
    /// The weight of the hidden states' part.
    pub hidden: f32,
}

impl Default for OneBit {
    fn default() -> Self {
        Self { hidden: 1.0 }
    }
}

impl OneBit {
    pub(super) fn parse(options: &[&str]) -> Option<Self> {
        match options {
            [] => Some(Self::default()),
            [option] => {
                let hidden: f32 = option.strip_prefix("hidden=")?.parse().ok()?;
                (hidden.is_finite() && hidden >= 0.0).then_some(Self { hidden })
            }
            _ => None,
        }
    }
}

impl Rule for OneBit {
    fn spell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("onebit")?;
        if *self == Self::default() { Ok(()) } else { write!(f, ":hidden={}", self.hidden) }
    }

    fn format(&self, operand: Operand, asked: Option<Asked>) -> Result<Option<Format>> {
        match (operand, asked.and_then(Asked::format)) {
            (Operand::Weights, _) => only("onebit", "binary:tensor", asked),
            (Operand::Activations, None) => Ok(None),
            (Operand::Activations, Some(format)) => {
                let expected = "dense beside --method onebit, which has signs as weights and no 1-bit activations \
                    (quest and ste quantize activations too, to one bit and more; bitnet has ternary weights and int8 activations)";
                Err(Error::invalid(operand.flag(), expected, format!("`{format}`")))
            }
        }
    }

    fn refuse_rotation(&self, block: u32) -> Option<Error> {
        Some(super::no_rotation("onebit", block))
    }

    fn coding(&self, _: Operand, format: Format, hadamard: Option<u32>) -> Coding {
        // Levels are half a scale from zero.
        Coding { factor: Some(Factor::Smooth), scale: Scale::Fixed(2.0), ..Coding::new(format, hadamard) }
    }

    fn layer(&self) -> Layer {
        Layer::Valued
    }

    fn approximates_weights(&self) -> bool {
        // What is behind the signs is a hundredth of them at first.
        false
    }

    fn distillation(&self) -> Option<Distillation> {
        Some(Distillation { hidden: self.hidden })
    }
}

/// Magnitude of what is behind the signs at first.
const LATENT: f32 = 0.01;
/// Most steps of the power iteration. The first singular value of a matrix of magnitudes is far above the second: it settles within a few.
const STEPS: usize = 100;

/// What a layer starts from.
#[derive(Clone, Debug, PartialEq)]
pub struct Svid {
    /// `0.01 Sign(w)`, `[n, k]`.
    pub weight: Vec<f32>,
    /// `g`, `[k]`.
    pub input_values: Vec<f32>,
    /// `h`, `[n]`.
    pub output_values: Vec<f32>,
}

/// The sign-value-independent decomposition `W ~ Sign(W) . (h g^T)`: `h g^T` is the nearest matrix of rank one to `|W|` in the least
/// squares, with `|h| = |g|`. Its singular vectors have no negative entries, so it is the non-negative factorisation as well.
///
/// # Errors
/// [`Error::Shape`] where `weight` is not of rows of `k`; [`Error::Invalid`] for what is not finite.
///
/// # Numerics
/// Power iteration in float64 up to a relative change of 1e-12.
///
/// # Source
/// OneBit, arXiv 2402.11295.
pub fn svid(weight: &[f32], k: usize) -> Result<Svid> {
    if k == 0 || weight.is_empty() || !weight.len().is_multiple_of(k) {
        return Err(Error::shape("svid", "a weight of shape [n, k]", format!("{} elements, k = {k}", weight.len())));
    }
    if !weight.iter().all(|w| w.is_finite()) {
        return Err(Error::invalid("svid", "a finite weight", "one that is not"));
    }
    let size = |w: &f32| f64::from(w.abs());
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    #[expect(clippy::cast_precision_loss, reason = "a width")]
    let mut right = vec![1.0 / (k as f64).sqrt(); k];
    let mut left = Vec::new();
    let mut value = 0.0;
    for _ in 0..STEPS {
        left = weight.chunks_exact(k).map(|row| row.iter().zip(&right).map(|(w, v)| size(w) * v).sum()).collect();
        let length = norm(&left);
        if length == 0.0 {
            // A matrix of zeros.
            break;
        }
        left.iter_mut().for_each(|u| *u /= length);
        let mut next = vec![0.0; k];
        for (row, u) in weight.chunks_exact(k).zip(&left) {
            next.iter_mut().zip(row).for_each(|(v, w)| *v += size(w) * u);
        }
        let before = std::mem::replace(&mut value, norm(&next));
        right = next.iter().map(|v| v / value).collect();
        if (value - before).abs() <= 1e-12 * value {
            break;
        }
    }
    let root = value.sqrt();
    let scaled = |v: &[f64]| v.iter().map(|x| (x * root) as f32).collect();
    Ok(Svid {
        weight: weight.iter().map(|w| if *w >= 0.0 { LATENT } else { -LATENT }).collect(),
        input_values: scaled(&right),
        output_values: scaled(&left),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    #[test]
    fn rank_one_comes_back() {
        // A product of two vectors with signs: nothing is lost.
        let (n, k) = (5, 7);
        let h: Vec<f64> = (0..n).map(|i| 0.3 + f64::from(i)).collect();
        let g: Vec<f64> = (0..k).map(|i| 2.0 - 0.2 * f64::from(i)).collect();
        let mut random = Philox::new(1, 2);
        let weight: Vec<f32> = (0..n * k)
            .map(|i| {
                let size = h[(i / k) as usize] * g[(i % k) as usize];
                (if random.next_f64() < 0.5 { -size } else { size }) as f32
            })
            .collect();
        let found = svid(&weight, k as usize).unwrap();
        for (i, w) in weight.iter().enumerate() {
            let (a, b) = (found.output_values[i / k as usize], found.input_values[i % k as usize]);
            assert!((a * b - w.abs()).abs() < 1e-6 * w.abs(), "{i}");
            assert_eq!(found.weight[i], 0.01f32.copysign(*w));
        }
        let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((norm(&found.input_values) / norm(&found.output_values) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn no_other_matrix_of_rank_one_is_nearer() {
        let (n, k) = (6, 9);
        let mut random = Philox::new(3, 4);
        let weight: Vec<f32> = (0..n * k).map(|_| (random.next_f64() - 0.5) as f32).collect();
        let found = svid(&weight, k).unwrap();
        let error = |h: &[f64], g: &[f64]| -> f64 {
            (0..n * k).map(|i| (f64::from(weight[i].abs()) - h[i / k] * g[i % k]).powi(2)).sum()
        };
        let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (h, g) = (wide(&found.output_values), wide(&found.input_values));
        let best = error(&h, &g);
        assert!(h.iter().chain(&g).all(|v| *v >= 0.0));
        for i in 0..n + k {
            for step in [-1e-3, 1e-3] {
                let (mut h, mut g) = (h.clone(), g.clone());
                if i < n {
                    h[i] += step
                } else {
                    g[i - n] += step
                }
                assert!(error(&h, &g) > best, "{i}");
            }
        }
    }

    #[test]
    fn edges() {
        let zeros = svid(&[0.0, -0.0, 0.0, 0.0], 2).unwrap();
        assert_eq!(zeros.weight, [0.01; 4]);
        assert_eq!((zeros.input_values, zeros.output_values), (vec![0.0; 2], vec![0.0; 2]));
        assert!(matches!(svid(&[1.0; 3], 2), Err(Error::Shape { .. })));
        assert!(matches!(svid(&[f32::NAN; 4], 2), Err(Error::Invalid { .. })));
    }
}
