//! Kernels on buffers and dimensions: one file each with its variants, its parameters and its wrapper. No tensors, no graph.
//!
//! A wrapper checks lengths and element types, chooses the variant and records the dispatch; [`crate::Context::submit`] sends it. Buffers come
//! from [`crate::Tensor::buffer`]. [`ALL`] lists every kernel; the tests and benches go through it.

pub mod accumulate;
pub mod adamw;
pub mod attention;
pub mod attention_backward;
pub mod attention_cached;
pub mod binary;
pub mod clamp;
pub mod column_sum;
pub mod cross_entropy;
pub mod dequantize;
pub mod dropout;
pub mod embedding;
pub mod hadamard;
pub mod hidden_distance;
pub mod layer_norm;
pub mod learned_scale_backward;
pub mod mask;
pub mod matmul;
pub mod multiply_peak;
pub mod optimizer_step;
pub mod packed;
pub mod packed_binary;
pub mod packed_coop;
pub mod packed_integer;
pub mod packed_matmul;
pub mod packed_skinny;
pub mod packed_tiled;
pub mod packed_vector;
pub mod pad_rows;
pub mod quantize;
pub mod quantize_transposed;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod row_sum;
pub mod scale_by_scalar;
pub mod scale_columns;
pub mod sign_gradient;
pub mod soft_cross_entropy;
pub mod softmax;
pub mod swiglu;
pub mod unary;
pub mod value_norm;

use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel};
use crate::{Buffer, Context, DType, Error, Result, Tier};

/// Every kernel, for the tests and benches that go through all of them.
pub static ALL: &[&Kernel] = &[
    &accumulate::KERNEL,
    &adamw::KERNEL,
    &clamp::KERNEL,
    &matmul::TILED,
    &matmul::LANES,
    &matmul::VECTOR,
    &matmul::VECTOR_LANES,
    &matmul::COOP,
    &matmul::REDUCE,
    &multiply_peak::KERNEL,
    &multiply_peak::COOP,
    &optimizer_step::GRAD_NORM,
    &optimizer_step::KERNEL,
    &column_sum::KERNEL,
    &layer_norm::KERNEL,
    &layer_norm::BACKWARD,
    &learned_scale_backward::KERNEL,
    &reduce::KERNEL,
    &rms_norm::KERNEL,
    &rms_norm::BACKWARD,
    &row_sum::KERNEL,
    &cross_entropy::COUNT,
    &cross_entropy::KERNEL,
    &cross_entropy::MEAN,
    &scale_by_scalar::KERNEL,
    &attention::KERNEL,
    &attention::ROWS,
    &attention::COOP,
    &attention_backward::COOP_QUERY,
    &attention_backward::COOP_KEY,
    &attention_backward::QUERY,
    &attention_backward::KEY,
    &attention_backward::ROWS_QUERY,
    &attention_backward::ROWS_KEY,
    &attention_cached::APPEND,
    &attention_cached::KERNEL,
    &binary::KERNEL,
    &binary::SUM_TO,
    &dequantize::KERNEL,
    &dropout::KERNEL,
    &hidden_distance::KERNEL,
    &hadamard::KERNEL,
    &hadamard::SHUFFLED,
    &hadamard::MIXED,
    &mask::KERNEL,
    &packed_binary::KERNEL,
    &packed_integer::KERNEL,
    &packed_coop::KERNEL,
    &packed_tiled::KERNEL,
    &quantize::KERNEL,
    &quantize::ROWS,
    &quantize::TILE,
    &quantize::ROWS_TILE,
    &quantize::ROWS_SUBGROUP,
    &quantize::TENSOR,
    &quantize::SQUARE,
    &quantize_transposed::KERNEL,
    &quantize_transposed::TENSOR,
    &quantize_transposed::SQUARE,
    &quantize::DOUBLE,
    &quantize::NORM,
    &packed_skinny::KERNEL,
    &packed_vector::KERNEL,
    &packed_vector::LANES,
    &packed_vector::SUBGROUP,
    &pad_rows::KERNEL,
    &rope::KERNEL,
    &scale_columns::KERNEL,
    &scale_columns::DOT,
    &sign_gradient::KERNEL,
    &soft_cross_entropy::KERNEL,
    &softmax::KERNEL,
    &softmax::BACKWARD,
    &swiglu::KERNEL,
    &unary::KERNEL,
    &value_norm::KERNEL,
    &value_norm::BACKWARD,
    &embedding::KERNEL,
    &embedding::BACKWARD,
    &embedding::SORT,
    &embedding::SORTED,
    &embedding::POSITIONS,
];

