//! Products of few rows with a quantized matrix, bound by reading it once: `x W^T` as decoding has it.

use super::matmul::{Activation, Epilogue, Form, residual_apart};
use super::packed::{B, Decode, PackedInfo};
use super::packed_matmul::{Operand, PackedMatmul, without_codes};
use super::pad_rows::pad_rows;
use super::{dim, expect};
use crate::buffer::{Binding, Buffer, elements};
use crate::context::Grid;
use crate::format::{Format, Layout, Span, Store, UNIT};
use crate::shader::{Define, Defines, Kernel};
use crate::{Context, DType, Error, Result, Tier};

/// Every GPU, every tier.
pub static KERNEL: Kernel = Kernel {
    name: "packed_vector",
    source: include_str!("../../shaders/packed_vector.wgsl"),
    tiers: &[Tier::Baseline],
    variants: || variants(&[Class::Gpu]),
    proven_bounds: true,
};

/// Adapters that run shaders on a CPU: a workgroup is one subgroup of 4 or 8.
pub static LANES: Kernel = Kernel {
    name: "packed_vector_lanes",
    source: include_str!("../../shaders/packed_vector.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || variants(&[Class::Lanes(4), Class::Lanes(8)]),
    proven_bounds: true,
};

/// One row, on GPUs whose subgroups have one size of at least 16.
pub static SUBGROUP: Kernel = Kernel {
    name: "packed_vector_subgroup",
    source: include_str!("../../shaders/packed_vector_subgroup.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || {
        let mut all = Vec::new();
        for decode in Decode::all() {
            for types in TYPES {
                for tail in Class::Gpu.tails(types[1]) {
                    for shape in Streams::all(decode, tail) {
                        all.push(shape.defines(decode, types, tail));
                    }
                }
            }
        }
        all
    },
    proven_bounds: true,
};

/// The most rows it takes.
pub const MAX_ROWS: usize = 64;
/// Rows that share decoded weights where there are several.
const BLOCK: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Gpu,
    /// So many invocations in a workgroup.
    Lanes(u32),
}

impl Class {
    fn of(context: &Context) -> Self {
        let caps = context.capabilities();
        match (caps.is_cpu() && context.tier() >= Tier::Subgroup, caps.subgroup_size) {
            (true, (4, 4)) => Self::Lanes(4),
            (true, (8, 8)) => Self::Lanes(8),
            _ => Self::Gpu,
        }
    }

    fn lanes(self) -> u32 {
        match self {
            Self::Gpu => 128,
            Self::Lanes(n) => n,
        }
    }

    /// Columns that an invocation sums.
    fn columns(self, rows: u32) -> u32 {
        match (self, rows) {
            (_, 1) => 8,
            (Self::Gpu, _) => 4,
            (Self::Lanes(_), _) => 2,
        }
    }

    /// Activations are kernels of their own on CPU adapters, whose shaders are compiled by the thread that runs them.
    fn tails(self, out: DType) -> Vec<u32> {
        match (self, out) {
            (Self::Lanes(_), _) => vec![0],
            (_, DType::F32) => vec![0, 1, 3],
            _ => vec![0, 1],
        }
    }

    fn defines(self, decode: Decode, [input, out]: [DType; 2], rows: u32, halves: bool, tail: u32) -> Defines {
        let columns = self.columns(rows);
        // Eight invocations hand out a table of sixteen by two shuffles.
        let tables = self != Self::Lanes(4);
        let mut defines = decoding(decode, tables);
        defines.extend([
            ("HALVES", halves.into()),
            ("InA", input.into()),
            ("Out", out.into()),
            ("ROWS", rows.into()),
            ("COLS", columns.into()),
            ("LANES", self.lanes().into()),
            ("SUBGROUP", Define::Bool(self != Self::Gpu)),
            ("HANDED", Define::Bool(self != Self::Gpu && kind(decode, tables) == 2)),
            ("EPILOGUE", tail.into()),
        ]);
        if self == Self::Gpu {
            defines.push(("Q", Define::U32(if rows == 1 { columns } else { rows })));
        }
        if tail == 1 {
            defines.push(("ACTIVATION", Define::U32(0)));
        }
        defines
    }
}

