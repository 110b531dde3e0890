//! Kernels on buffers and dimensions: one file each with its variants, its parameters and its wrapper. No tensors, no graph.

pub mod accumulate;
pub mod adamw;
pub mod matmul;
pub mod optimizer_step;

use crate::shader::{Define, Defines, Kernel};
use crate::{Context, Error, Result};

/// Every kernel, for the tests and benches that go through all of them.
pub static ALL: &[&Kernel] = &[
    &accumulate::KERNEL,
    &adamw::KERNEL,
    &matmul::TILED,
    &matmul::LANES,
    &optimizer_step::GRAD_NORM,
    &optimizer_step::KERNEL,
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

/// Workgroup sizes of the kernels that reduce over one: a software adapter's barrier is a switch of coroutines, so there a workgroup is one
/// subgroup (8 invocations on lavapipe), elsewhere it is large.
pub(crate) fn workgroup_size(context: &Context) -> (&'static str, Define) {
    ("WG_SIZE", Define::U32(if context.capabilities().is_cpu() { 8 } else { 256 }))
}

/// The variants of a kernel that is specialised by [`workgroup_size`] only.
pub(crate) fn workgroup_variants() -> Vec<Defines> {
    vec![vec![("WG_SIZE", Define::U32(8))], vec![("WG_SIZE", Define::U32(256))]]
}
