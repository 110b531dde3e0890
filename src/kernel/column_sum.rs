//! Sums over the rows of a matrix: gradients of biases, and the second stage of other gradients.

use super::{FLOATS, dim, each, expect, product, width};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Result, Tier};

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "column_sum",
    source: include_str!("../../shaders/column_sum.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: true,
};

/// Column units by rows that a workgroup takes at a time.
const TILES: [(u32, u32); 3] = [CPU, WIDE, TALL];
/// No workgroup memory and no barrier.
const CPU: (u32, u32) = (8, 1);
/// Long contiguous reads, for large matrices.
const WIDE: (u32, u32) = (32, 8);
/// Few columns and many rows at a time: the second stage, which has little to read and should not take long chains of loads for it.
const TALL: (u32, u32) = (4, 64);

fn variants() -> Vec<Defines> {
    let tiles = TILES.map(|(x, y)| vec![("TILE_X", Define::U32(x)), ("TILE_Y", Define::U32(y))]).to_vec();
    let kinds = vec![
        vec![("Elem", Scalar::F32.into()), ("OUTPUTS", Define::U32(1))],
        vec![("Elem", Scalar::F16.into()), ("OUTPUTS", Define::U32(1))],
        vec![("Elem", Scalar::F32.into()), ("OUTPUTS", Define::U32(2))],
    ];
    product(&[each("WIDTH", &[1u32, 4]), tiles, kinds])
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    units: u32,
    chunk: u32,
    tiles: u32,
    chunks: u32,
    split: u32,
    accumulate: u32,
    factor: f32,
    stride: u32,
    first: u32,
}

/// Sets `out[c]` to `factor` times the sum of column c of `x`, or adds that to it.
///
/// # Shapes
/// `x` `[rows, cols]` f32 or f16, `out` `[cols]` f32.
///
/// # Errors
/// [`crate::Error::Shape`] where lengths or element types differ from that; [`crate::Error::OutOfMemory`] for the workspace.
///
/// # Numerics
/// Sums in f32, in an order fixed by the shape and the kind of adapter.
///
/// # Source
/// Two-stage tree reduction without atomics.
pub fn column_sum(
    context: &Context,
    x: &Buffer,
    out: &Buffer,
    [rows, cols]: [usize; 2],
    factor: f32,
    accumulate: bool,
) -> Result<()> {
    expect(KERNEL.name, "x", x, elements(&[rows, cols])?, FLOATS)?;
    expect(KERNEL.name, "out", out, cols, &[DType::F32])?;
    let units = cols / width(cols) as usize;
    // Workgroups to aim at, and rows below which a chunk is not worth its place in the workspace.
    let (tile_x, target, least) = if context.capabilities().is_cpu() { (8, 2, 512) } else { (32, 1056, 64) };
    let chunks = (target / units.div_ceil(tile_x).max(1)).min(rows / least);
    if chunks <= 1 {
        return sum(context, x, &[out], [rows, cols], factor, accumulate);
    }
    let chunk = rows.div_ceil(chunks);
    let chunks = rows.div_ceil(chunk);
    let partial = context.alloc(chunks * cols, DType::F32)?;
    let tile = if context.capabilities().is_cpu() { CPU } else { WIDE };
    dispatch(context, x, 0, &[&partial], [rows, cols], tile, chunk, 1.0, false)?;
    sum(context, &partial, &[out], [chunks, cols], factor, accumulate)
}

/// One dispatch that sums all rows of `x`; the columns go to the one or two buffers of `outs`, in order.
pub(crate) fn sum(
    context: &Context,
    x: &Buffer,
    outs: &[&Buffer],
    shape: [usize; 2],
    factor: f32,
    accumulate: bool,
) -> Result<()> {
    let [rows, cols] = shape;
    let tile = if context.capabilities().is_cpu() {
        CPU
    } else if rows < 64 || cols > 1 << 15 {
        WIDE
    } else {
        TALL
    };
    if let [one, two] = outs
        && one.raw.id == two.raw.id
    {
        // Parts of one arena cannot both be written by one dispatch.
        dispatch(context, x, 0, &[one], shape, tile, rows.max(1), factor, accumulate)?;
        return dispatch(context, x, one.len(), &[two], shape, tile, rows.max(1), factor, accumulate);
    }
    dispatch(context, x, 0, outs, shape, tile, rows.max(1), factor, accumulate)
}

#[expect(clippy::too_many_arguments, reason = "one place for both stages")]
fn dispatch(
    context: &Context,
    x: &Buffer,
    first: usize,
    outs: &[&Buffer],
    [rows, cols]: [usize; 2],
    tile: (u32, u32),
    chunk: usize,
    factor: f32,
    accumulate: bool,
) -> Result<()> {
    // A first stage writes all columns of a chunk, a second one those of its outputs, each of which must start on a whole unit.
    let chunks = rows.div_ceil(chunk).max(1);
    let summed = outs.iter().map(|out| out.len()).sum::<usize>() / chunks;
    let aligned = first.is_multiple_of(4) && outs.iter().all(|out| out.len().is_multiple_of(4));
    let width = if aligned { width(cols) } else { 1 };
    let units = dim(summed)? / width;
    let tiles = units.div_ceil(tile.0);
    let defines = [
        ("WIDTH", width.into()),
        ("TILE_X", tile.0.into()),
        ("TILE_Y", tile.1.into()),
        ("Elem", x.dtype().into()),
        ("OUTPUTS", Define::U32(if outs.len() == 2 { 2 } else { 1 })),
    ];
    let params = Params {
        rows: dim(rows)?,
        units,
        chunk: dim(chunk)?,
        tiles,
        chunks: dim(chunks)?,
        split: dim(outs[0].len())? / width,
        accumulate: accumulate.into(),
        factor,
        stride: dim(cols)? / width,
        first: dim(first)? / width,
    };
    let mut bindings = vec![x.read()];
    bindings.extend(outs.iter().map(|out| out.write()));
    context.dispatch(&KERNEL, &defines, &params, &bindings, Grid::Linear(u64::from(tiles) * chunks as u64))
}

#[cfg(test)]
mod tests {
    use super::sum;
    use crate::{Context, DType, Tensor};

    #[test]
    fn outputs_may_be_parts_of_one_buffer() {
        let context = Context::new().unwrap();
        for cols in [8usize, 5] {
            let x: Vec<f32> = (0..3 * 2 * cols).map(|v| v as f32).collect();
            let x = Tensor::from_f32(&context, &x, &[3, 2 * cols]).unwrap();
            let arena = Tensor::zeros(&context, &[128], DType::F32).unwrap();
            let parts = [arena.buffer().slice(0, cols).unwrap(), arena.buffer().slice(64, cols).unwrap()];
            sum(&context, x.buffer(), &[&parts[0], &parts[1]], [3, 2 * cols], 1.0, false).unwrap();
            let got = arena.to_vec().unwrap();
            for c in 0..2 * cols {
                let want = (0..3).map(|r| r * 2 * cols + c).sum::<usize>() as f32;
                assert_eq!(got[if c < cols { c } else { 64 + c - cols }], want);
            }
            assert!(got[cols..64].iter().chain(&got[64 + cols..]).all(|v| *v == 0.0));
        }
    }
}
