//! A device, its queue, and what walsh keeps on them: pipelines, memory, and the commands recorded but not yet submitted.

use crate::buffer::{Binding, Buffer, Params, Pool, Raw, Readback, Role};
use crate::shader::pipeline::{Pipeline, PipelineCache};
use crate::shader::{Access, Define, Kernel, Key};
use crate::{Capabilities, DType, Error, Result, SelfTest, Tier};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How to make a [`Context`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ContextOptions {
    /// Take the first adapter whose name contains this (ignoring case), or the adapter numbered `#N` in [`Context::adapters`].
    pub adapter: Option<String>,
    /// Use no tier above this one.
    pub max_tier: Option<Tier>,
    /// Create the device with `wgpu::Limits::default()` instead of all that the adapter has.
    pub default_limits: bool,
    /// Run [`Context::self_test`] before the tier `coop` serves; true unless told otherwise.
    pub self_test: bool,
    /// Offer the tier `coop` without cooperative matrices, see [`Capabilities::emulate_matrices`].
    #[doc(hidden)]
    pub emulate_matrices: bool,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self { adapter: None, max_tier: None, default_limits: false, self_test: true, emulate_matrices: false }
    }
}

impl ContextOptions {
    /// Selects the adapter, see [`ContextOptions::adapter`].
    #[must_use]
    pub fn adapter(mut self, name: impl Into<String>) -> Self {
        self.adapter = Some(name.into());
        self
    }

    /// Caps the tier.
    #[must_use]
    pub fn max_tier(mut self, tier: Tier) -> Self {
        self.max_tier = Some(tier);
        self
    }

    /// Keeps to `wgpu::Limits::default()`.
    #[must_use]
    pub fn default_limits(mut self) -> Self {
        self.default_limits = true;
        self
    }

    /// Offers the tier `coop` for tests of its kernels, see [`Capabilities::emulate_matrices`].
    #[doc(hidden)]
    #[must_use]
    pub fn emulate_matrices(mut self) -> Self {
        self.emulate_matrices = true;
        self
    }

    /// Whether cooperative matrices are tried before they serve, see [`ContextOptions::self_test`](field@ContextOptions::self_test).
    #[must_use]
    pub fn self_test(mut self, wanted: bool) -> Self {
        self.self_test = wanted;
        self
    }
}

/// How many of each object a context has created so far. In the steady state of training none of them grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Buffers.
    pub buffers: u64,
    /// Bind groups.
    pub bind_groups: u64,
    /// Compute pipelines.
    pub pipelines: u64,
    /// Shader modules.
    pub shader_modules: u64,
    /// Command buffers submitted (by walsh itself; a host's submits are its own).
    pub submits: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub buffers: AtomicU64,
    pub bind_groups: AtomicU64,
    pub pipelines: AtomicU64,
    pub shader_modules: AtomicU64,
    pub submits: AtomicU64,
    pub dispatches: AtomicU64,
}

/// Workgroups of a dispatch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grid {
    /// `n` workgroups in a row, folded into two dimensions where one is not enough: the shader computes `wg.y * grid.x + wg.x` and returns
    /// where that is beyond its range.
    Linear(u64),
    Xyz([u32; 3]),
}

#[derive(Debug)]
enum Command {
    Dispatch { pipeline: Arc<Pipeline>, bind_group: wgpu::BindGroup, grid: [u32; 3] },
    Copy { from: (Arc<Raw>, u64), to: (Arc<Raw>, u64), bytes: u64 },
    Clear { at: (Arc<Raw>, u64), bytes: u64 },
    Map { raw: Arc<Raw>, bytes: u64, done: futures::channel::oneshot::Sender<Result<(), wgpu::BufferAsyncError>> },
}

#[derive(Debug, Default)]
struct Stream {
    commands: Vec<Command>,
    /// Staging memory that recorded commands still need until they are submitted.
    held: Vec<Arc<Raw>>,
    params: Params,
    bind_groups: HashMap<GroupKey, wgpu::BindGroup>,
    /// Number of the batch being recorded, from 1.
    ticket: u64,
    in_flight: VecDeque<(u64, wgpu::SubmissionIndex)>,
    profile: Option<Vec<(String, f64)>>,
}

/// Pipeline, parameter slot, and (buffer, offset, size) per storage binding.
type GroupKey = (u64, (u64, u64), Vec<(u64, u64, u64)>);

/// Bind groups kept at most; beyond it the cache starts afresh (a program whose shapes change at every step).
const MAX_BIND_GROUPS: usize = 1 << 16;
/// Distinct parameter blocks kept at most.
const MAX_PARAMS: usize = 1 << 16;
/// Submits that may run behind before the host waits for the oldest.
const MAX_IN_FLIGHT: usize = 3;

#[derive(Debug)]
pub(crate) struct Shared {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub caps: Capabilities,
    pub counters: Counters,
    pub pool: Arc<Pool>,
    /// True if walsh made the device and so may submit and poll by itself.
    owned: bool,
    pipelines: Arc<PipelineCache>,
    stream: Mutex<Stream>,
    failure: Arc<Mutex<Option<Failure>>>,
    tier: AtomicU32,
    self_test: Mutex<Option<SelfTest>>,
    /// Constants that backward passes start from, by element type.
    pub one: Mutex<Vec<(DType, Buffer)>>,
    /// Numbers that kernels read from memory, by their bits.
    constants: Mutex<Vec<(u32, Buffer)>>,
    /// See [`Context::kept_bytes`].
    kept: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
enum Failure {
    Lost(String),
    Error(String),
    /// A shader did not compile: its dispatches cannot run, and what later ones would read is undefined.
    Shader {
        key: String,
        message: String,
    },
}

impl Shared {
    /// Creates an object of the device within an error scope, so that a host's own scopes and callbacks never see the error.
    pub fn validated<T>(&self, create: impl FnOnce(&wgpu::Device) -> T) -> Result<T> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let object = create(&self.device);
        match pollster::block_on(scope.pop()) {
            Some(error) => Err(Error::Device(error.to_string())),
            None => Ok(object),
        }
    }
}

