//! Elementwise operations on two tensors with NumPy's broadcasting, and the sums that their gradients need.

use super::{dim, expect, workgroup_size};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// The operations.
pub static KERNEL: Kernel = Kernel {
    name: "binary",
    source: include_str!("../../shaders/binary.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

/// Sums over broadcast dimensions.
pub static SUM_TO: Kernel = Kernel {
    name: "sum_to",
    source: include_str!("../../shaders/sum_to.wgsl"),
    tiers: &[Tier::Baseline, Tier::Subgroup],
    variants: sum_variants,
    proven_bounds: false,
};

fn variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for elem in [Scalar::F32, Scalar::F16] {
        for vec in [false, true] {
            all.push(vec![("Elem", elem.into()), ("VEC", vec.into())]);
        }
    }
    all
}

fn sum_variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for x in [Scalar::F32, Scalar::F16] {
        for size in [8u32, 256] {
            all.push(vec![("X", x.into()), ("WG_SIZE", size.into())]);
        }
    }
    all
}

/// An operation on two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    sizes: [u32; 4],
    a_strides: [u32; 4],
    b_strides: [u32; 4],
    len: u32,
    op: u32,
    reserved: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SumParams {
    kept_sizes: [u32; 4],
    kept_strides: [u32; 4],
    reduced_sizes: [u32; 4],
    reduced_strides: [u32; 4],
    outputs: u32,
    count: u32,
    parts: u32,
    accumulate: u32,
}

/// The shape that two shapes broadcast to: sizes are aligned at the end, and 1 stretches to any size.
///
/// # Errors
/// [`Error::Shape`] where two sizes differ and neither is 1.
pub fn broadcast_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |at| s[at]);
    (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (x, y) if x == y || y == 1 => Ok(x),
            (1, y) => Ok(y),
            _ => Err(Error::shape("broadcast", "sizes that are equal or 1", format!("{a:?} and {b:?}"))),
        })
        .collect()
}

/// Strides of a row-major tensor of `shape` seen as `target`, 0 where it is broadcast.
fn strides(shape: &[usize], target: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; target.len()];
    let mut stride = 1;
    let lead = target.len() - shape.len();
    for i in (0..shape.len()).rev() {
        strides[lead + i] = if shape[i] == 1 { 0 } else { stride };
        stride *= shape[i];
    }
    strides
}

/// Drops dimensions of size 1 and merges neighbours whose strides allow it in every operand; (size, strides) from the outside in.
fn merge(target: &[usize], operands: &[&[usize]]) -> Vec<(usize, Vec<usize>)> {
    let mut merged: Vec<(usize, Vec<usize>)> = Vec::new();
    for (i, size) in target.iter().enumerate().filter(|(_, size)| **size != 1) {
        let here: Vec<usize> = operands.iter().map(|s| s[i]).collect();
        match merged.last_mut() {
            Some((outer, outer_strides)) if outer_strides.iter().zip(&here).all(|(o, s)| *o == s * size) => {
                *outer *= size;
                *outer_strides = here;
            }
            _ => merged.push((*size, here)),
        }
    }
    merged
}

/// Four sizes (1 in front) and the strides of operand `n`.
fn four(op: &'static str, dims: &[(usize, Vec<usize>)], n: usize) -> Result<([u32; 4], [u32; 4])> {
    let (mut sizes, mut strides) = ([1; 4], [0; 4]);
    let Some(lead) = 4usize.checked_sub(dims.len()) else {
        return Err(Error::shape(
            op,
            "shapes that merge to at most four dimensions",
            format!("{:?}", dims.iter().map(|(size, _)| *size).collect::<Vec<_>>()),
        ));
    };
    for (i, (size, s)) in dims.iter().enumerate() {
        (sizes[lead + i], strides[lead + i]) = (dim(*size)?, dim(s[n])?);
    }
    Ok((sizes, strides))
}

