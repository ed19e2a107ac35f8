//! One opened device: its context, streams and memory.
//!
//! Policy: a device is opened once in a process and stays open until it ends, so [`Gpu`] is a plain copyable reference and nothing can outlive
//! it. It shares the device's primary context with other libraries in the process. Every driver call binds the context to the calling thread first, because others may have
//! bound theirs. Work runs on one compute stream; the copy stream is for transfers that should overlap with it.

use std::{
    collections::BTreeMap,
    panic::Location,
    sync::{Mutex, MutexGuard, OnceLock},
    thread::ThreadId,
};

use cudarc::driver::{result, sys};

use crate::{
    Error, Event, OutOfMemory, PoolStats, Properties, Result, Stream,
    blas::Blas,
    driver::check,
    pool::{Block, Obtain, Pool},
    staging::Staging,
};

/// An opened device.
#[derive(Clone, Copy)]
pub struct Gpu(&'static Inner);

struct Inner {
    context: sys::CUcontext,
    properties: Properties,
    compute: Stream,
    copy: Stream,
    memory: crate::memory::DeviceMemory,
    pool: Mutex<Pool>,
    staging: Mutex<Option<Staging>>,
    blas: OnceLock<Blas>,
    capture: Mutex<Option<Capturing>>,
    /// New memory is filled with 0xFF bytes (NaN in every float type).
    poison: bool,
    /// Every launch is waited for.
    sync: bool,
}

/// A capture that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capturing {
    pub thread: ThreadId,
    /// Allocations are refused.
    pub strict: bool,
}

// SAFETY: the context is a handle that the driver guards; everything else is `Send` and `Sync` by itself.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{}", self.0.properties.ordinal)
    }
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Gpu) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Gpu {}

