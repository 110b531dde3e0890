//! Tensors: shape, element type and a range of device memory; optionally a place in the autograd graph.

use crate::autograd::Node;
use crate::buffer::{Buffer, Readback, elements};
use crate::kernel::matmul::Activation;
use crate::{Context, Error, Result, kernel};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Element types of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float: operands and stored activations of the f16 precision.
    F16,
    /// 32-bit unsigned integer: tokens, packed codes.
    U32,
}

impl DType {
    /// Bytes per element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U32 => "u32",
        })
    }
}

/// Where a parameter's gradient lives: a range of the gradient arena that weight-gradient kernels write or add to directly.
#[derive(Debug)]
pub(crate) struct GradSlot {
    pub buffer: Buffer,
    /// True once something was written since the last [`crate::optim::Parameters::zero_grad`]: from then on kernels add.
    pub written: AtomicBool,
}

impl GradSlot {
    /// From now on there is no gradient: the next kernel overwrites what is there.
    pub fn forget(&self) {
        self.written.store(false, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub id: u64,
    pub context: Context,
    pub buffer: Buffer,
    pub shape: Vec<usize>,
    pub node: Option<Arc<Node>>,
    pub requires_grad: bool,
    pub slot: Option<GradSlot>,
    /// The f16 copy of an f32 parameter that the optimizer keeps up to date.
    pub half: Option<Buffer>,
    /// Set if this tensor is an activation of another one: a product that consumes it hands its gradient straight to that one, multiplied by
    /// the derivative on the way out of the kernel.
    pub activation: Option<(Activation, Tensor)>,
}

/// One counter for all contexts, so that one `Gradients` can hold tensors of several.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Inner {
    /// A plain tensor.
    pub fn plain(context: &Context, buffer: Buffer, shape: &[usize]) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), buffer.len());
        Self::of(context, buffer, shape)
    }

    /// The same, also where there are no values, see [`Tensor::shape_only`].
    pub fn of(context: &Context, buffer: Buffer, shape: &[usize]) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            context: context.clone(),
            buffer,
            shape: shape.to_vec(),
            node: None,
            requires_grad: false,
            slot: None,
            half: None,
            activation: None,
        }
    }
}

/// An n-dimensional array in device memory, row-major and contiguous. Clones are handles to the same array.
#[derive(Clone, Debug)]
pub struct Tensor(pub(crate) Arc<Inner>);

impl Tensor {
    pub(crate) fn new(context: &Context, buffer: Buffer, shape: &[usize]) -> Self {
        Self::with(Inner::plain(context, buffer, shape))
    }

    pub(crate) fn with(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// A tensor of undefined content.
    pub(crate) fn empty(context: &Context, shape: &[usize], dtype: DType) -> Result<Self> {
        Ok(Self::new(context, context.alloc(elements(shape)?, dtype)?, shape))
    }

    /// A shape without memory, for what operations are given in another form; its gradient has this shape and type. Whatever would read it finds
    /// its length wrong.
    pub(crate) fn shape_only(context: &Context, shape: &[usize], dtype: DType) -> Result<Self> {
        Ok(Self::with(Inner::of(context, context.alloc(0, dtype)?, shape)))
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::Limit`] or [`Error::OutOfMemory`]; [`Error::Unsupported`] for f16 without `SHADER_F16`.
    pub fn zeros(context: &Context, shape: &[usize], dtype: DType) -> Result<Self> {
        let tensor = Self::empty(context, shape, dtype)?;
        context.clear(&tensor.0.buffer)?;
        Ok(tensor)
    }

    /// An f32 tensor from the host, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` does not fill `shape`; [`Error::Limit`] or [`Error::OutOfMemory`].
    pub fn from_f32(context: &Context, data: &[f32], shape: &[usize]) -> Result<Self> {
        Self::from_bytes(context, bytemuck::cast_slice(data), shape, DType::F32)
    }

    /// An f16 tensor from the host, row-major.
    ///
    /// # Errors
    /// As [`Tensor::from_f32`], and [`Error::Unsupported`] without `SHADER_F16`.
    pub fn from_f16(context: &Context, data: &[half::f16], shape: &[usize]) -> Result<Self> {
        Self::from_bytes(context, bytemuck::cast_slice(data), shape, DType::F16)
    }

    /// A u32 tensor (tokens, say) from the host, row-major.
    ///
    /// # Errors
    /// As [`Tensor::from_f32`].
    pub fn from_u32(context: &Context, data: &[u32], shape: &[usize]) -> Result<Self> {
        Self::from_bytes(context, bytemuck::cast_slice(data), shape, DType::U32)
    }

    pub(crate) fn from_bytes(context: &Context, bytes: &[u8], shape: &[usize], dtype: DType) -> Result<Self> {
        let tensor = Self::empty(context, shape, dtype)?;
        tensor.write(bytes)?;
        Ok(tensor)
    }

    /// Replaces the content, in the order of recorded commands: those before it still see the old one. The f16 copy that is kept of a
    /// parameter follows.
    ///
    /// # Errors
    /// [`Error::Shape`] if `bytes` is not exactly the tensor's size; [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 != self.0.buffer.bytes() {
            return Err(Error::shape(
                "write",
                format!("{} bytes for shape {:?} of {}", self.0.buffer.bytes(), self.shape(), self.dtype()),
                format!("{} bytes", bytes.len()),
            ));
        }
        self.0.context.upload(&self.0.buffer, bytes)?;
        match &self.0.half {
            Some(half) => kernel::accumulate::accumulate(&self.0.context, &self.0.buffer, half, false),
            None => Ok(()),
        }
    }

