//! Matrix products in the three forms that training needs, with what follows them fused in.

use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::kernel::dropout::dropout;
use crate::kernel::unary::{unary, unary_backward};
use crate::kernel::{Dropout, dim, each};
use crate::shader::{Define, Defines, Kernel};
use crate::{Context, DType, Error, Result, Tier};

/// Through workgroup memory in f32 arithmetic: every GPU, every tier.
pub static TILED: Kernel = Kernel {
    name: "matmul_tiled",
    source: include_str!("../../shaders/matmul_tiled.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || {
        let shaped = |v: Defines, shape: Shape| [v, shape.defines().to_vec()].concat();
        let mut all = Vec::new();
        for (form, types) in supported_types() {
            for v in variants_of(form, types, &[true, false], &tails(form, types[2])) {
                if form == Form::Nn {
                    all.push(shaped(v.clone(), Shape::Tall));
                }
                all.push(shaped(v.clone(), Shape::Wide));
                all.push(shaped(v, Shape::Small));
            }
        }
        all
    },
    proven_bounds: true,
};

/// By subgroup broadcasts without workgroup memory: adapters that run shaders on a CPU.
pub static LANES: Kernel = Kernel {
    name: "matmul_lanes",
    source: include_str!("../../shaders/matmul_lanes.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || {
        let mut all = Vec::new();
        for (form, types) in supported_types() {
            // Epilogues are kernels of their own there, see `unfused`.
            for v in variants_of(form, types, &[true, false], &[(0, 0, false)]) {
                all.extend([4u32, 8].map(|n| [v.clone(), vec![("LANES", n.into())]].concat()));
            }
        }
        all
    },
    proven_bounds: true,
};

/// A few rows of `x W^T`, as decoding has them: every tier.
pub static VECTOR: Kernel = Kernel {
    name: "matmul_vector",
    source: include_str!("../../shaders/matmul_vector.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || {
        let mut all = Vec::new();
        for (form, types) in supported_types().into_iter().filter(|(form, _)| *form == Form::Nt) {
            let tails: Vec<Tail> = tails(form, types[2]).into_iter().filter(|(.., dropout)| !dropout).collect();
            for v in variants_of(form, types, &[true, false], &tails) {
                all.extend([1, VECTOR_ROWS].map(|n| [v.clone(), vec![("ROWS", Define::U32(n as u32))]].concat()));
            }
        }
        all
    },
    proven_bounds: false,
};

/// One row of `x W^T` on adapters that run shaders on a CPU.
pub static VECTOR_LANES: Kernel = Kernel {
    name: "matmul_vector_lanes",
    source: include_str!("../../shaders/matmul_vector_lanes.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || {
        let mut all = Vec::new();
        for (form, types) in supported_types().into_iter().filter(|(form, _)| *form == Form::Nt) {
            for v in variants_of(form, types, &[true], &[(0, 0, false)]) {
                all.extend([4u32, 8].map(|n| [v.clone(), vec![("LANES", n.into())]].concat()));
            }
        }
        all
    },
    proven_bounds: true,
};

/// By cooperative matrices: f16 operands.
pub static COOP: Kernel = Kernel {
    name: "matmul_coop",
    source: include_str!("../../shaders/matmul_coop.wgsl"),
    tiers: &[Tier::Coop],
    variants: || {
        let mut all = Vec::new();
        for (form, types) in supported_types().into_iter().filter(|(_, types)| types[0] == DType::F16) {
            let tails: Vec<Tail> = tails(form, types[2]).into_iter().filter(|(.., dropout)| !dropout).collect();
            for v in variants_of(form, types, &[true], &tails) {
                all.extend([true, false].map(|full| [v.clone(), vec![("FULL", full.into())]].concat()));
            }
        }
        all
    },
    // The checks cost nothing here: they clamp only where a matrix starts.
    proven_bounds: false,
};

