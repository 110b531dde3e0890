//! What the targets share: an allocator that counts, and the bound that readers keep to.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(held, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads everything in a file, with the configuration beside it if there is one: in at most 16 times its size and 64 KiB.
pub fn check(file: &[u8], sidecar: Option<&[u8]>) {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let _ = walsh::io::fuzz_bytes(file, sidecar);
    let _ = walsh::train::export::Exported::from_bytes("fuzz", file);
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    let size = file.len() + sidecar.map_or(0, <[u8]>::len);
    assert!(peak <= 16 * size + (64 << 10), "{peak} bytes for a file of {size}");
}