    /// The shape, outermost dimension first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.buffer.len()
    }

    /// True if there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the last dimension (1 for a scalar).
    #[must_use]
    pub fn columns(&self) -> usize {
        self.0.shape.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.0.buffer.dtype()
    }

    /// The context it lives in.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// The memory behind it, to bind in a shader of one's own.
    #[must_use]
    pub fn buffer(&self) -> &Buffer {
        &self.0.buffer
    }

    /// The number that identifies it, and its gradient.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// True if gradients flow to it: it is a leaf that asks for one, or computed from such a leaf.
    #[must_use]
    pub fn requires_grad(&self) -> bool {
        self.0.requires_grad
    }

    /// A leaf over the same memory for which [`crate::Gradients`] will hold a gradient.
    #[must_use]
    pub fn with_grad(&self) -> Self {
        let plain = Inner::plain(&self.0.context, self.0.buffer.clone(), &self.0.shape);
        Self::with(Inner { requires_grad: true, half: self.0.half.clone(), ..plain })
    }

    /// The same memory outside the graph: no gradient flows through it.
    #[must_use]
    pub fn detach(&self) -> Self {
        let plain = Inner::plain(&self.0.context, self.0.buffer.clone(), &self.0.shape);
        Self::with(Inner { half: self.0.half.clone(), ..plain })
    }

    /// The same memory with another shape, outside the graph.
    pub(crate) fn view(&self, shape: &[usize]) -> Self {
        let plain = Inner::plain(&self.0.context, self.0.buffer.clone(), shape);
        Self::with(Inner { half: self.0.half.clone(), ..plain })
    }

    /// `self` if it has this type, else a conversion; outside the graph.
    pub(crate) fn cast(self, dtype: DType) -> Result<Self> {
        if self.dtype() == dtype {
            return Ok(self);
        }
        let out = Self::empty(self.context(), self.shape(), dtype)?;
        kernel::accumulate::accumulate(self.context(), self.buffer(), out.buffer(), false)?;
        Ok(out)
    }

    /// True if nothing else refers to this tensor or its memory, so that it may be overwritten.
    pub(crate) fn is_exclusive(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.0.buffer.is_unique()
    }

    /// Starts copying it to the host, without waiting. Part of the next submit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn read(&self) -> Result<Readback> {
        self.0.context.readback(&self.0.buffer)
    }

    /// Its elements as f32 (f16 and u32 are converted), submitting and waiting for what is recorded.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Device`]; on a host's device [`Error::Invalid`].
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let bytes = self.read()?.wait()?;
        Ok(match self.dtype() {
            DType::F32 => bytemuck::pod_collect_to_vec(&bytes),
            DType::F16 => bytemuck::pod_collect_to_vec::<u8, half::f16>(&bytes).into_iter().map(f32::from).collect(),
            #[expect(clippy::cast_precision_loss, reason = "documented conversion")]
            DType::U32 => bytemuck::pod_collect_to_vec::<u8, u32>(&bytes).into_iter().map(|v| v as f32).collect(),
        })
    }

    /// Its elements as u32.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`]; [`Error::Shape`] for other element types.
    pub fn to_vec_u32(&self) -> Result<Vec<u32>> {
        if self.dtype() != DType::U32 {
            return Err(Error::shape("to_vec_u32", "a u32 tensor", format!("{}", self.dtype())));
        }
        Ok(bytemuck::pod_collect_to_vec(&self.read()?.wait()?))
    }

    /// The value of a tensor with one element.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has more; as [`Tensor::to_vec`].
    pub fn item(&self) -> Result<f32> {
        if self.len() != 1 {
            return Err(Error::shape("item", "one element", format!("{:?}", self.shape())));
        }
        Ok(self.to_vec()?[0])
    }
}
