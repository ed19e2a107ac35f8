//! Compiled code on the device and its launches.

use std::{
    collections::VecDeque,
    ffi::CString,
    sync::{Arc, Mutex},
};

use cudarc::driver::{result, sys};

use crate::{Buffer, Error, Gpu, GuardBuffer, Result, Stream, driver::check, gpu::lock, profile::span};

/// Most arguments that a launch passes.
const MAX_ARGS: usize = 64;
/// How many launches an asynchronous error names.
const RECENT: usize = 4;

/// Compiled code loaded on one device.
#[derive(Debug)]
pub struct Module {
    raw: sys::CUmodule,
    gpu: Gpu,
}

// SAFETY: a module is a handle that the driver guards.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin; `name` is for messages.
    ///
    /// # Errors
    /// The driver refuses it (another architecture, damage, too old a driver).
    pub fn load(gpu: Gpu, name: &str, cubin: &[u8]) -> Result<Arc<Module>> {
        const ELF: &[u8] = b"\x7fELF";
        if !cubin.starts_with(ELF) {
            return Err(Error::invalid(
                "load",
                format!("{name} is no cubin: it does not begin as an ELF file does"),
            ));
        }
        // SAFETY: an ELF file says how long it is.
        unsafe { Module::load_image(gpu, name, cubin) }
    }

    /// Compiles the driver's assembly (PTX) and loads it: for the few lines that the selftest launches.
    pub(crate) fn load_ptx(gpu: Gpu, name: &str, text: &str) -> Result<Arc<Module>> {
        let text = CString::new(text).map_err(|e| Error::invalid("load", e.to_string()))?;
        // SAFETY: the text ends with a zero byte, which is how the driver finds its end.
        unsafe { Module::load_image(gpu, name, text.as_bytes_with_nul()) }
    }

    /// # Safety
    /// The image shows its own end, as ELF files and zero-terminated texts do.
    unsafe fn load_image(gpu: Gpu, name: &str, image: &[u8]) -> Result<Arc<Module>> {
        gpu.bind()?;
        // SAFETY: the image outlives the call, and the driver copies what it keeps; its end is the caller's promise.
        let raw = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let raw = raw.map_err(|e| Error::Library {
            call: "cuModuleLoadData",
            status: crate::error::describe(e),
            context: format!(" for {name} on {}", gpu.properties().name),
        })?;
        Ok(Arc::new(Module { raw, gpu }))
    }

    /// An entry point; `name` is what errors call it.
    ///
    /// # Errors
    /// There is no such symbol.
    pub fn function(self: &Arc<Module>, symbol: &str, name: &str) -> Result<Function> {
        let text = |status: String| Error::Library {
            call: "cuModuleGetFunction",
            status,
            context: format!(" for {symbol} of {name}"),
        };
        let c = CString::new(symbol).map_err(|e| text(e.to_string()))?;
        self.gpu.bind()?;
        // SAFETY: the module is alive.
        let raw = unsafe { result::module::get_function(self.raw, c) };
        let raw = raw.map_err(|e| text(crate::error::describe(e)))?;
        Ok(Function { raw, name: name.into(), module: self.clone() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: every function keeps its module alive, so none is left; the driver waits for launches that run.
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}

/// An entry point of a module.
#[derive(Clone, Debug)]
pub struct Function {
    raw: sys::CUfunction,
    name: Arc<str>,
    module: Arc<Module>,
}

// SAFETY: a function is a handle that lives as long as its module, which it keeps.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// One argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A device address.
    Ptr(u64),
    /// A 32-bit integer.
    I32(i32),
    /// A 64-bit integer.
    I64(i64),
    /// A 32-bit float.
    F32(f32),
}

impl Arg {
    /// Its bytes in the low end of a word: what the driver reads on a little-endian host.
    fn word(self) -> u64 {
        match self {
            Arg::Ptr(p) => p,
            Arg::I32(i) => u64::from(i as u32),
            Arg::I64(i) => i as u64,
            Arg::F32(x) => u64::from(x.to_bits()),
        }
    }
}

impl From<&Buffer> for Arg {
    fn from(b: &Buffer) -> Arg {
        Arg::Ptr(b.address())
    }
}

impl From<&GuardBuffer> for Arg {
    fn from(b: &GuardBuffer) -> Arg {
        Arg::Ptr(b.address())
    }
}

impl Function {
    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device it is loaded on.
    pub fn gpu(&self) -> Gpu {
        self.module.gpu
    }

    /// Threads of a block as the cubin fixes them, registers of a thread, static shared memory in bytes, spilled bytes of a thread.
    ///
    /// # Errors
    /// A driver failure.
    pub fn attributes(&self) -> Result<[i32; 4]> {
        use sys::CUfunction_attribute_enum::*;
        let mut out = [0; 4];
        let asked = [
            CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK,
            CU_FUNC_ATTRIBUTE_NUM_REGS,
            CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
        ];
        self.module.gpu.bind()?;
        for (value, attribute) in out.iter_mut().zip(asked) {
            // SAFETY: `value` outlives the call and the function is alive.
            check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(value, attribute, self.raw) })?;
        }
        Ok(out)
    }

    /// Queues a launch of tile blocks: `grid` counts blocks; the block's threads and its shared memory are those of the cubin (a tile kernel is launched with block
    /// (1, 1, 1) and no dynamic shared memory). An empty grid launches nothing.
    ///
    /// # Safety
    /// The arguments are what the kernel expects: as many, of those kinds, and addresses that are valid for all it reads and writes until it has run.
    ///
    /// # Errors
    /// A grid beyond the device's limits; a driver failure.
    pub unsafe fn launch(&self, stream: &Stream, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.launch_threads(stream, grid, [1; 3], 0, args) }
    }

    /// The same for code that is not made of tiles: with threads a block and dynamic shared memory in bytes.
    ///
    /// # Safety
    /// As for [`Function::launch`].
    ///
    /// # Errors
    /// As for [`Function::launch`].
    pub unsafe fn launch_threads(
        &self,
        stream: &Stream,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &[Arg],
    ) -> Result<()> {
        check_grid(&self.name, grid, args.len())?;
        if grid.contains(&0) {
            return Ok(());
        }
        let mut words = [0u64; MAX_ARGS];
        let mut at = [std::ptr::null_mut(); MAX_ARGS];
        for (i, arg) in args.iter().enumerate() {
            words[i] = arg.word();
            at[i] = (&raw mut words[i]).cast();
        }
        let gpu = self.module.gpu;
        gpu.bind()?;
        note(&self.name);
        let ([x, y, z], [a, b, c]) = (grid, block);
        // SAFETY: `at` points to as many live words as the kernel has parameters (the caller's promise), which the driver copies before it returns.
        let mut launch = || unsafe {
            sys::cuLaunchKernel(
                self.raw,
                x,
                y,
                z,
                a,
                b,
                c,
                shared,
                stream.raw(),
                at.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        let launch = || check("cuLaunchKernel", launch());
        span(gpu, stream, || self.name.clone(), launch).map_err(|e| self.blame(e))?;
        if gpu.waits_for_launches() && gpu.capturing().is_none() {
            stream.synchronize().map_err(|e| self.blame(e))?;
        }
        Ok(())
    }

    /// Puts this kernel's name into an error of its launch.
    fn blame(&self, error: Error) -> Error {
        match error {
            Error::Driver { call, text } => {
                Error::Library { call, status: text, context: format!(" for {}", self.name) }
            }
            Error::Asynchronous { text, recent, .. } => {
                Error::Asynchronous { found_by: format!("the launch of {}", self.name), text, recent }
            }
            other => other,
        }
    }
}

/// What the driver would refuse with less to say.
fn check_grid(name: &str, grid: [u32; 3], args: usize) -> Result<()> {
    let limit = [i32::MAX as u32, 65535, 65535];
    if grid.iter().zip(limit).any(|(n, most)| *n > most) {
        return Err(Error::invalid("launch", format!("{name}: grid {grid:?}, at most {limit:?} blocks")));
    }
    if args > MAX_ARGS {
        return Err(Error::invalid("launch", format!("{name}: {args} arguments, at most {MAX_ARGS}")));
    }
    Ok(())
}

static LAST: Mutex<VecDeque<Arc<str>>> = Mutex::new(VecDeque::new());

fn note(name: &Arc<str>) {
    let mut last = lock(&LAST);
    if last.len() == RECENT {
        last.pop_back();
    }
    last.push_front(name.clone());
}

/// The last launches of this process, newest first, for messages.
pub(crate) fn recent() -> String {
    let last = lock(&LAST);
    if last.is_empty() { "none".into() } else { last.iter().map(|n| &**n).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_in_the_low_end() {
        assert_eq!(Arg::I32(-1).word().to_le_bytes(), [255, 255, 255, 255, 0, 0, 0, 0]);
        assert_eq!(Arg::F32(1.5).word().to_le_bytes()[..4], 1.5f32.to_le_bytes());
        assert_eq!(Arg::I64(-2).word(), u64::MAX - 1);
        assert_eq!(Arg::Ptr(7).word(), 7);
    }

    #[test]
    fn grids_beyond_the_device_are_named() {
        assert!(check_grid("k", [1 << 20, 1, 65535], 3).is_ok());
        let text = check_grid("k", [1, 70_000, 1], 3).unwrap_err().to_string();
        assert!(text.contains("k: grid [1, 70000, 1]"), "{text}");
        assert!(check_grid("k", [1, 1, 1], MAX_ARGS + 1).is_err());
    }

    #[test]
    fn the_newest_launch_comes_first() {
        (0..RECENT + 2).for_each(|i| note(&format!("k{i}").into()));
        assert!(recent().starts_with("k5, k4"), "{}", recent());
    }
}
