//! Products of some rows with a quantized matrix by cooperative matrices: `x W^T` for 2 to 64 rows in f16.

use super::dim;
use super::packed::{Decode, PackedInfo};
use super::packed_matmul::{Operand, PackedMatmul, without_codes};
use super::packed_vector::{STORES, check, decoding, few_rows, halves, kind, outputs, store, tail};
use super::pad_rows::pad_rows;
use crate::context::Grid;
use crate::format::{Grid as Levels, UNIT};
use crate::shader::{Define, Defines, Kernel};
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "packed_skinny",
    source: include_str!("../../shaders/packed_skinny.wgsl"),
    tiers: &[Tier::Coop],
    variants: || {
        let mut all = Vec::new();
        for decode in Decode::all() {
            for (out, tails) in [(DType::F32, &[0, 1, 3][..]), (DType::F16, &[0, 1])] {
                for tail in tails {
                    for scales in STORES.into_iter().filter(|s| stores(decode, *tail).contains(&s.0)) {
                        all.extend([1, 2, 4].map(|blocks| defines(decode, out, blocks, scales, *tail)));
                    }
                }
            }
        }
        all
    },
    proven_bounds: true,
};

/// Slices of K whose loads are on their way together: fewer where registers are needed for more accumulators, or for decoding.
fn ahead(blocks: u32, float: bool) -> u32 {
    match (blocks, float) {
        (1, false) => 8,
        (1 | 2, _) => 4,
        _ => 2,
    }
}

/// Bytes of workgroup memory that it takes.
const MEMORY: u32 = 2 * 8 * 16 * 18 * 8 + 2048 * 4 + 16 * 4;

/// Stores of scales that the kernel is specialised by, 5 for what is told at run time: those of plain products with codes that it loads whole.
fn stores(decode: Decode, tail: u32) -> &'static [u32] {
    if tail == 0 && kind(decode, true) != 0 { &[0, 1, 2, 5] } else { &[5] }
}

fn defines(decode: Decode, out: DType, blocks: u32, (store, halves): (u32, bool), tail: u32) -> Defines {
    let float = matches!(decode, Decode { grid: 2, bits: 4, exponent: 2, mantissa: 1 });
    let mut defines = decoding(decode, true);
    defines.extend([
        ("InA", DType::F16.into()),
        ("Out", out.into()),
        ("BLOCKS", blocks.into()),
        ("AHEAD", ahead(blocks, float).into()),
        ("STORE", store.into()),
        ("HALF_SUMS", Define::U32(if halves { 2 } else { 1 })),
        ("LOOSE", false.into()),
        ("FLOAT", float.into()),
        ("HUGE", true.into()),
        ("EPILOGUE", tail.into()),
    ]);
    if tail == 1 {
        defines.push(("ACTIVATION", Define::U32(0)));
    }
    defines
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    b: PackedInfo,
    m: u32,
    n: u32,
    units: u32,
    ld: u32,
    by_row: u32,
    bias: u32,
    activation: u32,
    accumulate: u32,
    alpha: f32,
    pad: [u32; 3],
}

/// Whether the kernel can do this product on this device.
///
/// # Errors
/// The reason why it cannot.
pub fn supports(context: &Context, spec: &PackedMatmul<'_>) -> Result<(), &'static str> {
    match spec.a {
        _ if context.tier() < Tier::Coop => Err("it needs the coop tier"),
        _ if context.capabilities().limits.max_compute_workgroup_storage_size < MEMORY => {
            Err("it needs 45,120 bytes of workgroup memory")
        }
        Operand::Dense(a) if a.dtype() == DType::F16 => few_rows(spec),
        _ => Err("its left operand is dense and f16"),
    }
}

/// `out = a b^T` and what follows, with `a` f16 and of at most 64 rows.
///
/// # Errors
/// [`crate::Error::Shape`] where a buffer has another length or type; [`crate::Error::Invalid`] for a residual in the buffer of the result;
/// [`crate::Error::Unsupported`] as [`supports`] says; [`crate::Error::Limit`] where a dispatch is too large.
///
/// # Numerics
/// Values of `b` are rounded to f16 after multiplication with the header's norm, or, where rows have one scale, without that scale; then
/// f32 sums: |error| <= (2 (k + 32) u + 2^-11) |a| |w| with u = 2^-24, and 2^-25 |a| per norm for values that are subnormal in f16.
pub fn dispatch(context: &Context, spec: &PackedMatmul<'_>) -> Result<()> {
    let a = check(spec)?;
    supports(context, spec).map_err(|why| crate::Error::Unsupported { what: KERNEL.name.into(), why: why.into() })?;
    let PackedMatmul { m, n, k, .. } = *spec;
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        return without_codes(context, spec);
    }
    // Rows that end within a unit.
    let width = k.next_multiple_of(UNIT);
    let padded = if width == k {
        a.clone()
    } else {
        let padded = context.alloc(m * width, DType::F16)?;
        pad_rows(context, a, [m, k], &padded, [m, width])?;
        padded
    };
    let (epilogue, activation) = tail(&spec.epilogue);
    let format = spec.b.format();
    let units = k.div_ceil(UNIT);
    let params = Params {
        b: spec.b.info()?,
        m: dim(m)?,
        n: dim(n)?,
        units: dim(units)?,
        ld: dim(width)?,
        by_row: (format.row_scaled() && format.grid() != Levels::Nf3).into(),
        bias: spec.bias.is_some().into(),
        activation,
        accumulate: spec.accumulate.into(),
        alpha: spec.alpha,
        pad: [0; 3],
    };
    let blocks = m.div_ceil(16).next_power_of_two();
    let decode = Decode::of(&format);
    // Scales of rows are in the epilogue.
    let halves = halves(spec);
    let known = if params.by_row == 0 && !halves { store(&format) } else { 5 };
    let known = if stores(decode, epilogue).contains(&known) { known } else { 5 };
    let defines = defines(decode, spec.out.dtype(), dim(blocks)?, (known, halves), epilogue);
    let mut bindings = vec![padded.read(), spec.b.codes().read(), spec.b.side().read()];
    bindings.extend(outputs(spec));
    let groups = n.div_ceil(16 * blocks) as u64;
    context.dispatch_tier(&KERNEL, Tier::Coop, &defines, &params, &bindings, Grid::Linear(groups))
}

const _: () = assert!(std::mem::size_of::<Params>() == 96);