/// A share of [`Context::kept_bytes`].
#[derive(Debug)]
pub(crate) struct Kept {
    counter: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A device with all that walsh keeps on it. Clones are handles to the same context; contexts are independent of each other.
#[derive(Clone, Debug)]
pub struct Context(pub(crate) Arc<Shared>);

impl Context {
    /// Makes a device on the best adapter (discrete before integrated before software).
    ///
    /// # Errors
    /// [`Error::NoAdapter`] where there is none; [`Error::Device`] where the device cannot be created.
    pub fn new() -> Result<Self> {
        Self::with_options(&ContextOptions::default())
    }

    /// Every adapter that wgpu sees, best first.
    #[must_use]
    pub fn adapters() -> Vec<wgpu::Adapter> {
        let mut desc = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        if std::env::var_os("WGPU_BACKEND").is_none() {
            desc.backends = wgpu::Backends::PRIMARY;
        }
        let instance = wgpu::Instance::new(desc);
        let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        adapters.sort_by_key(|a| match a.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        });
        adapters
    }

    /// Makes a device as `options` say.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] where none matches (the message lists those there are); [`Error::Device`] where the device cannot be created.
    pub fn with_options(options: &ContextOptions) -> Result<Self> {
        let adapters = Self::adapters();
        let list = || {
            let names: Vec<_> =
                adapters.iter().enumerate().map(|(i, a)| format!("#{i} {}", a.get_info().name)).collect();
            if names.is_empty() { "there is none".to_owned() } else { format!("there are: {}", names.join(", ")) }
        };
        let adapter = match options.adapter.as_deref() {
            None => adapters.first(),
            Some(wanted) => match wanted.strip_prefix('#').map(str::parse::<usize>) {
                Some(Ok(number)) => adapters.get(number),
                Some(Err(_)) => None,
                None => adapters.iter().find(|a| a.get_info().name.to_lowercase().contains(&wanted.to_lowercase())),
            },
        };
        let Some(adapter) = adapter else {
            return Err(Error::NoAdapter(match &options.adapter {
                Some(wanted) => format!("none matches `{wanted}`; {}", list()),
                None => "install a Vulkan driver (on Debian and Ubuntu the software driver is mesa-vulkan-drivers, \
                         which `cargo xtask train` installs by itself)"
                    .to_owned(),
            }));
        };
        let features = crate::recommended_features(adapter);
        let limits = if options.default_limits { wgpu::Limits::default() } else { adapter.limits() };
        // SAFETY: the experimental feature in question, cooperative matrices, is used by kernels that a self-test compares with the baseline
        // before they may serve; wgpu asks for this acknowledgement of possible undefined behaviour.
        #[expect(unsafe_code, reason = "wgpu's acknowledgement for experimental features")]
        let experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("walsh"),
            required_features: features,
            required_limits: limits,
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        }))
        .map_err(|e| Error::Device(format!("cannot create a device on {}: {e}", adapter.get_info().name)))?;
        let mut caps = Capabilities::new(adapter, &device);
        if options.emulate_matrices {
            caps.emulate_matrices();
        }
        if let Some(max) = options.max_tier {
            caps.limit_tier(max, "the context was asked not to use it");
        }
        let context = Self::build(device, queue, caps, true, Arc::default());
        let failure = context.0.failure.clone();
        context.0.device.set_device_lost_callback(move |reason, message| {
            set_first(&failure, Failure::Lost(format!("{reason:?}: {message}")));
        });
        let failure = context.0.failure.clone();
        context
            .0
            .device
            .on_uncaptured_error(Arc::new(move |error| set_first(&failure, Failure::Error(error.to_string()))));
        if context.tier() == Tier::Coop && options.self_test {
            context.self_test()?;
        }
        Ok(context)
    }

    /// A context on a host's device. It uses only features and limits that the device was created with, and never submits, polls or sets
    /// callbacks: the host calls [`Context::record`] with an encoder of its own and submits that. There are two exceptions:
    /// [`Context::record`] has the encoder call back when its commands are done, and [`Context::self_test`] submits and waits.
    ///
    /// Where [`Context::tier`] is [`Tier::Coop`], its kernels are **not tested yet**, other than in a context with a device of its own: call
    /// [`Context::self_test`] once before training, or keep to a lower tier by [`Context::limit_tier`].
    #[must_use]
    pub fn from_wgpu(adapter: &wgpu::Adapter, device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        Self::from_parts(device, queue, Capabilities::new(adapter, device))
    }

    /// The same with capabilities that were read or limited before.
    #[must_use]
    pub fn from_parts(device: &wgpu::Device, queue: &wgpu::Queue, capabilities: Capabilities) -> Self {
        Self::build(device.clone(), queue.clone(), capabilities, false, Arc::default())
    }

    fn build(
        device: wgpu::Device,
        queue: wgpu::Queue,
        caps: Capabilities,
        owned: bool,
        pipelines: Arc<PipelineCache>,
    ) -> Self {
        let tier = AtomicU32::new(caps.tier as u32);
        Self(Arc::new(Shared {
            device,
            queue,
            caps,
            counters: Counters::default(),
            pool: Arc::default(),
            owned,
            pipelines,
            stream: Mutex::new(Stream { ticket: 1, ..Stream::default() }),
            failure: Arc::default(),
            tier,
            self_test: Mutex::default(),
            one: Mutex::default(),
            constants: Mutex::default(),
            kept: Arc::default(),
        }))
    }

    /// What the device offers.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.caps
    }

    /// The best tier in use: that of the capabilities, or a lower one after a failed self-test.
    #[must_use]
    pub fn tier(&self) -> Tier {
        Tier::ALL.into_iter().find(|t| *t as u32 == self.0.tier.load(Ordering::Relaxed)).unwrap_or(Tier::Baseline)
    }

    /// Uses no tier above `tier` from now on.
    pub fn limit_tier(&self, tier: Tier) {
        self.0.tier.fetch_min(tier as u32, Ordering::Relaxed);
    }

    /// What the last [`Context::self_test`] found, `None` where there was none: below the tier `coop` there is nothing to test.
    #[must_use]
    pub fn self_test_report(&self) -> Option<SelfTest> {
        self.0.self_test.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub(crate) fn keep_report(&self, report: SelfTest) {
        *self.0.self_test.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(report);
    }

    /// A context beside this one on the same device that may submit and wait: what it records, and what fails in it, is its own. Both share
    /// their pipelines.
    pub(crate) fn private(&self) -> Self {
        let Shared { device, queue, caps, pipelines, .. } = &*self.0;
        Self::build(device.clone(), queue.clone(), caps.clone(), true, pipelines.clone())
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    /// The queue.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    /// How many objects were created so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let c = &self.0.counters;
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        Counts {
            buffers: get(&c.buffers),
            bind_groups: get(&c.bind_groups),
            pipelines: get(&c.pipelines),
            shader_modules: get(&c.shader_modules),
            submits: get(&c.submits),
            dispatches: get(&c.dispatches),
        }
    }

    /// Device memory held, in bytes. Freed buffers stay in the pool, so this is the peak since the last [`Context::trim`], the one included that a
    /// tensor causes for which memory is short.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.0.pool.held_bytes()
    }

    /// Bytes of linear layers' inputs that forward passes have kept for backward passes still to come.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.0.kept.load(Ordering::Relaxed)
    }

    /// Counts `bytes` in [`Context::kept_bytes`] until what is returned is dropped.
    pub(crate) fn keep(&self, bytes: u64) -> Kept {
        self.0.kept.fetch_add(bytes, Ordering::Relaxed);
        Kept { counter: self.0.kept.clone(), bytes }
    }

    /// Releases memory that is held for reuse and the bind groups that refer to it.
    pub fn trim(&self) {
        self.stream().bind_groups.clear();
        self.0.pool.trim();
    }

    /// True if walsh made the device, and so may submit and poll.
    pub(crate) fn owned(&self) -> bool {
        self.0.owned
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.0.stream.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The failure of the device or of a recorded shader, if there was one. The context submits and records nothing after it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Device`] or [`Error::Shader`].
    pub fn check(&self) -> Result<()> {
        let failure = self.0.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        match failure {
            None => Ok(()),
            Some(Failure::Lost(m)) => Err(Error::DeviceLost(m)),
            Some(Failure::Error(m)) => Err(Error::Device(m)),
            Some(Failure::Shader { key, message }) => Err(Error::Shader { key, message }),
        }
    }

    pub(crate) fn failure_or(&self, message: String) -> Error {
        self.check().err().unwrap_or(Error::Device(message))
    }

    /// Memory for `len` elements; its content is undefined (what a former tensor left there).
    pub(crate) fn alloc(&self, len: usize, dtype: DType) -> Result<Buffer> {
        if u32::try_from(len).is_err() {
            return Err(Error::Limit {
                what: format!("a tensor of {len} elements"),
                limit: "u32 element index",
                max: u32::MAX.into(),
                needed: len as u64,
            });
        }
        if dtype == DType::F16 && !self.0.caps.f16 {
            return Err(Error::Unsupported {
                what: "an f16 tensor".into(),
                why: "the device has no SHADER_F16".into(),
            });
        }
        self.or_trim(|| Buffer::new(&self.0, len, dtype)).map_err(|e| self.check().err().unwrap_or(e))
    }

    /// What `take` returns, which takes memory; where there is none left, once more after the pool has released its own. Nobody may call this
    /// with the stream locked.
    fn or_trim<T>(&self, take: impl Fn() -> Result<T>) -> Result<T> {
        match take() {
            Err(Error::OutOfMemory { .. }) => {
                self.release();
                take()
            }
            other => other,
        }
    }

    /// Has the device release what the pool holds for reuse. Nobody may call this with the stream locked.
    fn release(&self) {
        self.trim();
        if self.0.owned {
            // The device keeps what submits under way use. If it fails, so does the next attempt to take memory.
            let _ = self.poll(None);
        }
    }

    /// Whether the buffer is of this context.
    pub(crate) fn owns(&self, buffer: &Buffer) -> bool {
        buffer.is_of(&self.0.pool)
    }

    /// Two counters, zero now; whoever uses them leaves zeros.
    pub(crate) fn tally(&self) -> Result<Buffer> {
        self.or_trim(|| Buffer::tally(&self.0)).map_err(|e| self.check().err().unwrap_or(e))
    }

    /// The kernels of the dispatches that are recorded and not submitted, with the tier of each.
    pub(crate) fn recorded(&self) -> Vec<(&'static str, Tier)> {
        let of = |command: &Command| match command {
            Command::Dispatch { pipeline, .. } => Some((pipeline.key.kernel.name, pipeline.key.tier)),
            _ => None,
        };
        self.stream().commands.iter().filter_map(of).collect()
    }

    /// Records a copy of `data` into `to`. It takes its place in the order of commands: earlier ones see the old content.
    pub(crate) fn upload(&self, to: &Buffer, data: &[u8]) -> Result<()> {
        debug_assert_eq!(data.len() as u64, to.bytes());
        self.check_owns("upload", &[to])?;
        if data.is_empty() {
            return Ok(());
        }
        let bytes = (data.len() as u64).next_multiple_of(4);
        let staging = self.or_trim(|| self.0.pool.take(&self.0, Role::Upload, bytes))?;
        let whole = data.len() / 4 * 4;
        if whole > 0 {
            self.0.queue.write_buffer(&staging.buffer, 0, &data[..whole]);
        }
        if whole < data.len() {
            let mut tail = [0u8; 4];
            tail[..data.len() - whole].copy_from_slice(&data[whole..]);
            self.0.queue.write_buffer(&staging.buffer, whole as u64, &tail);
        }
        let mut stream = self.stream();
        stream.held.push(staging.clone());
        stream.commands.push(Command::Copy { from: (staging, 0), to: (to.raw.clone(), to.offset), bytes });
        Ok(())
    }

    /// One f32 of this value, made once. Nobody writes to it.
    pub(crate) fn constant(&self, value: f32) -> Result<Buffer> {
        let mut all = self.0.constants.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, buffer)) = all.iter().find(|(bits, _)| *bits == value.to_bits()) {
            return Ok(buffer.clone());
        }
        let buffer = self.alloc(1, DType::F32)?;
        self.upload(&buffer, bytemuck::bytes_of(&value))?;
        all.push((value.to_bits(), buffer.clone()));
        Ok(buffer)
    }

    /// That all of these are buffers of this context: another pool may hand one out again while commands of this context still use it, and
    /// another device's make the encoder invalid.
    fn check_owns(&self, op: &'static str, buffers: &[&Buffer]) -> Result<()> {
        if buffers.iter().all(|buffer| self.owns(buffer)) { Ok(()) } else { Err(Error::ContextMismatch { op }) }
    }

    /// Records filling `buffer` with zero bytes.
    pub(crate) fn clear(&self, buffer: &Buffer) -> Result<()> {
        self.check_owns("clear", &[buffer])?;
        let bytes = buffer.bytes().next_multiple_of(4);
        if bytes > 0 {
            self.stream().commands.push(Command::Clear { at: (buffer.raw.clone(), buffer.offset), bytes });
        }
        Ok(())
    }

    /// Records a copy between buffers of one size; none where both are the same place. wgpu copies between two buffers only, so that two places
    /// in one are refused.
    pub(crate) fn copy(&self, from: &Buffer, to: &Buffer) -> Result<()> {
        debug_assert_eq!(from.bytes(), to.bytes());
        self.check_owns("copy", &[from, to])?;
        if from.same(to) {
            return Ok(());
        }
        if from.shares_memory(to) {
            return Err(Error::invalid("copy", "buffers that are no parts of one", "two parts of the same buffer"));
        }
        let bytes = from.bytes().next_multiple_of(4);
        if bytes > 0 {
            self.stream().commands.push(Command::Copy {
                from: (from.raw.clone(), from.offset),
                to: (to.raw.clone(), to.offset),
                bytes,
            });
        }
        Ok(())
    }

    /// Records a copy of `buffer` to the host.
    pub(crate) fn readback(&self, buffer: &Buffer) -> Result<Readback> {
        self.check_owns("readback", &[buffer])?;
        let padded = buffer.bytes().next_multiple_of(4).max(4);
        let raw = self.or_trim(|| self.0.pool.take(&self.0, Role::Readback, padded))?;
        let (sender, done) = futures::channel::oneshot::channel();
        let mut stream = self.stream();
        if buffer.bytes() > 0 {
            stream.commands.push(Command::Copy {
                from: (buffer.raw.clone(), buffer.offset),
                to: (raw.clone(), 0),
                bytes: padded,
            });
        }
        stream.commands.push(Command::Map { raw: raw.clone(), bytes: padded, done: sender });
        let ticket = stream.ticket;
        drop(stream);
        Ok(Readback { raw, bytes: buffer.bytes(), done, context: self.clone(), ticket })
    }

    /// Records one dispatch. `bindings` follow the shader's numbering; parameters, if it has them, are its binding 0.
    pub(crate) fn dispatch<P: bytemuck::Pod>(
        &self,
        kernel: &'static Kernel,
        defines: &[(&'static str, Define)],
        params: &P,
        bindings: &[Binding<'_>],
        grid: Grid,
    ) -> Result<()> {
        let tier = Key::best_tier(kernel, self.tier());
        self.dispatch_tier(kernel, tier, defines, params, bindings, grid)
    }

    /// The same for a tier that the caller chose.
    pub(crate) fn dispatch_tier<P: bytemuck::Pod>(
        &self,
        kernel: &'static Kernel,
        tier: Tier,
        defines: &[(&'static str, Define)],
        params: &P,
        bindings: &[Binding<'_>],
        grid: Grid,
    ) -> Result<()> {
        let shared = &*self.0;
        // Numbers of buffers are a pool's own: those of another context would find bind groups of other buffers.
        if bindings.iter().any(|b| !b.buffer.is_of(&shared.pool)) {
            return Err(Error::ContextMismatch { op: kernel.name });
        }
        let Some(grid) = self.fold(kernel, grid)? else { return Ok(()) };
        let pipeline = shared.pipelines.get(shared, Key { kernel, tier, defines: defines.to_vec() })?;
        check_bindings(&pipeline, std::mem::size_of::<P>(), bindings)?;
        let params = bytemuck::bytes_of(params);
        let mut stream = self.stream();
        // The stream stays locked from here on: who submits in between may have the parameters' memory released.
        let slot = match pipeline.params_size {
            0 => None,
            _ => Some(match stream.params.intern(shared, params) {
                Err(Error::OutOfMemory { .. }) => {
                    drop(stream);
                    self.release();
                    stream = self.stream();
                    stream.params.intern(shared, params)?
                }
                other => other?,
            }),
        };
        let group_key: GroupKey = (
            pipeline.id,
            slot.as_ref().map_or((0, 0), |(raw, offset)| (raw.id, *offset)),
            bindings.iter().map(|b| (b.buffer.raw.id, b.buffer.offset, b.buffer.bytes())).collect(),
        );
        let bind_group = match stream.bind_groups.get(&group_key) {
            Some(found) => found.clone(),
            None => {
                let mut entries = Vec::with_capacity(bindings.len() + 1);
                if let Some((raw, offset)) = &slot {
                    let size = u64::from(pipeline.params_size);
                    entries.push(wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: &raw.buffer,
                        offset: *offset,
                        size: std::num::NonZeroU64::new(size),
                    }));
                }
                entries.extend(bindings.iter().map(|b| wgpu::BindingResource::Buffer(b.buffer.as_wgpu())));
                let entries: Vec<_> = (0u32..)
                    .zip(entries)
                    .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
                    .collect();
                let desc =
                    wgpu::BindGroupDescriptor { label: Some("walsh"), layout: &pipeline.layout, entries: &entries };
                let group = shared
                    .validated(|device| device.create_bind_group(&desc))
                    .map_err(|e| self.check().err().unwrap_or(e))?;
                shared.counters.bind_groups.fetch_add(1, Ordering::Relaxed);
                stream.bind_groups.insert(group_key, group.clone());
                group
            }
        };
        shared.counters.dispatches.fetch_add(1, Ordering::Relaxed);
        stream.commands.push(Command::Dispatch { pipeline, bind_group, grid });
        Ok(())
    }

    /// The grid in three dimensions, `None` if it is empty.
    fn fold(&self, kernel: &Kernel, grid: Grid) -> Result<Option<[u32; 3]>> {
        let max = self.0.caps.limits.max_compute_workgroups_per_dimension;
        let grid = match grid {
            Grid::Xyz(grid) => grid,
            Grid::Linear(n) => {
                let rows = n.div_ceil(u64::from(max)).max(1);
                let columns = n.div_ceil(rows);
                match (u32::try_from(columns), u32::try_from(rows)) {
                    (Ok(x), Ok(y)) => [x, y, 1],
                    _ => [u32::MAX; 3],
                }
            }
        };
        if let Some(needed) = grid.iter().find(|n| **n > max) {
            return Err(Error::Limit {
                what: format!("the dispatch of {}", kernel.name),
                limit: "max_compute_workgroups_per_dimension",
                max: max.into(),
                needed: u64::from(*needed),
            });
        }
        Ok((!grid.contains(&0)).then_some(grid))
    }

    /// Moves all that is recorded into `encoder`, in as few compute passes as copies allow.
    ///
    /// The host must submit encoders in the order in which it called this, since later commands use memory that earlier ones leave behind, and
    /// on this context's queue. One encoder may take several recordings. Staging memory returns to the pool when the host's device is polled
    /// (or submitted to) after the commands have run; readbacks arrive then too.
    ///
    /// # Errors
    /// [`Error::Shader`] if a shader did not compile; nothing is recorded then, nor by any later call.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.check()?;
        let mut stream = self.stream();
        self.encode(&mut stream, encoder, None)?;
        stream.ticket += 1;
        // Who submits the encoder, and when, is not known here, and a write into staging memory lands before the next submit, whichever
        // that is: it must not be handed out again before these commands have run.
        let held = std::mem::take(&mut stream.held);
        encoder.on_submitted_work_done(move || drop(held));
        Ok(())
    }

    /// Waits for the pipelines of `commands`. One that did not compile fails the context, since later commands would read what it never wrote.
    fn await_pipelines(&self, commands: &[Command]) -> Result<()> {
        for command in commands {
            if let Command::Dispatch { pipeline, .. } = command
                && let Err(error) = pipeline.get()
            {
                if let Error::Shader { key, message } = &error {
                    set_first(&self.0.failure, Failure::Shader { key: key.clone(), message: message.clone() });
                }
                return Err(self.check().err().unwrap_or(error));
            }
        }
        Ok(())
    }

    fn encode(&self, stream: &mut Stream, encoder: &mut wgpu::CommandEncoder, timer: Option<&mut Timer>) -> Result<()> {
        self.await_pipelines(&stream.commands)?;
        let commands = std::mem::take(&mut stream.commands);
        let mut timer = timer;
        let is_dispatch = |command: &Command| matches!(command, Command::Dispatch { .. });
        let first = commands.iter().position(is_dispatch);
        // The last pass starts after the last command that is no dispatch but has one behind it.
        let last = commands.iter().rposition(is_dispatch).map(|end| {
            commands[..end].iter().rposition(|command| !is_dispatch(command)).map_or(0, |before| before + 1)
        });
        let mut pass: Option<wgpu::ComputePass<'static>> = None;
        for (i, command) in commands.into_iter().enumerate() {
            if !is_dispatch(&command)
                && let Some(mut pass) = pass.take()
                && let Some(timer) = &mut timer
            {
                timer.stamp(&mut pass);
            }
            match command {
                Command::Dispatch { pipeline, bind_group, grid: [x, y, z] } => {
                    let pass = pass.get_or_insert_with(|| {
                        let writes = timer.as_mut().and_then(|t| t.pass_writes(Some(i) == first, Some(i) == last));
                        encoder
                            .begin_compute_pass(&wgpu::ComputePassDescriptor {
                                label: Some("walsh"),
                                timestamp_writes: writes,
                            })
                            .forget_lifetime()
                    });
                    if let Some(timer) = &mut timer {
                        timer.start(pass, &pipeline.key);
                    }
                    pass.set_pipeline(pipeline.get()?);
                    pass.set_bind_group(0, &bind_group, &[]);
                    pass.dispatch_workgroups(x, y, z);
                }
                Command::Copy { from, to, bytes } => {
                    encoder.copy_buffer_to_buffer(&from.0.buffer, from.1, &to.0.buffer, to.1, bytes);
                }
                Command::Clear { at, bytes } => encoder.clear_buffer(&at.0.buffer, at.1, Some(bytes)),
                Command::Map { raw, bytes, done } => {
                    let buffer = raw.buffer.clone();
                    encoder.map_buffer_on_submit(&buffer, wgpu::MapMode::Read, 0..bytes, move |result| {
                        // The closure keeps the buffer from the pool until it is mapped; if nobody waits any more, it goes back now.
                        if done.send(result) == Err(Ok(())) {
                            raw.buffer.unmap();
                        }
                    });
                }
            }
        }
        if let (Some(timer), Some(pass)) = (&mut timer, &mut pass) {
            timer.stamp(pass);
        }
        drop(pass);
        if stream.bind_groups.len() > MAX_BIND_GROUPS || stream.params.len() > MAX_PARAMS {
            stream.bind_groups.clear();
            let params = std::mem::take(&mut stream.params);
            stream.held.extend(params.into_chunks());
        }
        Ok(())
    }

    /// Submits all that is recorded, as one command buffer, and returns without waiting for it. Does nothing on a host's device, where
    /// [`Context::record`] is the host's to call.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Device`] or [`Error::Shader`].
    pub fn submit(&self) -> Result<()> {
        if !self.0.owned {
            return Ok(());
        }
        self.check()?;
        let mut stream = self.stream();
        if stream.commands.is_empty() {
            return Ok(());
        }
        if stream.profile.is_some() {
            return self.submit_profiled(&mut stream);
        }
        self.submit_plain(&mut stream)?;
        // The oldest stays listed until it is done, see `finish`; other threads may record while this one waits for it.
        let oldest = stream.in_flight.len().checked_sub(MAX_IN_FLIGHT + 1).map(|i| stream.in_flight[i].clone());
        drop(stream);
        if let Some((done, index)) = oldest {
            self.poll(Some(index))?;
            self.stream().in_flight.retain(|(t, _)| *t > done);
        }
        self.check()
    }

    fn submit_plain(&self, stream: &mut Stream) -> Result<()> {
        let mut encoder =
            self.0.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("walsh") });
        self.encode(stream, &mut encoder, None)?;
        self.push_submit(stream, encoder);
        Ok(())
    }

    fn push_submit(&self, stream: &mut Stream, encoder: wgpu::CommandEncoder) {
        let index = self.0.queue.submit([encoder.finish()]);
        stream.held.clear();
        self.0.counters.submits.fetch_add(1, Ordering::Relaxed);
        let ticket = stream.ticket;
        stream.in_flight.push_back((ticket, index));
        stream.ticket += 1;
    }

    fn poll(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        match self.0.device.poll(wgpu::PollType::Wait { submission_index, timeout: None }) {
            Ok(_) => self.check(),
            Err(e) => Err(self.failure_or(e.to_string())),
        }
    }

    /// Submits what is recorded and waits until the device has done all of it.
    ///
    /// # Errors
    /// As [`Context::submit`].
    pub fn synchronize(&self) -> Result<()> {
        self.submit()?;
        if self.0.owned {
            let ticket = self.stream().ticket;
            self.poll(None)?;
            self.stream().in_flight.retain(|(t, _)| *t >= ticket);
        }
        Ok(())
    }

    /// Sees to it that the batch numbered `ticket` is submitted and done, where walsh may submit.
    pub(crate) fn finish(&self, ticket: u64) -> Result<()> {
        if !self.0.owned {
            return Ok(());
        }
        if self.stream().ticket <= ticket {
            self.submit()?;
        }
        // Later batches stay in flight; a batch that is no longer listed has been waited for. It is listed until then, since another thread may
        // want to wait for it too.
        let found = self.stream().in_flight.iter().find(|(t, _)| *t >= ticket).cloned();
        match found {
            Some((done, index)) => {
                self.poll(Some(index))?;
                self.stream().in_flight.retain(|(t, _)| *t > done);
                Ok(())
            }
            None => self.poll_once(),
        }
    }

    /// Has a device of walsh's own say what is done, without waiting.
    pub(crate) fn poll_once(&self) -> Result<()> {
        if self.0.owned {
            self.0.device.poll(wgpu::PollType::Poll).map_err(|e| self.failure_or(e.to_string()))?;
        }
        self.check()
    }

    /// Runs `work`, which records and may submit, and returns the device time of each dispatch in it, in order: (kernel and variant, seconds).
    ///
    /// # Errors
    /// [`Error::Unsupported`] without the `TIMESTAMP_QUERY_INSIDE_PASSES` feature or on a host's device; what `work` returns.
    pub fn profile(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<(String, f64)>> {
        if !self.0.owned || !self.0.caps.features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
            return Err(Error::Unsupported {
                what: "profiling per dispatch".into(),
                why: "it needs TIMESTAMP_QUERY_INSIDE_PASSES on a device of walsh's own".into(),
            });
        }
        self.synchronize()?;
        self.stream().profile = Some(Vec::new());
        let result = work().and_then(|()| self.submit());
        let profile = self.stream().profile.take().unwrap_or_default();
        result.map(|()| profile)
    }

    /// Runs `work`, which records and must not submit, and returns the time in seconds that the device takes from the start of its first
    /// dispatch to the end of its last, copies between them included.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without the `TIMESTAMP_QUERY` feature or on a host's device; [`Error::Invalid`] where `work` leaves no dispatch
    /// recorded; what `work` returns.
    pub fn gpu_time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        if !self.0.owned || !self.0.caps.features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::Unsupported {
                what: "timing on the device".into(),
                why: "it needs TIMESTAMP_QUERY on a device of walsh's own".into(),
            });
        }
        self.submit()?;
        work()?;
        let mut stream = self.stream();
        if dispatches(&stream.commands) == 0 {
            return Err(Error::invalid("gpu_time", "work that records dispatches and does not submit them", "none"));
        }
        let mut timer = Timer::new(&self.0, 2, false);
        match self.run_timed(&mut stream, &mut timer)?.as_slice() {
            [start, end] => Ok(end - start),
            other => Err(self.failure_or(format!("{} timestamps instead of 2", other.len()))),
        }
    }

    fn submit_profiled(&self, stream: &mut Stream) -> Result<()> {
        // Before the batch is cut, so that nothing of it is lost where a shader did not compile.
        self.await_pipelines(&stream.commands)?;
        // A query set holds 4096 timestamps, and a dispatch takes two at most; a longer batch goes in parts.
        let mut rest = std::mem::take(&mut stream.commands);
        while !rest.is_empty() {
            let mut seen = 0;
            let cut = rest
                .iter()
                .position(|c| {
                    seen += usize::from(matches!(c, Command::Dispatch { .. }));
                    seen > 2000
                })
                .unwrap_or(rest.len());
            let tail = rest.split_off(cut);
            stream.commands = std::mem::replace(&mut rest, tail);
            let take = dispatches(&stream.commands);
            if take == 0 {
                self.submit_plain(stream)?;
                continue;
            }
            let mut timer = Timer::new(&self.0, u32::try_from(2 * take).unwrap_or(4096), true);
            let stamps = self.run_timed(stream, &mut timer)?;
            let times = timer.labels.into_iter().map(|(label, i)| (label, stamps[i + 1] - stamps[i]));
            stream.profile.get_or_insert_default().extend(times);
        }
        Ok(())
    }

    /// Encodes at least one dispatch with `timer`, submits, waits, and returns the timestamps that were written, in seconds.
    fn run_timed(&self, stream: &mut Stream, timer: &mut Timer) -> Result<Vec<f64>> {
        let device = &self.0.device;
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("walsh timed") });
        self.encode(stream, &mut encoder, Some(timer))?;
        // Waiting for a query that was never written is undefined.
        let bytes = u64::from(timer.written) * 8;
        let resolve = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("walsh timestamps"),
            size: bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let read = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("walsh timestamps"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        encoder.resolve_query_set(&timer.queries, 0..timer.written, &resolve, 0);
        encoder.copy_buffer_to_buffer(&resolve, 0, &read, 0, bytes);
        encoder.map_buffer_on_submit(&read, wgpu::MapMode::Read, .., |_| {});
        self.push_submit(stream, encoder);
        stream.in_flight.clear();
        self.poll(None)?;
        let view = read.get_mapped_range(..).map_err(|e| self.failure_or(e.to_string()))?;
        let period = f64::from(self.0.queue.get_timestamp_period()) * 1e-9;
        Ok(view.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default()) as f64 * period).collect())
    }
}

