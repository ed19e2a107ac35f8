//! Memory that ends where the mapped page ends, for tests: an access beyond it faults instead of reading a neighbour.

use std::{collections::BTreeMap, sync::Mutex};

use cudarc::driver::sys;

use crate::{Error, Gpu, Result, driver::check, gpu::lock};

/// Addresses handed to kernels are multiples of this many bytes: what their vector and bulk loads need.
const ALIGN: usize = 16;

/// Device memory whose last byte (up to 15 bytes where the length is no multiple of 16) is the last of a mapped page; the pages around are unmapped. Mapping takes
/// milliseconds, so a dropped buffer leaves its mapping to the next one of its size.
#[derive(Debug)]
pub struct GuardBuffer {
    gpu: Gpu,
    mapping: Option<Mapping>,
    address: u64,
    bytes: usize,
}

/// A mapped range between two unmapped pages. Kept until the process ends.
#[derive(Debug)]
struct Mapping {
    at: u64,
    bytes: usize,
}

/// Mappings that no buffer uses, by device and size.
static FREE: Mutex<BTreeMap<(usize, usize), Vec<Mapping>>> = Mutex::new(BTreeMap::new());

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
        let length = bytes.max(1).next_multiple_of(page);
        let kept = lock(&FREE).get_mut(&(gpu.ordinal(), length)).and_then(Vec::pop);
        let mapping = match kept {
            Some(mapping) => mapping,
            None => map(&prop, page, length)?,
        };
        let at = mapping.at;
        let address = at + (length - bytes.next_multiple_of(ALIGN)) as u64;
        let made = GuardBuffer { gpu, mapping: Some(mapping), address, bytes };
        // SAFETY: the range is mapped and accessible; earlier users of a kept mapping came before in this stream.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, 0xFF, length, gpu.compute().raw()) })?;
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

/// Maps `bytes` (a multiple of the page) between two pages that stay unmapped.
fn map(prop: &sys::CUmemAllocationProp, page: usize, bytes: usize) -> Result<Mapping> {
    let (mut reserved, mut handle) = (0, 0);
    // SAFETY: `handle` outlives the call; `prop` describes the device whose context is bound.
    check("cuMemCreate", unsafe { sys::cuMemCreate(&mut handle, bytes, prop, 0) })?;
    let mapped = (|| {
        // SAFETY: `reserved` outlives the call.
        check("cuMemAddressReserve", unsafe {
            sys::cuMemAddressReserve(&mut reserved, bytes + 2 * page, page, 0, 0)
        })?;
        let at = reserved + page as u64;
        // SAFETY: the range lies inside the reservation.
        check("cuMemMap", unsafe { sys::cuMemMap(at, bytes, 0, handle, 0) })?;
        let access = sys::CUmemAccessDesc {
            location: prop.location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range was mapped above.
        check("cuMemSetAccess", unsafe { sys::cuMemSetAccess(at, bytes, &access, 1) })?;
        Ok(at)
    })();
    // SAFETY: a mapping keeps the memory alive; without one it goes now.
    let _ = unsafe { sys::cuMemRelease(handle) };
    if mapped.is_err() && reserved != 0 {
        // SAFETY: reserved above; nothing uses it.
        let _ = unsafe { sys::cuMemAddressFree(reserved, bytes + 2 * page) };
    }
    Ok(Mapping { at: mapped?, bytes })
}

impl Drop for GuardBuffer {
    fn drop(&mut self) {
        if let Some(mapping) = self.mapping.take() {
            lock(&FREE).entry((self.gpu.ordinal(), mapping.bytes)).or_default().push(mapping);
        }
    }
}
