//! Quantization-aware training: how linear layers quantize their operands.

use crate::format::Format;
use crate::kernel::packed::Packed;
use crate::kernel::quantize::{Options as QuantizeOptions, quantize};
use crate::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};

/// The formats of a linear layer's operands. Weights stay f32 in the optimizer and are quantized at every forward pass; gradients pass the
/// quantizers as if these were not there (straight-through estimation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantizer {
    /// Of weights, along their rows.
    pub weights: Format,
    /// Of inputs, along the width of the layer; `None`: they stay dense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<Format>,
}

impl Quantizer {
    /// The formats that flags name, if any.
    ///
    /// # Errors
    /// [`Error::Invalid`] for activations without weights: products need quantized weights beside quantized activations.
    pub fn new(weights: Option<Format>, activations: Option<Format>) -> Result<Option<Self>> {
        match (weights, activations) {
            (Some(weights), activations) => Ok(Some(Self { weights, activations })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Error::invalid("--activations", "--weights beside it", "--activations alone")),
        }
    }

    /// The quantized weight.
    ///
    /// # Shapes
    /// `weight` `[n, k]` f32.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape; [`Error::Limit`], [`Error::OutOfMemory`].
    pub fn weight(&self, weight: &Tensor) -> Result<Packed> {
        let &[n, k] = weight.shape() else {
            return Err(Error::shape("quantize", "a weight of shape [n, k]", format!("{:?}", weight.shape())));
        };
        let packed = Packed::empty(weight.context(), self.weights, n, k)?;
        quantize(weight.context(), weight.buffer(), &packed, QuantizeOptions::default())?;
        Ok(packed)
    }
}

impl std::fmt::Display for Quantizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.activations {
            Some(activations) => write!(f, "weights {}, activations {activations}", self.weights),
            None => write!(f, "weights {}", self.weights),
        }
    }
}
