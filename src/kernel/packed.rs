//! Quantized matrices on the device: what every kernel that reads or writes them shares.

use super::dim;
use crate::buffer::Buffer;
use crate::format::{Format, Grid, Layout, PackedMatrix, Span, Store};
use crate::shader::{Define, Defines};
use crate::{Context, DType, Error, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// A quantized matrix `[rows, cols]` on the device, in the layout of [`PackedMatrix`]. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Packed(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    format: Format,
    layout: Layout,
    codes: Buffer,
    side: Buffer,
    /// For [`crate::kernel::quantize`] to count its workgroups with, from the first time that it does: zeros before and after.
    tally: Mutex<Option<Buffer>>,
}

impl Packed {
    /// Memory for a matrix; its content is undefined.
    ///
    /// # Errors
    /// [`crate::Error::Limit`], [`crate::Error::OutOfMemory`].
    pub fn empty(context: &Context, format: Format, rows: usize, cols: usize) -> Result<Self> {
        let layout = Layout::new(&format, rows, cols)?;
        let codes = context.alloc(layout.code_words, DType::U32)?;
        let side = context.alloc(layout.side_words, DType::U32)?;
        Ok(Self(Arc::new(Parts { format, layout, codes, side, tally: Mutex::new(None) })))
    }

    /// A copy of a matrix of the host.
    ///
    /// # Errors
    /// [`crate::Error::Limit`], [`crate::Error::OutOfMemory`].
    pub fn from_host(context: &Context, matrix: &PackedMatrix) -> Result<Self> {
        let layout = *matrix.layout();
        let packed = Self::empty(context, matrix.format(), layout.rows, layout.cols)?;
        context.upload(&packed.0.codes, bytemuck::cast_slice(matrix.codes()))?;
        context.upload(&packed.0.side, bytemuck::cast_slice(matrix.side()))?;
        Ok(packed)
    }

    /// Copies it to the host, submitting and waiting for what is recorded.
    ///
    /// # Errors
    /// As [`crate::Tensor::to_vec`].
    pub fn to_host(&self, context: &Context) -> Result<PackedMatrix> {
        let (codes, side) = (context.readback(&self.0.codes)?, context.readback(&self.0.side)?);
        let words = |bytes: Vec<u8>| bytemuck::pod_collect_to_vec(&bytes);
        let Layout { rows, cols, .. } = self.0.layout;
        PackedMatrix::from_words(self.0.format, rows, cols, words(codes.wait()?), words(side.wait()?))
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.0.format
    }

    /// Sizes and places.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Packed codes, u32.
    #[must_use]
    pub fn codes(&self) -> &Buffer {
        &self.0.codes
    }

    /// Header, scales and zero points, u32.
    #[must_use]
    pub fn side(&self) -> &Buffer {
        &self.0.side
    }

    /// Of this matrix alone, so that quantizing another one need not wait.
    pub(super) fn tally(&self, context: &Context) -> Result<Buffer> {
        let mut tally = self.0.tally.lock().unwrap_or_else(PoisonError::into_inner);
        match &*tally {
            Some(tally) => Ok(tally.clone()),
            None if !context.owns(&self.0.side) => Err(Error::ContextMismatch { op: "quantize" }),
            None => Ok(tally.insert(context.tally()?).clone()),
        }
    }

    /// Bytes of codes and side data.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.codes.bytes() + self.0.side.bytes()
    }

    /// What shaders are told of the layout.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] where a size does not fit 32 bits.
    pub(crate) fn info(&self) -> Result<PackedInfo> {
        let l = &self.0.layout;
        let half = 1u32 << (self.0.format.bits() - 1);
        Ok(PackedInfo {
            cols: dim(l.cols)?,
            row_words: dim(l.row_words)?,
            groups: dim(l.groups)?,
            group_shift: match self.0.format.span() {
                Span::Group(n) => n.trailing_zeros(),
                Span::Row | Span::Tensor => 31,
            },
            store: match self.0.format.store() {
                Store::F32 => 0,
                Store::F16 => 1,
                Store::E8M0(_) => 2,
                Store::E4M3 | Store::Ue4m3 => 3,
                Store::Double => 4,
            },
            scale_stride: dim(l.scale_stride)?,
            zeros_at: dim(l.zeros_at)?,
            zero_stride: dim(l.zero_stride)?,
            nested_at: dim(l.nested_at)?,
            map_at: dim(l.map_at)?,
            #[expect(clippy::cast_precision_loss, reason = "at most 128")]
            zero: match self.0.format.grid() {
                Grid::Centred { .. } => half as f32 - 0.5,
                _ => half as f32,
            },
            code: Decode::of(&self.0.format).word(),
        })
    }
}

/// The twin of `PackedInfo` in `shaders/common/packed_info.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct PackedInfo {
    pub cols: u32,
    pub row_words: u32,
    pub groups: u32,
    pub group_shift: u32,
    pub store: u32,
    pub scale_stride: u32,
    pub zeros_at: u32,
    pub zero_stride: u32,
    pub nested_at: u32,
    pub map_at: u32,
    pub zero: f32,
    pub code: u32,
}

const _: () = assert!(std::mem::size_of::<PackedInfo>() == 48);

/// All that the decoding of codes is specialised by: scales and groups are run-time values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Decode {
    /// 0 integers, 1 integers with zero points, 2 small floats, 3 NF4, 4 FP4, 5 NF3.
    pub grid: u32,
    pub bits: u32,
    pub exponent: u32,
    pub mantissa: u32,
}

/// Names of a matrix's defines: `A` for the left operand, `B` for the right one or the only one.
pub(crate) type Names = [&'static str; 4];
pub(crate) const A: Names = ["A_GRID", "A_BITS", "A_EXPONENT", "A_MANTISSA"];
pub(crate) const B: Names = ["B_GRID", "B_BITS", "B_EXPONENT", "B_MANTISSA"];

impl Decode {
    /// How a format's codes are decoded.
    pub fn of(format: &Format) -> Self {
        let (grid, (exponent, mantissa)) = match format.grid() {
            Grid::Int { .. } | Grid::Centred { .. } => (0, (0, 0)),
            Grid::ZeroPoint { .. } => (1, (0, 0)),
            Grid::Float(float) => (2, float.layout()),
            Grid::Nf4 => (3, (0, 0)),
            Grid::Fp4 => (4, (0, 0)),
            Grid::Nf3 => (5, (0, 0)),
        };
        Self { grid, bits: format.bits(), exponent, mantissa }
    }

    /// Every way there is.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        all.extend((1..=8).map(|bits| Self { grid: 0, bits, exponent: 0, mantissa: 0 }));
        all.extend((2..=8).map(|bits| Self { grid: 1, bits, exponent: 0, mantissa: 0 }));
        for float in crate::format::Minifloat::ALL {
            let (exponent, mantissa) = float.layout();
            all.push(Self { grid: 2, bits: float.bits(), exponent, mantissa });
        }
        all.extend([(3, 4), (4, 4), (5, 3)].map(|(grid, bits)| Self { grid, bits, exponent: 0, mantissa: 0 }));
        all
    }

    /// The same in one word, as `shaders/common/packed_any.wgsl` takes it.
    pub fn word(self) -> u32 {
        self.bits | self.grid << 4 | self.exponent << 8 | self.mantissa << 12
    }

    /// The defines that `shaders/common/packed.wgsl` asks for.
    pub fn defines(self, names: &Names) -> Defines {
        let values = [self.grid, self.bits, self.exponent, self.mantissa];
        names.iter().copied().zip(values.map(Define::U32)).collect()
    }
}
