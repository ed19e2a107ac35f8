//! Bytes behind tensors: 256-byte aligned host buffers from a small recycling pool, or read-only mapped files.
//!
//! Fresh pages cost a fault each, which on large activations is as dear as the arithmetic, so freed buffers
//! are kept and handed out again; beyond a bound those that lay idle longest go back to the system. Large buffers are
//! mapped with huge pages where the system has them: fewer faults, and reads at the full speed of the memory. A
//! recycled buffer holds old values: [`Tensor::empty`] promises nothing about contents, and [`poison_outputs`] fills
//! such buffers with NaN so that tests see a kernel that forgets to write.
//!
//! [`Tensor::empty`]: crate::Tensor::empty

use std::{
    alloc::{Layout as AllocLayout, alloc_zeroed, dealloc},
    collections::BTreeMap,
    fs::File,
    path::Path,
    ptr::NonNull,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use memmap2::MmapMut;
use rayon::prelude::*;

use crate::{Device, Error, Result};

const ALIGN: usize = 256;
/// Buffers below this size are not worth pooling: the allocator recycles them itself.
const POOL_MIN: usize = 64 << 10;
/// Bytes the pool may hold on to.
const POOL_MAX: usize = 2 << 30;
/// Buffers from this size on are mapped, with huge pages (of this size on most machines).
const MAP_MIN: usize = 2 << 20;
/// Bytes that one task fills.
const FILL_BLOCK: usize = 1 << 20;

static POISON: AtomicBool = AtomicBool::new(false);

/// Fills every buffer that an operator is about to write with NaN bytes first (for tests; process-wide).
pub fn poison_outputs(on: bool) {
    POISON.store(on, Ordering::Relaxed);
}

/// Memory of one size class, zeroed when new.
enum Block {
    Heap(Heap),
    Map(MmapMut),
}

struct Heap {
    ptr: NonNull<u8>,
    layout: AllocLayout,
}

// SAFETY: plain bytes owned by this value; nothing in it is tied to a thread.
unsafe impl Send for Heap {}
// SAFETY: shared access only reads.
unsafe impl Sync for Heap {}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: ptr came from alloc_zeroed with this very layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

impl Block {
    fn new(capacity: usize) -> Option<Block> {
        if capacity >= MAP_MIN {
            let map = MmapMut::map_anon(capacity).ok()?;
            // Advice only: without huge pages everything works, more slowly.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Some(Block::Map(map));
        }
        let layout = AllocLayout::from_size_align(capacity, ALIGN).ok()?;
        // SAFETY: the size is not zero (size_class gives at least ALIGN).
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Block::Heap(Heap { ptr, layout }))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: ptr is valid for the layout's size, initialised (zeroed at allocation), while self lives.
            Block::Heap(h) => unsafe { std::slice::from_raw_parts(h.ptr.as_ptr(), h.layout.size()) },
            Block::Map(m) => m,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as above, and self is borrowed mutably.
            Block::Heap(h) => unsafe { std::slice::from_raw_parts_mut(h.ptr.as_ptr(), h.layout.size()) },
            Block::Map(m) => m,
        }
    }
}

/// Free blocks by size class, each with the time it came back, oldest first.
#[derive(Default)]
struct Pool {
    free: BTreeMap<usize, Vec<(u64, Block)>>,
    held: usize,
    time: u64,
}

impl Pool {
    fn take(&mut self, capacity: usize) -> Option<Block> {
        let (_, block) = self.free.get_mut(&capacity)?.pop()?;
        self.held -= capacity;
        Some(block)
    }

    /// Keeps a block; returns those that must go so that the pool stays within `limit` bytes.
    fn give(&mut self, block: Block, limit: usize) -> Vec<Block> {
        let capacity = block.bytes().len();
        self.time += 1;
        self.held += capacity;
        self.free.entry(capacity).or_default().push((self.time, block));
        let mut gone = Vec::new();
        while self.held > limit {
            let age =
                |(_, blocks): &(&usize, &mut Vec<(u64, Block)>)| blocks.first().map_or(u64::MAX, |b| b.0);
            let Some((&capacity, blocks)) = self.free.iter_mut().min_by_key(age) else { break };
            gone.push(blocks.remove(0).1);
            self.held -= capacity;
            if blocks.is_empty() {
                self.free.remove(&capacity);
            }
        }
        gone
    }
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

/// Fills bytes, in parallel where there are many.
fn fill(bytes: &mut [u8], value: u8) {
    if bytes.len() <= 4 * FILL_BLOCK {
        return bytes.fill(value);
    }
    bytes.par_chunks_mut(FILL_BLOCK).for_each(|b| b.fill(value));
}

/// An owned, aligned, always initialised host buffer.
pub(crate) struct HostBuffer {
    /// Always there until the buffer is dropped.
    block: Option<Block>,
    len: usize,
}

impl HostBuffer {
    /// `len` bytes of unspecified (but initialised) content.
    pub fn new(len: usize) -> Result<Self> {
        let mut buf = Self::scratch(len)?;
        if POISON.load(Ordering::Relaxed) {
            fill(buf.bytes_mut(), 0xff);
        }
        Ok(buf)
    }

