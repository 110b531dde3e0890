//! Tensors as files have them.

use super::source::Problem;
use crate::format::PackedMatrix;

/// Element types of tensors that are not quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are called what they are")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

impl Dtype {
    /// Every one.
    pub const ALL: [Self; 16] = [
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::F8E5M2,
        Self::F8E4M3,
        Self::F8E8M0,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::I64,
        Self::U64,
        Self::F64,
    ];

    /// As safetensors spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E8M0 => "F8_E8M0",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::I64 => "I64",
            Self::U64 => "U64",
            Self::F64 => "F64",
        }
    }

    /// From safetensors' spelling.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E5M2 | Self::F8E4M3 | Self::F8E8M0 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// Whether [`floats`] reads it.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// As PyTorch spells it, for floats.
    pub(crate) const fn torch(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            _ => "float32",
        }
    }

    pub(crate) fn from_torch(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::BF16].into_iter().find(|dtype| dtype.torch() == name)
    }
}

/// A quantized tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTensor {
    /// Codes and scales. Its columns are the tensor's last dimension, its rows all others; where a container's blocks run over the flattened
    /// tensor and would cross rows, it has one row of all elements.
    pub matrix: PackedMatrix,
    /// The tensor's dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What it was before it was quantized, or what its container calls it.
    pub dtype: Dtype,
    /// Where columns are permuted (GPTQ's act-order): the tensor's column for each of the matrix's. The matrix has one row per row of the tensor
    /// then.
    pub order: Option<Vec<u32>>,
}

impl PackedTensor {
    /// Values in the tensor's order, from those of the matrix.
    pub(crate) fn in_order(&self, values: Vec<f32>) -> Vec<f32> {
        let Some(order) = &self.order else { return values };
        let mut sorted = vec![0.0; values.len()];
        for (to, from) in sorted.chunks_mut(order.len()).zip(values.chunks(order.len())) {
            for (value, col) in from.iter().zip(order) {
                to[*col as usize] = *value;
            }
        }
        sorted
    }
}

/// The values of a float tensor's bytes; none for other types.
#[must_use]
pub fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    match dtype {
        Dtype::F32 => Some(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => Some(halves(bytes).map(|b| half::f16::from_bits(b).to_f32()).collect()),
        Dtype::BF16 => Some(halves(bytes).map(|b| half::bf16::from_bits(b).to_f32()).collect()),
        _ => None,
    }
}

/// 16-bit words.
pub(crate) fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b))
}

/// 32-bit words.
pub(crate) fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b))
}

/// Bytes of 32-bit words.
pub(crate) fn word_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// How many elements a shape has, if that can be counted.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    // A zero makes the product small whatever else there is, so the others are multiplied on their own.
    shape.iter().filter(|n| **n != 0).try_fold(1usize, |n, d| n.checked_mul(*d))?;
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

/// Rows and columns of a tensor whose last dimension is the matrix's.
pub(crate) fn rows_and_cols(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [rows @ .., cols] => (rows.iter().fold(1, |n, d| n.saturating_mul(*d)), *cols),
    }
}

/// Refuses scales that are no numbers.
pub(crate) fn check_scales(matrix: &PackedMatrix) -> Result<(), Problem> {
    let layout = matrix.layout();
    for row in 0..layout.rows {
        for group in 0..layout.groups {
            for negative in &[false, true][..layout.scales] {
                let scale = matrix.scale(row, group, *negative);
                if !scale.is_finite() {
                    return Err(Problem::new(format!("finite scales (row {row}, group {group})"), scale));
                }
            }
        }
        if layout.scale_stride == 0 {
            break;
        }
    }
    Ok(())
}
