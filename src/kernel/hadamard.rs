//! The fast Walsh-Hadamard transform of blocks, with random signs, a mask and a factor.

use super::matmul::Activation;
use super::{FLOATS, check_state, dim, expect, mask, product};
use crate::buffer::Buffer;
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel, Scalar};
use crate::{Context, DType, Error, Result, Tier};

/// The kernel for blocks of 2^k.
pub static KERNEL: Kernel = Kernel {
    name: "hadamard",
    source: include_str!("../../shaders/hadamard.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || variants(&POWERS.map(Shape::defines)),
    proven_bounds: true,
};

/// The kernel for blocks of 2^k where subgroups are large enough to exchange within; the plan is compiled in.
pub static SHUFFLED: Kernel = Kernel {
    name: "hadamard_shuffled",
    source: include_str!("../../shaders/hadamard.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || {
        let mut all: Vec<Defines> = Vec::new();
        for (lanes, f16) in LANES.into_iter().flat_map(|lanes| [(lanes, false), (lanes, true)]) {
            for shape in (3..=MAX_POWER).filter_map(|k| Shape::shuffled(k, lanes, f16)) {
                let defines = shape.defines();
                if !all.contains(&defines) {
                    all.push(defines);
                }
            }
        }
        variants(&all)
    },
    proven_bounds: true,
};

/// The kernel for blocks of 12, 20 or 28 times 2^k.
pub static MIXED: Kernel = Kernel {
    name: "hadamard_mixed",
    source: include_str!("../../shaders/hadamard.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || {
        let shapes = FACTORS.iter().flat_map(|m| (0..3).map(|k| (*m, k))).flat_map(|(m, k)| {
            let transposes: &[bool] = if m == 12 { &[false] } else { &[false, true] };
            transposes.iter().map(move |t| Shape::mixed(m, k, *t))
        });
        variants(&shapes.map(Shape::defines).collect::<Vec<_>>())
    },
    proven_bounds: true,
};

/// Orders of the matrices that are no powers of two.
const FACTORS: [u32; 3] = [12, 20, 28];
/// The largest exponent of 2 in a block's size, alone and beside a factor.
const MAX_POWER: u32 = 15;
const MAX_POWER_MIXED: u32 = 10;

/// log2 of the lanes that shuffles reach, best first.
const LANES: [u32; 2] = [5, 3];

/// How the work on a tile is divided; see the shader.
#[derive(Clone, Copy, Debug)]
struct Shape {
    workgroup: u32,
    log_items: u32,
    outer: u32,
    components: u32,
    exchange: bool,
    /// Whether an invocation's elements are neighbours.
    owned: bool,
    /// Workgroups go on to further tiles, of which they load so many vec4 ahead.
    ahead: Option<u32>,
    plan: Option<Plan>,
    /// 0: a power of two.
    m: u32,
    /// log2 of a chunk, at most 2.
    k: u32,
    transpose: bool,
}

impl Shape {
    const fn power(workgroup: u32, log_items: u32, outer: u32, components: u32) -> Self {
        let (owned, exchange) = (false, true);
        let (ahead, plan, m, k, transpose) = (None, None, 0, 2, false);
        Self { workgroup, log_items, outer, components, exchange, owned, ahead, plan, m, k, transpose }
    }

    const fn owned(workgroup: u32, log_items: u32) -> Self {
        Self { exchange: false, owned: true, ..Self::power(workgroup, log_items, 1, 4) }
    }

    const fn mixed(m: u32, k: u32, transpose: bool) -> Self {
        let (workgroup, log_items, outer) = if k == 2 { (256, 2, m / 4) } else { (64, 0, m * (k + 1) / 4) };
        let power = Self::power(workgroup, log_items, outer, 4);
        Self { exchange: k == 2, owned: k < 2, m, k, transpose, ..power }
    }

    /// Blocks of 2^k with shuffles among 2^lanes lanes. Up to 4096 elements fit into the registers of 32 lanes; that pays for f16, while
    /// f32 goes through workgroup memory from there on, as little of it as possible, since it is what limits how many workgroups run at
    /// once.
    fn shuffled(k: u32, lanes: u32, f16: bool) -> Option<Self> {
        let within_subgroup =
            |workgroup, log_items| Self { exchange: false, ..Self::power(workgroup, log_items, 1, 4) };
        let (shape, shuffles) = match (k, lanes) {
            (12, 5) if !f16 => (Self::power(128, 3, 1, 2), 1),
            (13, 5) => (Self::power(128, 4, 1, 2), 3),
            (14, 5) => (Self::power(256, 4, 1, 1), 4),
            (15, 5) => (Self { ahead: Some(8), ..Self::power(256, 4, 2, 2) }, 4),
            _ => match (k - 2).saturating_sub(lanes) {
                log_items @ 0..=3 => (within_subgroup(128, log_items.max(2)), lanes),
                log_items @ 4..=5 => (within_subgroup(64, log_items), lanes),
                _ => return None,
            },
        };
        let bits = k - 2 - shape.outer.ilog2();
        let plan = Plan::new(shape, bits, bits.saturating_sub(shape.log_items).max(2), true, shuffles, 2);
        Some(Self { plan: Some(plan), ..shape })
    }

    /// Vec4 of one group in a tile, as a power of two.
    const fn log_tile(self) -> u32 {
        self.workgroup.ilog2() + self.log_items
    }

    /// Bytes of workgroup memory that tiles are exchanged through.
    const fn workgroup_bytes(self) -> u32 {
        if self.exchange { (4 * self.workgroup * self.components) << self.log_items } else { 0 }
    }

    /// Whether that is more than the default limits allow.
    const fn large(self) -> bool {
        self.workgroup_bytes() > 16384
    }

    fn defines(self) -> Defines {
        let items = 1 << self.log_items;
        let log_outer = if self.m == 0 { self.outer.ilog2() } else { 0 };
        let plan = self.plan.unwrap_or_default();
        vec![
            ("WG_SIZE", self.workgroup.into()),
            ("LOG_ITEMS", self.log_items.into()),
            ("ITEMS", items.into()),
            ("HALF", (items / 2).into()),
            ("OUTER", self.outer.into()),
            ("LOG_OUTER", log_outer.into()),
            ("OUTER_M", (self.m / 4).into()),
            ("REGS", (self.outer * items).into()),
            ("HALF_REGS", (self.outer * items / 2).into()),
            ("COMPONENTS", self.components.into()),
            ("EXCHANGE", self.exchange.into()),
            ("OWNED", self.owned.into()),
            ("RAGGED", (self.owned && self.m == 0 && items == 1).into()),
            ("PREFETCH", self.ahead.is_some().into()),
            ("AHEAD", self.ahead.unwrap_or(0).into()),
            ("STATIC", self.plan.is_some().into()),
            ("STEP_0", plan.steps[0].into()),
            ("STEP_1", plan.steps[1].into()),
            ("STEP_2", plan.steps[2].into()),
            ("STEP_3", plan.steps[3].into()),
            ("PASSES", plan.passes.into()),
            ("SHUFFLES", plan.shuffles.into()),
            ("LARGE", self.large().into()),
            ("M", self.m.into()),
            ("K", self.k.into()),
            ("TRANSPOSE", self.transpose.into()),
        ]
    }
}

/// Blocks of up to 4, whose vec4 may reach into the next row where they are shorter.
const SINGLE: Shape = Shape::owned(64, 0);
/// Whole blocks of up to 32 in the registers of an invocation.
const OWNED: Shape = Shape::owned(64, 3);
/// Blocks of up to 4096, 16384, 32768 with as many invocations as the default limits of workgroup memory feed.
const WIDE: Shape = Shape::power(128, 3, 1, 4);
const WIDE_LONG: Shape = Shape::power(256, 4, 1, 1);
const WIDE_LONGEST: Shape = Shape::power(256, 4, 2, 1);
const POWERS: [Shape; 5] = [SINGLE, OWNED, WIDE, WIDE_LONG, WIDE_LONGEST];

fn variants(shapes: &[Defines]) -> Vec<Defines> {
    use Scalar::{F16, F32};
    let types = [
        (F32, F32, false),
        (F32, F32, true),
        (F16, F16, false),
        (F16, F16, true),
        (F32, F16, false),
        (F16, F32, false),
    ]
    .map(|(x, out, in_place)| vec![("X", x.into()), ("Out", out.into()), ("IN_PLACE", in_place.into())]);
    let extras = |pairs: &[(bool, bool)]| pairs.iter().map(|(extra, gelu)| extra_defines(*extra, *gelu)).collect();
    let plain = product(&[types.to_vec(), extras(&[(false, false), (true, false)]), shapes.to_vec()]);
    let like = [F32, F16].map(|x| vec![("X", x.into()), ("Out", x.into()), ("IN_PLACE", false.into())]).to_vec();
    [plain, product(&[like, extras(&[(true, true)]), shapes.to_vec()])].concat()
}

fn extra_defines(extra: bool, gelu_grad: bool) -> Defines {
    vec![("EXTRA", extra.into()), ("GELU_GRAD", gelu_grad.into()), ("ACTIVATION", Activation::Gelu.code().into())]
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    vectors: u32,
    tiles: u32,
    log_group: u32,
    within: u32,
    terms: u32,
    passes: u32,
    scale: f32,
    flags: u32,
    plan: [u32; MAX_STEPS],
    len: u32,
    cols: u32,
    mask_words: u32,
    seed_low: u32,
    seed_high: u32,
    op: u32,
    step: u32,
    reserved1: u32,
}

const MASKED: u32 = 1;
const SIGNS_BEFORE: u32 = 2;
const SIGNS_AFTER: u32 = 4;
const ACCUMULATE: u32 = 8;
const STEP_FROM_STATE: u32 = 16;
const MASK_FLAT: u32 = 32;

/// Which step's random numbers to take.
#[derive(Clone, Debug)]
pub enum Step {
    /// This one.
    Number(u32),
    /// The optimizer's, from its state on the device.
    State(Buffer),
}

/// Random signs of columns, a function of seed, place and step that is made again wherever it is needed: that of column `c` is bit `c %
/// 32` of word `c / 32 % 4` of the Philox call with counter (`c / 128`, op, step, 0) and the seed as key; 1 is minus.
/// [`crate::kernel::Dropout`] counts its operations in the same place: of one seed, every use has a number of its own.
#[derive(Clone, Debug)]
pub struct Signs {
    /// Key.
    pub seed: u64,
    /// Which of the model's random operations this is; operands of one product that share a transform share it.
    pub op: u32,
    /// The step.
    pub step: Step,
}

/// What to transform, and how.
#[derive(Clone, Debug)]
pub struct Hadamard<'a> {
    /// Rows of `x`.
    pub rows: usize,
    /// Columns of `x`.
    pub cols: usize,
    /// Elements of a block, see [`supported`]; divides `cols`. 1: no transform, but signs, mask and factor.
    pub n: usize,
    /// Multiply by the transposed matrix, which is the inverse, and put the signs after it instead of before.
    pub transpose: bool,
    /// Random signs d: `(x . d) H`, or transposed `(x H^T) . d`.
    pub signs: Option<&'a Signs>,
    /// One bit per element of x as [`mask::words`] lays them out: where it is 0, x counts as 0.
    pub mask: Option<&'a Buffer>,
    /// `x` stands for the sum of so many matrices, one after another, as a product whose K is cut leaves them: f32, apart from `out`, of a
    /// multiple of four elements, where there are more than one.
    pub terms: usize,
    /// A factor on the result.
    pub alpha: f32,
    /// A further factor, the derivative of the exact GELU at these values; of `out`'s size and type, which is x's, and not in place. What the
    /// gradient of a rotated activation goes through last.
    pub gelu_grad: Option<&'a Buffer>,
    /// Add to `out` instead of overwriting it.
    pub accumulate: bool,
}

