//! All parameters of a model in one arena, their gradients in a second one of the same layout: the optimizer visits both in a few
//! dispatches, and weight-gradient kernels write straight into their place.

use crate::kernel::{self, optimizer_step::CHUNK};
use crate::random::Philox;
use crate::tensor::{GradSlot, Inner};
use crate::{Buffer, Context, DType, Error, Result, Tensor};
use std::ops::{Index, Range};
use std::sync::atomic::{AtomicBool, Ordering};

/// Initial values of a parameter.
#[derive(Clone, Debug)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// These values, row-major.
    Values(Vec<f32>),
    /// None: the parameter has a name and a shape, but no memory and no gradient. What stands for it is given to operations in another form.
    Absent,
}

/// Name, shape and treatment of one parameter.
#[derive(Clone, Debug)]
pub struct ParameterInfo {
    /// Its name in checkpoints.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// Whether updates end with it moved back into [-1, 1].
    pub within_one: bool,
}

/// Collects parameters before memory is laid out.
#[derive(Clone, Debug, Default)]
pub struct ParameterBuilder {
    specs: Vec<(ParameterInfo, Init)>,
}

impl ParameterBuilder {
    /// An empty collection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter and returns its index. Weight decay applies to it if it has two or more dimensions, as nanoGPT and PyTorch recipes
    /// have it.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> usize {
        let info =
            ParameterInfo { name: name.into(), shape: shape.to_vec(), decay: shape.len() >= 2, within_one: false };
        self.specs.push((info, init));
        self.specs.len() - 1
    }

    /// The same without the values of the parameters that `absent` names.
    #[must_use]
    pub(crate) fn without(mut self, absent: impl Fn(&str) -> bool) -> Self {
        for (info, init) in &mut self.specs {
            if absent(&info.name) {
                *init = Init::Absent;
            }
        }
        self
    }

    /// From now on updates end with parameter `index` moved back into [-1, 1].
    ///
    /// # Panics
    /// If there is no such parameter.
    pub fn keep_within_one(&mut self, index: usize) {
        self.specs[index].0.within_one = true;
    }

    /// Lays out the arenas and writes the initial values, drawn from `seed`. With `half`, an f16 copy of every parameter is kept for
    /// products in f16.
    ///
    /// # Errors
    /// [`Error::Shape`] if [`Init::Values`] do not fill a shape; [`Error::Limit`], [`Error::OutOfMemory`]; [`Error::Unsupported`] for `half`
    /// without `SHADER_F16`.
    pub fn build(self, context: &Context, seed: u64, half: bool) -> Result<Parameters> {
        Parameters::new(context, self.specs, seed, half)
    }
}

/// Elements by which parameters are aligned: 256 bytes in f16.
const ALIGN: usize = 128;

#[derive(Debug)]
pub(crate) struct Chunk {
    pub weights: Buffer,
    pub grads: Buffer,
    pub halves: Option<Buffer>,
    /// Elements below this index are decayed.
    pub decay_end: usize,
    /// These elements stay in [-1, 1].
    pub within: Range<usize>,
    /// Index of its first partial sum of the gradient norm.
    pub first_partial: usize,
}

/// What a chunk holds: elements, how many of them are decayed, and which are kept within bounds.
#[derive(Default)]
struct Extent {
    elements: usize,
    decayed: usize,
    within: Range<usize>,
}

/// Elements that fit one chunk of an arena.
fn max_elements(context: &Context) -> usize {
    let limits = &context.capabilities().limits;
    let bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 30);
    usize::try_from(bytes / 4).unwrap_or(usize::MAX)
}

/// Elements that a parameter takes in an arena, or that it is too large for this device.
pub(crate) fn padded_len(context: &Context, name: &str, shape: &[usize]) -> Result<usize> {
    let max = max_elements(context);
    let len = crate::buffer::elements(shape)?.div_ceil(ALIGN).saturating_mul(ALIGN);
    if len > max {
        return Err(Error::Limit {
            what: format!("parameter {name} of shape {shape:?}"),
            limit: "max_storage_buffer_binding_size",
            max: max as u64 * 4,
            needed: (len as u64).saturating_mul(4),
        });
    }
    Ok(len)
}

