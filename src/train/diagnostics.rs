//! What quantization does to each layer: errors, masks, and how far the gradients that it lets through are from those of full precision.

use crate::kernel::mask;
use crate::kernel::packed::Packed;
use crate::kernel::sign_gradient::Factor;
use crate::nn::{Gpt, Probe, ProbedInput, TrainPass};
use crate::op::LossOptions;
use crate::qat::{self, Coding, Encoded, Lsq, rotate};
use crate::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// Of one linear layer; numbers that do not apply, or are not finite, are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerDiagnostics {
    /// `|W - Q(W)|^2 / |W|^2`, both after the rotation where there is one (which changes neither norm); none where quantized weights do not
    /// approximate them ([`crate::qat::Method::approximates_weights`]), as signs of one size whatever that of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_error: Option<f64>,
    /// The same of the layer's inputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_error: Option<f64>,
    /// `|W - Q(W)| / |W|`, the distance to the grid; none likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid_distance: Option<f64>,
    /// Share of the weights that get no gradient; none where the method masks nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_weights: Option<f64>,
    /// Share of the inputs that pass no gradient on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_inputs: Option<f64>,
    /// Of the weights that were masked at the time before, the share that is masked again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub still_masked: Option<f64>,
    /// Share of the weight's scales that are the largest one its format stores, to which larger ones saturate; none where values reach no such
    /// end ([`crate::format::Format::saturated_scale`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturated_weights: Option<f64>,
    /// The same of the inputs' scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturated_inputs: Option<f64>,
    /// Cosine between the gradient of the weight and that in full precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
}

/// By the name of the layer.
pub type Diagnostics = BTreeMap<String, LayerDiagnostics>;

/// Which weights were masked the last time.
#[derive(Debug, Default)]
pub struct Masks(HashMap<usize, Mask>);

/// A bit per element of a matrix, 1 where the gradient passes.
#[derive(Debug)]
struct Mask {
    words: Vec<u32>,
    cols: usize,
}

impl Mask {
    /// The masked elements, 32 to a word.
    fn masked(&self) -> impl Iterator<Item = u32> {
        let stride = mask::words(1, self.cols);
        // What is beyond the columns is no element.
        let last = u32::MAX >> (stride * 32 - self.cols);
        self.words.iter().enumerate().map(move |(i, word)| !word & if (i + 1) % stride == 0 { last } else { u32::MAX })
    }
}

/// What an operand loses.
struct Loss {
    error: Option<f64>,
    mask: Option<Mask>,
    saturated: Option<f64>,
}

/// A learned scale and offset, and where they lead gradients.
struct Learned {
    scale: f64,
    offset: f64,
    range: [f64; 2],
}

