//! Kernels on buffers and dimensions: one file each with its variants, its parameters and its wrapper. No tensors, no graph.

pub mod accumulate;
pub mod attention;
pub mod attention_backward;
pub mod dropout;

use crate::shader::Kernel;
use crate::{Buffer, DType, Error, Result};

/// Every kernel, for the tests and benches that go through all of them.
pub static ALL: &[&Kernel] = &[
    &accumulate::KERNEL,
    &attention::KERNEL,
    &attention::ROWS,
    &attention_backward::QUERY,
    &attention_backward::KEY,
    &attention_backward::ROWS_QUERY,
    &attention_backward::ROWS_KEY,
];

/// A size as a shader sees it.
pub(crate) fn dim(size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::Limit {
        what: format!("a size of {size}"),
        limit: "u32 element index",
        max: u32::MAX.into(),
        needed: size as u64,
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
