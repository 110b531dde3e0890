//! Every kernel at the shapes of a model, in every format, with the work that it has to do: one table that `walsh bench` and the criterion
//! benches time and a test checks for gaps.
//!
//! A [`Case`] says what it is before it allocates anything. A family of cases is a function of a [`Size`] in a file of its own, listed in
//! `FAMILIES`; what also takes any shape is listed in `SHAPED`.

mod attention;
mod ceilings;
mod elementwise;
mod hadamard;
mod low_bit;
mod matmul;
mod measure;
mod packed_matmul;
mod rows;

pub use ceilings::{Ceilings, copy};
pub use measure::{Checked, Measured, Row, check, header, measure, time};

use crate::format::Format;
use crate::kernel::Dropout;
use crate::optim::StepState;
use crate::{Buffer, Context, DType, Result, Tensor, Tier};
use std::fmt;

/// A family of cases at sizes of one kind.
type Family<S> = fn(S) -> Vec<Case>;

/// What computes on tensors of a model's sizes.
const FAMILIES: &[Family<Size>] = &[
    matmul::cases,
    low_bit::cases,
    packed_matmul::cases,
    hadamard::cases,
    attention::cases,
    rows::cases,
    elementwise::cases,
];

/// What computes `out[m, n]` as sums of `k` products, or transforms the rows of `[m, n]` in blocks of `k`.
const SHAPED: &[Family<[usize; 3]>] =
    &[matmul::products, low_bit::products, packed_matmul::products, hadamard::transforms];

/// Sizes of a model that kernels are timed at.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Columns of an activation.
    pub width: usize,
    /// A vocabulary of characters.
    pub vocab: usize,
    /// A vocabulary of word pieces.
    pub pieces: usize,
}

/// What `examples/tiny_gpt.rs` has, which is the preset `nano`.
pub const TINY: Size = Size { batch: 16, seq: 64, heads: 2, width: 64, vocab: 64, pieces: 1000 };
/// The preset `baby`, for GPUs.
pub const LARGE: Size = Size { batch: 64, seq: 256, heads: 6, width: 384, vocab: 64, pieces: 50304 };

impl Size {
    /// Rows of an activation.
    #[must_use]
    pub fn rows(self) -> usize {
        self.batch * self.seq
    }

    /// Whether it is for GPUs, where single problems are large too.
    #[must_use]
    pub fn is_large(self) -> bool {
        self.width >= 256
    }
}

/// The sizes for an adapter, smallest first.
#[must_use]
pub fn sizes(context: &Context) -> &'static [Size] {
    if context.capabilities().is_cpu() { &[TINY] } else { &[TINY, LARGE] }
}

/// Every case: the ceilings at the largest size, then each family at each size.
#[must_use]
pub fn cases(sizes: &[Size]) -> Vec<Case> {
    let ceilings = sizes.last().into_iter().flat_map(|size| ceilings::cases(*size));
    ceilings.chain(sizes.iter().flat_map(|size| FAMILIES.iter().flat_map(|family| family(*size)))).collect()
}

/// What a caller's shape is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Products of these M, N and K, and Walsh-Hadamard transforms of rows, columns and block.
    Three([usize; 3]),
    /// Quantization of rows and columns, and back.
    Two([usize; 2]),
}

/// What can be had at a shape of the caller's.
#[must_use]
pub fn shaped(shape: Shape) -> Vec<Case> {
    match shape {
        Shape::Three(mnk) => SHAPED.iter().flat_map(|family| family(mnk)).collect(),
        Shape::Two(matrix) => Format::named().flat_map(|(_, f)| low_bit::matrices_of(f, matrix)).collect(),
    }
}

