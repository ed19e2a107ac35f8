//! Copies between host and device through pinned memory.
//!
//! Policy: ordinary host memory is copied into a pinned ring first and goes to the device from there, so that [`write`] returns as soon as the caller's
//! bytes are safe and the device copies at full speed. A part of the ring is reused once the copy that read it is over.

use std::collections::VecDeque;

use cudarc::driver::{result, sys};

use crate::{Error, Event, Gpu, Result, driver::check, gpu::lock};

/// Size of the ring in bytes.
const RING: usize = 32 << 20;
/// Longer copies go in pieces of this size, so that filling one piece overlaps with copying another.
const PIECE: usize = 8 << 20;
/// Parts of the ring begin at multiples of this.
const ALIGN: usize = 256;

/// Page-locked host memory: the device reads and writes it directly.
#[derive(Debug)]
pub struct Pinned {
    at: *mut u8,
    bytes: usize,
    gpu: Gpu,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: shared access only reads.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Pinned memory filled with zeros.
    ///
    /// # Errors
    /// A driver failure, such as too little host memory.
    pub fn new(gpu: Gpu, bytes: usize) -> Result<Pinned> {
        gpu.bind()?;
        // SAFETY: a context is bound; the memory is released once, in `drop`.
        let at = unsafe { result::malloc_host(bytes.max(1), 0) };
        let at = at.map_err(|e| Error::Driver { call: "cuMemHostAlloc", text: crate::error::describe(e) })?;
        // SAFETY: the memory was obtained above with at least this length.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Pinned { at: at.cast(), bytes, gpu })
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory is initialised, alive, and `bytes` long.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    /// Its bytes. The caller sees to it that no copy still uses them.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }

    /// Queues a copy of the first `bytes` to a buffer on a stream.
    ///
    /// # Safety
    /// Until that copy is over (an event of the stream says so) the memory must not be written or dropped. On a stream other than the compute stream the caller
    /// also orders the copy against uses of the buffer.
    ///
    /// # Errors
    /// A range outside of either side; a driver failure.
    pub unsafe fn write_to(
        &self,
        buffer: &crate::Buffer,
        offset: usize,
        bytes: usize,
        stream: &crate::Stream,
    ) -> Result<()> {
        let to = buffer.range("copy", offset, bytes)?;
        if bytes > self.bytes {
            let why = format!("{bytes} bytes from pinned memory of {}", self.bytes);
            return Err(Error::invalid("copy", why));
        }
        self.gpu.bind()?;
        // SAFETY: both ranges are inside; the rest is the caller's promise.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, self.at.cast(), bytes, stream.raw())
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: obtained in `new`, released only here.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}

/// Which parts of the ring are taken, without the driver.
#[derive(Debug, Default)]
struct Ring {
    head: usize,
    /// (begin, end, number of the copy)
    taken: VecDeque<(usize, usize, u64)>,
    copies: u64,
}

impl Ring {
    /// Takes `bytes` (at most half the ring): its offset, its number, and the numbers of the copies that must be over before it is touched.
    fn take(&mut self, bytes: usize) -> (usize, u64, Vec<u64>) {
        let begin = if self.head + bytes > RING { 0 } else { self.head };
        let end = begin + bytes;
        let mut wait = Vec::new();
        self.taken.retain(|(b, e, copy)| {
            let apart = *e <= begin || end <= *b;
            if !apart {
                wait.push(*copy);
            }
            apart
        });
        self.copies += 1;
        self.taken.push_back((begin, end, self.copies));
        self.head = end.next_multiple_of(ALIGN);
        (begin, self.copies, wait)
    }
}

/// The ring with its memory and marks.
#[derive(Debug)]
pub(crate) struct Staging {
    memory: Pinned,
    ring: Ring,
    /// (number of the copy, its mark), in order.
    marks: VecDeque<(u64, Event)>,
    spare: Vec<Event>,
}

impl Staging {
    fn new(gpu: Gpu) -> Result<Staging> {
        let memory = Pinned::new(gpu, RING)?;
        Ok(Staging { memory, ring: Ring::default(), marks: VecDeque::new(), spare: Vec::new() })
    }

    /// A free part of the ring: its offset and number.
    fn take(&mut self, bytes: usize) -> Result<(usize, u64)> {
        let (at, number, wait) = self.ring.take(bytes);
        // Copies of one stream end in order: when the newest is over, so are those before it.
        if let Some(newest) = wait.into_iter().max() {
            self.wait(newest)?;
        }
        Ok((at, number))
    }

    fn mark(&mut self, gpu: Gpu, number: u64) -> Result<()> {
        let event = match self.spare.pop() {
            Some(event) => event,
            None => gpu.event()?,
        };
        event.record(gpu.compute())?;
        self.marks.push_back((number, event));
        Ok(())
    }

    /// Waits for a copy.
    fn wait(&mut self, number: u64) -> Result<()> {
        if let Some((_, event)) = self.marks.iter().find(|(n, _)| *n == number) {
            event.synchronize()?;
        }
        while let Some((n, _)) = self.marks.front()
            && *n <= number
        {
            self.spare.extend(self.marks.pop_front().map(|(_, event)| event));
        }
        Ok(())
    }
}

/// Runs with the device's ring, made by the first use.
fn with_ring<T>(gpu: Gpu, run: impl FnOnce(&mut Staging) -> Result<T>) -> Result<T> {
    let mut slot = lock(gpu.staging());
    let ring = match slot.as_mut() {
        Some(ring) => ring,
        None => slot.insert(Staging::new(gpu)?),
    };
    gpu.bind()?;
    run(ring)
}

/// Copies `data` to device address `to`, whose range is the caller's and inside one buffer.
pub(crate) fn write(gpu: Gpu, to: u64, data: &[u8]) -> Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    with_ring(gpu, |ring| {
        for (i, piece) in data.chunks(PIECE).enumerate() {
            let (at, number) = ring.take(piece.len())?;
            copy_bytes(&mut ring.memory.as_mut_slice()[at..at + piece.len()], piece);
            let from = ring.memory.as_slice()[at..].as_ptr();
            // SAFETY: the source is pinned and not touched before the mark below is reached; the target lies inside a live buffer.
            check("cuMemcpyHtoDAsync", unsafe {
                sys::cuMemcpyHtoDAsync_v2(
                    to + (i * PIECE) as u64,
                    from.cast(),
                    piece.len(),
                    gpu.compute().raw(),
                )
            })?;
            ring.mark(gpu, number)?;
        }
        Ok(())
    })
}

/// Copies from device address `from` to `data`; waits.
pub(crate) fn read(gpu: Gpu, from: u64, data: &mut [u8]) -> Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    with_ring(gpu, |ring| {
        // One piece is on its way while the one before it is taken out of the ring.
        let mut coming: Option<(usize, u64, &mut [u8])> = None;
        for (i, piece) in data.chunks_mut(PIECE).enumerate() {
            let (at, number) = ring.take(piece.len())?;
            let to = ring.memory.as_mut_slice()[at..].as_mut_ptr();
            // SAFETY: the target is pinned and not touched before the mark below is reached; the source lies inside a live buffer.
            check("cuMemcpyDtoHAsync", unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    to.cast(),
                    from + (i * PIECE) as u64,
                    piece.len(),
                    gpu.compute().raw(),
                )
            })?;
            ring.mark(gpu, number)?;
            if let Some(arrived) = coming.replace((at, number, piece)) {
                arrive(ring, arrived)?;
            }
        }
        coming.map_or(Ok(()), |last| arrive(ring, last))
    })
}

