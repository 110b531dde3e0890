//! Matrix products in the three forms that training needs, with what follows them fused in.

use crate::buffer::Buffer;
use crate::context::Grid;
use crate::kernel::dropout::dropout;
use crate::kernel::unary::{unary, unary_backward};
use crate::kernel::{Dropout, dim};
use crate::shader::{Define, Defines, Kernel};
use crate::{Context, DType, Error, Result, Tier};

/// Through workgroup memory in f32 arithmetic: every GPU, every tier.
pub static TILED: Kernel = Kernel {
    name: "matmul_tiled",
    source: include_str!("../../shaders/matmul_tiled.wgsl"),
    tiers: &[Tier::Baseline],
    variants,
    proven_bounds: false,
};

/// By subgroup broadcasts without workgroup memory: adapters that run shaders on a CPU.
pub static LANES: Kernel = Kernel {
    name: "matmul_lanes",
    source: include_str!("../../shaders/matmul_lanes.wgsl"),
    tiers: &[Tier::Subgroup],
    variants: || {
        let plain = variants().into_iter().filter(|v| v.contains(&("EPILOGUE", Define::U32(0))));
        plain.flat_map(|v| [4u32, 8].map(|n| [v.as_slice(), &[("LANES", n.into())]].concat())).collect()
    },
    proven_bounds: true,
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
    #[must_use]
    pub fn code(self) -> u32 {
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
    /// `out = residual + dropout(v)`; `residual` is f32 and shaped like `out`.
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

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    m: u32,
    n: u32,
    k: u32,
    batch_a: u32,
    batch_b: u32,
    batch_out: u32,
    accumulate: u32,
    alpha: f32,
    split: u32,
    threshold: u32,
    keep_scale: f32,
    op: u32,
    micro: u32,
    seed: [u32; 2],
    pad: u32,
}

fn form_code(form: Form) -> u32 {
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
        ("A", types[0].into()),
        ("B", types[1].into()),
        ("Out", types[2].into()),
        ("VEC", vec.into()),
        ("BIAS", bias.into()),
        ("EPILOGUE", epilogue.into()),
        ("ACTIVATION", activation.into()),
        ("DROPOUT", dropout.into()),
    ];
    if epilogue > 0 || dropout {
        defines.push(("EXTRA", Define::U32(extra)));
    }
    defines
}

