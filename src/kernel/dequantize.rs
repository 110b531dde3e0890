//! Values of a quantized matrix.

use super::packed::{B, Decode, Packed, PackedInfo};
use super::{FLOATS, dim, expect};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::format::Store;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "dequantize",
    source: include_str!("../../shaders/dequantize.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || {
        let outs = [Scalar::F32, Scalar::F16];
        let mut all = Vec::new();
        for decode in Decode::all() {
            for power in [false, true] {
                all.extend(outs.map(|out| of(decode, power, out.into())));
            }
        }
        all
    },
    proven_bounds: false,
};

fn of(decode: Decode, power: bool, out: Define) -> Defines {
    [decode.defines(&B), vec![("POWER", power.into()), ("Out", out)]].concat()
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    b: PackedInfo,
    rows: u32,
    parts: u32,
}

/// `out[row, col]` = the value of each element of `packed`.
///
/// # Shapes
/// `out` `[rows, cols]`, f32 or f16.
///
/// # Errors
/// [`crate::Error::Shape`] where `out` has another length or type; [`crate::Error::Limit`] where a dispatch is too large.
///
/// # Numerics
/// One rounding to f32 after the level and the scale are known exactly; E8M0 scales are exact, subnormal results included. E4M3 scales, by
/// their product with the tensor's factor, and double-quantized ones have one rounding more. Then one to f16 where `out` is f16.
pub fn dequantize(context: &Context, packed: &Packed, out: &Buffer) -> Result<()> {
    let layout = packed.layout();
    expect(KERNEL.name, "out", out, layout.rows * layout.cols, FLOATS)?;
    let parts = layout.cols.div_ceil(16);
    let params = Params { b: packed.info()?, rows: dim(layout.rows)?, parts: dim(parts)? };
    let power = matches!(packed.format().store(), Store::E8M0(_));
    let defines = of(Decode::of(&packed.format()), power, out.dtype().into());
    let bindings = [packed.codes().read(), packed.side().read(), out.write()];
    context.dispatch(&KERNEL, &defines, &params, &bindings, Grid::Linear((layout.rows * parts).div_ceil(64) as u64))
}
