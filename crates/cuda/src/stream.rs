//! Queues of work on a device.

use cudarc::driver::sys;

use crate::{Event, Gpu, Result, driver::check};

/// A queue of work. Work of one stream runs in order; streams run beside each other unless one waits ([`Stream::after`]).
#[derive(Debug)]
pub struct Stream {
    raw: sys::CUstream,
    ordinal: usize,
    name: &'static str,
}

// SAFETY: a stream is a handle that the driver guards.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream of the context that is bound now.
    pub(crate) fn new(ordinal: usize, name: &'static str) -> Result<Stream> {
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` outlives the call.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Stream { raw, ordinal, name })
    }

    /// Lets everything queued here from now on wait for what `other` holds now. The host does not wait.
    ///
    /// # Errors
    /// A driver failure.
    pub fn after(&self, other: &Stream) -> Result<()> {
        let event = Event::new(self.gpu()?, false)?;
        event.record(other)?;
        self.wait(&event)
    }

    /// Lets everything queued here from now on wait for a mark. The host does not wait.
    ///
    /// # Errors
    /// A driver failure.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.gpu()?.bind()?;
        // SAFETY: both handles are alive; a destroyed event is kept by the driver until the wait is over.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.raw(), 0) })
    }

    /// Waits on the host until everything queued here is done.
    ///
    /// # Errors
    /// A failure of that work; [`crate::Error::Capture`] inside a capture.
    #[track_caller]
    pub fn synchronize(&self) -> Result<()> {
        let gpu = self.gpu()?;
        gpu.refuse_in_capture("waiting for the device", "a graph has no results before it runs")?;
        gpu.bind()?;
        // SAFETY: the handle is alive as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// What it is for.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The driver's handle, for libraries.
    pub fn raw(&self) -> sys::CUstream {
        self.raw
    }

    fn gpu(&self) -> Result<Gpu> {
        Gpu::open(self.ordinal)
    }
}