impl Hadamard<'_> {
    /// The plain transform of blocks of `n`.
    #[must_use]
    pub fn new(rows: usize, cols: usize, n: usize) -> Self {
        Self {
            rows,
            cols,
            n,
            transpose: false,
            signs: None,
            mask: None,
            terms: 1,
            alpha: 1.0,
            gelu_grad: None,
            accumulate: false,
        }
    }
}

/// How a tile is divided among invocations. [`hadamard`] chooses; this is for tests and measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Blocks of up to 32 in the registers of an invocation: for adapters whose barriers are slow.
    Owned,
    /// Blocks shared by invocations, neighbours of which load neighbours; by shuffles where subgroups have eight lanes or more.
    Wide,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 2] = [Self::Owned, Self::Wide];
}

/// The sizes of blocks that there are, in ascending order: 1; 2^k up to 32768; 12, 20 and 28 times 2^k up to 12288, 20480 and 28672.
#[must_use]
pub fn sizes() -> Vec<usize> {
    let mut all: Vec<usize> = (0..=MAX_POWER).map(|k| 1 << k).collect();
    all.extend(FACTORS.iter().flat_map(|m| (0..=MAX_POWER_MIXED).map(move |k| (*m as usize) << k)));
    all.sort_unstable();
    all
}

/// Whether blocks may have `n` elements.
#[must_use]
pub fn supported(n: usize) -> bool {
    split(n).is_some()
}

