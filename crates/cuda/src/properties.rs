//! What a device is.

use cudarc::driver::{result, sys};
use serde::Serialize;

use crate::{Error, Result, driver::check, driver::driver};

/// Facts about a device that plans and reports need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Properties {
    /// Ordinal among the visible devices.
    pub ordinal: usize,
    /// Name as its driver gives it.
    pub name: String,
    /// Major and minor compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sm_count: usize,
    /// Memory in bytes.
    pub memory_bytes: usize,
    /// Level-2 cache in bytes.
    pub l2_bytes: usize,
    /// Shared memory that one block may use, in bytes.
    pub shared_bytes: usize,
    /// True where the driver serves memory in stream order.
    pub memory_pools: bool,
    /// True where addresses can be reserved and mapped by hand.
    pub virtual_memory: bool,
}

impl Properties {
    /// Asks the driver about device `ordinal`.
    ///
    /// # Errors
    /// No driver, no such device, or a failed query.
    pub fn of(ordinal: usize) -> Result<Properties> {
        use sys::CUdevice_attribute::*;
        let count = driver()?.devices;
        if ordinal >= count {
            return Err(Error::NoDevice { asked: ordinal, count });
        }
        let text = |e| Error::Driver { call: "cuDeviceGet", text: crate::error::describe(e) };
        let device = result::device::get(ordinal as i32).map_err(text)?;
        let ask = |attribute| {
            let mut value = 0;
            // SAFETY: `value` outlives the call and `device` comes from the driver.
            check("cuDeviceGetAttribute", unsafe {
                sys::cuDeviceGetAttribute(&mut value, attribute, device)
            })?;
            Ok::<_, Error>(value.max(0) as usize)
        };
        // SAFETY: `device` comes from the driver.
        let memory_bytes = unsafe { result::device::total_mem(device) }.map_err(text)?;
        Ok(Properties {
            ordinal,
            name: result::device::get_name(device).map_err(text)?,
            capability: (
                ask(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
                ask(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
            ),
            sm_count: ask(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes,
            l2_bytes: ask(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            shared_bytes: ask(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            memory_pools: ask(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
            virtual_memory: ask(CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED)? != 0,
        })
    }
}