/// A dimension as the shaders count it.
pub(crate) fn dim(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Limit {
        what: format!("a dimension of {n}"),
        limit: "u32 element index",
        max: u32::MAX.into(),
        needed: n as u64,
    })
}

/// Workgroup sizes of the kernels that reduce over one: a software adapter's barrier is a switch of coroutines, so there a workgroup is one
/// subgroup (8 invocations on lavapipe), elsewhere it is large.
pub(crate) fn workgroup_size(context: &Context) -> (&'static str, Define) {
    ("WG_SIZE", Define::U32(if context.capabilities().is_cpu() { 8 } else { 256 }))
}

/// The variants of a kernel that is specialised by [`workgroup_size`] only.
pub(crate) fn workgroup_variants() -> Vec<Defines> {
    vec![vec![("WG_SIZE", Define::U32(8))], vec![("WG_SIZE", Define::U32(256))]]
}

/// Inverted dropout whose mask is a function of seed, place and step, so that the backward pass makes it again instead of loading it:
/// the Philox counter is (element / 4, op, step, micro).
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Probability of dropping an element, in [0, 1).
    pub p: f32,
    /// Key.
    pub seed: u64,
    /// Which dropout of the model.
    pub op: u32,
    /// Which micro-batch of the step.
    pub micro: u32,
    /// The step state, whose step number changes the mask.
    pub state: &'a Buffer,
}

impl Dropout<'_> {
    /// Refuses probabilities outside [0, 1), which NaN is too, and what cannot be a step state.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        if !(0.0..1.0).contains(&self.p) {
            return Err(Error::invalid(op, "a dropout probability of at least 0 and below 1", self.p.to_string()));
        }
        check_state(op, self.state)
    }

    /// The threshold on 32 random bits below which an element is dropped, and the factor on those that stay.
    pub(crate) fn factors(&self) -> (u32, f32) {
        // p < 1, so the product is below 2^32.
        ((f64::from(self.p) * 4_294_967_296.0) as u32, 1.0 / (1.0 - self.p))
    }

    /// The key as the shaders take it.
    pub(crate) fn seed_words(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }
}

/// Refuses what is too short for a step state; its element type is free.
pub(crate) fn check_state(op: &'static str, state: &Buffer) -> Result<()> {
    let needed = std::mem::size_of::<optimizer_step::StepState>() as u64;
    if state.bytes() < needed {
        return Err(Error::shape(op, format!("a step state of {needed} bytes"), format!("{} bytes", state.bytes())));
    }
    Ok(())
}

/// Refuses a buffer whose length or element type is not what a kernel will index.
pub(crate) fn expect(op: &'static str, name: &str, buffer: &Buffer, len: usize, dtypes: &[DType]) -> Result<()> {
    if buffer.len() != len || !dtypes.contains(&buffer.dtype()) {
        let types: Vec<_> = dtypes.iter().map(ToString::to_string).collect();
        return Err(Error::shape(
            op,
            format!("{name} of {len} elements, {}", types.join(" or ")),
            format!("{} elements, {}", buffer.len(), buffer.dtype()),
        ));
    }
    Ok(())
}

/// The element types of activations.
pub(crate) const FLOATS: &[DType] = &[DType::F32, DType::F16];

