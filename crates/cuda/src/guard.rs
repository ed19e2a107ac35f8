//! Memory that ends where the mapped page ends, for tests: an access beyond it faults instead of reading a neighbour.

use cudarc::driver::sys;

use crate::{Error, Gpu, Result, driver::check};

/// Addresses handed to kernels are multiples of this many bytes: what their vector and bulk loads need.
const ALIGN: usize = 16;

/// Device memory whose last byte (up to 15 bytes where the length is no multiple of 16) is the last of a mapped page; the pages around are unmapped.
#[derive(Debug)]
pub struct GuardBuffer {
    gpu: Gpu,
    reserved: u64,
    reserved_bytes: usize,
    mapped: u64,
    mapped_bytes: usize,
    handle: sys::CUmemGenericAllocationHandle,
    address: u64,
    bytes: usize,
}

impl GuardBuffer {
    /// Memory of this many bytes, filled with 0xFF.
    ///
    /// # Errors
    /// The device cannot map by hand, or memory is short.
    pub fn new(gpu: Gpu, bytes: usize) -> Result<GuardBuffer> {
        if !gpu.properties().virtual_memory {
            return Err(Error::Unsupported {
                what: "a guarded buffer",
                asked: gpu.properties().name.clone(),
                supported: "devices with virtual memory management".into(),
            });
        }
        gpu.bind()?;
        let (prop, page) = page(gpu)?;
        let mapped_bytes = bytes.max(1).next_multiple_of(page);
        let reserved_bytes = mapped_bytes + 2 * page;
        let mut reserved = 0;
        // SAFETY: `reserved` outlives the call.
        check("cuMemAddressReserve", unsafe {
            sys::cuMemAddressReserve(&mut reserved, reserved_bytes, page, 0, 0)
        })?;
        let mut made = GuardBuffer {
            gpu,
            reserved,
            reserved_bytes,
            mapped: 0,
            mapped_bytes,
            handle: 0,
            address: reserved + page as u64 + (mapped_bytes - bytes.next_multiple_of(ALIGN)) as u64,
            bytes,
        };
        // SAFETY: `handle` outlives the call; `prop` describes this device.
        check("cuMemCreate", unsafe { sys::cuMemCreate(&mut made.handle, mapped_bytes, &prop, 0) })?;
        let at = reserved + page as u64;
        // SAFETY: the range lies inside the reservation, between two pages that stay unmapped.
        check("cuMemMap", unsafe { sys::cuMemMap(at, mapped_bytes, 0, made.handle, 0) })?;
        made.mapped = at;
        let access = sys::CUmemAccessDesc {
            location: prop.location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range was mapped above.
        check("cuMemSetAccess", unsafe { sys::cuMemSetAccess(at, mapped_bytes, &access, 1) })?;
        // SAFETY: the range was mapped and made accessible above.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(at, 0xFF, mapped_bytes, gpu.compute().raw())
        })?;
        Ok(made)
    }

    /// Where it begins: a multiple of 16.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True for a length of zero.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Copies all of its bytes from the host.
    ///
    /// # Errors
    /// Another length; a driver failure.
    pub fn write(&self, data: &[u8]) -> Result<()> {
        self.same_length("write", data.len())?;
        crate::staging::write(self.gpu, self.address, data)
    }

    /// Copies all of its bytes to the host; waits.
    ///
    /// # Errors
    /// Another length; a failure of what was waited for.
    pub fn read(&self, data: &mut [u8]) -> Result<()> {
        self.same_length("read", data.len())?;
        crate::staging::read(self.gpu, self.address, data)
    }

    fn same_length(&self, what: &'static str, len: usize) -> Result<()> {
        if len == self.bytes {
            return Ok(());
        }
        Err(Error::invalid(what, format!("{len} bytes for a guarded buffer of {}", self.bytes)))
    }
}

/// What to ask the driver for, and its page size in bytes.
fn page(gpu: Gpu) -> Result<(sys::CUmemAllocationProp, usize)> {
    // SAFETY: all-zero bytes are a valid value of this C structure.
    let mut prop: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    prop.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = gpu.ordinal() as i32;
    let option = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    let mut page = 0;
    // SAFETY: both outlive the call.
    check("cuMemGetAllocationGranularity", unsafe {
        sys::cuMemGetAllocationGranularity(&mut page, &prop, option)
    })?;
    Ok((prop, page))
}

impl Drop for GuardBuffer {
    fn drop(&mut self) {
        // Unmapping does not wait for kernels; whatever fails after that is reported by the next call.
        let _ = self.gpu.compute().synchronize();
        // SAFETY: each part is released once, in reverse order, and only if it was made.
        unsafe {
            if self.mapped != 0 {
                let _ = sys::cuMemUnmap(self.mapped, self.mapped_bytes);
            }
            if self.handle != 0 {
                let _ = sys::cuMemRelease(self.handle);
            }
            let _ = sys::cuMemAddressFree(self.reserved, self.reserved_bytes);
        }
    }
}
