//! Launches on the tensors of one GPU, for this crate's operations and for operators outside of it.

use flashlin_cuda::{Arg, Gpu};
use flashlin_kernels::{Kernel, Library, Tuning, plan::Machine};

use super::{buffer, too_long};
use crate::{DType, Device, Error, Result, Tensor};

/// One operation's door to the kernels of the GPU that holds its operands.
#[derive(Clone, Copy)]
pub struct Launcher {
    op: &'static str,
    gpu: Gpu,
    library: &'static Library,
}

impl Launcher {
    /// For operation `op` on the device of `t`.
    ///
    /// # Errors
    /// `t` is not on a GPU, or nothing is compiled for that GPU.
    pub fn on(op: &'static str, t: &Tensor) -> Result<Launcher> {
        let gpu = buffer(t)?.0.gpu();
        Ok(Launcher { op, gpu, library: Library::of(gpu).map_err(Error::Kernel)? })
    }

    /// The device.
    pub fn device(&self) -> Device {
        Device::Cuda(self.gpu.ordinal())
    }

    /// What plans may use.
    ///
    /// # Errors
    /// The driver does not tell the free memory; a tuning table that cannot be read.
    pub fn machine(&self) -> Result<Machine<'static>> {
        let bundle = self.library.bundle();
        Ok(Machine {
            bundle,
            tuning: Tuning::of(bundle.arch()).map_err(Error::Kernel)?,
            sm_count: self.gpu.properties().sm_count,
            free_bytes: self.gpu.free_bytes().map_err(Error::Cuda)?,
        })
    }

    /// The kernel with these generics for a dtype (`f32`; `f32-bf16` reads one and writes the other).
    ///
    /// # Errors
    /// The bundle has none: the message says what it has.
    pub fn find(&self, kernel: &str, dtype: &str, generics: &[(&str, i64)]) -> Result<&'static Kernel> {
        self.library.bundle().find(kernel, dtype, generics).map_err(Error::Kernel)
    }

    /// Name of a dtype that float kernels serve.
    ///
    /// # Errors
    /// Another dtype: the message names the argument.
    pub fn float(&self, arg: &'static str, dtype: DType) -> Result<&'static str> {
        match dtype {
            DType::F32 => Ok("f32"),
            DType::BF16 => Ok("bf16"),
            DType::F16 => Ok("f16"),
            other => Err(Error::dtype(self.op, arg, other, "f32, bf16 or f16 on a GPU")),
        }
    }

    /// A tensor's address.
    ///
    /// # Errors
    /// When it is not on this device.
    pub fn at(&self, t: &Tensor) -> Result<Arg> {
        if t.device() != self.device() {
            return Err(Error::DeviceMismatch { op: self.op, a: self.device(), b: t.device() });
        }
        Ok(Arg::Ptr(t.device_address()?))
    }

    /// The address of a tensor that may be absent: then the null address.
    ///
    /// # Errors
    /// As [`Launcher::at`].
    pub fn maybe(&self, t: Option<&Tensor>) -> Result<Arg> {
        t.map_or(Ok(Arg::Ptr(0)), |t| self.at(t))
    }

    /// A size; kernels count in 32 bits.
    ///
    /// # Errors
    /// When 32 bits do not hold it.
    pub fn int(&self, n: usize) -> Result<Arg> {
        i32::try_from(n).map(Arg::I32).map_err(|_| too_long(self.op, n))
    }

    /// Queues a kernel by its name in the bundle; an empty grid queues nothing.
    ///
    /// # Safety
    /// The arguments are what the kernel expects: addresses of arrays that live as long as it reads and writes. (Tensors return their memory in
    /// the order of the stream, so those of the caller's may be dropped once this has returned.)
    ///
    /// # Errors
    /// A kernel that is missing or failed its check; arguments of another number or kind; a grid beyond the device's limits.
    pub unsafe fn launch(&self, kernel: &str, grid: [usize; 3], args: &[Arg]) -> Result<()> {
        let mut blocks = [0; 3];
        for (to, from) in blocks.iter_mut().zip(grid) {
            *to = u32::try_from(from).map_err(|_| too_long(self.op, from))?;
        }
        let kernel = self.library.get(kernel).map_err(Error::Kernel)?;
        // SAFETY: the caller's promise.
        unsafe { kernel.launch(self.gpu.compute(), blocks, args) }.map_err(Error::Kernel)
    }
}