/// Adds up the parts of a product whose K was split.
pub static REDUCE: Kernel = Kernel {
    name: "matmul_reduce",
    source: include_str!("../../shaders/matmul_reduce.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || crate::kernel::product(&[each("Out", &[DType::F32, DType::F16]), each("WIDTH", &[1u32, 4])]),
    proven_bounds: false,
};

/// Which operand is stored how, all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `out[m, n] = a[m, k] b[n, k]^T`: forward, `x W^T`.
    Nt,
    /// `out[m, n] = a[m, k] b[k, n]`: input gradient, `dY W`.
    Nn,
    /// `out[m, n] = a[k, m]^T b[k, n]`: weight gradient, `dY^T X`.
    Tn,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::Nt, Self::Nn, Self::Tn];
}

/// Activations that can be fused into a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x Phi(x), by the error function (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu,
    /// Its tanh approximation, section 2 of the same paper.
    GeluTanh,
    /// x sigmoid(x).
    Silu,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Self; 3] = [Self::Gelu, Self::GeluTanh, Self::Silu];

    /// The number by which shaders know it.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Gelu => 1,
            Self::GeluTanh => 2,
            Self::Silu => 3,
        }
    }
}

/// What happens to the product before it is stored.
#[derive(Clone, Copy, Debug, Default)]
pub enum Epilogue<'a> {
    /// Nothing.
    #[default]
    None,
    /// `out = act(v)`, and `pre = v` is kept for the backward pass; `pre` is like `out`.
    Activation(Activation, &'a Buffer),
    /// `out = v act'(pre)`: the input gradient on its way through the activation before it.
    ActivationGrad(Activation, &'a Buffer),
    /// `out = residual + dropout(v)`; `residual` is f32, shaped like `out` and no part of the same buffer.
    Residual(&'a Buffer, Option<Dropout<'a>>),
}

/// Sizes and strides of a product, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Rows of `out`.
    pub m: usize,
    /// Columns of `out`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Matrices in the batch.
    pub batch: usize,
    /// Distance between the matrices of `a` and of `b`; 0: all use the same one. Those of `out` are `m * n` apart.
    pub stride: (usize, usize),
}

impl Dims {
    /// A single product.
    #[must_use]
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, batch: 1, stride: (0, 0) }
    }
}

/// A product.
#[derive(Clone, Copy, Debug)]
pub struct Matmul<'a> {
    /// How the operands are stored.
    pub form: Form,
    /// The sizes.
    pub dims: Dims,
    /// Left operand, f32 or f16.
    pub a: &'a Buffer,
    /// Right operand, f32 or f16.
    pub b: &'a Buffer,
    /// The result, f32 or f16.
    pub out: &'a Buffer,
    /// Factor on the product.
    pub alpha: f32,
    /// Added to each row, f32 `[n]`.
    pub bias: Option<&'a Buffer>,
    /// What follows.
    pub epilogue: Epilogue<'a>,
    /// Add to what `out` holds.
    pub accumulate: bool,
}

/// The twin of `MatmulParams` in `shaders/common/matmul_epilogue.wgsl`, without what products of quantized matrices add.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub batch_a: u32,
    pub batch_b: u32,
    pub batch_out: u32,
    pub accumulate: u32,
    pub alpha: f32,
    pub split: u32,
    pub splits: u32,
    pub threshold: u32,
    pub keep_scale: f32,
    pub op: u32,
    pub micro: u32,
    pub seed: [u32; 2],
    pub one: u32,
    pub flags: u32,
    pub activation: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ReduceParams {
    units: u32,
    stride: u32,
    parts: u32,
    accumulate: u32,
    alpha: f32,
}

pub(crate) fn form_code(form: Form) -> u32 {
    match form {
        Form::Nt => 0,
        Form::Nn => 1,
        Form::Tn => 2,
    }
}

/// (epilogue, activation, dropout), as the shader numbers them.
type Tail = (u32, u32, bool);

