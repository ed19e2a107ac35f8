//! Whether there is a driver, and which devices it shows.
//!
//! Policy: cudarc panics where libcuda is missing, so [`driver`] is the only way to the first call and checks first. Its answer is kept: a
//! driver does not come or go while a process runs.

use std::sync::OnceLock;

use cudarc::driver::{result, sys};
use serde::Serialize;

use crate::{
    Error, Properties, Result,
    error::{describe, is_asynchronous},
};

/// The oldest driver that serves, as 1000 x major + 10 x minor of the CUDA version that it supports.
pub const MIN_DRIVER: i32 = 12080;

/// What is known about the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DriverInfo {
    /// The CUDA version that it supports, as 1000 x major + 10 x minor.
    pub version: i32,
    /// Devices that it shows (`CUDA_VISIBLE_DEVICES` applies).
    pub devices: usize,
}

/// Starts the driver.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::DriverInit`].
pub fn driver() -> Result<DriverInfo> {
    static STATE: OnceLock<Result<DriverInfo>> = OnceLock::new();
    match STATE.get_or_init(start) {
        Ok(info) => Ok(*info),
        // `Error` holds boxed sources elsewhere and is not `Clone`; these three are all that `start` gives.
        Err(Error::DriverTooOld { found, needed }) => {
            Err(Error::DriverTooOld { found: *found, needed: *needed })
        }
        Err(Error::DriverInit(why)) => Err(Error::DriverInit(why.clone())),
        Err(_) => Err(Error::NoDriver),
    }
}

fn start() -> Result<DriverInfo> {
    // SAFETY: opens libcuda and nothing else; its initialisers are those of the vendor's library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    let mut version = 0;
    // SAFETY: `version` outlives the call; this call is allowed before initialisation.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    code.result().map_err(|e| Error::DriverInit(format!("{:?}", e.0)))?;
    check_version(version)?;
    match result::init() {
        Ok(()) => {}
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            return Ok(DriverInfo { version, devices: 0 });
        }
        Err(e) => return Err(Error::DriverInit(describe(e))),
    }
    let devices = result::device::get_count().map_err(|e| Error::DriverInit(describe(e)))?;
    Ok(DriverInfo { version, devices: devices.max(0) as usize })
}

fn check_version(found: i32) -> Result<()> {
    if found < MIN_DRIVER { Err(Error::DriverTooOld { found, needed: MIN_DRIVER }) } else { Ok(()) }
}

/// How many devices there are.
///
/// # Errors
/// Those of [`driver`].
pub fn count() -> Result<usize> {
    driver().map(|d| d.devices)
}

/// The devices and what they are. Needs no context on any of them.
///
/// # Errors
/// Those of [`driver`]; a failed query.
pub fn devices() -> Result<Vec<Properties>> {
    (0..count()?).map(Properties::of).collect()
}

/// Turns a driver's answer into a result; `call` names the call.
pub(crate) fn check(call: &'static str, code: sys::CUresult) -> Result<()> {
    match code.result() {
        Ok(()) => Ok(()),
        Err(e) if is_asynchronous(e.0) => Err(Error::Asynchronous {
            found_by: call.into(),
            text: describe(e),
            recent: crate::launch::recent(),
        }),
        Err(e) => Err(Error::Driver { call, text: describe(e) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_named() {
        assert!(check_version(MIN_DRIVER).is_ok());
        assert!(matches!(check_version(11080), Err(Error::DriverTooOld { found: 11080, .. })));
    }

    #[test]
    fn no_driver_is_an_error_every_time() {
        // Holds on machines with a driver too: the answer is the same twice, and never a panic.
        match (driver(), driver()) {
            (Ok(a), Ok(b)) => assert_eq!(a, b),
            (Err(a), Err(b)) => {
                assert_eq!(a.to_string(), b.to_string());
                assert!(devices().is_err() && crate::Gpu::open(0).is_err());
            }
            (a, b) => panic!("{a:?} and then {b:?}"),
        }
    }
}