fn arrive(ring: &mut Staging, (at, number, out): (usize, u64, &mut [u8])) -> Result<()> {
    ring.wait(number)?;
    copy_bytes(out, &ring.memory.as_slice()[at..at + out.len()]);
    Ok(())
}

/// Copies on a few threads where that pays: one thread moves less than the bus does.
fn copy_bytes(to: &mut [u8], from: &[u8]) {
    const SHARE: usize = 1 << 20;
    const MOST: usize = 4;
    let threads = (from.len() / SHARE).min(MOST);
    if threads < 2 {
        return to.copy_from_slice(from);
    }
    let share = from.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for (to, from) in to.chunks_mut(share).zip(from.chunks(share)) {
            scope.spawn(move || to.copy_from_slice(from));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_waits_exactly_for_what_it_overwrites() {
        let mut ring = Ring::default();
        let quarter = RING / 4;
        let numbers: Vec<_> = (0..4).map(|_| ring.take(quarter)).collect();
        assert!(numbers.iter().all(|(_, _, wait)| wait.is_empty()));
        assert_eq!(ring.take(100), (0, 5, vec![1]));
        assert_eq!(ring.take(quarter), (256, 6, vec![2]));
        // Does not fit before the end (three quarters are ahead of the head): begins anew.
        ring.head = RING - 10;
        assert_eq!(ring.take(20), (0, 7, vec![5]));
    }

    #[test]
    fn long_copies_are_whole() {
        for len in [0, 5, (1 << 20) + 1, (3 << 20) + 7, 8 << 20] {
            let from: Vec<u8> = (0..len).map(|i: usize| (i ^ (i >> 8)) as u8).collect();
            let mut to = vec![0; len];
            copy_bytes(&mut to, &from);
            assert!(to == from, "{len}");
        }
    }

    #[test]
    fn bytes_of_numbers() {
        assert_eq!(crate::bytes_of(&[1.0f32]), 1.0f32.to_le_bytes());
        let mut x = [0u16; 2];
        crate::bytes_of_mut(&mut x).copy_from_slice(&[1, 0, 2, 0]);
        assert_eq!(x, [1, 2]);
    }
}