fn defines(form: Form, types: [DType; 3], vec: bool, bias: bool, (epilogue, activation, dropout): Tail) -> Defines {
    let extra = 4 + u32::from(bias);
    let mut defines: Defines = vec![
        ("FORM", form_code(form).into()),
        ("InA", types[0].into()),
        ("InB", types[1].into()),
        ("Out", types[2].into()),
        ("VEC", vec.into()),
        ("BIAS", bias.into()),
        ("EPILOGUE", epilogue.into()),
        ("ACTIVATION", activation.into()),
        ("DROPOUT", dropout.into()),
        ("PACKED", false.into()),
        ("OUT_AT", 3u32.into()),
    ];
    if epilogue > 0 || dropout {
        defines.push(("EXTRA", Define::U32(extra)));
    }
    defines
}

/// Every set of defines that [`matmul`] may ask for, without those of the single kernels. A bias comes only with the forward form.
fn variants_of(form: Form, types: [DType; 3], vec: &[bool], tails: &[Tail]) -> Vec<Defines> {
    let bias: &[bool] = if form == Form::Nt { &[false, true] } else { &[false] };
    let mut all = Vec::new();
    for vec in vec {
        for bias in bias {
            all.extend(tails.iter().map(|tail| defines(form, types, *vec, *bias, *tail)));
        }
    }
    all
}

/// Operand and result types per form: f32 throughout, or f16 operands into f16 or f32.
fn supported_types() -> Vec<(Form, [DType; 3])> {
    use DType::{F16, F32};
    let mut all = Vec::new();
    for form in Form::ALL {
        for types in [[F32, F32, F32], [F16, F16, F32], [F16, F16, F16]] {
            all.push((form, types));
        }
    }
    all
}

fn tails(form: Form, out: DType) -> Vec<Tail> {
    let mut all: Vec<Tail> = vec![(0, 0, false)];
    let activations = Activation::ALL.map(Activation::code);
    match form {
        Form::Nt => {
            all.extend(activations.map(|a| (1, a, false)));
            if out == DType::F32 {
                all.extend([(3, 0, false), (3, 0, true)]);
            }
        }
        Form::Nn => all.extend(activations.map(|a| (2, a, false))),
        Form::Tn => {}
    }
    all
}

/// Tile and workgroup of [`TILED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// 128 x 128 by 256 invocations of 8 x 8.
    Wide,
    /// 128 x 128 by 128 invocations of 16 x 8, faster for input gradients with many columns alone.
    Tall,
    /// 64 x 64 by 256 invocations of 4 x 4, for results that are too small to fill a GPU with large tiles.
    Small,
}

impl Shape {
    pub(crate) fn tile(self) -> usize {
        if self == Self::Small { 64 } else { 128 }
    }

    pub(crate) fn defines(self) -> [(&'static str, Define); 5] {
        let [m, n, rows, depth, loads] = match self {
            Self::Wide => [2, 2, 16, 8, 1],
            Self::Tall => [4, 2, 8, 8, 2],
            Self::Small => [1, 1, 16, 16, 1],
        };
        [("BLOCKS_M", m), ("BLOCKS_N", n), ("ROWS", rows), ("DEPTH", depth), ("LOADS", loads)]
            .map(|(name, value)| (name, Define::U32(value)))
    }
}

/// A kernel for a product, with what the host decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// [`LANES`].
    Lanes,
    /// [`VECTOR_LANES`].
    VectorLanes,
    /// [`VECTOR`].
    Vector,
    /// [`TILED`].
    Tiled {
        /// Its tile.
        shape: Shape,
        /// Parts into which K is cut, at least 1.
        splits: usize,
    },
    /// [`COOP`].
    Coop {
        /// Parts into which K is cut, at least 1.
        splits: usize,
    },
}

/// The most rows that [`VECTOR`] takes.
pub(crate) const VECTOR_ROWS: usize = 8;
/// Workgroups that fill a large GPU: two on each of 132 multiprocessors. A grid just below runs in one go; just above it takes two.
pub(crate) const SLOTS: usize = 264;
/// K is cut into multiples of this, so that no part but the last has a rest.
pub(crate) const SPLIT_UNIT: usize = 32;