    /// As [`HostBuffer::new`], never poisoned: for a kernel's own use.
    pub fn scratch(len: usize) -> Result<Self> {
        match Self::recycled(len) {
            Some(buf) => Ok(buf),
            None => Self::fresh(len),
        }
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Result<Self> {
        match Self::recycled(len) {
            Some(mut buf) => {
                fill(buf.bytes_mut(), 0);
                Ok(buf)
            }
            None => Self::fresh(len),
        }
    }

    fn recycled(len: usize) -> Option<Self> {
        if len < POOL_MIN {
            return None;
        }
        let block = pool().lock().ok()?.take(size_class(len))?;
        Some(HostBuffer { block: Some(block), len })
    }

    fn fresh(len: usize) -> Result<Self> {
        match Block::new(size_class(len)) {
            Some(block) => Ok(HostBuffer { block: Some(block), len }),
            None => Err(Error::OutOfMemory { device: Device::Cpu, bytes: len }),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        self.block.as_ref().map_or(&[], |b| &b.bytes()[..self.len])
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.block.as_mut().map_or(&mut [], |b| &mut b.bytes_mut()[..self.len])
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let Some(block) = self.block.take().filter(|b| b.bytes().len() >= POOL_MIN) else { return };
        // What must go is freed after the lock is.
        let _gone = pool().lock().map(|mut pool| pool.give(block, POOL_MAX));
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
    Cuda(flashlin_cuda::Buffer),
}

impl Storage {
    pub fn device(&self) -> Device {
        match self {
            Storage::Host(_) | Storage::Mapped { .. } => Device::Cpu,
            Storage::Cuda(b) => Device::Cuda(b.gpu().ordinal()),
        }
    }

    /// The bytes; empty where the host cannot read them (callers check the device first).
    pub fn host_bytes(&self) -> &[u8] {
        match self {
            Storage::Host(b) => b.bytes(),
            Storage::Mapped { file, offset, len } => &file.bytes()[*offset..*offset + *len],
            Storage::Cuda(_) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_recycled_zeroed() {
        let mut a = HostBuffer::new(1 << 20).unwrap();
        assert_eq!(a.bytes().as_ptr() as usize % ALIGN, 0);
        assert_eq!(HostBuffer::new(5 << 20).unwrap().bytes().as_ptr() as usize % ALIGN, 0);
        a.bytes_mut().fill(7);
        drop(a);
        let b = HostBuffer::zeroed(1 << 20).unwrap();
        assert!(b.bytes().iter().all(|&x| x == 0));
        assert_eq!(HostBuffer::new(0).unwrap().bytes().len(), 0);
    }

    #[test]
    fn the_pool_lets_go_of_what_lay_idle_longest() {
        let mut pool = Pool::default();
        let block = |n| Block::new(n).unwrap();
        let (a, b) = (256 << 10, 128 << 10);
        assert!(pool.give(block(a), 2 * a).is_empty());
        assert!(pool.give(block(b), 2 * a).is_empty());
        assert!(pool.give(block(b), 2 * a).is_empty());
        assert_eq!(pool.held, 2 * a);
        let gone = pool.give(block(b), 2 * a);
        assert_eq!(gone.iter().map(|b| b.bytes().len()).collect::<Vec<_>>(), [a]);
        assert!(pool.take(a).is_none());
        assert_eq!(pool.take(b).unwrap().bytes().len(), b);
        assert_eq!(pool.held, 2 * b);
        // A block larger than all the pool may hold is not kept.
        assert_eq!(pool.give(block(4 << 20), 2 * a).len(), 3);
        assert_eq!(pool.held, 0);
    }

    #[test]
    fn large_buffers_are_zeroed_whole() {
        let mut a = HostBuffer::new(9 << 20).unwrap();
        fill(a.bytes_mut(), 3);
        assert!(a.bytes().iter().all(|&x| x == 3));
        drop(a);
        assert!(HostBuffer::zeroed(9 << 20).unwrap().bytes().iter().all(|&x| x == 0));
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(matches!(HostBuffer::new(1 << 60), Err(Error::OutOfMemory { .. })));
    }
}