/// How codes become levels: 1 by or-ing them into a mantissa, 2 by a table, 0 as `shaders/common/packed.wgsl` has it.
pub(crate) fn kind(decode: Decode, tables: bool) -> u32 {
    match decode {
        Decode { grid: 0 | 1, bits: 1 | 2 | 4 | 8, .. } => 1,
        Decode { bits: 4, .. } if tables => 2,
        _ => 0,
    }
}

/// The defines of `shaders/common/packed_decode.wgsl` and of those who use it: how codes become levels.
pub(crate) fn decoding(decode: Decode, tables: bool) -> Defines {
    let kind = kind(decode, tables);
    let mut defines = decode.defines(&B);
    defines.extend([
        ("DECODE", kind.into()),
        ("MIDDLES", Define::Bool(kind == 1 && decode.grid == 0)),
        ("PACKS", Define::U32(if decode.bits == 8 { 2 } else { 1 })),
    ]);
    defines
}

/// What [`SUBGROUP`] is specialised by beside the format's decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streams {
    /// Invocations of a workgroup.
    lanes: u32,
    /// How scales are stored, 5 for what is told at run time.
    store: u32,
    halves: bool,
    loose: bool,
}

/// Invocations of its workgroups, on every GPU.
const STREAM_LANES: u32 = 256;
/// And where there are so many columns and the device has them: a driver then keeps registers few enough for all of them to be at work, which
/// hides how long shuffles and conversions take.
const MANY_LANES: u32 = 1024;
const MANY: usize = FULL * 64;
/// Units of `a` on their way to registers.
const STAGE: u32 = 128;
/// With [`MANY_LANES`]: more than the 4096 columns of which it was measured need, and with it one workgroup for each multiprocessor.
const MANY_STAGE: u32 = 256;
/// Sums that a workgroup keeps.
const SUMS: u32 = 2048;
/// Workgroups of [`STREAM_LANES`] that fill a large GPU: two for each multiprocessor.
const FULL: usize = 264;
const NVIDIA: u32 = 0x10DE;

/// Whether shaders may count on what WGSL leaves open and NVIDIA's own Vulkan driver, where it was tried, does: NVK, Mesa's for the same GPUs, is
/// another compiler.
fn may_be_loose(adapter: &wgpu::AdapterInfo) -> bool {
    adapter.vendor == NVIDIA && adapter.backend == wgpu::Backend::Vulkan && adapter.driver == "NVIDIA"
}

impl Streams {
    /// Whether and how the kernel does a product.
    fn of(context: &Context, spec: &PackedMatmul<'_>) -> Option<Self> {
        let caps = context.capabilities();
        let format = spec.b.format();
        let decode = Decode::of(&format);
        let fits = spec.m == 1
            && context.tier() >= Tier::Subgroup
            && !caps.is_cpu()
            && caps.subgroup_size.0 == caps.subgroup_size.1
            && caps.subgroup_size.0 >= 16
            && STREAM_LANES.is_multiple_of(caps.subgroup_size.0)
            && caps.limits.max_compute_workgroup_storage_size >= Self::memory(STAGE)
            && kind(decode, true) != 0
            && spec.n >= Self::columns(decode) as usize;
        let halves = halves(spec);
        let loose = may_be_loose(&caps.adapter) && caps.subgroup_size.0 == 32;
        let limit = caps.limits.max_compute_invocations_per_workgroup.min(caps.limits.max_compute_workgroup_size_x);
        let many = Self::may_be_many(decode, tail(&spec.epilogue).0)
            && spec.n >= MANY
            && MANY_LANES <= limit
            && caps.limits.max_compute_workgroup_storage_size >= Self::memory(MANY_STAGE);
        let store = if halves { 5 } else { store(&format) };
        fits.then_some(Self { lanes: if many { MANY_LANES } else { STREAM_LANES }, store, halves, loose })
    }

    /// Bytes of workgroup memory: what of `a` is on its way to registers, 128 bytes a unit, and sums.
    const fn memory(stage: u32) -> u32 {
        128 * stage + 4 * SUMS
    }

    /// Whether there are variants of [`MANY_LANES`]: what shuffles decode gains by them, integers lose, and codes of 8 bits leave too few
    /// registers.
    fn may_be_many(decode: Decode, tail: u32) -> bool {
        tail == 0 && kind(decode, true) == 2
    }

    fn many(self) -> bool {
        self.lanes == MANY_LANES
    }

