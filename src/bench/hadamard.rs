//! The Walsh-Hadamard transform, in blocks of the sizes that low-bit training uses; on GPUs of 2^26 elements, more than caches hold.

use super::{Case, Prepared, Size, Work, prepared, random_as, zeros_as};
use crate::kernel::hadamard::{Hadamard, hadamard};
use crate::{Context, DType, Result};

pub fn cases(size: Size) -> Vec<Case> {
    let (len, sizes, dtypes): (usize, &[usize], &[DType]) = if size.is_large() {
        (1 << 26, &[128, 1024, 4096, 32768], &[DType::F32, DType::F16])
    } else {
        (1 << 16, &[32, 128, 1024, 4096], &[DType::F32])
    };
    let case = |kernel, [rows, cols, n]: [usize; 3], dtype: DType| {
        let work = Work::bytes(2 * dtype.size() * rows * cols);
        Case::new(kernel, [rows, cols, n], work, move |c| blocks(c, [rows, cols, n], dtype)).dtype(dtype)
    };
    let mut all = vec![case("hadamard_mixed", [size.rows(), 384, 384], DType::F32)];
    for dtype in dtypes {
        let powers = sizes.iter().map(|n| case("hadamard", [len / 32768, 32768, *n], *dtype));
        all.extend(powers.map(|case| case.kernels(&["hadamard", "hadamard_shuffled"])));
    }
    all
}

fn blocks(context: &Context, [rows, cols, n]: [usize; 3], dtype: DType) -> Result<Prepared> {
    let x = random_as(context, rows * cols, dtype)?;
    let (out, c) = (zeros_as(context, rows * cols, dtype)?, context.clone());
    prepared(&[&out.clone()], move || hadamard(&c, &Hadamard::new(rows, cols, n), Some(x.buffer()), out.buffer()))
}