/// `n` as (m, k) with n = m 2^k, m = 0 for powers of two.
fn split(n: usize) -> Option<(u32, u32)> {
    if n == 0 {
        return None;
    }
    let odd = n >> n.trailing_zeros();
    if odd == 1 {
        return Some((0, n.ilog2())).filter(|(_, k)| *k <= MAX_POWER);
    }
    let (m, k) = (4 * odd, n.trailing_zeros().checked_sub(2)?);
    let m = FACTORS.into_iter().find(|f| *f as usize == m)?;
    Some((m, k)).filter(|_| k <= MAX_POWER_MIXED)
}

/// Workgroups that go on to further tiles: about as many as large devices run at once, or twice as many.
const PERSISTENT: u32 = 264;
/// Most steps there are: four exchanges of two bits each, in the mixed kernel.
const MAX_STEPS: usize = 8;

/// What each step transforms, for the shader: the hole, and the bits in it from bit 8 on.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    steps: [u32; MAX_STEPS],
    passes: u32,
    shuffles: u32,
}

impl Plan {
    /// Transforms bits `0 .. bits` of the numbers of a group's vec4, beginning at the hole `first`. The bits above it that `first` covers
    /// are transformed there if `high`; of those below it the lowest by `shuffles`, the others by exchanges. 2^neighbours vec4 must stay
    /// together in memory.
    fn new(shape: Shape, bits: u32, first: u32, high: bool, shuffles: u32, neighbours: u32) -> Self {
        let place = |hole: u32, from: u32, to: u32| hole | (((1 << to) - 1) >> from << from >> hole << 8);
        let top = if high { bits.min(first + shape.log_items) } else { first };
        let low = bits.min(first);
        let shuffles = low.min(shuffles);
        let mut plan = Self { shuffles, ..Self::default() };
        plan.steps[0] = if top > first { place(first, first, top) } else { first };
        let mut add = |step| {
            plan.passes += 1;
            plan.steps[plan.passes as usize] = step;
        };
        let mut done = shuffles;
        let mut hole = first;
        while done < low {
            hole = done.min(shape.log_tile() - shape.log_items);
            let end = low.min(hole + shape.log_items);
            add(place(hole, done, end));
            done = end;
        }
        if hole < first.min(neighbours) {
            add(first);
        }
        plan
    }
}

