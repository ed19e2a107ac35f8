//! Bytes behind tensors: 256-byte aligned host buffers from a small recycling pool, or read-only mapped files.
//!
//! Fresh pages cost a fault each, which on large activations is as dear as the arithmetic, so freed buffers
//! are kept (up to a bound) and handed out again. A recycled buffer holds old values: [`Tensor::empty`] promises
//! nothing about contents, and [`poison_outputs`] fills such buffers with NaN so that tests see a kernel that
//! forgets to write.
//!
//! [`Tensor::empty`]: crate::Tensor::empty

use std::{
    alloc::{Layout as AllocLayout, alloc_zeroed, dealloc},
    collections::HashMap,
    fs::File,
    path::Path,
    ptr::NonNull,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{Device, Error, Result};

const ALIGN: usize = 256;
/// Buffers below this size are not worth pooling: the allocator recycles them itself.
const POOL_MIN: usize = 64 << 10;
/// Bytes the pool may hold on to.
const POOL_MAX: usize = 2 << 30;

static POISON: AtomicBool = AtomicBool::new(false);

/// Fills every buffer that an operator is about to write with NaN bytes first (for tests; process-wide).
pub fn poison_outputs(on: bool) {
    POISON.store(on, Ordering::Relaxed);
}

/// An owned, aligned, always initialised host buffer.
pub(crate) struct HostBuffer {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer is plain bytes owned by this value; nothing in it is tied to a thread.
unsafe impl Send for HostBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for HostBuffer {}

#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<usize>>,
    held: usize,
}

fn pool() -> &'static Mutex<Pool> {
    static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    POOL.get_or_init(Mutex::default)
}

/// Pooled sizes are rounded up to eighths of a power of two, so that nearby shapes share buffers.
fn size_class(len: usize) -> usize {
    if len < POOL_MIN {
        return len.max(1).next_multiple_of(ALIGN);
    }
    let step = (len.next_power_of_two() / 16).max(ALIGN);
    len.next_multiple_of(step)
}

impl HostBuffer {
    /// `len` bytes of unspecified (but initialised) content.
    pub fn new(len: usize) -> Result<Self> {
        let mut buf = Self::scratch(len)?;
        if POISON.load(Ordering::Relaxed) {
            buf.bytes_mut().fill(0xff);
        }
        Ok(buf)
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Result<Self> {
        let capacity = size_class(len);
        match Self::recycled(len, capacity) {
            Some(mut buf) => {
                buf.bytes_mut().fill(0);
                Ok(buf)
            }
            None => Self::fresh(len, capacity),
        }
    }

    /// As [`HostBuffer::new`], never poisoned: for a kernel's own use.
    pub fn scratch(len: usize) -> Result<Self> {
        let capacity = size_class(len);
        match Self::recycled(len, capacity) {
            Some(buf) => Ok(buf),
            None => Self::fresh(len, capacity),
        }
    }

    fn recycled(len: usize, capacity: usize) -> Option<Self> {
        if capacity < POOL_MIN {
            return None;
        }
        let mut pool = pool().lock().ok()?;
        let addr = pool.free.get_mut(&capacity)?.pop()?;
        pool.held -= capacity;
        Some(HostBuffer { ptr: NonNull::new(addr as *mut u8)?, len, capacity })
    }

    fn fresh(len: usize, capacity: usize) -> Result<Self> {
        let oom = || Error::OutOfMemory { device: Device::Cpu, bytes: len };
        let layout = AllocLayout::from_size_align(capacity, ALIGN).map_err(|_| oom())?;
        // SAFETY: the size is not zero (size_class gives at least ALIGN).
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(oom)?;
        Ok(HostBuffer { ptr, len, capacity })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: ptr is valid for len initialised bytes (zeroed at allocation) while self lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if self.capacity >= POOL_MIN
            && let Ok(mut pool) = pool().lock()
            && pool.held + self.capacity <= POOL_MAX
        {
            pool.held += self.capacity;
            pool.free.entry(self.capacity).or_default().push(self.ptr.as_ptr() as usize);
            return;
        }
        // SAFETY: ptr came from alloc_zeroed with this very size and alignment.
        unsafe {
            dealloc(self.ptr.as_ptr(), AllocLayout::from_size_align_unchecked(self.capacity, ALIGN));
        }
    }
}

/// A read-only memory-mapped file whose bytes tensors can borrow ([`Tensor::from_mapped`]).
///
/// The file must not be changed while it is mapped; checkpoints are replaced by rename, never rewritten.
///
/// [`Tensor::from_mapped`]: crate::Tensor::from_mapped
#[derive(Clone)]
pub struct MappedFile(Arc<memmap2::Mmap>);

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// Any I/O error of opening or mapping.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the contract above: nobody truncates or rewrites the file while it is mapped.
        Ok(MappedFile(Arc::new(unsafe { memmap2::Mmap::map(&file)? })))
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes on one device.
pub(crate) enum Storage {
    Host(HostBuffer),
    Mapped { file: MappedFile, offset: usize, len: usize },
}

impl Storage {
    pub fn device(&self) -> Device {
        match self {
            Storage::Host(_) | Storage::Mapped { .. } => Device::Cpu,
        }
    }

    /// The bytes, where the host can read them.
    pub fn host_bytes(&self) -> &[u8] {
        match self {
            Storage::Host(b) => b.bytes(),
            Storage::Mapped { file, offset, len } => &file.bytes()[*offset..*offset + *len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_recycled_zeroed() {
        let mut a = HostBuffer::new(1 << 20).unwrap();
        assert_eq!(a.ptr.as_ptr() as usize % ALIGN, 0);
        a.bytes_mut().fill(7);
        drop(a);
        let b = HostBuffer::zeroed(1 << 20).unwrap();
        assert!(b.bytes().iter().all(|&x| x == 0));
        assert_eq!(HostBuffer::new(0).unwrap().bytes().len(), 0);
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(matches!(HostBuffer::new(1 << 60), Err(Error::OutOfMemory { .. })));
    }
}