/// Every combination that [`matmul`] accepts.
fn variants() -> Vec<Defines> {
    let mut all = Vec::new();
    for (form, types) in supported_types() {
        for vec in [true, false] {
            for bias in [false, true] {
                for tail in tails(form, types[2]) {
                    all.push(defines(form, types, vec, bias, tail));
                }
            }
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

/// Multiplies.
///
/// # Shapes
/// As [`Form`] and [`Dims`] say; `bias` is `[n]`, the buffers of the epilogue are like `out`.
///
/// # Errors
/// [`Error::Shape`] where a buffer is too short or the types are not supported together; [`Error::Limit`] where a dispatch is too large.
///
/// # Numerics
/// Products are summed in f32 in an order that is fixed per kernel and shape: |error| <= k u |a| |b| with u = 2^-24.
pub fn matmul(context: &Context, spec: &Matmul<'_>) -> Result<()> {
    let Dims { m, n, k, batch, stride } = spec.dims;
    check(spec)?;
    if m == 0 || n == 0 || batch == 0 {
        return Ok(());
    }
    // K = 0 is an empty sum: the kernel's loops run zero times and the epilogue sees zeros.
    let types = [spec.a.dtype(), spec.b.dtype(), spec.out.dtype()];
    let contiguous = match spec.form {
        Form::Nt => [k, k, n],
        Form::Nn => [k, n, n],
        Form::Tn => [m, n, n],
    };
    let vec = contiguous.iter().all(|d| d % 4 == 0) && stride.0 % 4 == 0 && stride.1 % 4 == 0;
    let mut bindings = vec![spec.a.read(), spec.b.read(), spec.out.write()];
    bindings.extend(spec.bias.map(Buffer::read));
    let mut drop = None;
    let tail = match spec.epilogue {
        Epilogue::None => (0, 0, false),
        Epilogue::Activation(act, pre) => {
            bindings.push(pre.write());
            (1, act.code(), false)
        }
        Epilogue::ActivationGrad(act, pre) => {
            bindings.push(pre.read());
            (2, act.code(), false)
        }
        Epilogue::Residual(residual, dropout) => {
            bindings.push(residual.read());
            if let Some(d) = &dropout {
                bindings.push(d.state.read());
            }
            drop = dropout;
            (3, 0, dropout.is_some())
        }
    };
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
        split: dim(k)?,
        threshold,
        keep_scale,
        op: drop.map_or(0, |d| d.op),
        micro: drop.map_or(0, |d| d.micro),
        seed: drop.map_or([0; 2], |d| d.seed_words()),
        pad: 0,
    };
    let tiles = |size: usize, tile: usize| dim(size.div_ceil(tile));
    let mut defines = defines(spec.form, types, vec, spec.bias.is_some(), tail);
    if let Some(lanes) = lanes(context).filter(|_| k > 0) {
        if !matches!(spec.epilogue, Epilogue::None) {
            return unfused(context, spec);
        }
        defines.push(("LANES", lanes.into()));
        let tile = 4 * lanes as usize;
        let grid = Grid::Xyz([tiles(n, tile)?, tiles(m, tile)?, dim(batch)?]);
        return context.dispatch_tier(&LANES, Tier::Subgroup, &defines, &params, &bindings, grid);
    }
    context.dispatch(&TILED, &defines, &params, &bindings, Grid::Xyz([tiles(n, 64)?, tiles(m, 64)?, dim(batch)?]))
}

/// Lanes of the subgroups of an adapter that [`LANES`] is for.
fn lanes(context: &Context) -> Option<u32> {
    let caps = context.capabilities();
    let (min, max) = caps.subgroup_size;
    (caps.is_cpu() && context.tier() >= Tier::Subgroup && min == max && matches!(min, 4 | 8)).then_some(min)
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
            context.copy(residual, spec.out);
            matmul(context, &Matmul { accumulate: true, ..plain })
        }
        Epilogue::Residual(residual, Some(mask)) => {
            let sum = scratch()?;
            matmul(context, &Matmul { out: &sum, ..plain })?;
            dropout(context, &sum, Some(residual), spec.out, mask)
        }
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
    let span = |one: usize, stride: usize| if batch == 0 { 0 } else { (batch - 1) * stride + one };
    let needs =
        [("a", spec.a, span(m * k, stride.0)), ("b", spec.b, span(k * n, stride.1)), ("out", spec.out, batch * m * n)];
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
    if !matches!(spec.epilogue, Epilogue::None) && spec.out.len() != batch * m * n {
        return fail(format!("a result of {} elements", batch * m * n), format!("{}", spec.out.len()));
    }
    let like_out = |name: &str, buffer: &Buffer, dtype: DType| {
        if buffer.len() != batch * m * n || buffer.dtype() != dtype {
            return fail(
                format!("{name} of {dtype} with {} elements", batch * m * n),
                format!("{} of {}", buffer.len(), buffer.dtype()),
            );
        }
        Ok(())
    };
    match spec.epilogue {
        Epilogue::None => {}
        Epilogue::Activation(_, pre) | Epilogue::ActivationGrad(_, pre) => like_out("pre", pre, types[2])?,
        Epilogue::Residual(residual, _) => like_out("residual", residual, DType::F32)?,
    }
    let tail = match spec.epilogue {
        Epilogue::None => (0, 0, false),
        Epilogue::Activation(a, _) => (1, a.code(), false),
        Epilogue::ActivationGrad(a, _) => (2, a.code(), false),
        Epilogue::Residual(_, d) => (3, 0, d.is_some()),
    };
    if !tails(spec.form, types[2]).contains(&tail) {
        return fail(
            "activations after Nt, their derivatives after Nn, residuals after Nt into f32".into(),
            format!("{:?} with form {:?} into {}", tail, spec.form, types[2]),
        );
    }
    if let Some(bias) = spec.bias
        && (bias.len() < n || bias.dtype() != DType::F32)
    {
        return fail(format!("an f32 bias of {n} elements"), format!("{} of {}", bias.len(), bias.dtype()));
    }
    Ok(())
}

const _: () = assert!(std::mem::size_of::<Params>() == 64);

impl From<Activation> for crate::kernel::unary::Unary {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Gelu => Self::GeluErf,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Silu => Self::Silu,
        }
    }
}