/// `out = alpha H (x . mask . signs)` of every block of `n` neighbouring elements of a row, from `x` or, where that is `None`, in place.
///
/// # Shapes
/// `x` and `out` `[rows, cols]`, each f32 or f16; n divides cols. The matrix H of order 2^k is Sylvester's, `H[i][j] = (-1)^popcount(i &
/// j)`, that of order m 2^k the Kronecker product of one of order m (Paley's for 12) and it, all divided by `sqrt(n)`: orthonormal.
/// Blocks are row vectors: `x H`, or `x H^T` transposed; the order makes a difference for m = 20 and 28.
///
/// # Errors
/// [`Error::Invalid`] for a size that is not one of [`sizes`]; [`Error::Shape`] where n does not divide cols, where buffers do not fit, and
/// where terms are not as [`Hadamard::terms`] says; [`Error::Limit`] for more than 2^32 elements.
///
/// # Numerics
/// Terms are added in f32, in a fixed order, with one rounding for each. Sums and differences in f32; the relative error of a block in the
/// Euclidean norm is about `(k + sqrt(m) m + 2) 2^-24` at worst. f16
/// results are rounded once. What the mask takes out is 0 even if it is not finite; NaN and infinity spread over their block.
///
/// # Source
/// Fino and Algazi, "Unified matrix treatment of the fast Walsh-Hadamard transform", 1976; random signs: Ailon and Chazelle, "The fast
/// Johnson-Lindenstrauss transform", 2009.
pub fn hadamard(context: &Context, task: &Hadamard<'_>, x: Option<&Buffer>, out: &Buffer) -> Result<()> {
    let strategy = if context.capabilities().is_cpu() { Strategy::Owned } else { Strategy::Wide };
    hadamard_with(context, task, x, out, strategy)
}

