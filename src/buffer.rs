//! GPU memory: the only file that creates or maps a `wgpu::Buffer`. Size classes, reuse, staging, readback.

use crate::context::{Context, Shared};
use crate::{DType, Error, Result};
use futures::channel::oneshot;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Every offset and size of a binding is a multiple of this (`min_storage_buffer_offset_alignment` of the default limits).
pub(crate) const ALIGN: u64 = 256;

/// The product of all sizes, an error where it or any part of it does not fit: no later product of some of the sizes can overflow then.
pub(crate) fn elements(shape: &[usize]) -> Result<usize> {
    let nonzero = shape.iter().filter(|n| **n > 0).try_fold(1usize, |all, n| all.checked_mul(*n));
    match nonzero {
        Some(_) if shape.contains(&0) => Ok(0),
        Some(all) => Ok(all),
        None => Err(Error::Limit {
            what: format!("a tensor of shape {shape:?}"),
            limit: "u32 element index",
            max: u32::MAX.into(),
            needed: u64::MAX,
        }),
    }
}

/// What a pooled buffer is for; buffers are reused within a role and size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    Storage,
    /// Counters on the device: zeros when they are taken, as wgpu makes them, and zeros again when they are given back: a dispatch that leaves
    /// others in between runs whole or not at all, in the order of recording.
    Tally,
    /// Host to device, written by `queue.write_buffer`, then copied by a command so that it keeps its place in the order.
    Upload,
    /// Device to host, mapped after the submit.
    Readback,
    Uniform,
}

#[derive(Debug)]
pub(crate) struct Raw {
    pub id: u64,
    pub buffer: wgpu::Buffer,
    role: Role,
    class: u64,
    pool: Arc<Pool>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.pool.give_back(self.role, self.class, self.id, self.buffer.clone());
    }
}

/// Buffers that nobody uses, by role and size class. The one with the lowest number is handed out first, so that equal sequences of
/// requests get equal buffers: that is what freezes the binding plan after the second step.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<BTreeMap<(Role, u64), BTreeMap<u64, wgpu::Buffer>>>,
    next: AtomicU64,
    held: AtomicU64,
    /// Bytes beyond which there is no memory, for tests; 0: as many as the device has.
    #[cfg(test)]
    pub limit: AtomicU64,
}

/// Rounds up to one of eight steps per power of two: at most an eighth is wasted, and steps of one model fall into few classes.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.next_power_of_two() / 16).max(ALIGN);
    bytes.div_ceil(step) * step
}

impl Pool {
    fn give_back(&self, role: Role, class: u64, id: u64, buffer: wgpu::Buffer) {
        if let Ok(mut free) = self.free.lock() {
            free.entry((role, class)).or_default().insert(id, buffer);
        }
    }

    /// Bytes of all buffers ever created and not released; the pool keeps what it has, so this is also the peak.
    pub fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Releases every buffer that is not in use.
    pub fn trim(&self) {
        if let Ok(mut free) = self.free.lock() {
            for ((_, class), buffers) in std::mem::take(&mut *free) {
                self.held.fetch_sub(class * buffers.len() as u64, Ordering::Relaxed);
            }
        }
    }

    pub fn take(self: &Arc<Self>, shared: &Shared, role: Role, bytes: u64) -> Result<Arc<Raw>> {
        let limits = &shared.caps.limits;
        if role == Role::Storage && bytes > limits.max_storage_buffer_binding_size {
            return Err(Error::Limit {
                what: format!("a tensor of {bytes} bytes"),
                limit: "max_storage_buffer_binding_size",
                max: limits.max_storage_buffer_binding_size,
                needed: bytes,
            });
        }
        if bytes > limits.max_buffer_size {
            return Err(Error::Limit {
                what: format!("a buffer of {bytes} bytes"),
                limit: "max_buffer_size",
                max: limits.max_buffer_size,
                needed: bytes,
            });
        }
        // A class may be larger than the limit although the request is not.
        let class = size_class(bytes).min(limits.max_buffer_size / ALIGN * ALIGN).max(bytes.next_multiple_of(4));
        let reused =
            self.free.lock().ok().and_then(|mut free| free.get_mut(&(role, class)).and_then(BTreeMap::pop_first));
        let (id, buffer) = match reused {
            Some(found) => found,
            None => (self.next.fetch_add(1, Ordering::Relaxed), self.create(shared, role, class)?),
        };
        Ok(Arc::new(Raw { id, buffer, role, class, pool: self.clone() }))
    }