/// Into how many parts K should be cut where a result has `tiles` tiles: as many as fill the GPU with two workgroups a multiprocessor, or
/// with one, as long as each part is at least `enough` long; else as many as leave 256 to each.
pub(crate) fn splits(tiles: usize, k: usize, enough: usize) -> usize {
    let full = [SLOTS, SLOTS / 2].into_iter().map(|slots| slots / tiles).find(|s| *s >= 2 && k / s >= enough);
    full.unwrap_or((SLOTS / 2 / tiles).min(k / 256)).max(1)
}

/// The kernel that [`matmul`] takes, by this table (the first line that fits):
///
/// | adapter | tier | operands | product | kernel |
/// | --- | --- | --- | --- | --- |
/// | CPU | subgroup, of 4 or 8 | any | Nt, m = 1, k > 0, rows multiples of 4 | vector, lanes |
/// | CPU | subgroup, of 4 or 8 | any | k > 0 | lanes |
/// | any | any | any | Nt, m <= 8, no dropout | vector |
/// | any | coop | f16 | contiguous dimensions multiples of 4 | coop |
/// | any | any | any | m or n <= 64, or fewer than 66 tiles of 128 x 128, parts of K counted | tiled, small |
/// | any | any | any | Nn, n >= 1024 | tiled, tall |
/// | any | any | any | any | tiled, wide |
///
/// K is cut by coop and tiled alone, and only without batch, bias and epilogue: see `splits` in this file; coop wants parts of 1024 at least,
/// tiled of 512. The choice depends on nothing but this, so that a program gives the same bits every time.
#[must_use]
pub fn choose(context: &Context, spec: &Matmul<'_>) -> Choice {
    let Dims { m, n, k, batch, .. } = spec.dims;
    for choice in [Choice::VectorLanes, Choice::Lanes, Choice::Vector] {
        if choice.supports(context, spec).is_ok() {
            return choice;
        }
    }
    let tiles = |size: usize| m.div_ceil(size) * n.div_ceil(size) * batch;
    let may_split = can_split(spec).is_ok();
    let parts = |size: usize, enough: usize| if may_split { splits(tiles(size).max(1), k, enough) } else { 1 };
    if (Choice::Coop { splits: 1 }).supports(context, spec).is_ok() {
        return Choice::Coop { splits: parts(128, 1024) };
    }
    let large = parts(128, 512);
    if m <= 64 || n <= 64 || tiles(128) * large < SLOTS / 4 {
        return Choice::Tiled { shape: Shape::Small, splits: parts(64, 512) };
    }
    Choice::Tiled { shape: if spec.form == Form::Nn && n >= 1024 { Shape::Tall } else { Shape::Wide }, splits: large }
}