/// What shapes of the caller's a kernel takes, in words; nothing where it is timed at a model's sizes only.
#[must_use]
pub fn shapes_of(kernel: &str) -> Option<&'static str> {
    let among = |cases: &[Case]| cases.iter().any(|case| case.kernel == kernel);
    // Blocks of a power of two and others have kernels of their own.
    if [16, 20].iter().any(|n| among(&hadamard::transforms([1, *n, *n]))) {
        return Some("ROWSxCOLSxBLOCK, where BLOCK divides COLS and is a power of two, or 12, 20 or 28 times one");
    }
    if among(&shaped(Shape::Three([64; 3]))) {
        return Some("MxNxK");
    }
    among(&low_bit::matrices_of(Format::int(4), [64; 2])).then_some("ROWSxCOLS")
}

/// What is measured of a format by its name, of any other: at these sizes, or at shapes of the caller's where there are some.
#[must_use]
pub fn of_format(format: Format, sizes: &[Size], shapes: &[Shape]) -> Vec<Case> {
    if shapes.is_empty() {
        return sizes.iter().flat_map(|size| low_bit::of_format(format, *size)).collect();
    }
    let of = |shape: &Shape| match *shape {
        Shape::Three(mnk) => low_bit::products_of(format, mnk),
        Shape::Two(matrix) => low_bit::matrices_of(format, matrix),
    };
    shapes.iter().flat_map(of).collect()
}

/// What a kernel's speed is compared by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Bytes that must be read and written once.
    pub bytes: Option<usize>,
    /// Multiplications and additions.
    pub flops: Option<usize>,
}

impl Work {
    /// The work of a kernel that memory bounds.
    #[must_use]
    pub fn bytes(bytes: usize) -> Self {
        Self { bytes: Some(bytes), flops: None }
    }

    /// The same where multiplications and additions count too.
    #[must_use]
    pub fn flops(self, flops: usize) -> Self {
        Self { flops: Some(flops), ..self }
    }
}

/// A kernel with its buffers, ready to be recorded any number of times.
pub struct Prepared {
    /// Records it once.
    pub record: Box<dyn Fn() -> Result<()>>,
    /// What it writes: finite, and not all zero.
    pub out: Vec<Tensor>,
}

type Prepare = Box<dyn Fn(&Context) -> Result<Prepared>>;

/// One line of the table: a kernel in a format at a shape.
pub struct Case {
    /// What is timed; mostly the name of a kernel.
    pub kernel: &'static str,
    /// The format of the weights, or of the data where there are no weights.
    pub format: String,
    /// The format of the activations.
    pub activations: String,
    /// m, n and k of a product; else rows, columns and what divides them into parts, or 0.
    pub shape: [usize; 3],
    /// What has to be done.
    pub work: Work,
    /// The kernels that may be dispatched, by adapter and shape; `prefix*` stands for all whose name starts so.
    kernels: Vec<&'static str>,
    tier: Tier,
    f16: bool,
    prepare: Prepare,
}

impl Case {
    /// A case in f32 on every tier that dispatches the one kernel of its name.
    pub fn new(
        kernel: &'static str,
        shape: [usize; 3],
        work: Work,
        prepare: impl Fn(&Context) -> Result<Prepared> + 'static,
    ) -> Self {
        Self {
            kernel,
            format: DType::F32.to_string(),
            activations: DType::F32.to_string(),
            shape,
            work,
            kernels: vec![kernel],
            tier: Tier::Baseline,
            f16: false,
            prepare: Box::new(prepare),
        }
    }

    /// Sets the format of the weights.
    #[must_use]
    pub fn format(mut self, format: impl Into<String>) -> Self {
        self.format = format.into();
        self
    }

    /// Sets the element type of the activations.
    #[must_use]
    pub fn activations(mut self, dtype: DType) -> Self {
        self.activations = dtype.to_string();
        self.f16 |= dtype == DType::F16;
        self
    }

    /// The format of a quantized left operand.
    #[must_use]
    pub fn packed_activations(mut self, format: Format) -> Self {
        self.activations = format.to_string();
        self
    }

    /// Sets both.
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Self {
        self.format(dtype.to_string()).activations(dtype)
    }

