//! Every kernel once, at the shapes of a model: one table that the benches time and a test checks for gaps.

use walsh::kernel::{self, Dropout};
use walsh::optim::StepState;
use walsh::{Buffer, Context, DType, Result, Tensor, Tier};

/// Sizes of a model that kernels are timed at.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub batch: usize,
    pub seq: usize,
    pub heads: usize,
    pub width: usize,
    /// A vocabulary of characters; one of word pieces is 50304 in [`LARGE`], 1000 in [`TINY`].
    pub vocab: usize,
    pub pieces: usize,
}

/// What `examples/tiny_gpt.rs` has, which is the preset `nano`.
pub const TINY: Size = Size { batch: 16, seq: 64, heads: 2, width: 64, vocab: 64, pieces: 1000 };
/// The preset `baby`, for GPUs.
pub const LARGE: Size = Size { batch: 64, seq: 256, heads: 6, width: 384, vocab: 64, pieces: 50304 };

impl Size {
    pub fn rows(self) -> usize {
        self.batch * self.seq
    }
}

/// What a kernel's speed is compared by.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Bytes that must be read and written once, for kernels bound by memory.
    Bytes(usize),
    /// Multiplications and additions.
    Flops(usize),
}

/// A kernel with its buffers, ready to be recorded any number of times.
pub struct Prepared {
    pub shape: String,
    pub work: Work,
    pub record: Box<dyn Fn() -> Result<()>>,
    /// What it writes: finite, and not all zero.
    pub out: Vec<Tensor>,
}

/// One line of the table.
pub struct Case {
    pub name: &'static str,
    /// The kernels that the wrapper may dispatch, by adapter and shape; `prefix*` stands for all whose name starts so.
    pub kernels: &'static [&'static str],
    /// The lowest tier that has them.
    pub needs: Tier,
    pub prepare: fn(&Context, Size) -> Result<Prepared>,
}

impl Case {
    pub fn covers(&self, kernel: &str) -> bool {
        self.kernels.iter().any(|k| k.strip_suffix('*').map_or(*k == kernel, |prefix| kernel.starts_with(prefix)))
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

fn prepared(
    shape: impl Into<String>,
    work: Work,
    out: &[&Tensor],
    record: impl Fn() -> Result<()> + 'static,
) -> Result<Prepared> {
    let out = out.iter().map(|t| (*t).clone()).collect();
    Ok(Prepared { shape: shape.into(), work, record: Box::new(record), out })
}

mod attention;
mod elementwise;
mod matmul;
mod rows;

/// A copy of `bytes / 2` bytes, reading and writing `bytes` in all: the floor of every kernel that moves as many.
pub fn copy(context: &Context, bytes: usize) -> Result<Prepared> {
    let len = (bytes / 8).max(4).next_multiple_of(4);
    let (x, out, c) = (random(context, len)?, zeros(context, len)?, context.clone());
    prepared(format!("{bytes}B"), Work::Bytes(8 * len), &[&out.clone()], move || {
        kernel::accumulate::accumulate(&c, x.buffer(), out.buffer(), false)
    })
}

/// Every case.
pub fn cases() -> Vec<Case> {
    [matmul::CASES, attention::CASES, rows::CASES, elementwise::CASES]
        .into_iter()
        .flatten()
        .map(|c| Case { name: c.name, kernels: c.kernels, needs: c.needs, prepare: c.prepare })
        .collect()
}