    fn create(&self, shared: &Shared, role: Role, class: u64) -> Result<wgpu::Buffer> {
        use wgpu::BufferUsages as U;
        let usage = match role {
            Role::Storage => U::STORAGE | U::COPY_SRC | U::COPY_DST,
            Role::Tally => U::STORAGE,
            Role::Upload => U::COPY_SRC | U::COPY_DST,
            Role::Readback => U::COPY_DST | U::MAP_READ,
            Role::Uniform => U::UNIFORM | U::COPY_DST,
        };
        #[cfg(test)]
        if (1..self.held_bytes() + class).contains(&self.limit.load(Ordering::Relaxed)) {
            return Err(Error::OutOfMemory { bytes: class, in_use: self.held_bytes() });
        }
        let Shared { device, counters, .. } = shared;
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("walsh"),
            size: class,
            usage,
            mapped_at_creation: false,
        });
        let (invalid, exhausted) = (pollster::block_on(validation.pop()), pollster::block_on(memory.pop()));
        if exhausted.is_some() {
            return Err(Error::OutOfMemory { bytes: class, in_use: self.held_bytes() });
        }
        if let Some(error) = invalid {
            return Err(Error::Device(error.to_string()));
        }
        counters.buffers.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_add(class, Ordering::Relaxed);
        Ok(buffer)
    }
}

/// A typed range of device memory; clones share it. Returned to the pool when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub(crate) raw: Arc<Raw>,
    /// Bytes from the start of the underlying buffer, a multiple of 256.
    pub(crate) offset: u64,
    len: usize,
    dtype: DType,
}

impl Buffer {
    pub(crate) fn new(shared: &Shared, len: usize, dtype: DType) -> Result<Self> {
        let bytes = len as u64 * dtype.size() as u64;
        let raw = shared.pool.take(shared, Role::Storage, bytes.next_multiple_of(16))?;
        Ok(Self { raw, offset: 0, len, dtype })
    }

    /// Two words of zeros, as [`Role::Tally`] says.
    pub(crate) fn tally(shared: &Shared) -> Result<Self> {
        let raw = shared.pool.take(shared, Role::Tally, ALIGN)?;
        Ok(Self { raw, offset: 0, len: 2, dtype: DType::U32 })
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size in bytes, without the padding.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len as u64 * self.dtype.size() as u64
    }

    /// A part of this buffer, `start` and `len` in elements; `start` must fall on a multiple of 256 bytes.
    pub(crate) fn slice(&self, start: usize, len: usize) -> Result<Self> {
        let start_bytes = start as u64 * self.dtype.size() as u64;
        if start + len > self.len || !start_bytes.is_multiple_of(ALIGN) {
            return Err(Error::shape(
                "slice",
                format!("a range within {} elements that starts on a multiple of {ALIGN} bytes", self.len),
                format!("{len} elements from {start}"),
            ));
        }
        Ok(Self { raw: self.raw.clone(), offset: self.offset + start_bytes, len, dtype: self.dtype })
    }

    /// True if both are the same memory.
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.raw, &other.raw) && self.offset == other.offset
    }

    /// True if both are parts of one buffer, whether they overlap or not: no dispatch may write one of them and use the other.
    pub(crate) fn shares_memory(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.raw, &other.raw)
    }

    /// True if no other handle refers to this memory, so that it may be overwritten.
    pub(crate) fn is_unique(&self) -> bool {
        Arc::strong_count(&self.raw) == 1
    }

    /// The underlying buffer, and offset and size in bytes, for a host that binds it in a shader of its own.
    #[must_use]
    pub fn as_wgpu(&self) -> wgpu::BufferBinding<'_> {
        wgpu::BufferBinding {
            buffer: &self.raw.buffer,
            offset: self.offset,
            size: std::num::NonZeroU64::new(self.bytes().next_multiple_of(16)),
        }
    }

    /// Whether its memory comes from this pool.
    pub(crate) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.raw.pool, pool)
    }

    /// Binds the buffer as `var<storage, read>`.
    pub(crate) fn read(&self) -> Binding<'_> {
        Binding { buffer: self, write: false }
    }

    /// Binds the buffer as `var<storage, read_write>`.
    pub(crate) fn write(&self) -> Binding<'_> {
        Binding { buffer: self, write: true }
    }
}

/// A buffer and how a dispatch uses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding<'a> {
    pub buffer: &'a Buffer,
    pub write: bool,
}

/// A value on its way from the device: [`Readback::wait`] waits for it, [`Readback::poll`] asks whether it is there.
#[derive(Debug)]
pub struct Readback {
    pub(crate) raw: Arc<Raw>,
    pub(crate) bytes: u64,
    pub(crate) done: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
    pub(crate) context: Context,
    pub(crate) ticket: u64,
}

/// The most that one thread waits for another to hand a value over that has arrived already.
const HANDOVER: std::time::Duration = std::time::Duration::from_secs(10);