/// The same with a given strategy.
///
/// # Errors
/// As [`hadamard`].
pub fn hadamard_with(
    context: &Context,
    task: &Hadamard<'_>,
    x: Option<&Buffer>,
    out: &Buffer,
    strategy: Strategy,
) -> Result<()> {
    const OP: &str = "hadamard";
    let Hadamard { rows, cols, n, transpose, .. } = *task;
    let Some((m, k)) = split(n) else {
        let expected = "n of 1, of 2^k up to 32768, or of 12, 20 or 28 times 2^k up to 12288, 20480 or 28672";
        return Err(Error::invalid(OP, expected, n.to_string()));
    };
    if !cols.is_multiple_of(n) {
        return Err(Error::shape(OP, format!("columns that blocks of {n} divide"), format!("{cols}")));
    }
    let len = rows.saturating_mul(cols);
    let source = x.unwrap_or(out);
    let sum = x.is_some() && source.dtype() == DType::F32 && len.is_multiple_of(4);
    if task.terms == 0 || (task.terms > 1 && !sum) {
        let expected = "one term, or f32 terms of a multiple of four elements, apart from out";
        return Err(Error::shape(
            OP,
            expected,
            format!("{} terms of {len} elements of {}", task.terms, source.dtype()),
        ));
    }
    expect(OP, "x", source, len.saturating_mul(task.terms), FLOATS)?;
    expect(OP, "out", out, len, FLOATS)?;
    let mask_words = cols.div_ceil(32);
    if let Some(bits) = task.mask {
        expect(OP, "mask", bits, mask::words(rows, cols), &[DType::U32])?;
    }
    let state = match task.signs.map(|s| &s.step) {
        Some(Step::State(state)) => Some(state),
        _ => None,
    };
    if let Some(state) = state {
        check_state(OP, state)?;
    }
    let vectors = dim(len)?.div_ceil(4);
    if vectors == 0 {
        return Ok(());
    }

    let wide = strategy == Strategy::Wide;
    let lanes = if context.tier() >= Tier::Subgroup { context.capabilities().subgroup_size.0.ilog2() } else { 0 };
    let limits = &context.capabilities().limits;
    let shuffled = LANES.into_iter().find(|l| *l <= lanes).filter(|_| wide && m == 0 && k > 2);
    let shuffled = shuffled.and_then(|lanes| Shape::shuffled(k, lanes, source.dtype() == DType::F16));
    let shuffled = shuffled.filter(|shape| shape.workgroup_bytes() <= limits.max_compute_workgroup_storage_size);
    let (kernel, shape) = match (m, k) {
        (0, 0..=2) => (&KERNEL, SINGLE),
        (0, 3..=5) if !wide => (&KERNEL, OWNED),
        (0, 0..=12) => (&KERNEL, WIDE),
        (0, 13..=14) => (&KERNEL, WIDE_LONG),
        (0, _) => (&KERNEL, WIDE_LONGEST),
        (_, _) => (&MIXED, Shape::mixed(m, k.min(2), transpose && m != 12)),
    };
    let (kernel, shape) = shuffled.map_or((kernel, shape), |shape| (&SHUFFLED, shape));
    // Four neighbours are 64 bytes: whole sectors of memory.
    let neighbours = if wide { 2 } else { 0 };
    let bits = k.saturating_sub(2);
    let (log_group, plan) = match (shape.plan, m) {
        (Some(plan), _) => (bits - shape.outer.ilog2(), plan),
        (None, 0) if shape.owned => (bits, Plan::new(shape, bits, 0, true, 0, 0)),
        (None, 0) => {
            let bits = bits - shape.outer.ilog2();
            let first = bits.saturating_sub(shape.log_items).max(neighbours);
            (bits, Plan::new(shape, bits, first, true, 0, neighbours))
        }
        (None, _) if shape.owned => (0, Plan::default()),
        (None, _) => (k, Plan::new(shape, bits, bits, false, 0, neighbours)),
    };

    if let Some(pre) = task.gelu_grad {
        let x = x.ok_or_else(|| Error::shape(OP, "an input apart from out beside a derivative", "in place"))?;
        expect(OP, "out", out, len, &[x.dtype()])?;
        expect(OP, "gelu_grad", pre, len, &[x.dtype()])?;
    }
    let mut flags = if task.mask.is_some() { MASKED } else { 0 };
    flags |= if task.mask.is_some() && cols.is_multiple_of(32) { MASK_FLAT } else { 0 };
    flags |= if task.accumulate { ACCUMULATE } else { 0 };
    flags |= if state.is_some() { STEP_FROM_STATE } else { 0 };
    flags |= match task.signs {
        Some(_) if transpose => SIGNS_AFTER,
        Some(_) => SIGNS_BEFORE,
        None => 0,
    };
    let seed = task.signs.map_or(0, |s| s.seed);
    let tiles = (vectors / shape.outer).div_ceil(1 << shape.log_tile());
    let params = Params {
        vectors,
        tiles,
        log_group,
        within: k.min(2),
        terms: dim(task.terms)?,
        passes: plan.passes,
        scale: (f64::from(task.alpha) / (n as f64).sqrt()) as f32,
        flags,
        plan: plan.steps,
        len: dim(len)?,
        cols: dim(cols)?,
        mask_words: dim(mask_words)?,
        seed_low: seed as u32,
        seed_high: (seed >> 32) as u32,
        op: task.signs.map_or(0, |s| s.op),
        step: match task.signs.map(|s| &s.step) {
            Some(Step::Number(step)) => *step,
            _ => 0,
        },
        reserved1: 0,
    };
    let extra = flags != 0 || task.gelu_grad.is_some() || task.terms > 1;
    // Mask and state are bound also where they are not read, by something of a step state's size.
    let unread =
        if extra && (task.mask.is_none() || state.is_none()) { Some(context.alloc(16, DType::U32)?) } else { None };
    let mut bindings = vec![out.write()];
    if extra {
        bindings.extend(task.mask.or(unread.as_ref()).map(Buffer::read));
        bindings.extend(state.or(unread.as_ref()).map(Buffer::read));
    }
    bindings.extend(x.map(Buffer::read));
    bindings.extend(task.gelu_grad.map(Buffer::read));
    let mut defines: Vec<(&'static str, Define)> =
        vec![("X", source.dtype().into()), ("Out", out.dtype().into()), ("IN_PLACE", x.is_none().into())];
    defines.extend(extra_defines(extra, task.gelu_grad.is_some()));
    defines.extend(shape.defines());
    let workgroups = if shape.ahead.is_some() { tiles.min(PERSISTENT) } else { tiles };
    context.dispatch(kernel, &defines, &params, &bindings, Grid::Linear(workgroups.into()))
}