    /// Units of `a` in workgroup memory.
    fn stage(self) -> u32 {
        if self.many() { MANY_STAGE } else { STAGE }
    }

    /// Columns that an invocation sums at a time.
    fn columns(decode: Decode) -> u32 {
        if Self::ahead(decode) { 4 } else { 8 }
    }

    /// Whether it loads the next ones meanwhile, as codes of 8 bits leave registers for half as many at a time.
    fn ahead(decode: Decode) -> bool {
        kind(decode, true) == 1 && decode.bits == 8
    }

    /// How codes become halves of a word: 1 integers, 2 small floats of two exponent bits and one of mantissa, 0 not at all.
    fn halved(decode: Decode, loose: bool) -> u32 {
        match decode {
            _ if !loose => 0,
            Decode { grid: 0 | 1, bits: 4, .. } => 1,
            Decode { grid: 2, exponent: 2, mantissa: 1, .. } => 2,
            _ => 0,
        }
    }

    /// Columns of a workgroup, for `n` in all, where `size` invocations are a subgroup.
    fn span(self, decode: Decode, [n, units]: [usize; 2], size: u32) -> usize {
        let (subgroups, size) = ((self.lanes / size) as usize, size as usize);
        let slices = units.div_ceil(size).max(1);
        let width = if self.many() {
            let most = subgroups.min(self.stage() as usize / size);
            slices.div_ceil(slices.div_ceil(most))
        } else {
            slices.min(subgroups)
        };
        let columns = Self::columns(decode) as usize;
        // Subgroups need not all have as many columns where one workgroup more would be a multiprocessor's second.
        let (groups, step) = if self.many() { (FULL / 2, columns) } else { (FULL, subgroups / width * columns) };
        let most = SUMS as usize / width / step * step;
        n.div_ceil(groups).next_multiple_of(step).min(most)
    }

    fn all(decode: Decode, tail: u32) -> Vec<Self> {
        let mut all = Vec::new();
        if kind(decode, true) == 0 {
            return all;
        }
        for loose in [false, true] {
            let many = Self::may_be_many(decode, tail);
            for lanes in if many { &[STREAM_LANES, MANY_LANES][..] } else { &[STREAM_LANES] } {
                all.extend(STORES.map(|(store, halves)| Self { lanes: *lanes, store, halves, loose }));
            }
        }
        all
    }

    fn defines(self, decode: Decode, [input, out]: [DType; 2], tail: u32) -> Defines {
        let integers = kind(decode, true) == 1;
        let columns = Self::columns(decode);
        let halved = Self::halved(decode, self.loose);
        let mut defines = decoding(decode, true);
        defines.extend([
            ("InA", input.into()),
            ("Out", out.into()),
            ("STORE", self.store.into()),
            ("HALVES", self.halves.into()),
            ("HALF_SUMS", Define::U32(if self.halves { 2 } else { 1 })),
            ("LOOSE", self.loose.into()),
            ("HALVED", halved.into()),
            ("WIDE", Define::Bool(integers && halved == 0)),
            ("SUM", Define::Bool(integers && (halved == 1 || decode.grid == 0))),
            ("COLS", columns.into()),
            ("HALF_COLS", Define::U32(columns / 2)),
            ("AHEAD", Self::ahead(decode).into()),
            ("LANES", self.lanes.into()),
            ("WHOLE", self.many().into()),
            ("STAGE", self.stage().into()),
            ("HUGE", true.into()),
            ("EPILOGUE", tail.into()),
        ]);
        if tail == 1 {
            defines.push(("ACTIVATION", Define::U32(0)));
        }
        defines
    }
}

fn variants(classes: &[Class]) -> Vec<Defines> {
    let mut all = Vec::new();
    for class in classes {
        for decode in Decode::all() {
            for types in TYPES {
                for tail in class.tails(types[1]) {
                    for rows in [1, BLOCK] {
                        all.extend([false, true].map(|halves| class.defines(decode, types, rows, halves, tail)));
                    }
                }
            }
        }
    }
    all
}

/// Element types of `a` and `out`: all pairs, f32 before f16 for what was unpacked.
const TYPES: [[DType; 2]; 4] =
    [[DType::F32, DType::F32], [DType::F32, DType::F16], [DType::F16, DType::F32], [DType::F16, DType::F16]];

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    b: PackedInfo,
    m: u32,
    n: u32,
    units: u32,
    ld: u32,
    team: u32,
    bias: u32,
    activation: u32,
    accumulate: u32,
    alpha: f32,
    /// Columns of a workgroup of [`SUBGROUP`].
    span: u32,
    pad: [u32; 2],
}

