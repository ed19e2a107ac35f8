//! The calls of cuBLASLt that are used, found by name in a library that was opened by path.
//!
//! Policy: cudarc's own loader knows no paths and only one major version, so its types and constants serve here and the loading is ours. Functions are declared to return a
//! number: a status that these bindings do not know must not become an invalid enum.

use std::ffi::{c_int, c_void};

pub use cudarc::cublaslt::sys;

use crate::{Error, Result};

macro_rules! api {
    ($($field:ident = $symbol:literal: fn($($arg:ty),*) $(-> $out:ty)?;)*) => {
        /// The functions; the library stays open as long as they do.
        pub struct Api {
            $(pub $field: unsafe extern "C" fn($($arg),*) $(-> $out)?,)*
            _library: libloading::Library,
        }

        impl Api {
            /// Finds every function.
            ///
            /// # Safety
            /// `library` is cuBLASLt 12 or 13.
            pub unsafe fn new(library: libloading::Library) -> Result<Api, String> {
                Ok(Api {
                    $($field: {
                        // SAFETY: the type is that of the symbol in the library's headers.
                        let symbol = unsafe { library.get::<unsafe extern "C" fn($($arg),*) $(-> $out)?>($symbol) };
                        *symbol.map_err(|e| e.to_string())?
                    },)*
                    _library: library,
                })
            }
        }
    };
}

type Layout = sys::cublasLtMatrixLayout_t;
type Desc = sys::cublasLtMatmulDesc_t;
type Preference = sys::cublasLtMatmulPreference_t;

api! {
    version = b"cublasLtGetVersion": fn() -> usize;
    create = b"cublasLtCreate": fn(*mut sys::cublasLtHandle_t) -> c_int;
    layout_create = b"cublasLtMatrixLayoutCreate": fn(*mut Layout, c_int, u64, u64, i64) -> c_int;
    layout_set = b"cublasLtMatrixLayoutSetAttribute": fn(Layout, c_int, *const c_void, usize) -> c_int;
    layout_destroy = b"cublasLtMatrixLayoutDestroy": fn(Layout) -> c_int;
    desc_create = b"cublasLtMatmulDescCreate": fn(*mut Desc, c_int, c_int) -> c_int;
    desc_set = b"cublasLtMatmulDescSetAttribute": fn(Desc, c_int, *const c_void, usize) -> c_int;
    desc_destroy = b"cublasLtMatmulDescDestroy": fn(Desc) -> c_int;
    pref_create = b"cublasLtMatmulPreferenceCreate": fn(*mut Preference) -> c_int;
    pref_set = b"cublasLtMatmulPreferenceSetAttribute": fn(Preference, c_int, *const c_void, usize) -> c_int;
    pref_destroy = b"cublasLtMatmulPreferenceDestroy": fn(Preference) -> c_int;
    heuristic = b"cublasLtMatmulAlgoGetHeuristic":
        fn(sys::cublasLtHandle_t, Desc, Layout, Layout, Layout, Layout, Preference, c_int, *mut Heuristic, *mut c_int) -> c_int;
    matmul = b"cublasLtMatmul":
        fn(sys::cublasLtHandle_t, Desc, *const c_void, *const c_void, Layout, *const c_void, Layout, *const c_void, *const c_void, Layout, *mut c_void, Layout,
            *const sys::cublasLtMatmulAlgo_t, *mut c_void, usize, sys::cudaStream_t) -> c_int;
}

/// `cublasLtMatmulHeuristicResult_t` with its status as a number.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Heuristic {
    pub algo: sys::cublasLtMatmulAlgo_t,
    pub workspace: usize,
    pub state: c_int,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Heuristic>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>());

/// Turns a status into a result.
pub fn check(call: &'static str, status: c_int, context: &str) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    Err(Error::Library { call, status: name(status), context: context.into() })
}

/// The status that says that no algorithm serves.
pub const NOT_SUPPORTED: c_int = 15;

fn name(status: c_int) -> String {
    let known = match status {
        1 => "CUBLAS_STATUS_NOT_INITIALIZED",
        3 => "CUBLAS_STATUS_ALLOC_FAILED",
        7 => "CUBLAS_STATUS_INVALID_VALUE",
        8 => "CUBLAS_STATUS_ARCH_MISMATCH",
        11 => "CUBLAS_STATUS_MAPPING_ERROR",
        13 => "CUBLAS_STATUS_EXECUTION_FAILED",
        14 => "CUBLAS_STATUS_INTERNAL_ERROR",
        NOT_SUPPORTED => "CUBLAS_STATUS_NOT_SUPPORTED",
        other => return other.to_string(),
    };
    known.into()
}