/// The parameters of a model. Index it by what [`ParameterBuilder::add`] returned.
///
/// # Threads
/// One thread at a time may run backward passes and optimizer steps on it: which pass writes a gradient and which ones add to it is decided in
/// the order in which they are recorded. Forward passes may run meanwhile; they see the parameters before or after an update in that order.
#[derive(Debug)]
pub struct Parameters {
    context: Context,
    infos: Vec<ParameterInfo>,
    tensors: Vec<Tensor>,
    /// (chunk, first element) of each parameter.
    places: Vec<(usize, usize)>,
    pub(crate) chunks: Vec<Chunk>,
}

impl Index<usize> for Parameters {
    type Output = Tensor;
    fn index(&self, index: usize) -> &Tensor {
        &self.tensors[index]
    }
}

impl Parameters {
    fn new(context: &Context, specs: Vec<(ParameterInfo, Init)>, seed: u64, half: bool) -> Result<Self> {
        let max = max_elements(context);
        // Decayed parameters first, and those that are kept within bounds next to each other, so that boundaries per chunk tell them apart.
        let mut order: Vec<usize> = (0..specs.len()).collect();
        order.sort_by_key(|i| match (specs[*i].0.decay, specs[*i].0.within_one) {
            (true, false) => 0,
            (true, true) => 1,
            (false, true) => 2,
            (false, false) => 3,
        });
        let mut places = vec![(0, 0); specs.len()];
        let mut sizes: Vec<Extent> = Vec::new();
        for i in order {
            let (info, init) = &specs[i];
            let len = match init {
                Init::Absent => 0,
                _ => padded_len(context, &info.name, &info.shape)?,
            };
            if sizes.last().is_none_or(|extent| extent.elements + len > max) {
                sizes.push(Extent::default());
            }
            let chunk = sizes.len() - 1;
            let extent = &mut sizes[chunk];
            let start = extent.elements;
            places[i] = (chunk, start);
            extent.elements += len;
            if info.decay {
                extent.decayed = extent.elements;
            }
            if info.within_one {
                let first = if extent.within.is_empty() { start } else { extent.within.start };
                extent.within = first..extent.elements;
            }
        }
        let mut chunks = Vec::new();
        let mut first_partial = 0;
        for Extent { elements, decayed: decay_end, within } in sizes {
            let buffer = |dtype| -> Result<Buffer> {
                let buffer = context.alloc(elements, dtype)?;
                context.clear(&buffer)?;
                Ok(buffer)
            };
            chunks.push(Chunk {
                // First, so that a device without f16 allocates nothing else.
                halves: if half { Some(buffer(DType::F16)?) } else { None },
                weights: buffer(DType::F32)?,
                grads: buffer(DType::F32)?,
                decay_end,
                within,
                first_partial,
            });
            first_partial += elements.div_ceil(CHUNK as usize);
        }
        let mut tensors = Vec::new();
        let mut infos = Vec::new();
        for (i, (info, init)) in specs.into_iter().enumerate() {
            if matches!(init, Init::Absent) {
                tensors.push(Tensor::shape_only(context, &info.shape, DType::F32)?);
                infos.push(info);
                continue;
            }
            let (chunk, start) = places[i];
            let len = info.shape.iter().product::<usize>();
            let values = init.values(&info, seed, i)?;
            let chunk: &Chunk = &chunks[chunk];
            let slice = |b: &Buffer| b.slice(start, len);
            let weights = slice(&chunk.weights)?;
            context.upload(&weights, bytemuck::cast_slice(&values))?;
            tensors.push(Tensor::with(Inner {
                requires_grad: true,
                slot: Some(GradSlot { buffer: slice(&chunk.grads)?, written: AtomicBool::new(false) }),
                half: chunk.halves.as_ref().map(slice).transpose()?,
                ..Inner::plain(context, weights, &info.shape)
            }));
            infos.push(info);
        }
        let parameters = Self { context: context.clone(), infos, tensors, places, chunks };
        parameters.refresh_halves()?;
        Ok(parameters)
    }

    /// Rewrites the f16 copies from the parameters.
    fn refresh_halves(&self) -> Result<()> {
        for chunk in &self.chunks {
            if let Some(halves) = &chunk.halves {
                kernel::accumulate::accumulate(&self.context, &chunk.weights, halves, false)?;
            }
        }
        Ok(())
    }

