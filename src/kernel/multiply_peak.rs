//! Multiplications and additions in registers: the rate that no other kernel exceeds.

use super::{dim, expect};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel};
use crate::{Context, DType, Error, Result, Tier};

/// In f32.
pub static KERNEL: Kernel = Kernel {
    name: "multiply_peak",
    source: include_str!("../../shaders/multiply_peak.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || CHAINS.map(defines).to_vec(),
    proven_bounds: false,
};

/// By cooperative matrices: f16 operands, f32 sums.
pub static COOP: Kernel = Kernel {
    name: "multiply_peak_coop",
    source: include_str!("../../shaders/multiply_peak_coop.wgsl"),
    tiers: &[Tier::Coop],
    variants: || vec![Vec::new()],
    proven_bounds: false,
};

/// How many chains an element may have: as many as the registers of a CPU hold, and enough to hide a GPU's latency.
pub const CHAINS: [usize; 2] = [2, 8];

/// Steps in one iteration of the shader's loop.
const UNROLL: usize = 8;
/// Elements of a 16 x 16 matrix.
const BLOCK: usize = 256;
/// Blocks of a workgroup.
const SUBGROUPS: usize = 2;

/// One subgroup of a CPU adapter, or small workgroups, which spread evenly over a GPU.
fn workgroup_size(chains: usize) -> u32 {
    if chains == CHAINS[0] { 8 } else { 64 }
}

fn defines(chains: usize) -> Defines {
    vec![("WG_SIZE", Define::U32(workgroup_size(chains))), ("CHAINS", Define::U32(chains as u32))]
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    units: u32,
    steps: u32,
    factor: f32,
    addend: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CoopParams {
    workgroups: u32,
    steps: u32,
}

/// Sets `out[i]` to the sum of `chains` values that start as `x[i] + j` for j = 0, 1, .. and become `factor v + addend` `steps` times.
///
/// # Shapes
/// `x` and `out` f32 of one length, a multiple of 4; `steps` a multiple of 8; `chains` one of [`CHAINS`].
///
/// # Errors
/// [`Error::Shape`] and [`Error::Invalid`] for others.
///
/// # Numerics
/// f32; a step rounds once or twice, as the device fuses or not.
///
/// # Source
/// Microbenchmark; nothing trains with it.
pub fn multiply_peak(
    context: &Context,
    x: &Buffer,
    out: &Buffer,
    chains: usize,
    steps: usize,
    [factor, addend]: [f32; 2],
) -> Result<()> {
    let whole = x.len().next_multiple_of(4);
    expect(KERNEL.name, "x", x, whole, &[DType::F32])?;
    expect(KERNEL.name, "out", out, whole, &[DType::F32])?;
    if !CHAINS.contains(&chains) {
        return Err(Error::invalid(KERNEL.name, format!("one of {CHAINS:?} chains"), chains.to_string()));
    }
    if !steps.is_multiple_of(UNROLL) {
        return Err(Error::invalid(KERNEL.name, format!("a multiple of {UNROLL} steps"), steps.to_string()));
    }
    let params = Params { units: dim(x.len() / 4)?, steps: dim(steps)?, factor, addend };
    let grid = Grid::Linear((x.len() as u64 / 4).div_ceil(workgroup_size(chains).into()));
    context.dispatch(&KERNEL, &defines(chains), &params, &[x.read(), out.write()], grid)
}

/// Sets each 16 x 16 block of `out` to `steps` times the sum of all products of a matrix of `a` with one of `b`.
///
/// # Shapes
/// `a` `[2, 16, 16]` and `b` `[4, 16, 16]` f16, row-major; `out` f32, a multiple of two blocks.
///
/// # Errors
/// [`Error::Shape`] for others; [`Error::Unsupported`] below the tier `coop`.
///
/// # Numerics
/// f32 sums of the hardware's order.
///
/// # Source
/// Microbenchmark; nothing trains with it.
pub fn multiply_peak_coop(context: &Context, a: &Buffer, b: &Buffer, out: &Buffer, steps: usize) -> Result<()> {
    if context.tier() < Tier::Coop {
        let why = format!("the device is used in tier {}", context.tier());
        return Err(Error::Unsupported { what: COOP.name.into(), why });
    }
    expect(COOP.name, "a", a, 2 * BLOCK, &[DType::F16])?;
    expect(COOP.name, "b", b, 4 * BLOCK, &[DType::F16])?;
    expect(COOP.name, "out", out, out.len().next_multiple_of(SUBGROUPS * BLOCK), &[DType::F32])?;
    let workgroups = out.len() / (SUBGROUPS * BLOCK);
    let params = CoopParams { workgroups: dim(workgroups)?, steps: dim(steps)? };
    context.dispatch(&COOP, &[], &params, &[a.read(), b.read(), out.write()], Grid::Linear(workgroups as u64))
}
