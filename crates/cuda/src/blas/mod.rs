//! Dense products through cuBLASLt.
//!
//! Policy: the library is not part of the driver, so it is searched for when the first product asks for it, and its absence is an error that says where it was looked
//! for. An algorithm is chosen once for each [`MatmulSpec`] and then kept, so that a shape always adds in the same order; the workspace is
//! one block that belongs to this module. f32 products are exact f32 unless the spec allows TF32.

mod api;
mod library;
mod plan;
mod spec;

use std::{collections::HashMap, sync::Mutex};

pub use library::{BlasInfo, Search, blas_library, find_blas};
pub use spec::{Epilogue, MatmulArgs, MatmulSpec, Operand};

use crate::{Buffer, Error, Gpu, Result, Stream, gpu::lock, memory::bytes_of, profile::span};
use api::{Api, sys};
use plan::{Key, Plan};

/// Size of the workspace in bytes: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// The library opened on one device.
pub(crate) struct Blas {
    api: &'static Api,
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    plans: Mutex<HashMap<Key, Plan>>,
}

// SAFETY: cuBLASLt handles may be used from any thread; plans are only touched under their lock.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    pub fn new(gpu: Gpu) -> Result<Blas> {
        let api = library::loaded()?;
        gpu.bind()?;
        let workspace = gpu.alloc(WORKSPACE)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` outlives the call and the device's context is bound.
        api::check("cublasLtCreate", unsafe { (api.create)(&mut handle) }, "")?;
        Ok(Blas { api, handle, workspace, plans: Mutex::default() })
    }
}

impl Gpu {
    /// Queues C = alpha A B + beta C (+ bias) on the compute stream.
    ///
    /// # Safety
    /// The addresses in `args` are valid for what `spec` says until the product has run, and C overlaps neither A, B nor the bias.
    ///
    /// # Errors
    /// cuBLASLt is missing; a spec that contradicts itself; a combination that the library does not serve.
    pub unsafe fn matmul(&self, spec: &MatmulSpec, args: &MatmulArgs) -> Result<()> {
        spec.check(args)?;
        if spec.m == 0 || spec.n == 0 || spec.batch == 0 {
            return Ok(());
        }
        if spec.k == 0 {
            return self.empty_product(spec, args);
        }
        let blas = self.blas()?;
        self.bind()?;
        let key = Key::new(spec, args);
        let mut plans = lock(&blas.plans);
        let plan = match plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(Plan::new(blas.api, blas.handle, &key, blas.workspace.len())?)
            }
        };
        // SAFETY: the addresses are the caller's promise; the workspace belongs to the compute stream, on which products follow one another.
        let run = || unsafe { plan.run(blas.api, blas.handle, args, &blas.workspace, self.compute()) };
        span(*self, self.compute(), || spec.to_string().into(), run)
    }

    /// How many products (shape, types, strides, alignment) have an algorithm already.
    ///
    /// # Errors
    /// cuBLASLt is missing.
    pub fn matmul_plans(&self) -> Result<usize> {
        Ok(lock(&self.blas()?.plans).len())
    }

    /// A sum over nothing: C = beta C.
    fn empty_product(&self, spec: &MatmulSpec, args: &MatmulArgs) -> Result<()> {
        if args.bias.is_none() && args.beta == 1.0 {
            return Ok(());
        }
        let dense = spec.c_ld == spec.n && (spec.batch == 1 || spec.c_batch_stride == spec.m * spec.n);
        if args.bias.is_some() || args.beta != 0.0 || !dense {
            return Err(Error::Unsupported {
                what: "matmul",
                asked: "k = 0 with a bias, a beta other than 0 and 1, or a strided C".into(),
                supported: "k = 0 with a dense C, no bias, and beta 0 or 1".into(),
            });
        }
        let bytes = spec.batch * spec.m * spec.n * spec.output.bytes();
        self.bind()?;
        // SAFETY: C holds that many bytes by the caller's promise to `matmul`.
        crate::driver::check("cuMemsetD8Async", unsafe {
            cudarc::driver::sys::cuMemsetD8Async(args.c, 0, bytes, self.compute().raw())
        })
    }
}

/// alpha and beta as the library reads them: f64 for f64 products, else f32.
fn scales(double: bool, args: &MatmulArgs) -> [[u8; 8]; 2] {
    [args.alpha, args.beta].map(|x| {
        let mut word = [0; 8];
        if double {
            word.copy_from_slice(bytes_of(&[x]));
        } else {
            word[..4].copy_from_slice(bytes_of(&[x as f32]));
        }
        word
    })
}

/// The stream as the library's headers call it.
fn stream_of(stream: &Stream) -> sys::cudaStream_t {
    stream.raw().cast()
}
