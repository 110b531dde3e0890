//! Kernels on buffers and dimensions: one file each with its variants, its parameters and its wrapper. No tensors, no graph.

pub mod accumulate;

use crate::shader::Kernel;

/// Every kernel, for the tests and benches that go through all of them.
pub static ALL: &[&Kernel] = &[&accumulate::KERNEL];
