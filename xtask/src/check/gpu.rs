//! The GPU at hand, as the checks need it: named buffers, launches by argument name, event timing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};

use anyhow::{Context, Result, anyhow, bail};
use cudarc::driver::{result, sys};
use flashlin_kernels::{ArgKind, Bundle, Kernel};

use super::host;

/// One device, one stream, the kernels of one bundle.
pub struct Gpu<'a> {
    bundle: &'a Bundle,
    name: String,
    stream: sys::CUstream,
    functions: RefCell<HashMap<String, sys::CUfunction>>,
}

/// Device memory.
pub struct Buf {
    at: sys::CUdeviceptr,
    len: usize,
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: allocated by `alloc`, freed once; freeing waits for the work that uses it.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

/// The buffers of a case by name.
#[derive(Default)]
pub struct Bufs(pub HashMap<String, Buf>);

/// A launch's numbers by argument name.
pub type Numbers<'n> = &'n [(&'n str, f64)];

impl<'a> Gpu<'a> {
    /// The first device.
    pub fn open(bundle: &'a Bundle) -> Result<Gpu<'a>> {
        // SAFETY: only asks whether the library can be loaded.
        if !unsafe { sys::is_culib_present() } {
            bail!("there is no CUDA driver here");
        }
        result::init()?;
        let device = result::device::get(0)?;
        // SAFETY: the device exists; the primary context lives as long as the process.
        let context = unsafe { result::primary_ctx::retain(device)? };
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context)? };
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        Ok(Gpu { bundle, name: result::device::get_name(device)?, stream, functions: RefCell::default() })
    }

    /// As the driver names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for everything; an error where a kernel failed.
    pub fn drain(&self) -> Result<()> {
        result::ctx::synchronize().context("a kernel failed")
    }

    /// Uninitialised memory.
    pub fn alloc(&self, bytes: usize) -> Result<Buf> {
        // SAFETY: freed by `Buf` alone.
        let at = unsafe { result::malloc_sync(bytes.max(16)) }
            .with_context(|| format!("allocating {bytes} bytes"))?;
        Ok(Buf { at, len: bytes })
    }

    /// Memory whose every byte is 0xff: NaN in every float type.
    pub fn poisoned(&self, bytes: usize) -> Result<Buf> {
        let buf = self.alloc(bytes)?;
        // SAFETY: the allocation has at least that many bytes.
        unsafe { result::memset_d8_sync(buf.at, 0xff, bytes)? };
        Ok(buf)
    }

    /// A copy of `data`.
    pub fn upload(&self, data: &[u8]) -> Result<Buf> {
        let buf = self.alloc(data.len())?;
        if !data.is_empty() {
            // SAFETY: the allocation is as long as the data.
            unsafe { result::memcpy_htod_sync(buf.at, data)? };
        }
        Ok(buf)
    }

    /// `bytes` bytes that repeat `data`.
    pub fn tiled(&self, data: &[u8], bytes: usize) -> Result<Buf> {
        let (from, to) = (self.upload(data)?, self.alloc(bytes)?);
        let mut at = 0;
        while at < bytes {
            let n = data.len().min(bytes - at);
            // SAFETY: both ranges lie inside their allocations.
            unsafe { result::memcpy_dtod_sync(to.at + at as u64, from.at, n)? };
            at += n;
        }
        Ok(to)
    }

    /// The values of a buffer.
    pub fn download(&self, buf: &Buf, dtype: &str) -> Result<Vec<f64>> {
        self.drain()?;
        let mut bytes = vec![0u8; buf.len];
        if buf.len > 0 {
            // SAFETY: the buffer has that many bytes.
            unsafe { result::memcpy_dtoh_sync(&mut bytes, buf.at)? };
        }
        Ok(host::decode(dtype, &bytes))
    }

    fn function(&self, kernel: &Kernel) -> Result<sys::CUfunction> {
        if let Some(f) = self.functions.borrow().get(&kernel.name) {
            return Ok(*f);
        }
        let cubin = self.bundle.cubin(kernel)?;
        // SAFETY: the bytes are a cubin whose hash was compared; the driver copies what it keeps.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
            .with_context(|| kernel.name.clone())?;
        // SAFETY: the module is never unloaded.
        let f = unsafe { result::module::get_function(module, CString::new(kernel.entry.as_str())?)? };
        self.functions.borrow_mut().insert(kernel.name.clone(), f);
        Ok(f)
    }

    /// Launches a kernel. Pointers come from `bufs` by argument name (`renamed`: (argument, buffer); a buffer that is not there is null), numbers
    /// from `numbers`.
    pub fn launch(
        &self,
        kernel: &Kernel,
        grid: [usize; 3],
        bufs: &Bufs,
        renamed: &[(&str, &str)],
        numbers: Numbers<'_>,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut words = Vec::with_capacity(kernel.abi.len());
        for arg in &kernel.abi {
            let number = || {
                let n = numbers.iter().find(|(n, _)| *n == arg.name);
                n.map(|(_, v)| *v).ok_or_else(|| anyhow!("{}: no value for {}", kernel.name, arg.name))
            };
            words.push(match arg.kind {
                ArgKind::Ptr => {
                    let name =
                        renamed.iter().find(|(a, _)| *a == arg.name).map_or(arg.name.as_str(), |(_, b)| *b);
                    bufs.0.get(name).map_or(0, |b| b.at)
                }
                ArgKind::I32 => u64::from(number()? as i32 as u32),
                ArgKind::I64 => number()? as i64 as u64,
                ArgKind::F32 => u64::from((number()? as f32).to_bits()),
            });
        }
        let mut params: Vec<*mut c_void> = words.iter_mut().map(|w| std::ptr::from_mut(w).cast()).collect();
        let [x, y, z] = grid.map(|g| g as u32);
        let f = self.function(kernel)?;
        // SAFETY: the arguments follow the kernel's ABI as its source declares it; the buffers are as large as its documentation asks.
        unsafe { result::launch_kernel(f, (x, y, z), (1, 1, 1), 0, self.stream, &mut params) }
            .with_context(|| format!("{} on a grid of {grid:?}", kernel.name))?;
        Ok(())
    }

    /// Milliseconds of `work`: the median of 20 after 3 runs.
    pub fn time(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        for _ in 0..3 {
            work()?;
        }
        self.drain()?;
        let mut times = Vec::new();
        for _ in 0..20 {
            let (a, b) = (event()?, event()?);
            // SAFETY: events and stream are alive.
            unsafe { result::event::record(a, self.stream)? };
            work()?;
            // SAFETY: as above.
            unsafe { result::event::record(b, self.stream)? };
            times.push((a, b));
        }
        self.drain()?;
        let mut ms = Vec::new();
        for (a, b) in times {
            // SAFETY: both events were recorded and reached.
            ms.push(f64::from(unsafe { result::event::elapsed(a, b)? }));
            // SAFETY: not used again.
            unsafe {
                result::event::destroy(a)?;
                result::event::destroy(b)?;
            }
        }
        ms.sort_by(f64::total_cmp);
        Ok((ms[9] + ms[10]) / 2.0)
    }
}