/// How many neighbouring columns an invocation loads together: rows must start on a multiple of it.
pub(crate) fn width(cols: usize) -> u32 {
    if cols.is_multiple_of(4) { 4 } else { 1 }
}

/// The defines of kernels whose workgroup shares rows of `units` columns or vec4 of columns: `WG_SIZE` invocations for a row, `ROWS` rows in a
/// workgroup, and whether a row has one subgroup. A software adapter gets one subgroup of 8, which needs no barrier; others so many
/// invocations that each has about four units, and four short rows in a workgroup where each can be a subgroup: starting 16384 workgroups
/// takes an H200 12 us.
pub(crate) fn row_shape(context: &Context, units: u32) -> [(&'static str, Define); 3] {
    let caps = context.capabilities();
    let size = match units {
        _ if caps.is_cpu() => 8,
        0..=128 => 32,
        129..=256 => 64,
        _ => 256,
    };
    let one = context.tier() >= Tier::Subgroup && size <= caps.subgroup_size.0;
    let rows = if one && size == 32 && caps.subgroup_size == (32, 32) { 4 } else { 1 };
    [("WG_SIZE", Define::U32(size)), ("ROWS", Define::U32(rows)), ("ONE_SUBGROUP", Define::Bool(one))]
}

/// Everything that [`row_shape`] may choose.
pub(crate) fn row_shapes() -> Vec<Defines> {
    // No adapter has subgroups of 256 or more.
    [
        (8, 1, false),
        (8, 1, true),
        (32, 1, false),
        (32, 1, true),
        (32, 4, true),
        (64, 1, false),
        (64, 1, true),
        (256, 1, false),
    ]
    .map(|(size, rows, one)| {
        vec![("WG_SIZE", Define::U32(size)), ("ROWS", Define::U32(rows)), ("ONE_SUBGROUP", Define::Bool(one))]
    })
    .to_vec()
}

/// The variants of a kernel that goes over matrices by [`Rows`], with each of the kernel's own defines.
pub(crate) fn row_variants(own: &[Vec<Defines>]) -> Vec<Defines> {
    product(&[&[each("WIDTH", &[1u32, 4])], own, &[row_shapes()]].concat())
}

/// How a kernel whose workgroups share rows goes over a matrix.
pub(crate) struct Rows {
    /// Columns, or vec4 of columns, of a row.
    pub units: u32,
    /// Those of the variant.
    pub defines: Defines,
}

impl Rows {
    /// For rows of `cols`, by the variant with these defines of the kernel's own.
    pub fn new(context: &Context, cols: usize, own: &[(&'static str, Define)]) -> Result<Self> {
        let width = width(cols);
        let units = dim(cols)? / width;
        let mut defines = vec![("WIDTH", width.into())];
        defines.extend_from_slice(own);
        defines.extend(row_shape(context, units));
        Ok(Self { units, defines })
    }

    /// Rows of a workgroup.
    pub fn slots(&self) -> usize {
        if self.defines.contains(&("ROWS", Define::U32(4))) { 4 } else { 1 }
    }

    /// A workgroup for as many rows as it shares.
    pub fn grid(&self, rows: usize) -> Grid {
        Grid::Linear(rows.div_ceil(self.slots()) as u64)
    }
}

/// The product of lists of defines: every way to take one set of each.
pub(crate) fn product(lists: &[Vec<Defines>]) -> Vec<Defines> {
    lists.iter().fold(vec![Vec::new()], |all, list| {
        all.iter().flat_map(|head| list.iter().map(move |tail| [head.as_slice(), tail.as_slice()].concat())).collect()
    })
}

/// One define with each of several values.
pub(crate) fn each<T: Into<Define> + Copy>(name: &'static str, values: &[T]) -> Vec<Defines> {
    values.iter().map(|v| vec![(name, (*v).into())]).collect()
}