/// `out = a op b` with broadcasting.
///
/// # Shapes
/// `out` has [`broadcast_shape`] of `a_shape` and `b_shape`; all of one type, f32 or f16. After merging neighbouring dimensions at most four may
/// be left.
///
/// # Errors
/// [`Error::Shape`] for other shapes.
///
/// # Numerics
/// One operation in f32 per element; division is good to 2.5 ulp.
pub fn binary(
    context: &Context,
    op: Binary,
    a: (&Buffer, &[usize]),
    b: (&Buffer, &[usize]),
    out: &Buffer,
) -> Result<()> {
    const OP: &str = "binary";
    let target = broadcast_shape(a.1, b.1)?;
    let len = elements(&target)?;
    expect(OP, "a", a.0, elements(a.1)?, &[DType::F32, DType::F16])?;
    expect(OP, "b", b.0, elements(b.1)?, &[a.0.dtype()])?;
    expect(OP, "out", out, len, &[a.0.dtype()])?;
    let dims = merge(&target, &[&strides(a.1, &target), &strides(b.1, &target)]);
    let vec = a.0.len() == len && b.0.len() == len;
    let (sizes, a_strides) = four(OP, &dims, 0)?;
    let (_, b_strides) = four(OP, &dims, 1)?;
    let params = Params { sizes, a_strides, b_strides, len: dim(len)?, op: op as u32, reserved: [0; 2] };
    context.dispatch(
        &KERNEL,
        &[("Elem", a.0.dtype().into()), ("VEC", vec.into())],
        &params,
        &[a.0.read(), b.0.read(), out.write()],
        Grid::Linear((len as u64).div_ceil(if vec { 1024 } else { 256 })),
    )
}

/// Elements per workgroup beyond which a sum is split in two passes.
const PART: usize = 1 << 14;

/// Sums `x` over the dimensions that `out_shape` lacks or has as 1: the gradient of broadcasting. `out` is f32, `x` f32 or f16.
///
/// # Shapes
/// `out_shape` must broadcast to `x_shape`.
///
/// # Errors
/// [`Error::Shape`] for other shapes, or more than four kept or reduced dimensions after merging.
///
/// # Numerics
/// f32 sums in a fixed order, the same bits every time.
pub fn sum_to(
    context: &Context,
    x: &Buffer,
    x_shape: &[usize],
    out: &Buffer,
    out_shape: &[usize],
    accumulate: bool,
) -> Result<()> {
    const OP: &str = "sum_to";
    if broadcast_shape(x_shape, out_shape)? != x_shape {
        return Err(Error::shape(OP, format!("a shape that broadcasts to {x_shape:?}"), format!("{out_shape:?}")));
    }
    expect(OP, "x", x, elements(x_shape)?, &[DType::F32, DType::F16])?;
    expect(OP, "out", out, elements(out_shape)?, &[DType::F32])?;
    if out.is_empty() {
        return Ok(());
    }
    let lead = x_shape.len() - out_shape.len();
    let own = strides(x_shape, x_shape);
    let kept = |i: usize| i >= lead && out_shape[i - lead] == x_shape[i];
    let pick = |keep: bool| {
        let sizes: Vec<usize> = (0..x_shape.len()).map(|i| if kept(i) == keep { x_shape[i] } else { 1 }).collect();
        merge(&sizes, &[&own])
    };
    let (kept_sizes, kept_strides) = four(OP, &pick(true), 0)?;
    let (reduced_sizes, reduced_strides) = four(OP, &pick(false), 0)?;
    let outputs = out.len();
    let count = x.len() / outputs;
    let parts = if count > 2 * PART { count.div_ceil(PART).min(256) } else { 1 };
    let mut params = SumParams {
        kept_sizes,
        kept_strides,
        reduced_sizes,
        reduced_strides,
        outputs: dim(outputs)?,
        count: dim(count)?,
        parts: dim(parts)?,
        accumulate: (accumulate && parts == 1).into(),
    };
    let size = workgroup_size(context);
    let grid = Grid::Linear((outputs * parts) as u64);
    if parts == 1 {
        return context.dispatch(&SUM_TO, &[("X", x.dtype().into()), size], &params, &[x.read(), out.write()], grid);
    }
    let partial = context.alloc(outputs * parts, DType::F32)?;
    context.dispatch(&SUM_TO, &[("X", x.dtype().into()), size], &params, &[x.read(), partial.write()], grid)?;
    let rows = params.outputs;
    params = SumParams {
        kept_sizes: [1, 1, 1, rows],
        kept_strides: [0, 0, 0, dim(parts)?],
        reduced_sizes: [1, 1, 1, dim(parts)?],
        reduced_strides: [0, 0, 0, 1],
        outputs: rows,
        count: dim(parts)?,
        parts: 1,
        accumulate: accumulate.into(),
    };
    let grid = Grid::Linear(outputs as u64);
    context.dispatch(&SUM_TO, &[("X", DType::F32.into()), size], &params, &[partial.read(), out.write()], grid)
}
