//! The Walsh-Hadamard transform, in blocks of the sizes that low-bit training uses; on GPUs of 2^26 elements, more than caches hold.

use super::{Case, Prepared, Size, Work, prepared, random_as, zeros_as};
use crate::kernel::hadamard::{Hadamard, hadamard, supported};
use crate::{Context, DType, Result};

pub fn cases(size: Size) -> Vec<Case> {
    let (len, sizes, dtypes): (usize, &[usize], &[DType]) = if size.is_large() {
        (1 << 26, &[128, 1024, 4096, 32768], &[DType::F32, DType::F16])
    } else {
        (1 << 16, &[32, 128, 1024, 4096], &[DType::F32])
    };
    let mut all = vec![case([size.rows(), 384, 384], DType::F32)];
    for dtype in dtypes {
        all.extend(sizes.iter().map(|n| case([len / 32768, 32768, *n], *dtype)));
    }
    all
}

/// Blocks of `n` in a matrix of the caller's, where there is such a transform.
pub fn transforms([rows, cols, n]: [usize; 3]) -> Vec<Case> {
    if !supported(n) || !cols.is_multiple_of(n) {
        return Vec::new();
    }
    [DType::F32, DType::F16].map(|dtype| case([rows, cols, n], dtype)).into()
}

fn case([rows, cols, n]: [usize; 3], dtype: DType) -> Case {
    let work = Work::bytes(2 * dtype.size() * rows * cols);
    let (kernel, kernels): (_, &[_]) = match n.is_power_of_two() {
        true => ("hadamard", &["hadamard", "hadamard_shuffled"]),
        false => ("hadamard_mixed", &["hadamard_mixed"]),
    };
    Case::new(kernel, [rows, cols, n], work, move |c| blocks(c, [rows, cols, n], dtype)).dtype(dtype).kernels(kernels)
}

fn blocks(context: &Context, [rows, cols, n]: [usize; 3], dtype: DType) -> Result<Prepared> {
    let x = random_as(context, rows * cols, dtype)?;
    let (out, c) = (zeros_as(context, rows * cols, dtype)?, context.clone());
    prepared(&[&out.clone()], move || hadamard(&c, &Hadamard::new(rows, cols, n), Some(x.buffer()), out.buffer()))
}
