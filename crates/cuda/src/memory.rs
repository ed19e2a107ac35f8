//! Memory on the device: where it comes from, and buffers that return to the pool by themselves.

use std::sync::Mutex;

use cudarc::driver::{result, sys};

use crate::{
    Error, Event, Gpu, Properties, Result, Stream,
    driver::check,
    gpu::lock,
    pool::{Block, Obtain, Raw},
    profile::span,
};

/// The driver's memory of one device. Requests run on a stream of their own and are waited for, so that a capture on the compute stream does not
/// swallow them and the memory is valid on every stream.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    /// The driver's pool; null where it has none, and then memory is obtained in the plain way.
    pool: sys::CUmemoryPool,
    stream: Stream,
}

// SAFETY: the pool is a handle that the driver guards.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

impl DeviceMemory {
    pub fn new(properties: &Properties, device: sys::CUdevice) -> Result<DeviceMemory> {
        let mut pool = std::ptr::null_mut();
        if properties.memory_pools {
            // SAFETY: all-zero bytes are a valid value of this C structure, whose reserved part must be zero.
            let mut props: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
            props.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
            props.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
            props.location.id = device;
            // SAFETY: both outlive the call.
            check("cuMemPoolCreate", unsafe { sys::cuMemPoolCreate(&mut pool, &props) })?;
            let mut keep = u64::MAX;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            // SAFETY: the attribute is a 64-bit number, as `keep` is.
            check("cuMemPoolSetAttribute", unsafe {
                sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast())
            })?;
        }
        Ok(DeviceMemory { pool, stream: Stream::new(properties.ordinal, "memory")? })
    }

    /// Waits for the requests so far.
    fn finish(&self) -> Result<()> {
        // SAFETY: the handle is alive for the rest of the process.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream.raw()) })
    }
}

/// [`DeviceMemory`] as the pool sees it.
pub(crate) struct Source<'a> {
    pub memory: &'a DeviceMemory,
    pub compute: &'a Stream,
    pub capturing: bool,
}

impl Raw for Source<'_> {
    fn obtain(&self, bytes: usize) -> Result<u64, Obtain> {
        let m = self.memory;
        // SAFETY: a context is bound (the caller's duty); the result is owned by the caller from here on.
        let got = unsafe {
            if m.pool.is_null() {
                result::malloc_sync(bytes)
            } else {
                result::mem_pool::alloc_async(m.pool, bytes, m.stream.raw())
            }
        };
        match got {
            Ok(address) if m.pool.is_null() => Ok(address),
            Ok(address) => m.finish().map(|()| address).map_err(Obtain::Failed),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Obtain::Full),
            Err(e) => Err(Obtain::Failed(match check("cuMemAllocFromPoolAsync", e.0) {
                Err(e) => e,
                Ok(()) => Error::invalid("alloc", "the driver gave no memory and no error"),
            })),
        }
    }

    fn give_back(&self, address: u64) {
        let m = self.memory;
        // SAFETY: the address came from `obtain`, the device is settled, and nothing holds it any more. A failure here means that the context is lost; the
        // next call reports that.
        let _ = unsafe {
            if m.pool.is_null() {
                result::free_sync(address)
            } else {
                result::free_async(address, m.stream.raw())
            }
        };
    }

    fn settle(&self) -> bool {
        if self.capturing {
            return false;
        }
        // SAFETY: the handles are alive for the rest of the process.
        let done = unsafe { sys::cuStreamSynchronize(self.compute.raw()) } == sys::CUresult::CUDA_SUCCESS
            && self.memory.finish().is_ok();
        if done && !self.memory.pool.is_null() {
            // SAFETY: as above.
            let _ = unsafe { sys::cuMemPoolTrimTo(self.memory.pool, 0) };
        }
        done
    }
}

/// A piece of device memory, 256-byte aligned. Dropping it returns it to the pool in the order of the compute stream: what is queued there now may still use it.
#[derive(Debug)]
pub struct Buffer {
    gpu: Gpu,
    block: Option<Block>,
    address: u64,
    bytes: usize,
    /// Marks of other streams that used it.
    foreign: Mutex<Vec<Event>>,
}

impl Gpu {
    /// Memory with unspecified contents; in debug builds and under `FLASHLIN_CUDA_POISON=1` it is filled with 0xFF bytes, which are NaN in every float type.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], after which the device can go on; [`Error::Capture`] inside a capture that allocates nothing.
    #[track_caller]
    pub fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let buffer = self.alloc_raw(bytes)?;
        if self.poisons() {
            buffer.fill_bytes(0xFF)?;
        }
        Ok(buffer)
    }

    /// Memory filled with zeros.
    ///
    /// # Errors
    /// As for [`Gpu::alloc`].
    #[track_caller]
    pub fn zeros(&self, bytes: usize) -> Result<Buffer> {
        let buffer = self.alloc_raw(bytes)?;
        buffer.fill_bytes(0)?;
        Ok(buffer)
    }

    /// Memory with these contents.
    ///
    /// # Errors
    /// As for [`Gpu::alloc`].
    #[track_caller]
    pub fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.alloc_raw(bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    #[track_caller]
    fn alloc_raw(&self, bytes: usize) -> Result<Buffer> {
        let block = self.take_block(bytes)?;
        let address = block.address;
        Ok(Buffer { gpu: *self, block: Some(block), address, bytes, foreign: Mutex::default() })
    }
}

