//! Quantization-aware training: how linear layers quantize their operands.

use crate::format::Format;
use crate::kernel::packed::Packed;
use crate::kernel::quantize::{Options as QuantizeOptions, quantize};
use crate::{Error, Result, Tensor, Tier};
use serde::{Deserialize, Serialize};

/// How quantizers pass gradients on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Nothing is quantized.
    #[default]
    None,
    /// Straight-through estimation: gradients pass quantizers as if these were not there.
    Ste,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 2] = [Self::None, Self::Ste];

    /// The name used by flags and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ste => "ste",
        }
    }

    /// What it makes of the formats that flags name.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag, for formats without a method, a method without formats, or as [`Quantizer::new`].
    pub fn quantizer(self, weights: Option<Format>, activations: Option<Format>) -> Result<Option<Quantizer>> {
        let given = [("--weights", weights), ("--activations", activations)];
        match (self, given.into_iter().find_map(|(flag, format)| Some((flag, format?)))) {
            (Self::None, None) => Ok(None),
            (Self::None, Some((flag, format))) => {
                Err(Error::invalid(flag, "no format beside --method none", format!("`{format}`")))
            }
            (Self::Ste, None) => Err(Error::invalid("--method", "none where there are no --weights", "ste")),
            (Self::Ste, Some(_)) => Quantizer::new(weights, activations),
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid("--method", format!("one of {names}"), format!("`{name}`"))
        })
    }
}

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
        encode(weight, self.weights, [n, k])
    }
}

/// `x` as a matrix in `format`.
pub(crate) fn encode(x: &Tensor, format: Format, [rows, cols]: [usize; 2]) -> Result<Packed> {
    let context = x.context();
    let packed = Packed::empty(context, format, rows, cols)?;
    // Only products by cooperative matrices ask for the norm.
    let options = QuantizeOptions { skip_norm: context.tier() < Tier::Coop, ..QuantizeOptions::default() };
    quantize(context, x.buffer(), &packed, options)?;
    Ok(packed)
}

impl std::fmt::Display for Quantizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.activations {
            Some(activations) => write!(f, "weights {}, activations {activations}", self.weights),
            None => write!(f, "weights {}", self.weights),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_go_with_their_formats() {
        let format = |name: &str| Some(name.parse::<Format>().unwrap());
        let (four, eight) = (format("int4"), format("int8:row"));
        assert_eq!(Method::None.quantizer(None, None).unwrap(), None);
        let quantizer = Method::Ste.quantizer(four, eight).unwrap().unwrap();
        assert_eq!((Some(quantizer.weights), quantizer.activations), (four, eight));
        for (method, weights, activations, message) in [
            (Method::None, four, None, "--weights: expected no format beside --method none, found `int4`"),
            (Method::None, None, eight, "--activations: expected no format beside --method none"),
            (Method::Ste, None, None, "--method: expected none where there are no --weights, found ste"),
            (Method::Ste, None, eight, "--activations: expected --weights beside it"),
        ] {
            let error = method.quantizer(weights, activations).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
        for method in Method::ALL {
            assert_eq!(method.name().parse::<Method>().unwrap(), method);
        }
        assert!("magic".parse::<Method>().unwrap_err().to_string().contains("one of none, ste, found `magic`"));
    }
}