/// Quantizes `x` as a layer does, unless it did, by these scale and offset if they are learned, and compares in float64 on the host, row by row.
fn loss(
    x: &Tensor,
    codes: Option<(&Packed, Option<&Tensor>)>,
    coding: &Coding,
    lsq: Option<Lsq>,
    scales: [Option<&Tensor>; 2],
) -> Result<Loss> {
    let context = x.context();
    let shape @ [_, cols] = [x.rows(), x.columns()];
    let (matrix, mask, learned) = match lsq {
        None => {
            let own = |(packed, mask): (&Packed, Option<&Tensor>)| {
                let mask = mask.map(|mask| mask.buffer().clone());
                Encoded { packed: packed.clone(), mask }
            };
            let Encoded { packed, mask } =
                codes.map_or_else(|| coding.encode(x, shape, true), |codes| Ok(own(codes)))?;
            (packed.to_host(context)?, mask.map(|mask| context.readback(&mask)).transpose()?, None)
        }
        Some(lsq) => {
            let (packed, learned) = qat::Learned::encode(lsq, coding, x, shape, scales, false)?;
            let matrix = packed.to_host(context)?;
            let offset = scales[1].map_or(Ok(0.0), Tensor::item)?.into();
            let scale = matrix.scale(0, 0, false);
            let learned = learned.range().map(|range| Learned { scale, offset, range });
            (matrix, None, learned)
        }
    };
    let x = x.to_vec()?;
    let offset = learned.as_ref().map_or(0.0, |learned| learned.offset);
    let mut words = Vec::new();
    let (mut error, mut norm) = (0.0, 0.0);
    let (mut codes, mut own, mut other) = (vec![0; cols], vec![0.0; cols], vec![0.0; cols]);
    for (row, values) in x.chunks_exact(cols).enumerate() {
        own.iter_mut().zip(values).for_each(|(to, from)| *to = f64::from(*from));
        if let Some(block) = coding.hadamard {
            rotate(&mut own, block as usize);
        }
        matrix.row_values(row, &mut codes, &mut other);
        other.iter_mut().for_each(|value| *value += offset);
        error += own.iter().zip(&other).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        norm += own.iter().map(|a| a * a).sum::<f64>();
        if let Some(Learned { scale, offset, range: [low, high] }) = learned {
            let passes = |value: &f64| u32::from((low * scale..=high * scale).contains(&(value - offset)));
            let word = |values: &[f64]| values.iter().rev().fold(0, |word, value| word << 1 | passes(value));
            words.extend(own.chunks(32).map(word));
        }
    }
    if let Some(read) = mask {
        words = bytemuck::pod_collect_to_vec(&read.wait()?);
    }
    // Not by a mask that the kernel wrote, but by the weight itself: [`crate::kernel::sign_gradient`]. A NaN gets no gradient either. Its other
    // factors let something of every gradient through.
    if coding.factor == Some(Factor::Clip) {
        let word = |values: &[f32]| values.iter().rev().fold(0, |word, w| word << 1 | u32::from(w.abs() <= 1.0));
        words = x.chunks_exact(cols).flat_map(|row| row.chunks(32).map(word)).collect();
    }
    let mask = (!words.is_empty()).then_some(Mask { words, cols });
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let saturated = matrix.largest_scales().and_then(|[all, largest]| finite(largest as f64 / all as f64));
    Ok(Loss { error: finite(error / norm), mask, saturated })
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// The share of masked elements among `of`.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn share(masked: impl Iterator<Item = u32>, of: u64) -> Option<f64> {
    let masked: u64 = masked.map(|word| u64::from(word.count_ones())).sum();
    finite(masked as f64 / of as f64)
}

fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    finite(dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()))
}

/// Gradients of the weights, by parameter, of a pass without dropout. They take no part in training: none is left behind.
fn gradients(
    gpt: &Gpt,
    [tokens, targets]: [&Tensor; 2],
    options: LossOptions<'_>,
    probe: Probe<'_>,
    mut take: impl FnMut(usize, &[f32]),
) -> Result<()> {
    let parameters = gpt.parameters();
    let mut pass = || {
        let loss = gpt.probed_logits(tokens, None, probe)?.cross_entropy(targets, options)?;
        loss.backward()?;
        for index in (0..parameters.len()).filter(|index| gpt.is_quantized(*index)) {
            if let Some(gradient) = parameters.gradient(index) {
                take(index, &gradient.to_vec()?);
            }
        }
        Ok(())
    };
    let result = pass();
    parameters.zero_grad();
    result
}