/// Why K may not be cut, if so.
fn can_split(spec: &Matmul<'_>) -> Result<(), &'static str> {
    match spec {
        Matmul {
            epilogue: Epilogue::Activation(..) | Epilogue::ActivationGrad(..) | Epilogue::Residual(..), ..
        }
        | Matmul { bias: Some(_), .. } => Err("what follows a product needs whole sums"),
        Matmul { dims: Dims { batch: 2.., .. }, .. } => Err("the parts take the place of the batch"),
        _ => Ok(()),
    }
}

impl Choice {
    fn splits(self) -> usize {
        match self {
            Self::Lanes | Self::VectorLanes | Self::Vector => 1,
            Self::Tiled { splits, .. } | Self::Coop { splits } => splits.max(1),
        }
    }

    /// Whether the kernel can do this product on this device.
    ///
    /// # Errors
    /// The reason why it cannot.
    pub fn supports(self, context: &Context, spec: &Matmul<'_>) -> Result<(), &'static str> {
        let caps = context.capabilities();
        if self.splits() > 1 {
            can_split(spec)?;
        }
        match self {
            Self::Lanes => match (caps.is_cpu(), context.tier() >= Tier::Subgroup, caps.subgroup_size, spec.dims.k) {
                (false, ..) => Err("it is written for adapters that run shaders on a CPU"),
                (_, false, ..) => Err("it needs the subgroup tier"),
                (_, _, _, 0) => Err("it needs k > 0"),
                (_, _, (4, 4) | (8, 8), _) => Ok(()),
                _ => Err("it needs subgroups of exactly 4 or 8 invocations"),
            },
            Self::VectorLanes if spec.form != Form::Nt || spec.dims.m != 1 || !vectors(spec) => {
                Err("it is written for one row of the forward form, with contiguous dimensions that are multiples of 4")
            }
            Self::VectorLanes => Self::Lanes.supports(context, spec),
            Self::Vector if spec.form != Form::Nt => Err("it is written for the forward form"),
            Self::Vector if spec.dims.m > VECTOR_ROWS => Err("it takes at most 8 rows"),
            Self::Vector if matches!(spec.epilogue, Epilogue::Residual(_, Some(_))) => Err("it has no dropout"),
            Self::Tiled { shape: Shape::Tall, .. } if spec.form != Form::Nn => {
                Err("only the input gradient takes tall tiles")
            }
            Self::Coop { .. } if context.tier() < Tier::Coop => Err("it needs the coop tier"),
            Self::Coop { .. } if spec.a.dtype() != DType::F16 => Err("its operands are f16"),
            Self::Coop { .. } if !vectors(spec) => {
                Err("it needs contiguous dimensions and strides that are multiples of 4")
            }
            Self::Vector | Self::Tiled { .. } | Self::Coop { .. } => Ok(()),
        }
    }
}

/// True where every row of operands and result starts on a multiple of four elements.
fn vectors(spec: &Matmul<'_>) -> bool {
    let Dims { m, n, k, stride, .. } = spec.dims;
    let contiguous = match spec.form {
        Form::Nt => [k, k, n],
        Form::Nn => [k, n, n],
        Form::Tn => [m, n, n],
    };
    contiguous.iter().chain([&stride.0, &stride.1]).all(|d| d % 4 == 0)
}

/// Multiplies.
///
/// # Shapes
/// As [`Form`] and [`Dims`] say; `bias` is `[n]`, the buffers of the epilogue are like `out`.
///
/// # Errors
/// [`Error::Shape`] where a buffer is too short or the types are not supported together; [`Error::Invalid`] for a dropout that is no
/// probability below 1 and for a residual in the buffer of the result; [`Error::Limit`] where a dispatch is too large.
///
/// # Numerics
/// Products are summed in f32 in an order that is fixed per kernel and shape: |error| <= (k + 6) u |a| |b| with u = 2^-24, except that
/// cooperative matrices may cut off instead of round, which doubles u. Where a sum is infinite by an infinity in the last row of K, CPU
/// adapters may return NaN instead.
pub fn matmul(context: &Context, spec: &Matmul<'_>) -> Result<()> {
    check(spec)?;
    run(context, spec, choose(context, spec))
}

/// Multiplies with a given kernel, for tests and measurements.
///
/// # Errors
/// As [`matmul`]; [`Error::Unsupported`] where the kernel cannot do it.
#[doc(hidden)]
pub fn matmul_with(context: &Context, spec: &Matmul<'_>, choice: Choice) -> Result<()> {
    check(spec)?;
    choice
        .supports(context, spec)
        .map_err(|why| Error::Unsupported { what: format!("a product by {choice:?}"), why: why.into() })?;
    run(context, spec, choice)
}

/// A product whose K was cut: `count` matrices one after another, f32, still to be added up.
#[derive(Debug)]
pub(crate) struct Terms {
    pub buffer: Buffer,
    pub count: usize,
}

impl Terms {
    /// `out = alpha` times their sum, or is increased by that.
    pub fn add_up(&self, context: &Context, out: &Buffer, alpha: f32, accumulate: bool) -> Result<()> {
        let len = self.buffer.len() / self.count;
        let width = crate::kernel::width(len);
        let units = dim(len)? / width;
        context.dispatch(
            &REDUCE,
            &[("Out", out.dtype().into()), ("WIDTH", width.into())],
            &ReduceParams { units, stride: units, parts: dim(self.count)?, accumulate: accumulate.into(), alpha },
            &[self.buffer.read(), out.write()],
            Grid::Linear(u64::from(units).div_ceil(64)),
        )
    }
}

/// [`matmul`], but where K is cut, `out` is not written and alpha not applied: the terms of the result are returned instead.
pub(crate) fn matmul_terms(context: &Context, spec: &Matmul<'_>) -> Result<Option<Terms>> {
    check(spec)?;
    run_to_terms(context, spec, choose(context, spec))
}

fn run(context: &Context, spec: &Matmul<'_>, choice: Choice) -> Result<()> {
    match run_to_terms(context, spec, choice)? {
        Some(terms) => terms.add_up(context, spec.out, spec.alpha, spec.accumulate),
        None => Ok(()),
    }
}

fn run_to_terms(context: &Context, spec: &Matmul<'_>, choice: Choice) -> Result<Option<Terms>> {
    let Dims { m, n, k, .. } = spec.dims;
    if m == 0 || n == 0 || spec.dims.batch == 0 {
        return Ok(None);
    }
    // A kernel of its own draws random numbers while others load; in the epilogue of 16384 x 384 x 384 by cooperative matrices they took twice as
    // long as the product.
    let apart = match choice {
        Choice::Lanes | Choice::VectorLanes => !matches!(spec.epilogue, Epilogue::None),
        Choice::Coop { .. } => matches!(spec.epilogue, Epilogue::Residual(_, Some(_))),
        _ => false,
    };
    if apart {
        return unfused(context, spec).map(|()| None);
    }
    let split = k.div_ceil(choice.splits()).next_multiple_of(SPLIT_UNIT).max(1);
    let count = k.div_ceil(split);
    if count < 2 {
        return dispatch(context, spec, choice, k, 1).map(|()| None);
    }
    let buffer = context.alloc(count * m * n, DType::F32)?;
    dispatch(context, &Matmul { out: &buffer, alpha: 1.0, accumulate: false, ..*spec }, choice, split, count)?;
    Ok(Some(Terms { buffer, count }))
}

/// A product whose epilogue is a kernel of its own. Software adapters compile shaders on the thread that runs them: a register tile with an
/// epilogue takes a second or more, the plain one, which all products then share, half a second; and their memory is a cache.
fn unfused(context: &Context, spec: &Matmul<'_>) -> Result<()> {
    let plain = Matmul { epilogue: Epilogue::None, accumulate: false, ..*spec };
    let scratch = || context.alloc(spec.out.len(), spec.out.dtype());
    match spec.epilogue {
        Epilogue::None => matmul(context, spec),
        Epilogue::Activation(activation, pre) => {
            matmul(context, &Matmul { out: pre, ..plain })?;
            unary(context, activation.into(), pre, spec.out)
        }
        Epilogue::ActivationGrad(activation, pre) => {
            let sum = scratch()?;
            matmul(context, &Matmul { out: &sum, ..plain })?;
            unary_backward(context, activation.into(), pre, &sum, spec.out, spec.accumulate)
        }
        Epilogue::Residual(residual, None) => {
            context.copy(residual, spec.out)?;
            matmul(context, &Matmul { accumulate: true, ..plain })
        }
        Epilogue::Residual(residual, Some(mask)) => {
            let sum = scratch()?;
            matmul(context, &Matmul { out: &sum, ..plain })?;
            dropout(context, &sum, Some(residual), spec.out, mask)
        }
    }
}

/// Runs the kernel itself: `parts` parts of K, `split` long each.
fn dispatch(context: &Context, spec: &Matmul<'_>, choice: Choice, split: usize, parts: usize) -> Result<()> {
    let Dims { m, n, k, batch, stride } = spec.dims;
    // Empty operands end where their last matrix starts, and kernels may load, though not use, the first unit of each.
    let stride = if k == 0 { (0, 0) } else { stride };
    let types = [spec.a.dtype(), spec.b.dtype(), spec.out.dtype()];
    let mut bindings = vec![spec.a.read(), spec.b.read(), spec.out.write()];
    bindings.extend(spec.bias.map(Buffer::read));
    let mut drop = None;
    match spec.epilogue {
        Epilogue::None => {}
        Epilogue::Activation(_, pre) => bindings.push(pre.write()),
        Epilogue::ActivationGrad(_, pre) => bindings.push(pre.read()),
        Epilogue::Residual(residual, dropout) => {
            bindings.push(residual.read());
            if let Some(d) = &dropout {
                bindings.push(d.state.read());
            }
            drop = dropout;
        }
    }
    let (threshold, keep_scale) = drop.as_ref().map_or((0, 1.0), Dropout::factors);
    let params = Params {
        m: dim(m)?,
        n: dim(n)?,
        k: dim(k)?,
        batch_a: dim(stride.0)?,
        batch_b: dim(stride.1)?,
        batch_out: dim(m * n)?,
        accumulate: spec.accumulate.into(),
        alpha: spec.alpha,
        split: dim(split)?,
        splits: dim(parts)?,
        threshold,
        keep_scale,
        op: drop.map_or(0, |d| d.op),
        micro: drop.map_or(0, |d| d.micro),
        seed: drop.map_or([0; 2], |d| d.seed_words()),
        one: 1,
        flags: 0,
        activation: 0,
        pad: 0,
    };
    let mut defines = defines(spec.form, types, vectors(spec), spec.bias.is_some(), tail(spec.epilogue));
    let grid = |tile: usize| -> Result<Grid> {
        Ok(Grid::Xyz([dim(n.div_ceil(tile))?, dim(m.div_ceil(tile))?, dim(batch * parts)?]))
    };
    let (kernel, tier, grid) = match choice {
        Choice::Lanes => {
            let lanes = context.capabilities().subgroup_size.0;
            defines.push(("LANES", lanes.into()));
            (&LANES, Tier::Subgroup, grid(4 * lanes as usize)?)
        }
        Choice::VectorLanes => {
            defines.push(("LANES", context.capabilities().subgroup_size.0.into()));
            let blocks = dim(n.div_ceil(16))?;
            let rows = blocks.div_ceil(context.capabilities().limits.max_compute_workgroups_per_dimension);
            (&VECTOR_LANES, Tier::Subgroup, Grid::Xyz([blocks.div_ceil(rows), rows, dim(batch)?]))
        }
        Choice::Vector => {
            defines.push(("ROWS", Define::U32(if m == 1 { 1 } else { VECTOR_ROWS as u32 })));
            let blocks = dim(n.div_ceil(4))?;
            let rows = blocks.div_ceil(context.capabilities().limits.max_compute_workgroups_per_dimension);
            (&VECTOR, Tier::Baseline, Grid::Xyz([blocks.div_ceil(rows), rows, dim(batch)?]))
        }
        Choice::Tiled { shape, .. } => {
            defines.extend(shape.defines());
            (&TILED, Tier::Baseline, grid(shape.tile())?)
        }
        Choice::Coop { .. } => {
            let full = m % 128 == 0 && n % 128 == 0 && k % SPLIT_UNIT == 0;
            defines.push(("FULL", full.into()));
            (&COOP, Tier::Coop, grid(128)?)
        }
    };
    context.dispatch_tier(kernel, tier, &defines, &params, &bindings, grid)
}

fn tail(epilogue: Epilogue<'_>) -> Tail {
    match epilogue {
        Epilogue::None => (0, 0, false),
        Epilogue::Activation(a, _) => (1, a.code(), false),
        Epilogue::ActivationGrad(a, _) => (2, a.code(), false),
        Epilogue::Residual(_, d) => (3, 0, d.is_some()),
    }
}

fn check(spec: &Matmul<'_>) -> Result<()> {
    let Dims { m, n, k, batch, stride } = spec.dims;
    let fail = |expected: String, got: String| Err(Error::shape("matmul", expected, got));
    let types = [spec.a.dtype(), spec.b.dtype(), spec.out.dtype()];
    if !supported_types().contains(&(spec.form, types)) {
        return fail(
            "operands and result of f32, or f16 operands with a result of f16 or f32".into(),
            format!("{types:?}"),
        );
    }
    let [of_a, of_b, of_out] = [elements(&[m, k])?, elements(&[k, n])?, elements(&[batch, m, n])?];
    let span = |one: usize, stride: usize| match batch.checked_sub(1) {
        Some(others) => others.saturating_mul(stride).saturating_add(one),
        None => 0,
    };
    let needs = [("a", spec.a, span(of_a, stride.0)), ("b", spec.b, span(of_b, stride.1)), ("out", spec.out, of_out)];
    for (name, buffer, needed) in needs {
        if buffer.len() < needed {
            return fail(
                format!("{name} of at least {needed} elements for {:?}", spec.dims),
                format!("{}", buffer.len()),
            );
        }
    }
    if spec.accumulate && matches!(spec.epilogue, Epilogue::Activation(..) | Epilogue::Residual(..)) {
        return fail("no accumulation into an activation or a residual sum".into(), format!("{:?}", spec.epilogue));
    }
    if !matches!(spec.epilogue, Epilogue::None) && spec.out.len() != of_out {
        return fail(format!("a result of {of_out} elements"), format!("{}", spec.out.len()));
    }
    let like_out = |name: &str, buffer: &Buffer, dtype: DType| {
        if buffer.len() != of_out || buffer.dtype() != dtype {
            return fail(
                format!("{name} of {dtype} with {of_out} elements"),
                format!("{} of {}", buffer.len(), buffer.dtype()),
            );
        }
        Ok(())
    };
    match spec.epilogue {
        Epilogue::None => {}
        Epilogue::Activation(_, pre) | Epilogue::ActivationGrad(_, pre) => like_out("pre", pre, types[2])?,
        Epilogue::Residual(residual, dropout) => {
            like_out("residual", residual, DType::F32)?;
            dropout.map_or(Ok(()), |d| d.check("matmul"))?;
        }
    }
    let tail = tail(spec.epilogue);
    if !tails(spec.form, types[2]).contains(&tail) {
        return fail(
            "activations after Nt, their derivatives after Nn, residuals after Nt into f32".into(),
            format!("{:?} with form {:?} into {}", tail, spec.form, types[2]),
        );
    }
    if spec.bias.is_some() && spec.form != Form::Nt {
        return fail("a bias only after Nt".into(), format!("a bias with form {:?}", spec.form));
    }
    if let Some(bias) = spec.bias
        && (bias.len() < n || bias.dtype() != DType::F32)
    {
        return fail(format!("an f32 bias of {n} elements"), format!("{} of {}", bias.len(), bias.dtype()));
    }
    residual_apart("matmul", spec.epilogue, spec.out)
}

/// That the residual is no part of the buffer of the result. Kernels that add it on the way out could not bind both; products whose epilogue is
/// a kernel of its own might manage, but what is refused hangs on no kernel.
pub(crate) fn residual_apart(op: &'static str, epilogue: Epilogue<'_>, out: &Buffer) -> Result<()> {
    match epilogue {
        Epilogue::Residual(residual, _) if residual.shares_memory(out) => Err(Error::invalid(
            format!("{op}, residual"),
            "a buffer other than that of the result",
            "a part of the buffer of the result",
        )),
        _ => Ok(()),
    }
}

const _: () = assert!(std::mem::size_of::<Params>() == 80);

impl From<Activation> for crate::kernel::unary::Unary {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Gelu => Self::GeluErf,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Silu => Self::Silu,
        }
    }
}
