//! What an adapter can do at most, as far as its own kernels can tell: bytes copied, multiply-adds in registers.

use super::{Case, Prepared, Size, Work, measure, numbers, prepared, random_as, sizes, zeros};
use crate::kernel::accumulate::accumulate;
use crate::kernel::multiply_peak::{CHAINS, multiply_peak, multiply_peak_coop};
use crate::{Context, DType, Error, Result, Tensor, Tier};
use std::time::{Duration, Instant};

/// The largest rates measured on an adapter, each the best of several samples.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes read and written by a copy, per second.
    pub copy: f64,
    /// Multiplications and additions in f32, per second.
    pub multiply: f64,
    /// The same by cooperative matrices with f16 operands and f32 sums.
    pub multiply_coop: Option<f64>,
}

/// For each of them at most, preparation included.
const TIME: Duration = Duration::from_secs(3);

impl Ceilings {
    /// Measures them, which takes some seconds.
    ///
    /// # Errors
    /// Those of the device.
    pub fn measure(context: &Context) -> Result<Self> {
        let (copy, multiply) = (rate(context, 0)?, rate(context, 1)?);
        let multiply_coop = if context.tier() == Tier::Coop { Some(rate(context, 2)?) } else { None };
        Ok(Self { copy, multiply, multiply_coop })
    }

    /// The multiply ceiling for kernels of a tier.
    #[must_use]
    pub fn multiply_of(&self, tier: Tier) -> f64 {
        if tier == Tier::Coop { self.multiply_coop.unwrap_or(self.multiply) } else { self.multiply }
    }
}

/// Work per second of one of [`cases`], at the largest size that the device holds.
fn rate(context: &Context, number: usize) -> Result<f64> {
    let mut refused = None;
    for size in sizes(context).iter().rev() {
        let case = &cases(*size)[number];
        match measure(context, case, Instant::now() + TIME) {
            Ok(measured) => {
                let work = case.work.flops.or(case.work.bytes).unwrap_or_default();
                return Ok(work as f64 / measured.least);
            }
            Err(error) if error.is_failure() => return Err(error),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::invalid("the ceilings", "at least one size", "none")))
}

/// A copy well beyond caches, f32 multiply-adds, cooperative matrices.
pub fn cases(size: Size) -> [Case; 3] {
    let large = size.is_large();
    let bytes = if large { 512 << 20 } else { 64 << 20 };
    let (len, chains, steps) = if large { (1 << 22, CHAINS[1], 1024) } else { (1 << 16, CHAINS[0], 4096) };
    let (blocks, coop_steps) = if large { (1 << 14, 512) } else { (1 << 10, 128) };
    [copy(bytes), multiply([len, chains, steps]), multiply_coop(blocks, coop_steps)]
}

/// A copy of `bytes / 2` bytes, reading and writing `bytes` in all: the floor of every kernel that moves as many.
#[must_use]
pub fn copy(bytes: usize) -> Case {
    let len = (bytes / 8).max(4).next_multiple_of(4);
    let prepare = move |context: &Context| {
        // As random as it has to be, and quick to make.
        let chunk = numbers(len.min(1 << 16));
        let mut x = chunk.repeat(len.div_ceil(chunk.len()));
        x.truncate(len);
        let (x, out, c) = (Tensor::from_f32(context, &x, &[len])?, zeros(context, len)?, context.clone());
        prepared(&[&out.clone()], move || accumulate(&c, x.buffer(), out.buffer(), false))
    };
    Case::new("copy", [1, len, 0], Work::bytes(8 * len), prepare).kernels(&["accumulate"])
}

/// m elements, n chains each, k steps.
fn multiply([m, n, k]: [usize; 3]) -> Case {
    let work = Work { bytes: None, flops: Some(2 * m * n * k) };
    Case::new("multiply_peak", [m, n, k], work, move |c| prepare_multiply(c, [m, n, k]))
}

fn prepare_multiply(context: &Context, [m, n, k]: [usize; 3]) -> Result<Prepared> {
    let (x, out, c) = (random_as(context, m, DType::F32)?, zeros(context, m)?, context.clone());
    // Values stay near -1 to 1 and n, and away from subnormals.
    prepared(&[&out.clone()], move || multiply_peak(&c, x.buffer(), out.buffer(), n, k, [-0.999, 0.5]))
}

/// Blocks of 16 x 16, to each of which a step adds eight products of 16 x 16 x 16.
fn multiply_coop(blocks: usize, steps: usize) -> Case {
    let [m, n, k] = [16 * blocks, 16, 8 * 16 * steps];
    let work = Work { bytes: None, flops: Some(2 * m * n * k) };
    let prepare = move |context: &Context| {
        let (a, b) = (random_as(context, 2 * 256, DType::F16)?, random_as(context, 4 * 256, DType::F16)?);
        let (out, c) = (zeros(context, m * n)?, context.clone());
        prepared(&[&out.clone()], move || {
            let [a, b, out] = [&a, &b, &out].map(Tensor::buffer);
            multiply_peak_coop(&c, a, b, out, steps)
        })
    };
    Case::new("multiply_peak_coop", [m, n, k], work, prepare).dtype(DType::F16).tier(Tier::Coop)
}