/// Diagnoses the quantized layers of a model on one batch, with its parameters as they are, without dropout: what weights and inputs lose, and
/// the gradients of the weights beside those of a pass that quantizes nothing. A factor on the loss (`options`) cancels out. `rounding` is
/// where methods that quantize the backward pass too have random numbers from; others need none. Waits for the device; the host holds the
/// gradients of all quantized weights once.
///
/// # Errors
/// [`Error::Invalid`] where gradients are accumulated and not yet used, and without `rounding` where the method asks for it; of the device;
/// on a host's device, which nobody waits for here, [`Error::Invalid`].
pub fn diagnose(
    gpt: &Gpt,
    tokens: &Tensor,
    targets: &Tensor,
    options: LossOptions<'_>,
    rounding: Option<TrainPass<'_>>,
    before: &mut Masks,
) -> Result<Diagnostics> {
    let Some(quantizer) = gpt.config().quantizer else { return Ok(Diagnostics::new()) };
    let parameters = gpt.parameters();
    if (0..parameters.len()).any(|index| parameters.gradient(index).is_some()) {
        return Err(Error::invalid("diagnose", "no gradients that wait for an optimizer step", "some"));
    }
    let found = RefCell::new(HashMap::<usize, LayerDiagnostics>::new());
    let input = |ProbedInput { index, values: x, codes }: ProbedInput<'_>| {
        let Some(coding) = quantizer.activation_coding() else { return Ok(()) };
        let scales = gpt.learned_scales(index).map_or([None; 2], |scales| [scales.input, scales.offset]);
        let Loss { error, mask, saturated } = loss(x, codes, &coding, quantizer.learned(), scales)?;
        let masked_inputs = mask.and_then(|mask| share(mask.masked(), x.len() as u64));
        let layer = LayerDiagnostics {
            input_error: error,
            masked_inputs,
            saturated_inputs: saturated,
            ..LayerDiagnostics::default()
        };
        found.borrow_mut().insert(index, layer);
        Ok(())
    };
    let mut quantized = HashMap::new();
    let probe = Probe { input: Some(&input), rounding, ..Probe::default() };
    gradients(gpt, [tokens, targets], options, probe, |index, gradient| {
        quantized.insert(index, gradient.to_vec());
    })?;
    let mut found = found.into_inner();
    let dense = Probe { dense: true, ..Probe::default() };
    gradients(gpt, [tokens, targets], options, dense, |index, gradient| {
        let layer = found.entry(index).or_default();
        layer.cosine = quantized.remove(&index).and_then(|quantized| cosine(&quantized, gradient));
    })?;
    let mut all = Diagnostics::new();
    for (index, (info, weight)) in parameters.iter().enumerate().filter(|(index, _)| gpt.is_quantized(*index)) {
        let scales = [gpt.learned_scales(index).map(|scales| scales.weight), None];
        let Loss { error, mask, saturated } =
            loss(weight, None, &quantizer.weight_coding(), quantizer.learned(), scales)?;
        let layer = found.entry(index).or_default();
        let error = error.filter(|_| quantizer.method.approximates_weights());
        (layer.weight_error, layer.grid_distance) = (error, error.map(f64::sqrt));
        layer.saturated_weights = saturated;
        if let Some(mask) = mask {
            layer.masked_weights = share(mask.masked(), weight.len() as u64);
            layer.still_masked = before.0.get(&index).and_then(|before| {
                let was: u64 = before.masked().map(|word| u64::from(word.count_ones())).sum();
                share(before.masked().zip(mask.masked()).map(|(before, now)| before & now), was)
            });
            before.0.insert(index, mask);
        }
        let name = info.name.strip_suffix(".weight").unwrap_or(&info.name);
        all.insert(name.to_owned(), *layer);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_end_with_their_columns() {
        // Two rows of 33: of the second one's last word only the lowest bit is an element.
        let mask = Mask { words: vec![0xFFFF_FFF0, 1, u32::MAX, 0xFFFF_FFFE], cols: 33 };
        assert_eq!(mask.masked().collect::<Vec<_>>(), [0xF, 0, 0, 1]);
        assert_eq!(share(mask.masked(), 66), Some(5.0 / 66.0));
        let full = Mask { words: vec![0, 0], cols: 64 };
        assert_eq!(share(full.masked(), 64), Some(1.0));
        assert_eq!(share([].into_iter(), 0), None);
    }

    #[test]
    fn cosines_of_what_has_no_direction_are_left_out() {
        assert_eq!(cosine(&[1.0, 2.0], &[2.0, 4.0]).map(|c| (c * 1e9).round()), Some(1e9));
        assert_eq!(cosine(&[0.0, 0.0], &[2.0, 4.0]), None);
        assert_eq!(cosine(&[f32::INFINITY, 0.0], &[2.0, 4.0]), None);
    }
}
