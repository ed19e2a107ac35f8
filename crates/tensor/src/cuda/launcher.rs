//! Launches on the tensors of one GPU, for this crate's operations and for operators outside of it.

use flashlin_cuda::{Arg, Gpu};
use flashlin_kernels::{
    Kernel, Library, Tuning,
    plan::{Bound, Machine, Plan},
};

use super::{buffer, kept, too_long};
use crate::{DType, Device, Error, Result, Tensor};

/// Bytes that kernels read at once: addresses of arrays that they read as a whole must be multiples.
pub(super) const ALIGN: u64 = 16;

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
        self.machine_with(self.gpu.free_bytes().map_err(Error::Cuda)?)
    }

    /// The same with this much free memory: for plans that need none, without asking the driver.
    ///
    /// # Errors
    /// A tuning table that cannot be read.
    pub fn machine_with(&self, free_bytes: usize) -> Result<Machine<'static>> {
        let bundle = self.library.bundle();
        Ok(Machine {
            bundle,
            tuning: Tuning::of(bundle.arch()).map_err(Error::Kernel)?,
            sm_count: self.gpu.properties().sm_count,
            free_bytes,
        })
    }

    /// The kernel with these generics for a dtype (`f32`; `f32-bf16` reads one and writes the other).
    ///
    /// # Errors
    /// The bundle has none: the message says what it has.
    pub fn find(&self, kernel: &str, dtype: &str, generics: &[(&str, i64)]) -> Result<&'static Kernel> {
        self.library.bundle().find(kernel, dtype, generics).map_err(Error::Kernel)
    }

    /// The same where several configurations serve: the one that the tuning table puts first.
    ///
    /// # Errors
    /// As [`Launcher::find`]; a tuning table that cannot be read.
    pub fn choose(&self, kernel: &str, dtype: &str, generics: &[(&str, i64)]) -> Result<&'static Kernel> {
        let bundle = self.library.bundle();
        let tuning = Tuning::of(bundle.arch()).map_err(Error::Kernel)?;
        tuning.choose(bundle, kernel, dtype, generics, 1.0).map_err(Error::Kernel)
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

    /// `t` in row-major order, in this dtype, from an address that whole vectors may be read from: itself where it is so, else a copy.
    ///
    /// # Errors
    /// As [`Launcher::at`]; memory; dtypes that no kernel converts.
    pub fn dense(&self, t: &Tensor, dtype: DType) -> Result<Tensor> {
        self.at(t)?;
        let t = t.to_dtype(dtype)?.contiguous()?;
        if t.device_address()?.is_multiple_of(ALIGN) { Ok(t) } else { t.copy() }
    }

    /// As [`Launcher::dense`] for a tensor that may be absent.
    ///
    /// # Errors
    /// As [`Launcher::dense`].
    pub fn dense_if(&self, t: Option<&Tensor>, dtype: DType) -> Result<Option<Tensor>> {
        t.map(|t| self.dense(t, dtype)).transpose()
    }

    /// Integers of the host as an array `[n]` (i32) of the device. Tables repeat from call to call (bounds of sequences, positions), so those used
    /// last are kept there.
    ///
    /// # Errors
    /// Memory.
    pub fn table(&self, values: Vec<i32>) -> Result<Tensor> {
        kept(&Tensor::from_slice(&values, &[values.len()])?, &self.device())
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

/// Operands of a plan's launches, by the kernels' names for them.
pub struct Operands {
    on: Launcher,
    args: Vec<(&'static str, Arg)>,
    /// Arrays that nobody else holds until the launches are queued.
    held: Vec<Tensor>,
}

impl Operands {
    /// None yet.
    pub fn new(on: Launcher) -> Operands {
        Operands { on, args: Vec::new(), held: Vec::new() }
    }

    /// An array.
    ///
    /// # Errors
    /// As [`Launcher::at`].
    pub fn array(&mut self, name: &'static str, t: &Tensor) -> Result<()> {
        self.args.push((name, self.on.at(t)?));
        self.held.push(t.clone());
        Ok(())
    }

    /// An array that may be absent, and the flag that says so.
    ///
    /// # Errors
    /// As [`Launcher::at`].
    pub fn optional(&mut self, name: &'static str, flag: &'static str, t: Option<&Tensor>) -> Result<()> {
        self.args.push((name, self.on.maybe(t)?));
        self.args.push((flag, Arg::I32(i32::from(t.is_some()))));
        self.held.extend(t.cloned());
        Ok(())
    }

    /// A size or a flag.
    ///
    /// # Errors
    /// As [`Launcher::int`].
    pub fn int(&mut self, name: &'static str, n: usize) -> Result<()> {
        self.args.push((name, self.on.int(n)?));
        Ok(())
    }

    /// An array that the kernels were told not to touch.
    pub fn absent(&mut self, name: &'static str) {
        self.args.push((name, Arg::Ptr(0)));
    }

    /// A number.
    pub fn float(&mut self, name: &'static str, x: f64) {
        self.args.push((name, Arg::F32(x as f32)));
    }

    /// Allocates a plan's arrays and queues its launches.
    ///
    /// # Safety
    /// The operands are what the plan's kernels expect.
    ///
    /// # Errors
    /// As [`Launcher::launch`]; no memory for the arrays; an argument that was not given.
    pub unsafe fn run(&mut self, plan: &Plan) -> Result<()> {
        for a in plan.workspace.iter().chain(&plan.saved) {
            let dtype = match a.dtype.as_str() {
                "bf16" => DType::BF16,
                "f16" => DType::F16,
                "i32" => DType::I32,
                _ => DType::F32,
            };
            self.array(a.name, &Tensor::empty(&a.dims, dtype, &self.on.device())?)?;
        }
        for launch in &plan.launches {
            let kernel = self.on.library.bundle().get(&launch.kernel).map_err(Error::Kernel)?;
            let value = |name: &str| {
                let bound = launch.bound.iter().find(|(n, _)| *n == name).map(|(_, to)| *to);
                let name = match bound {
                    Some(Bound::Int(n)) => return self.on.int(n),
                    Some(Bound::To(other)) => other,
                    None => name,
                };
                let given = self.args.iter().rev().find(|(n, _)| *n == name).map(|(_, arg)| *arg);
                given.ok_or_else(|| {
                    Error::invalid(self.on.op, "launch", format!("of {} lacks {name}", kernel.name))
                })
            };
            let args = kernel.abi.iter().map(|a| value(&a.name)).collect::<Result<Vec<Arg>>>()?;
            // SAFETY: the caller's promise.
            unsafe { self.on.launch(&launch.kernel, launch.grid.map(|n| n as usize), &args) }?;
        }
        Ok(())
    }
}