    /// The context.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Number of parameters (tensors).
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Number of scalars in all parameters.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.tensors.iter().map(Tensor::len).sum()
    }

    /// Names, shapes and tensors, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&ParameterInfo, &Tensor)> {
        self.infos.iter().zip(&self.tensors)
    }

    /// The accumulated gradient of parameter `index`; `None` if no backward pass wrote one since the last [`Parameters::zero_grad`] or
    /// optimizer step; a pass that failed wrote none. It is a view: what later passes write shows in it.
    ///
    /// # Panics
    /// If there is no such parameter.
    #[must_use]
    pub fn gradient(&self, index: usize) -> Option<Tensor> {
        let tensor = &self.tensors[index];
        let slot = tensor.0.slot.as_ref().filter(|slot| slot.written.load(Ordering::Relaxed))?;
        Some(Tensor::new(&self.context, slot.buffer.clone(), tensor.shape()))
    }

    /// Forgets all gradients: the next backward pass overwrites them.
    pub fn zero_grad(&self) {
        for tensor in &self.tensors {
            if let Some(slot) = &tensor.0.slot {
                slot.forget();
            }
        }
    }

    /// Clears the gradients that no backward pass wrote since the last [`Parameters::zero_grad`].
    pub(crate) fn clear_unwritten(&self) -> Result<()> {
        for tensor in &self.tensors {
            if let Some(slot) = &tensor.0.slot
                && !slot.written.load(Ordering::Relaxed)
            {
                self.context.clear(&slot.buffer)?;
            }
        }
        Ok(())
    }

    /// The part of `buffer`, laid out like chunk `chunk` of the arena, that belongs to parameter `index`; `None` if it is in another chunk.
    pub(crate) fn part(&self, index: usize, chunk: usize, buffer: &Buffer) -> Result<Option<Buffer>> {
        let (own, start) = self.places[index];
        if own == chunk { buffer.slice(start, self.tensors[index].len()).map(Some) } else { Ok(None) }
    }

    /// Chunk of parameter `index`, and its elements there with the padding behind them.
    pub(super) fn place(&self, index: usize) -> (usize, std::ops::Range<usize>) {
        let (chunk, start) = self.places[index];
        (chunk, start..start + self.tensors[index].len().next_multiple_of(ALIGN))
    }

    pub(crate) fn chunk_of(&self, index: usize) -> usize {
        self.places[index].0
    }

    /// Number of partial sums of the gradient norm.
    pub(crate) fn partials(&self) -> usize {
        self.chunks.last().map_or(0, |c| c.first_partial + c.grads.len().div_ceil(CHUNK as usize))
    }

    /// The parameter in which chunk `partial` of the gradient norm lies.
    pub(crate) fn name_of_partial(&self, partial: usize) -> &str {
        let Some(chunk) = self.chunks.iter().rposition(|c| c.first_partial <= partial) else { return "unknown" };
        let element = (partial - self.chunks[chunk].first_partial) * CHUNK as usize;
        let found = (0..self.len())
            .filter(|i| self.places[*i].0 == chunk && self.places[*i].1 < element + CHUNK as usize)
            .filter(|i| self.places[*i].1 + self.tensors[*i].len() > element)
            .min_by_key(|i| self.places[*i].1);
        found.map_or("unknown", |i| self.infos[i].name.as_str())
    }
}

impl Init {
    fn values(self, info: &ParameterInfo, seed: u64, index: usize) -> Result<Vec<f32>> {
        let len = info.shape.iter().product::<usize>();
        if let Self::Values(values) = self {
            if values.len() != len {
                return Err(Error::shape(
                    "parameter",
                    format!("{len} initial values for {} of shape {:?}", info.name, info.shape),
                    format!("{}", values.len()),
                ));
            }
            return Ok(values);
        }
        let mut values = Vec::new();
        self.fill(len, seed, index, &mut values)?;
        Ok(values)
    }

    /// `len` values, those of parameter number `index` of a model with this seed.
    pub(crate) fn fill(&self, len: usize, seed: u64, index: usize, values: &mut Vec<f32>) -> Result<()> {
        match self {
            Self::Absent => {}
            Self::Zeros => values.resize(len, 0.0),
            Self::Ones => values.resize(len, 1.0),
            Self::Values(given) => values.extend(given),
            Self::Normal(deviation) => {
                // One stream per parameter: adding a parameter at the end changes none of the others.
                let mut random = Philox::new(seed, kernel::dim(index)?);
                values.reserve(len + 1);
                while values.len() < len {
                    // Box and Muller, 1958: two uniforms give two independent normals.
                    let radius = (-2.0 * (1.0 - random.next_f64()).ln()).sqrt() * deviation;
                    let angle = std::f64::consts::TAU * random.next_f64();
                    values.push((radius * angle.cos()) as f32);
                    values.push((radius * angle.sin()) as f32);
                }
                values.truncate(len);
            }
        }
        Ok(())
    }
}