/// Whether the kernel can do this product on this device.
///
/// # Errors
/// The reason why it cannot.
pub fn supports(_: &Context, spec: &PackedMatmul<'_>) -> Result<(), &'static str> {
    few_rows(spec)
}

/// What all kernels for few rows ask for.
pub(crate) fn few_rows(spec: &PackedMatmul<'_>) -> Result<(), &'static str> {
    match (spec.form, spec.a, &spec.epilogue) {
        (Form::Nn | Form::Tn, ..) => Err("it is written for the forward form"),
        (_, Operand::Packed(_), _) => Err("its left operand is dense"),
        _ if spec.m > MAX_ROWS => Err("it takes at most 64 rows"),
        (.., Epilogue::Residual(_, Some(_))) => Err("it has no dropout"),
        (.., Epilogue::ActivationGrad(..)) => Err("a derivative follows the input gradient only"),
        _ => Ok(()),
    }
}

/// Checks lengths and types; the dense operand.
pub(crate) fn check<'a>(spec: &PackedMatmul<'a>) -> Result<&'a Buffer> {
    let PackedMatmul { m, n, k, .. } = *spec;
    let (Operand::Dense(a), Ok(())) = (spec.a, few_rows(spec)) else {
        return Err(Error::Unsupported {
            what: "a product of few rows".into(),
            why: few_rows(spec).err().unwrap_or("its left operand is dense").into(),
        });
    };
    let Layout { rows, cols, .. } = *spec.b.layout();
    if [rows, cols] != [n, k] {
        return Err(Error::shape("packed product", format!("b of {n} x {k}"), format!("{rows} x {cols}")));
    }
    let at_least = |name: &str, buffer: &Buffer, len: usize, dtypes: &[DType]| {
        if buffer.len() < len || !dtypes.contains(&buffer.dtype()) {
            let got = format!("{} elements, {}", buffer.len(), buffer.dtype());
            return Err(Error::shape(
                "packed product",
                format!("{name} of at least {len} elements of {dtypes:?}"),
                got,
            ));
        }
        Ok(())
    };
    at_least("a", a, elements(&[m, k])?, &[DType::F32, DType::F16])?;
    let of_out = elements(&[m, n])?;
    at_least("out", spec.out, of_out, &[DType::F32, DType::F16])?;
    if let Some(bias) = spec.bias {
        at_least("bias", bias, n, &[DType::F32])?;
    }
    match spec.epilogue {
        Epilogue::Activation(_, pre) => expect("packed product", "pre", pre, of_out, &[spec.out.dtype()])?,
        Epilogue::Residual(residual, _) => {
            expect("packed product", "residual", residual, of_out, &[DType::F32])?;
            at_least("out after a residual", spec.out, of_out, &[DType::F32])?;
        }
        Epilogue::None | Epilogue::ActivationGrad(..) => {}
    }
    if spec.accumulate && !matches!(spec.epilogue, Epilogue::None) {
        let expected = "no accumulation into an activation or a residual sum".to_owned();
        return Err(Error::shape("packed product", expected, format!("{:?}", spec.epilogue)));
    }
    residual_apart("packed product", spec.epilogue, spec.out)?;
    Ok(a)
}

/// Number of the epilogue, and of its activation, as shaders know them.
pub(crate) fn tail(epilogue: &Epilogue<'_>) -> (u32, u32) {
    match epilogue {
        Epilogue::None | Epilogue::ActivationGrad(..) => (0, 0),
        Epilogue::Activation(activation, _) => (1, Activation::code(*activation)),
        Epilogue::Residual(..) => (3, 0),
    }
}

/// The bindings that follow a, codes and side data: bias, out, and what the epilogue has.
pub(crate) fn outputs<'a>(spec: &PackedMatmul<'a>) -> Vec<Binding<'a>> {
    let mut bindings = vec![spec.bias.unwrap_or_else(|| spec.b.side()).read(), spec.out.write()];
    match spec.epilogue {
        Epilogue::Activation(_, pre) => bindings.push(pre.write()),
        Epilogue::Residual(residual, _) => bindings.push(residual.read()),
        Epilogue::None | Epilogue::ActivationGrad(..) => {}
    }
    bindings
}

