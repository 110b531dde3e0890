//! Kernels on buffers and dimensions: one file each with its variants, its parameters and its wrapper. No tensors, no graph.

pub mod accumulate;
pub mod adamw;
pub mod attention;
pub mod attention_backward;
pub mod attention_cached;
pub mod binary;
pub mod dropout;
pub mod matmul;
pub mod optimizer_step;
pub mod rope;
pub mod softmax;
pub mod swiglu;
pub mod unary;

use crate::shader::{Define, Defines, Kernel};
use crate::{Buffer, Context, DType, Error, Result};

/// Every kernel, for the tests and benches that go through all of them.
pub static ALL: &[&Kernel] = &[
    &accumulate::KERNEL,
    &adamw::KERNEL,
    &attention::KERNEL,
    &attention::ROWS,
    &attention_backward::QUERY,
    &attention_backward::KEY,
    &attention_backward::ROWS_QUERY,
    &attention_backward::ROWS_KEY,
    &attention_cached::APPEND,
    &attention_cached::KERNEL,
    &binary::KERNEL,
    &binary::SUM_TO,
    &dropout::KERNEL,
    &matmul::TILED,
    &optimizer_step::GRAD_NORM,
    &optimizer_step::KERNEL,
    &rope::KERNEL,
    &softmax::KERNEL,
    &softmax::BACKWARD,
    &swiglu::KERNEL,
    &unary::KERNEL,
];

/// A dimension as the shaders count it.
pub(crate) fn dim(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Limit {
        what: format!("a dimension of {n}"),
        limit: "u32 element index",
        max: u32::MAX.into(),
        needed: n as u64,
    })
}

/// Sees to it that `buffer` has `len` elements of one of `dtypes`.
pub(crate) fn expect(op: &'static str, name: &str, buffer: &Buffer, len: usize, dtypes: &[DType]) -> Result<()> {
    if buffer.len() != len || !dtypes.contains(&buffer.dtype()) {
        return Err(Error::shape(
            op,
            format!("{name} of {len} elements of {dtypes:?}"),
            format!("{} of {:?}", buffer.len(), buffer.dtype()),
        ));
    }
    Ok(())
}

/// Workgroup sizes of the kernels that reduce over one: a software adapter's barrier is a switch of coroutines, so there a workgroup is one
/// subgroup (8 invocations on lavapipe), elsewhere it is large.
pub(crate) fn workgroup_size(context: &Context) -> (&'static str, Define) {
    ("WG_SIZE", Define::U32(if context.capabilities().is_cpu() { 8 } else { 256 }))
}

/// The variants of a kernel that is specialised by [`workgroup_size`] only.
pub(crate) fn workgroup_variants() -> Vec<Defines> {
    vec![vec![("WG_SIZE", Define::U32(8))], vec![("WG_SIZE", Define::U32(256))]]
}

/// Inverted dropout whose mask is a function of seed, place and step, so that the backward pass makes it again instead of loading it:
/// the Philox counter is (element / 4, op, step, micro).
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Probability of dropping an element, in [0, 1).
    pub p: f32,
    /// Key.
    pub seed: u64,
    /// Which dropout of the model.
    pub op: u32,
    /// Which micro-batch of the step.
    pub micro: u32,
    /// The step state, whose step number changes the mask.
    pub state: &'a Buffer,
}

impl Dropout<'_> {
    /// The threshold on 32 random bits below which an element is dropped, and the factor on those that stay.
    #[must_use]
    pub fn factors(&self) -> (u32, f32) {
        // p < 1, so the product is below 2^32.
        ((f64::from(self.p) * 4_294_967_296.0) as u32, 1.0 / (1.0 - self.p))
    }

    /// The key as the shaders take it.
    #[must_use]
    pub fn seed_words(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }
}
