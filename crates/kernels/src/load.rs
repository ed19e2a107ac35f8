//! Kernels on a device: loaded on first use, launched with checked arguments.
//!
//! Policy: what a bundle marks as checked is trusted. Any other cubin is verified by its first use on a machine ([`crate::verify_kernel`]); the record is kept by hash and GPU, and a
//! failure refuses the kernel. `FLASHLIN_UNCHECKED_KERNELS=1` skips that, for those who write kernels.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flashlin_cuda::{Arg, Function, Gpu, Module, Stream};

use crate::{ArgKind, Bundle, Error, Kernel, Result, embedded_for, record};

/// The kernels of one device.
#[derive(Debug)]
pub struct Library {
    gpu: Gpu,
    bundle: &'static Bundle,
    loaded: Mutex<HashMap<String, Arc<Loaded>>>,
}

/// A kernel on a device.
#[derive(Debug)]
pub struct Loaded {
    kernel: &'static Kernel,
    function: Function,
}

impl Library {
    /// The embedded kernels for this device; opened by the first call and then shared.
    ///
    /// # Errors
    /// Nothing is compiled for its generation, the bundle is missing or corrupt.
    pub fn of(gpu: Gpu) -> Result<&'static Library> {
        static OPEN: Mutex<BTreeMap<usize, &'static Library>> = Mutex::new(BTreeMap::new());
        let mut open = lock(&OPEN);
        if let Some(library) = open.get(&gpu.ordinal()) {
            return Ok(library);
        }
        let (major, minor) = gpu.properties().capability;
        let library: &'static Library = Box::leak(Box::new(Library::new(gpu, embedded_for(major, minor)?)));
        open.insert(gpu.ordinal(), library);
        Ok(library)
    }

    /// The kernels of a bundle of the caller's.
    pub fn new(gpu: Gpu, bundle: &'static Bundle) -> Library {
        Library { gpu, bundle, loaded: Mutex::default() }
    }

    /// The device.
    pub fn gpu(&self) -> Gpu {
        self.gpu
    }

    /// The bundle.
    pub fn bundle(&self) -> &'static Bundle {
        self.bundle
    }

    /// The kernel of this name, trusted.
    ///
    /// # Errors
    /// It is not in the bundle, does not load, or failed its check.
    pub fn get(&self, name: &str) -> Result<Arc<Loaded>> {
        if let Some(found) = lock(&self.loaded).get(name) {
            return Ok(found.clone());
        }
        let kernel = self.bundle.get(name)?;
        let loaded = Arc::new(self.load_unchecked(kernel)?);
        record::trust(&loaded, self.gpu)?;
        lock(&self.loaded).insert(name.into(), loaded.clone());
        Ok(loaded)
    }

    /// A kernel of the bundle, trusted or not: for whoever verifies it.
    ///
    /// # Errors
    /// The bundle is corrupt or the driver refuses the code.
    pub fn load_unchecked(&self, kernel: &'static Kernel) -> Result<Loaded> {
        let cubin = self.bundle.cubin(kernel)?;
        let module = Module::load(self.gpu, &kernel.name, &cubin)?;
        Ok(Loaded { kernel, function: module.function(&kernel.entry, &kernel.name)? })
    }
}

impl Loaded {
    /// What the bundle says about it.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// Queues a launch. Number and kinds of the arguments are checked; what addresses point to cannot be.
    ///
    /// # Safety
    /// Addresses are valid for all that the kernel reads and writes until it has run.
    ///
    /// # Errors
    /// Arguments that are not the kernel's; a grid beyond the device's limits; a driver failure.
    pub unsafe fn launch(&self, stream: &Stream, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        check_args(self.kernel, args)?;
        // SAFETY: number and kinds fit; the addresses are the caller's promise.
        Ok(unsafe { self.function.launch(stream, grid, args) }?)
    }
}

/// Whether number and kinds are the kernel's.
pub(crate) fn check_args(kernel: &Kernel, args: &[Arg]) -> Result<()> {
    let bad = |why: String| Err(Error::Entry { name: kernel.name.clone(), why });
    if args.len() != kernel.abi.len() {
        return bad(format!("takes {} arguments, got {}", kernel.abi.len(), args.len()));
    }
    for (i, (got, want)) in args.iter().zip(&kernel.abi).enumerate() {
        let kind = match got {
            Arg::Ptr(_) => ArgKind::Ptr,
            Arg::I32(_) => ArgKind::I32,
            Arg::I64(_) => ArgKind::I64,
            Arg::F32(_) => ArgKind::F32,
        };
        if kind != want.kind {
            return bad(format!("argument {i} is {} ({:?}), got {got:?}", want.name, want.kind));
        }
    }
    Ok(())
}

/// Locks; what is guarded is complete at every moment, so a panic elsewhere does not spoil it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{Case, Data, Expected, Value},
        index::Place,
    };

    fn kernel() -> Kernel {
        let arg = |name: &str, kind| crate::Arg { name: name.into(), kind };
        Kernel {
            name: "k@f32_w4_o0".into(),
            entry: "k_entry".into(),
            family: "f".into(),
            kernel: "k".into(),
            dtype: "f32".into(),
            generics: Vec::new(),
            warps: 4,
            occupancy: 0,
            abi: vec![arg("x", ArgKind::Ptr), arg("y", ArgKind::Ptr), arg("n", ArgKind::I32)],
            grid: "tiles".into(),
            registers: 0,
            shared_bytes: 0,
            spills: 0,
            cubin: Place::default(),
            source: String::new(),
            toolchain: String::new(),
            checked: None,
        }
    }

    #[test]
    fn arguments_of_another_kind_or_number_are_refused() {
        let k = kernel();
        assert!(check_args(&k, &[Arg::Ptr(0), Arg::Ptr(0), Arg::I32(1)]).is_ok());
        let text = check_args(&k, &[Arg::Ptr(0), Arg::Ptr(0), Arg::I64(1)]).unwrap_err().to_string();
        assert!(text.contains("argument 2 is n (I32)"), "{text}");
        assert!(check_args(&k, &[Arg::Ptr(0)]).unwrap_err().to_string().contains("takes 3 arguments, got 1"));
    }

    #[test]
    fn cases_that_do_not_fit_are_refused() {
        let x = || ("x", Value::In(Data::F32(vec![1.0])));
        let y = || ("y", Value::Out { dtype: "f32", expected: Expected::of("f32", vec![2.0]) });
        let case = |args| Case { label: "c".into(), args, grid: [1; 3] };
        let n = || ("n", Value::I32(1));
        assert!(case(vec![x(), y(), n()]).fits(&kernel()).is_ok());
        for (args, part) in [
            (vec![x(), y()], "2 arguments where the kernel takes 3"),
            (vec![y(), x(), n()], "y (Ptr) where the kernel takes x"),
            (vec![x(), ("y", Value::Null), n()], "compares nothing"),
        ] {
            let text = case(args).fits(&kernel()).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }
}