impl Readback {
    /// Waits until the value is there and returns its bytes. Submits what is recorded if the value is part of it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Device`] or [`Error::Shader`], also for a value that came before the failure; on a host's device
    /// [`Error::Invalid`] if the host has not submitted yet.
    pub fn wait(mut self) -> Result<Vec<u8>> {
        self.context.finish(self.ticket)?;
        let mut arrived = self.done.try_recv();
        // The commands are done, but the thread that saw it may be another one that is just about to say so.
        let start = std::time::Instant::now();
        while self.context.owned() && matches!(arrived, Ok(None)) && start.elapsed() < HANDOVER {
            std::thread::yield_now();
            arrived = self.done.try_recv();
        }
        match arrived {
            Ok(Some(Ok(()))) => self.take(),
            Ok(None) => Err(Error::invalid(
                "readback",
                "the commands that it waits for to be submitted and the device polled",
                "a value that is not there yet",
            )),
            Ok(Some(Err(e))) => Err(self.context.failure_or(e.to_string())),
            Err(_) => Err(self.context.failure_or("a readback was dropped".to_owned())),
        }
    }

    /// The bytes if they have arrived, `None` if not; they are given once. Never waits and never submits: a value that is part of no submit yet
    /// does not arrive. A device of walsh's own is polled; a host's is the host's to poll, and values arrive when it does.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Device`] or [`Error::Shader`], also for a value that came before the failure.
    pub fn poll(&mut self) -> Result<Option<Vec<u8>>> {
        let mut arrived = self.done.try_recv();
        if matches!(arrived, Ok(None)) {
            self.context.poll_once()?;
            arrived = self.done.try_recv();
        }
        match arrived {
            Ok(Some(Ok(()))) => self.take().map(Some),
            Ok(None) => Ok(None),
            Ok(Some(Err(e))) => Err(self.context.failure_or(e.to_string())),
            Err(_) => Err(self.context.failure_or("a readback was dropped".to_owned())),
        }
    }

    /// Copies what is mapped, and unmaps it. After a failure of the context nobody knows what that is: commands that are refused leave the
    /// buffer as it was, and it is mapped all the same.
    fn take(&self) -> Result<Vec<u8>> {
        if let Err(error) = self.context.check() {
            self.raw.buffer.unmap();
            return Err(error);
        }
        let padded = self.bytes.next_multiple_of(4);
        let mut bytes = {
            let view = self
                .raw
                .buffer
                .slice(..padded)
                .get_mapped_range()
                .map_err(|e| self.context.failure_or(e.to_string()))?;
            view.to_vec()
        };
        self.raw.buffer.unmap();
        bytes.truncate(usize::try_from(self.bytes).unwrap_or(usize::MAX));
        Ok(bytes)
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // A value that arrived and nobody took; one still under way is unmapped when it arrives, see `Command::Map`.
        self.done.close();
        if let Ok(Some(Ok(()))) = self.done.try_recv() {
            self.raw.buffer.unmap();
        }
    }
}

/// Interns small parameter blocks: each distinct content is written once and then stays, so that the steady state writes nothing.
#[derive(Debug, Default)]
pub(crate) struct Params {
    chunks: Vec<Arc<Raw>>,
    used: u64,
    slots: std::collections::HashMap<Vec<u8>, (usize, u64)>,
}

impl Params {
    const CHUNK: u64 = 64 * 1024;

    pub fn intern(&mut self, shared: &Shared, bytes: &[u8]) -> Result<(Arc<Raw>, u64)> {
        if let Some((chunk, offset)) = self.slots.get(bytes) {
            return Ok((self.chunks[*chunk].clone(), *offset));
        }
        let size = (bytes.len() as u64).next_multiple_of(ALIGN);
        if self.chunks.is_empty() || self.used + size > Self::CHUNK {
            self.chunks.push(shared.pool.take(shared, Role::Uniform, Self::CHUNK)?);
            self.used = 0;
        }
        let (chunk, offset) = (self.chunks.len() - 1, self.used);
        self.used += size;
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(4), 0);
        shared.queue.write_buffer(&self.chunks[chunk].buffer, offset, &padded);
        self.slots.insert(bytes.to_vec(), (chunk, offset));
        Ok((self.chunks[chunk].clone(), offset))
    }

    /// The memory, which recorded commands may still refer to.
    pub fn into_chunks(self) -> Vec<Arc<Raw>> {
        self.chunks
    }

    /// Number of distinct blocks.
    pub fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn size_classes_cover_the_request_and_waste_at_most_an_eighth() {
        for bytes in (1..100_000u64).step_by(37).chain([1 << 20, (1 << 20) + 1, (1 << 27) - 4]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(256), "{bytes} -> {class}");
            assert!(class - bytes < (bytes / 8).max(512), "{bytes} -> {class}");
        }
    }
}
