//! Marks in a stream: for order between streams, and for time.

use cudarc::driver::sys;

use crate::{Gpu, Result, Stream, driver::check};

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    raw: sys::CUevent,
    gpu: Gpu,
}

// SAFETY: an event is a handle that the driver guards; every call binds its context first.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(gpu: Gpu, timed: bool) -> Result<Event> {
        use sys::CUevent_flags::{CU_EVENT_DEFAULT, CU_EVENT_DISABLE_TIMING};
        gpu.bind()?;
        let flags = if timed { CU_EVENT_DEFAULT } else { CU_EVENT_DISABLE_TIMING };
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call and a context is bound.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags as u32) })?;
        Ok(Event { raw, gpu })
    }

    /// Sets the mark behind everything that the stream holds now.
    ///
    /// # Errors
    /// A driver failure.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: both handles are alive as long as their owners.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.raw, stream.raw()) })
    }

    /// Waits on the host until the mark is reached.
    ///
    /// # Errors
    /// A failure of the work before it.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: the handle is alive as long as `self`.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }

    /// Milliseconds on the device from this mark to a later one; waits for the later one.
    ///
    /// # Errors
    /// A failure of the work between; events that keep no time or were not recorded.
    pub fn elapsed_ms(&self, later: &Event) -> Result<f32> {
        later.synchronize()?;
        let mut ms = 0.0;
        // SAFETY: both handles are alive, `ms` outlives the call.
        check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime_v2(&mut ms, self.raw, later.raw) })?;
        Ok(ms)
    }

    pub(crate) fn raw(&self) -> sys::CUevent {
        self.raw
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the handle came from the driver and is not used again; its release waits for the mark by itself.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