/// The number of a store that kernels are specialised by, 5 for the others.
pub(crate) fn store(format: &Format) -> u32 {
    match format.store() {
        Store::F32 => 0,
        Store::F16 => 1,
        Store::E8M0(_) => 2,
        Store::E4M3 | Store::Ue4m3 | Store::Double => 5,
    }
}

/// Stores of scales that kernels are specialised by, and whether a unit has two scales.
pub(crate) const STORES: [(u32, bool); 5] = [(0, false), (1, false), (2, false), (5, false), (5, true)];

/// Whether a unit has two scales.
pub(crate) fn halves(spec: &PackedMatmul<'_>) -> bool {
    spec.b.format().span() == Span::Group(16)
}

/// `out = a b^T` and what follows, with `a` dense and of at most [`MAX_ROWS`] rows. More than one row share decoded weights in blocks of eight.
///
/// # Errors
/// [`Error::Shape`] where a buffer has another length or type; [`Error::Invalid`] for a residual in the buffer of the result;
/// [`Error::Unsupported`] as [`supports`] says; [`Error::Limit`] where a dispatch is too large.
///
/// # Numerics
/// f32 sums: |error| <= 3 (k + 40) u |a| |w| with u = 2^-24, `w` the values of `b` whose own error is that of [`super::dequantize`]. The 3 is
/// for centred grids, whose levels are an integer and a half. Where GPUs known to keep subnormal halves (NVIDIA's, by its own Vulkan driver) multiply one row
/// by 4-bit integers, codes are summed before their zero is subtracted: `|w|` is then twice the zero times the scale larger.
pub fn dispatch(context: &Context, spec: &PackedMatmul<'_>) -> Result<()> {
    let a = check(spec)?;
    let PackedMatmul { m, n, k, .. } = *spec;
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        return without_codes(context, spec);
    }
    let class = Class::of(context);
    let ((epilogue, activation), types) = (tail(&spec.epilogue), [a.dtype(), spec.out.dtype()]);
    if !class.tails(types[1]).contains(&epilogue) {
        return unfused(context, spec);
    }
    let width = k.next_multiple_of(UNIT);
    // Rows that end within a unit.
    if width != k {
        let padded = context.alloc(m * width, a.dtype())?;
        pad_rows(context, a, [m, k], &padded, [m, width])?;
        return run(context, spec, class, &padded, (epilogue, activation));
    }
    run(context, spec, class, a, (epilogue, activation))
}

fn run(
    context: &Context,
    spec: &PackedMatmul<'_>,
    class: Class,
    a: &Buffer,
    (epilogue, activation): (u32, u32),
) -> Result<()> {
    let PackedMatmul { m, n, k, .. } = *spec;
    let units = k.div_ceil(UNIT);
    let rows = if m == 1 { 1 } else { BLOCK };
    let team = if class == Class::Gpu { team(units, class.lanes() as usize) } else { class.lanes() as usize };
    let decode = Decode::of(&spec.b.format());
    let defines = class.defines(decode, [a.dtype(), spec.out.dtype()], rows, halves(spec), epilogue);
    let size = context.capabilities().subgroup_size.0;
    let streams = Streams::of(context, spec);
    let span = streams.map_or(1, |streams| streams.span(decode, [n, units], size));
    let params = Params {
        b: spec.b.info()?,
        m: dim(m)?,
        n: dim(n)?,
        units: dim(units)?,
        ld: dim(units * UNIT)?,
        team: dim(team)?,
        bias: spec.bias.is_some().into(),
        activation,
        accumulate: spec.accumulate.into(),
        alpha: spec.alpha,
        span: dim(span)?,
        pad: [0; 2],
    };
    let mut bindings = vec![a.read(), spec.b.codes().read(), spec.b.side().read()];
    bindings.extend(outputs(spec));
    if let Some(streams) = streams {
        let defines = streams.defines(decode, [a.dtype(), spec.out.dtype()], epilogue);
        let grid = Grid::Linear(n.div_ceil(span) as u64);
        return context.dispatch_tier(&SUBGROUP, Tier::Subgroup, &defines, &params, &bindings, grid);
    }
    let blocks = n.div_ceil(class.lanes() as usize / team * class.columns(rows) as usize);
    let max = context.capabilities().limits.max_compute_workgroups_per_dimension as usize;
    let folded = blocks.div_ceil(max);
    let grid = Grid::Xyz([dim(blocks.div_ceil(folded))?, dim(folded)?, dim(m.div_ceil(rows as usize))?]);
    let (kernel, tier) = if class == Class::Gpu { (&KERNEL, Tier::Baseline) } else { (&LANES, Tier::Subgroup) };
    context.dispatch_tier(kernel, tier, &defines, &params, &bindings, grid)
}