impl Buffer {
    /// The device that holds it.
    pub fn gpu(&self) -> Gpu {
        self.gpu
    }

    /// Where it begins on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes, as asked for.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True for a length of zero.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Notes that `stream` uses it up to what is queued there now. Needed for every stream but the compute stream, after the use was queued: the memory is then not
    /// reused before that use is over.
    ///
    /// # Errors
    /// A driver failure.
    pub fn used_on(&self, stream: &Stream) -> Result<()> {
        let event = self.gpu.event()?;
        event.record(stream)?;
        lock(&self.foreign).push(event);
        Ok(())
    }

    /// Sets every byte, on the compute stream.
    ///
    /// # Errors
    /// A driver failure.
    pub fn fill_bytes(&self, value: u8) -> Result<()> {
        self.fill_range(0, self.bytes, value)
    }

    /// Sets the bytes of a range, on the compute stream.
    ///
    /// # Errors
    /// A range outside of the buffer; a driver failure.
    pub fn fill_range(&self, offset: usize, bytes: usize, value: u8) -> Result<()> {
        let at = self.range("fill", offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: the range lies inside this buffer, which is alive; later users of the memory come later in the same stream.
        let fill = || unsafe { sys::cuMemsetD8Async(at, value, bytes, self.gpu.compute().raw()) };
        span(self.gpu, self.gpu.compute(), || "fill".into(), || check("cuMemsetD8Async", fill()))
    }

    /// Copies from the host into the buffer, in the order of the compute stream. Returns when `data` may change; the copy may still run.
    ///
    /// # Errors
    /// A range outside of the buffer; [`Error::Capture`] inside a capture; a driver failure.
    #[track_caller]
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        let at = self.range("write", offset, data.len())?;
        self.gpu.refuse_in_capture("a copy from the host", "a replay would copy the same bytes again")?;
        crate::staging::write(self.gpu, at, data)
    }

    /// Copies from the buffer to the host: waits for everything queued on the compute stream.
    ///
    /// # Errors
    /// A range outside of the buffer; [`Error::Capture`] inside a capture; a failure of what was waited for.
    #[track_caller]
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        let at = self.range("read", offset, data.len())?;
        self.gpu.refuse_in_capture("a copy to the host", "a graph has no results before it runs")?;
        crate::staging::read(self.gpu, at, data)
    }

    /// Everything in it, on the host.
    ///
    /// # Errors
    /// As for [`Buffer::read`].
    #[track_caller]
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut data = vec![0; self.bytes];
        self.read(0, &mut data)?;
        Ok(data)
    }

    /// Copies bytes from another buffer of the same device, on the compute stream. The two ranges must not overlap.
    ///
    /// # Errors
    /// Ranges outside of their buffers, another device, or overlap; a driver failure.
    pub fn copy_from(
        &self,
        offset: usize,
        source: &Buffer,
        source_offset: usize,
        bytes: usize,
    ) -> Result<()> {
        let to = self.range("copy", offset, bytes)?;
        let from = source.range("copy", source_offset, bytes)?;
        if self.gpu != source.gpu {
            let why = format!("from {:?} to {:?}: devices differ", source.gpu, self.gpu);
            return Err(Error::invalid("copy", why));
        }
        if bytes == 0 {
            return Ok(());
        }
        if to < from + bytes as u64 && from < to + bytes as u64 {
            return Err(Error::invalid("copy", "the two ranges overlap"));
        }
        self.gpu.bind()?;
        // SAFETY: both ranges lie inside live buffers and are apart.
        let copy = || unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.gpu.compute().raw()) };
        span(self.gpu, self.gpu.compute(), || "copy".into(), || check("cuMemcpyDtoDAsync", copy()))
    }

    /// The address of a range that lies inside.
    pub(crate) fn range(&self, what: &'static str, offset: usize, bytes: usize) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + offset as u64),
            _ => Err(Error::invalid(
                what,
                format!("{bytes} bytes at {offset} lie outside of a buffer of {}", self.bytes),
            )),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let foreign = std::mem::take(&mut *lock(&self.foreign));
        if self.gpu.capturing().is_none() {
            for event in foreign {
                // A failure means that the context is lost; the next call reports that.
                let _ = self.gpu.compute().wait(&event);
            }
        }
        self.gpu.pool().dealloc(block);
    }
}

/// The bytes of a slice of plain numbers.
pub fn bytes_of<T: Plain>(data: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding, and any alignment suits bytes.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

/// The bytes of a mutable slice of plain numbers.
pub fn bytes_of_mut<T: Plain>(data: &mut [T]) -> &mut [u8] {
    // SAFETY: `Plain` types have no padding and take any bytes as a value.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) }
}

/// Numbers without padding that take any bytes as a value.
///
/// # Safety
/// Only for types of which both is true.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($t:ty),*) => {
        $(
            // SAFETY: a number, without padding, any bytes are one.
            unsafe impl Plain for $t {}
        )*
    };
}
plain!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64, half::f16, half::bf16);