    /// Names the kernels that it may dispatch.
    #[must_use]
    pub fn kernels(mut self, kernels: &[&'static str]) -> Self {
        self.kernels = kernels.to_vec();
        self
    }

    /// Sets the lowest tier that has the kernel.
    #[must_use]
    pub fn tier(mut self, tier: Tier) -> Self {
        self.tier = tier;
        self
    }

    /// Whether it may dispatch `kernel`.
    #[must_use]
    pub fn covers(&self, kernel: &str) -> bool {
        self.kernels.iter().any(|k| k.strip_suffix('*').map_or(*k == kernel, |prefix| kernel.starts_with(prefix)))
    }

    /// What the context lacks for it.
    #[must_use]
    pub fn missing(&self, context: &Context) -> Option<String> {
        if self.tier > context.tier() {
            return Some(format!("it needs the tier {}, the device is used in tier {}", self.tier, context.tier()));
        }
        (self.f16 && !context.capabilities().f16).then(|| "it needs f16, the device has no SHADER_F16".to_owned())
    }

    /// Allocates what it works on.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] where the device is too small for it; those of the device.
    pub fn prepare(&self, context: &Context) -> Result<Prepared> {
        (self.prepare)(context)
    }

    /// The shape as `MxNxK`, or `MxN` where k is 0.
    #[must_use]
    pub fn shape_name(&self) -> String {
        let [m, n, k] = self.shape;
        if k == 0 { format!("{m}x{n}") } else { format!("{m}x{n}x{k}") }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{} {}", self.kernel, self.format, self.activations, self.shape_name())
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Case({self})")
    }
}

/// Numbers between -1 and 1, without a pattern that a row or tile could share.
fn numbers(len: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9u32;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

fn random(context: &Context, len: usize) -> Result<Tensor> {
    Tensor::from_f32(context, &numbers(len), &[len])
}

fn random_as(context: &Context, len: usize, dtype: DType) -> Result<Tensor> {
    if dtype == DType::F32 {
        return random(context, len);
    }
    let half: Vec<half::f16> = numbers(len).into_iter().map(half::f16::from_f32).collect();
    Tensor::from_f16(context, &half, &[len])
}

fn zeros(context: &Context, len: usize) -> Result<Tensor> {
    zeros_as(context, len, DType::F32)
}

fn zeros_as(context: &Context, len: usize, dtype: DType) -> Result<Tensor> {
    Tensor::zeros(context, &[len], dtype)
}

fn tokens(context: &Context, len: usize, vocab: usize) -> Result<Tensor> {
    let tokens: Vec<u32> = (0..len as u64).map(|i| (i * i * 7919 % vocab as u64) as u32).collect();
    Tensor::from_u32(context, &tokens, &[len])
}

/// A step state as the optimizer keeps it.
fn state(context: &Context) -> Result<Tensor> {
    let state = StepState {
        finite: 1,
        loss_scale: 1.0,
        grad_scale: 1.0,
        lr: 1e-3,
        correction1: 1.0,
        correction2: 1.0,
        ..StepState::default()
    };
    Tensor::from_u32(context, bytemuck::cast_slice(bytemuck::bytes_of(&state)), &[size_of::<StepState>() / 4])
}

fn dropout(state: &Buffer) -> Dropout<'_> {
    Dropout { p: 0.2, seed: 1, op: 1, micro: 0, state }
}

/// Codes and scales of a quantized matrix.
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn packed_bytes(format: Format, [rows, cols]: [usize; 2]) -> usize {
    (format.bits_per_element(rows, cols) * (rows * cols) as f64 / 8.0).ceil() as usize
}

fn prepared(out: &[&Tensor], record: impl Fn() -> Result<()> + 'static) -> Result<Prepared> {
    Ok(Prepared { record: Box::new(record), out: out.iter().map(|t| (*t).clone()).collect() })
}