impl Gpu {
    /// Opens a device, or gives the opened one.
    ///
    /// # Errors
    /// No driver, too old a driver, no such device, or the driver refuses.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        static OPEN: Mutex<BTreeMap<usize, Gpu>> = Mutex::new(BTreeMap::new());
        let mut open = lock(&OPEN);
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(*gpu);
        }
        let properties = Properties::of(ordinal)?;
        let text = |call| move |e| Error::Driver { call, text: crate::error::describe(e) };
        let device = result::device::get(ordinal as i32).map_err(text("cuDeviceGet"))?;
        // SAFETY: `device` comes from the driver. The context is retained for the rest of the process.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(text("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: the context was retained above.
        unsafe { result::ctx::set_current(context) }.map_err(text("cuCtxSetCurrent"))?;
        let inner = Inner {
            context,
            compute: Stream::new(ordinal, "compute")?,
            copy: Stream::new(ordinal, "copy")?,
            memory: crate::memory::DeviceMemory::new(&properties, device)?,
            properties,
            pool: Mutex::default(),
            staging: Mutex::default(),
            blas: OnceLock::new(),
            capture: Mutex::default(),
            poison: switch("FLASHLIN_CUDA_POISON", cfg!(debug_assertions)),
            sync: switch("FLASHLIN_CUDA_SYNC", false),
        };
        let gpu = Gpu(Box::leak(Box::new(inner)));
        open.insert(ordinal, gpu);
        Ok(gpu)
    }

    /// What it is.
    pub fn properties(&self) -> &'static Properties {
        &self.0.properties
    }

    /// Its ordinal among the visible devices.
    pub fn ordinal(&self) -> usize {
        self.0.properties.ordinal
    }

    /// The stream that everything runs on unless asked otherwise.
    pub fn compute(&self) -> &'static Stream {
        &self.0.compute
    }

    /// The stream for transfers that overlap with computing.
    pub fn copy(&self) -> &'static Stream {
        &self.0.copy
    }

    /// A mark for order between streams.
    ///
    /// # Errors
    /// A driver failure.
    pub fn event(&self) -> Result<Event> {
        Event::new(*self, false)
    }

    /// A mark that keeps the time.
    ///
    /// # Errors
    /// A driver failure.
    pub fn timed_event(&self) -> Result<Event> {
        Event::new(*self, true)
    }

    /// Waits until the device has done everything that this process queued.
    ///
    /// # Errors
    /// A failure of that work; [`Error::Capture`] inside a capture.
    #[track_caller]
    pub fn synchronize(&self) -> Result<()> {
        self.0.copy.synchronize()?;
        self.0.compute.synchronize()
    }

    /// Asks, without waiting, whether work that already ran has failed: to be called after each step, named by `step`.
    ///
    /// # Errors
    /// [`Error::Asynchronous`].
    pub fn check(&self, step: &str) -> Result<()> {
        if self.capturing().is_some() {
            return Ok(());
        }
        self.bind()?;
        for stream in [&self.0.compute, &self.0.copy] {
            // SAFETY: the handle is alive for the rest of the process.
            let code = unsafe { sys::cuStreamQuery(stream.raw()) };
            if code == sys::CUresult::CUDA_ERROR_NOT_READY {
                continue;
            }
            check("cuStreamQuery", code).map_err(|e| match e {
                Error::Asynchronous { text, recent, .. } => {
                    Error::Asynchronous { found_by: format!("the check after {step}"), text, recent }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// Counters of its memory pool.
    pub fn memory(&self) -> PoolStats {
        lock(&self.0.pool).stats()
    }

    /// Lets the peaks of [`Gpu::memory`] start again.
    pub fn reset_peaks(&self) {
        lock(&self.0.pool).reset_peaks();
    }

    /// Bounds what this process may hold on the device, in bytes; `None` lifts the bound.
    pub fn set_memory_limit(&self, limit: Option<usize>) {
        lock(&self.0.pool).set_limit(limit);
    }

    /// Bytes that a new request could have at most: what the driver says is free, and what the pool keeps for reuse.
    ///
    /// # Errors
    /// A driver failure.
    pub fn free_bytes(&self) -> Result<usize> {
        Ok(self.driver_memory()?.0 + self.memory().cached)
    }

    /// Gives everything that the pool keeps for reuse back to the driver. Waits for the device.
    ///
    /// # Errors
    /// A failure of work that ran; [`Error::Capture`] inside a capture.
    #[track_caller]
    pub fn trim(&self) -> Result<()> {
        self.synchronize()?;
        lock(&self.0.pool).flush(&self.raw_memory());
        Ok(())
    }

    /// Binds the context to the calling thread.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for the rest of the process.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.0.context) })
    }

    pub(crate) fn poisons(&self) -> bool {
        self.0.poison
    }

    pub(crate) fn waits_for_launches(&self) -> bool {
        self.0.sync
    }

    pub(crate) fn staging(&self) -> &'static Mutex<Option<Staging>> {
        &self.0.staging
    }

    /// The library of dense products; opened by the first call.
    pub(crate) fn blas(&self) -> Result<&'static Blas> {
        if let Some(blas) = self.0.blas.get() {
            return Ok(blas);
        }
        let blas = Blas::new(*self)?;
        Ok(self.0.blas.get_or_init(|| blas))
    }

    pub(crate) fn pool(&self) -> MutexGuard<'static, Pool> {
        lock(&self.0.pool)
    }

    pub(crate) fn capture_slot(&self) -> MutexGuard<'static, Option<Capturing>> {
        lock(&self.0.capture)
    }

    /// True while a graph is captured on it.
    pub fn is_capturing(&self) -> bool {
        self.capturing().is_some()
    }

    pub(crate) fn capturing(&self) -> Option<Capturing> {
        *lock(&self.0.capture)
    }

    /// Errors inside a capture.
    #[track_caller]
    pub(crate) fn refuse_in_capture(&self, what: &str, why: &'static str) -> Result<()> {
        match self.capturing() {
            None => Ok(()),
            Some(_) => Err(Error::capture(what, Location::caller(), why)),
        }
    }

    /// A block of the pool.
    #[track_caller]
    pub(crate) fn take_block(&self, bytes: usize) -> Result<Block> {
        if let Some(c) = self.capturing() {
            let what = format!("an allocation of {}", crate::error::size(bytes));
            if c.strict {
                return Err(Error::capture(
                    what,
                    Location::caller(),
                    "the graph was asked to allocate nothing",
                ));
            }
            if c.thread != std::thread::current().id() {
                return Err(Error::capture(
                    what,
                    Location::caller(),
                    "another thread captures on this device",
                ));
            }
        }
        self.bind()?;
        let got = lock(&self.0.pool).alloc(&self.raw_memory(), bytes);
        match got {
            Ok(block) => Ok(block),
            Err(Obtain::Failed(e)) => Err(e),
            Err(Obtain::Full) => Err(self.out_of_memory(bytes)),
        }
    }

    fn out_of_memory(&self, asked: usize) -> Error {
        let (free, total) = self.driver_memory().unwrap_or((0, self.0.properties.memory_bytes));
        let (stats, limit) = {
            let pool = lock(&self.0.pool);
            (pool.stats(), pool.limit())
        };
        Error::OutOfMemory(Box::new(OutOfMemory {
            device: self.ordinal(),
            asked,
            in_use: stats.in_use,
            cached: stats.cached,
            free,
            total,
            limit,
            capturing: self.capturing().is_some(),
        }))
    }

    /// (free, total) as the driver sees it.
    fn driver_memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both outlive the call and a context is bound.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    fn raw_memory(&self) -> crate::memory::Source<'static> {
        crate::memory::Source {
            memory: &self.0.memory,
            compute: &self.0.compute,
            capturing: self.capturing().is_some(),
        }
    }
}

/// A lock whose holder panicked still guards consistent bookkeeping: every change of it is complete before anything can fail.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An environment variable that is `1` or `0`.
fn switch(name: &str, default: bool) -> bool {
    match std::env::var(name).as_deref() {
        Ok("1") => true,
        Ok("0") => false,
        Ok(other) => {
            tracing::warn!("{name} is `{other}`, expected 0 or 1; it is ignored");
            default
        }
        Err(_) => default,
    }
}