fn dispatches(commands: &[Command]) -> usize {
    commands.iter().filter(|c| matches!(c, Command::Dispatch { .. })).count()
}

/// Timestamps: either around all passes, or before each dispatch and at the end of each pass.
struct Timer {
    queries: wgpu::QuerySet,
    each: bool,
    /// How many queries, from the first on, have a value once the commands have run.
    written: u32,
    /// The dispatches, and which timestamp precedes each.
    labels: Vec<(String, usize)>,
}

impl Timer {
    fn new(shared: &Shared, count: u32, each: bool) -> Self {
        let queries = shared.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("walsh"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        Self { queries, each, written: 0, labels: Vec::new() }
    }

    fn pass_writes(&mut self, first: bool, last: bool) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        if self.each || !(first || last) {
            return None;
        }
        self.written += u32::from(first) + u32::from(last);
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: first.then_some(0),
            end_of_pass_write_index: last.then_some(1),
        })
    }

    fn start(&mut self, pass: &mut wgpu::ComputePass<'_>, key: &Key) {
        if self.each {
            self.labels.push((key.to_string(), self.written as usize));
        }
        self.stamp(pass);
    }

    fn stamp(&mut self, pass: &mut wgpu::ComputePass<'_>) {
        if self.each {
            pass.write_timestamp(&self.queries, self.written);
            self.written += 1;
        }
    }
}