/// Invocations that share a row of so many units: as many as waste the fewest.
fn team(units: usize, lanes: usize) -> usize {
    let wasted = |team: usize| units.next_multiple_of(team);
    let sizes = [lanes, lanes / 2, lanes / 4, lanes / 8];
    sizes.into_iter().min_by_key(|team| wasted(*team)).unwrap_or(lanes)
}

/// The product, then the epilogue by kernels of their own.
fn unfused(context: &Context, spec: &PackedMatmul<'_>) -> Result<()> {
    let plain = PackedMatmul { epilogue: Epilogue::None, accumulate: false, ..*spec };
    match spec.epilogue {
        Epilogue::Activation(activation, pre) => {
            dispatch(context, &PackedMatmul { out: pre, ..plain })?;
            super::unary::unary(context, activation.into(), pre, spec.out)
        }
        Epilogue::Residual(residual, _) => {
            context.copy(residual, spec.out)?;
            dispatch(context, &PackedMatmul { accumulate: true, ..plain })
        }
        Epilogue::None | Epilogue::ActivationGrad(..) => dispatch(context, &plain),
    }
}

const _: () = assert!(std::mem::size_of::<Params>() == 96);

#[cfg(test)]
mod tests {
    use super::super::packed_skinny;
    use super::*;
    use crate::format::PackedMatrix;
    use crate::kernel::packed::Packed;
    use crate::{ContextOptions, Tensor};

    #[test]
    fn only_what_was_tried_may_be_loose() {
        let nvidia = |driver: &str, backend| {
            let mut adapter = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, backend);
            (adapter.vendor, adapter.driver) = (NVIDIA, driver.to_owned());
            adapter
        };
        assert!(may_be_loose(&nvidia("NVIDIA", wgpu::Backend::Vulkan)));
        assert!(!may_be_loose(&nvidia("NVK", wgpu::Backend::Vulkan)));
        assert!(!may_be_loose(&nvidia("NVIDIA", wgpu::Backend::Gl)));
        assert!(!may_be_loose(&wgpu::AdapterInfo { vendor: 0x1002, ..nvidia("NVIDIA", wgpu::Backend::Vulkan) }));
    }

    /// Their shaders read a unit that is not used, and divide by the number of units: there must be one.
    #[test]
    fn rows_without_elements_are_not_for_these_kernels() {
        let options = ContextOptions::default().emulate_matrices().self_test(false);
        let context = Context::with_options(&options).unwrap();
        let matrix = PackedMatrix::zeros("e2m1".parse().unwrap(), 40, 0).unwrap();
        let packed = Packed::from_host(&context, &matrix).unwrap();
        let types = if context.capabilities().f16 { &[DType::F32, DType::F16][..] } else { &[DType::F32] };
        for (m, dtype) in [1, 16].into_iter().flat_map(|m| types.iter().map(move |dtype| (m, *dtype))) {
            let a = Tensor::zeros(&context, &[0], dtype).unwrap();
            let out = Tensor::from_f32(&context, &vec![7.0; m * 40], &[m * 40]).unwrap();
            let spec = PackedMatmul {
                form: Form::Nt,
                m,
                n: 40,
                k: 0,
                a: Operand::Dense(a.buffer()),
                b: &packed,
                out: out.buffer(),
                alpha: 1.0,
                bias: None,
                epilogue: Epilogue::None,
                mask: None,
                accumulate: false,
            };
            context.submit().unwrap();
            dispatch(&context, &spec).unwrap();
            if packed_skinny::supports(&context, &spec).is_ok() {
                packed_skinny::dispatch(&context, &spec).unwrap();
            }
            let ran = context.recorded();
            assert!(!ran.is_empty() && ran.iter().all(|(name, _)| !name.starts_with("packed")), "{ran:?}");
            assert_eq!(out.to_vec().unwrap(), vec![0.0; m * 40]);
        }
    }
}