fn set_first(slot: &Mutex<Option<Failure>>, failure: Failure) {
    if let Ok(mut slot) = slot.lock() {
        slot.get_or_insert(failure);
    }
}

/// Holds the wrapper to what the shader declares: number and access of bindings, size of the parameters, no buffer both read and written.
fn check_bindings(pipeline: &Pipeline, params_size: usize, bindings: &[Binding<'_>]) -> Result<()> {
    let fail = |message: String| Err(Error::Shader { key: pipeline.key.to_string(), message });
    let skip = usize::from(pipeline.params_size > 0);
    if pipeline.params_size > 0 && pipeline.params_size as usize != params_size {
        return fail(format!("parameters of {params_size} bytes, the shader declares {}", pipeline.params_size));
    }
    let declared = &pipeline.bindings[skip..];
    if declared.len() != bindings.len() {
        return fail(format!("{} bindings, the shader declares {}", bindings.len(), declared.len()));
    }
    for (i, (binding, access)) in bindings.iter().zip(declared).enumerate() {
        if binding.write != (*access == Access::ReadWrite) {
            return fail(format!("binding {} is bound as write={}, declared {access:?}", i + skip, binding.write));
        }
        let clash =
            |other: &Binding<'_>| other.buffer.raw.id == binding.buffer.raw.id && (other.write || binding.write);
        if let Some(other) = bindings[..i].iter().position(clash) {
            let name = |i: usize| pipeline.names.get(i + skip).map_or("", String::as_str);
            return Err(Error::invalid(
                format!("kernel {}, binding `{}`", pipeline.key.kernel.name, name(i)),
                "a buffer that no other binding writes or, if the kernel writes it, that no other binding uses",
                format!("the buffer of binding `{}`", name(other)),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    /// Parses, but needs a feature that walsh asks no device for.
    static BROKEN: Kernel = Kernel {
        name: "broken",
        source: "@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(1) fn main() { out[0] = f32(f64(out[0]) * 2.0lf); }",
        tiers: &[Tier::Baseline],
        variants: || vec![vec![]],
        proven_bounds: false,
    };

    #[test]
    fn memory_that_nobody_uses_is_released_before_there_is_none() {
        const LEN: usize = 1 << 16;
        let own = Context::new().unwrap();
        let host = Context::from_parts(own.device(), own.queue(), own.capabilities().clone());
        for context in [&own, &host] {
            let zeros = |len: usize| Tensor::zeros(context, &[len], DType::F32);
            let submit = || {
                let mut encoder = own.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                context.record(&mut encoder).unwrap();
                own.queue().submit([encoder.finish()]);
            };
            let kept = Tensor::from_f32(context, &[1.5; 8], &[8]).unwrap();
            // A bind group refers to it.
            drop(zeros(LEN).unwrap().add(&zeros(LEN).unwrap()).unwrap());
            submit();
            let held = context.held_bytes();
            context.0.pool.limit.store(held, Ordering::Relaxed);
            let large = zeros(2 * LEN).unwrap();
            assert!(context.held_bytes() <= held);
            // Uploads have it released too.
            drop(large);
            submit();
            context.0.pool.limit.store(context.held_bytes(), Ordering::Relaxed);
            kept.write(bytemuck::cast_slice(&[2.5f32; 8])).unwrap();
            let read = kept.read().unwrap();
            if context.owned() {
                assert_eq!(read.wait().unwrap(), bytemuck::cast_slice::<f32, u8>(&[2.5; 8]));
            }
            // So have parameters, each kind of which has a place of its own: these are more than a chunk has.
            drop(zeros(LEN).unwrap());
            submit();
            context.0.pool.limit.store(context.held_bytes() + (1 << 12), Ordering::Relaxed);
            for i in 0..300u16 {
                drop(kept.scale(f32::from(i)).unwrap());
                submit();
            }
            // What is in use is not; the context is as good as before.
            let used = zeros(LEN / 2).unwrap();
            context.0.pool.limit.store(context.held_bytes(), Ordering::Relaxed);
            let result = zeros(4 * LEN);
            assert!(matches!(result, Err(Error::OutOfMemory { .. })), "{result:?}");
            context.check().unwrap();
            context.0.pool.limit.store(0, Ordering::Relaxed);
            zeros(4 * LEN).unwrap();
            drop(used);
        }
        assert_eq!(own.submit().and_then(|()| Tensor::from_f32(&own, &[1.0], &[1])?.item()).unwrap(), 1.0);
    }

    #[test]
    fn a_value_of_a_submit_that_failed_never_arrives() {
        let context = Context::new().unwrap();
        let x = Tensor::from_f32(&context, &[1.0; 128], &[128]).unwrap();
        let raw = &x.buffer().raw;
        // wgpu refuses the encoder, and maps the buffer that it did not copy to.
        let bad = Command::Copy { from: (raw.clone(), 0), to: (raw.clone(), 256), bytes: 256 };
        context.stream().commands.push(bad);
        let (mut polled, waited) = (x.read().unwrap(), x.read().unwrap());
        assert!(matches!(context.submit(), Err(Error::Device(_))));
        context.0.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        for _ in 0..2 {
            let result = polled.poll();
            assert!(matches!(result, Err(Error::Device(_))), "{result:?}");
        }
        assert!(matches!(waited.wait(), Err(Error::Device(_))));
    }

    #[test]
    fn a_shader_that_does_not_compile_fails_the_context_for_good() {
        let own = Context::new().unwrap();
        let host = Context::from_parts(own.device(), own.queue(), own.capabilities().clone());
        for context in [&host, &own] {
            let x = Tensor::from_f32(context, &[1.0], &[1]).unwrap();
            context.dispatch(&BROKEN, &[], &(), &[x.buffer().write()], Grid::Linear(1)).unwrap();
            let shader = |result: Result<()>| assert!(matches!(result, Err(Error::Shader { .. })), "{result:?}");
            let mut encoder = own.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for _ in 0..2 {
                shader(context.record(&mut encoder));
                shader(context.check());
            }
            if context.owned() {
                shader(context.submit());
                shader(context.synchronize());
                shader(x.to_vec().map(|_| ()));
            }
        }
    }

    #[test]
    fn copies_within_one_buffer_are_nothing_or_refused() {
        let context = Context::new().unwrap();
        let x = Tensor::from_f32(&context, &[1.0; 128], &[128]).unwrap();
        let [low, high] = [0, 64].map(|start| x.buffer().slice(start, 64).unwrap());
        let recorded = context.stream().commands.len();
        context.copy(&low, &low.clone()).unwrap();
        let result = context.copy(&low, &high);
        assert!(matches!(result, Err(Error::Invalid { .. })), "{result:?}");
        assert_eq!(context.stream().commands.len(), recorded);
        assert_eq!(x.to_vec().unwrap(), [1.0; 128]);
    }
}
