//! One product's descriptors and algorithm.
//!
//! The library thinks in columns. A row-major matrix read by columns is its transpose, so C = A B is asked for as C' = B' A': operands change places, m and n change places, and nothing
//! is moved.

use std::ffi::{c_int, c_void};

use super::{
    MatmulArgs, MatmulSpec, Operand,
    api::{Api, Heuristic, NOT_SUPPORTED, check, sys},
    scales, stream_of,
};
use crate::{Buffer, Epilogue, Error, Result, Scalar, Stream};

/// Alignment in bytes beyond which nothing gets faster.
const ALIGN: usize = 256;
/// How many algorithms are asked for; the first that works is taken.
const CANDIDATES: usize = 8;
/// Rows for which the algorithm of a batch-invariant product is chosen.
const INVARIANT_ROWS: usize = 64;

/// What an algorithm is chosen by: the product, and how its operands are aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    spec: MatmulSpec,
    align: [usize; 3],
}

impl Key {
    pub fn new(spec: &MatmulSpec, args: &MatmulArgs) -> Key {
        let align = [args.a, args.b, args.c]
            .map(|p| if p == 0 { ALIGN } else { ALIGN.min(1 << p.trailing_zeros().min(8)) });
        Key { spec: *spec, align }
    }
}

/// Descriptors and algorithm.
pub struct Plan {
    parts: Parts,
    algo: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
    double: bool,
    bias: bool,
    what: String,
}

// SAFETY: descriptors are plain memory of the library, used by one thread at a time.
unsafe impl Send for Plan {}

/// The library's objects; released together.
struct Parts {
    api: &'static Api,
    desc: sys::cublasLtMatmulDesc_t,
    /// Of B, A and C: the operands in the library's order.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

impl Plan {
    pub fn new(
        api: &'static Api,
        handle: sys::cublasLtHandle_t,
        key: &Key,
        workspace: usize,
    ) -> Result<Plan> {
        let spec = &key.spec;
        let parts = Parts::new(api, spec)?;
        let chosen = if spec.batch_invariant {
            // Chosen for a fixed number of rows and without splitting k, then used for every m.
            let model = MatmulSpec { m: INVARIANT_ROWS, ..*spec };
            choose(api, handle, &Parts::new(api, &model)?, &Key { spec: model, ..*key }, workspace)?
        } else {
            choose(api, handle, &parts, key, workspace)?
        };
        Ok(Plan {
            parts,
            algo: chosen.algo,
            workspace: chosen.workspace,
            double: spec.input == Scalar::F64,
            bias: spec.epilogue == Epilogue::Bias,
            what: describe(spec),
        })
    }

    /// Queues the product.
    ///
    /// # Safety
    /// The addresses are valid for the plan's spec until the product has run.
    pub unsafe fn run(
        &mut self,
        api: &Api,
        handle: sys::cublasLtHandle_t,
        args: &MatmulArgs,
        workspace: &Buffer,
        stream: &Stream,
    ) -> Result<()> {
        if self.bias {
            let bias = args.bias.unwrap_or(0);
            self.parts.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER as c_int,
                &bias,
            )?;
        }
        let [alpha, beta] = scales(self.double, args);
        let [b, a, c] = self.parts.layouts;
        let at = |p: u64| p as *const c_void;
        // SAFETY: descriptors are alive, scales are read before the call returns, addresses are the caller's promise, and the workspace has the size that the algorithm was chosen
        // for.
        let status = unsafe {
            (api.matmul)(
                handle,
                self.parts.desc,
                alpha.as_ptr().cast(),
                at(args.b),
                b,
                at(args.a),
                a,
                beta.as_ptr().cast(),
                at(args.c),
                c,
                args.c as *mut c_void,
                c,
                &self.algo,
                workspace.address() as *mut c_void,
                self.workspace,
                stream_of(stream),
            )
        };
        check("cublasLtMatmul", status, &self.what)
    }
}

/// The first algorithm of the library's list that serves.
fn choose(
    api: &Api,
    handle: sys::cublasLtHandle_t,
    parts: &Parts,
    key: &Key,
    workspace: usize,
) -> Result<Heuristic> {
    use sys::cublasLtMatmulPreferenceAttributes_t as P;
    let mut pref = std::ptr::null_mut();
    // SAFETY: `pref` outlives the call.
    check("cublasLtMatmulPreferenceCreate", unsafe { (api.pref_create)(&mut pref) }, "")?;
    let set = |attribute: P, value: &[u8]| {
        // SAFETY: `pref` is alive and `value` has the length of the attribute.
        let status = unsafe { (api.pref_set)(pref, attribute as c_int, value.as_ptr().cast(), value.len()) };
        check("cublasLtMatmulPreferenceSetAttribute", status, "")
    };
    let mut found = [MaybeHeuristic::ZERO; CANDIDATES];
    let mut count: c_int = 0;
    let asked = (|| {
        set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(workspace as u64).to_ne_bytes())?;
        let [a, b, c] = key.align.map(|n| (n as u32).to_ne_bytes());
        set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b)?;
        set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a)?;
        set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c)?;
        set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c)?;
        if key.spec.batch_invariant {
            let none = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
            set(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none.to_ne_bytes())?;
        }
        let [b, a, c] = parts.layouts;
        // SAFETY: every descriptor is alive; there is room for as many results as are asked for.
        let status = unsafe {
            (api.heuristic)(
                handle,
                parts.desc,
                b,
                a,
                c,
                c,
                pref,
                CANDIDATES as c_int,
                found.as_mut_ptr().cast(),
                &mut count,
            )
        };
        if status == NOT_SUPPORTED {
            count = 0;
            return Ok(());
        }
        check("cublasLtMatmulAlgoGetHeuristic", status, &describe(&key.spec))
    })();
    // SAFETY: created above, not used again.
    let _ = unsafe { (api.pref_destroy)(pref) };
    asked?;
    let serves = |h: &&MaybeHeuristic| h.0.state == 0 && h.0.workspace <= workspace;
    found[..count.clamp(0, CANDIDATES as c_int) as usize].iter().find(serves).map(|h| h.0).ok_or_else(|| {
        Error::Unsupported {
            what: "cuBLASLt",
            asked: format!("a product{}", describe(&key.spec)),
            supported: "other types, alignments or epilogues".into(),
        }
    })
}

/// A heuristic's place to be filled in.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct MaybeHeuristic(Heuristic);

impl MaybeHeuristic {
    const ZERO: MaybeHeuristic = MaybeHeuristic(Heuristic {
        algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        workspace: 0,
        state: -1,
        waves: 0.0,
        reserved: [0; 4],
    });
}

impl Parts {
    fn new(api: &'static Api, spec: &MatmulSpec) -> Result<Parts> {
        use sys::cublasLtMatmulDescAttributes_t as D;
        let (compute, scale) = compute_of(spec);
        let mut parts = Parts { api, desc: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 3] };
        // SAFETY: `parts.desc` outlives the call.
        let status = unsafe { (api.desc_create)(&mut parts.desc, compute, scale) };
        check("cublasLtMatmulDescCreate", status, &describe(spec))?;
        parts.set(D::CUBLASLT_MATMUL_DESC_TRANSA as c_int, &i32::from(spec.b.transposed))?;
        parts.set(D::CUBLASLT_MATMUL_DESC_TRANSB as c_int, &i32::from(spec.a.transposed))?;
        if spec.epilogue == Epilogue::Bias {
            let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            parts.set(D::CUBLASLT_MATMUL_DESC_EPILOGUE as c_int, &bias)?;
            parts.set(D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE as c_int, &data_type(spec.output))?;
        }
        let c = Operand { transposed: false, ld: spec.c_ld, batch_stride: spec.c_batch_stride };
        let all = [
            (spec.k, spec.n, spec.b, spec.input),
            (spec.m, spec.k, spec.a, spec.input),
            (spec.m, spec.n, c, spec.output),
        ];
        for (i, (rows, cols, operand, scalar)) in all.into_iter().enumerate() {
            parts.layouts[i] = parts.layout(rows, cols, operand, scalar, spec)?;
        }
        Ok(parts)
    }

    /// The layout of a matrix that is `rows` x `cols` logically, as the library reads it: by columns.
    fn layout(
        &self,
        rows: usize,
        cols: usize,
        operand: Operand,
        scalar: Scalar,
        spec: &MatmulSpec,
    ) -> Result<sys::cublasLtMatrixLayout_t> {
        use sys::cublasLtMatrixLayoutAttribute_t as L;
        let (height, width) = if operand.transposed { (rows, cols) } else { (cols, rows) };
        let mut layout = std::ptr::null_mut();
        // SAFETY: `layout` outlives the call.
        let status = unsafe {
            (self.api.layout_create)(
                &mut layout,
                data_type(scalar),
                height as u64,
                width as u64,
                operand.ld as i64,
            )
        };
        check("cublasLtMatrixLayoutCreate", status, &describe(spec))?;
        if spec.batch > 1 {
            let count = (spec.batch as i32).to_ne_bytes();
            let stride = (operand.batch_stride as i64).to_ne_bytes();
            for (attribute, value) in [
                (L::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count[..]),
                (L::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride[..]),
            ] {
                // SAFETY: the layout is alive and `value` has the attribute's length.
                let status = unsafe {
                    (self.api.layout_set)(layout, attribute as c_int, value.as_ptr().cast(), value.len())
                };
                check("cublasLtMatrixLayoutSetAttribute", status, &describe(spec))?;
            }
        }
        Ok(layout)
    }

    fn set<T: Copy>(&self, attribute: c_int, value: &T) -> Result<()> {
        // SAFETY: the descriptor is alive and `T` has the attribute's length.
        let status = unsafe {
            (self.api.desc_set)(self.desc, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        };
        check("cublasLtMatmulDescSetAttribute", status, "")
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // SAFETY: each object is released once, and only if it was made.
        unsafe {
            if !self.desc.is_null() {
                let _ = (self.api.desc_destroy)(self.desc);
            }
            for layout in self.layouts.into_iter().filter(|l| !l.is_null()) {
                let _ = (self.api.layout_destroy)(layout);
            }
        }
    }
}

fn data_type(scalar: Scalar) -> c_int {
    use sys::cudaDataType_t as T;
    (match scalar {
        Scalar::Bf16 => T::CUDA_R_16BF,
        Scalar::F16 => T::CUDA_R_16F,
        Scalar::F32 => T::CUDA_R_32F,
        Scalar::F64 => T::CUDA_R_64F,
    }) as c_int
}

/// (compute type, type of alpha and beta)
fn compute_of(spec: &MatmulSpec) -> (c_int, c_int) {
    use sys::cublasComputeType_t as C;
    let compute = match spec.input {
        Scalar::F64 => C::CUBLAS_COMPUTE_64F,
        Scalar::F32 if spec.tf32 => C::CUBLAS_COMPUTE_32F_FAST_TF32,
        _ => C::CUBLAS_COMPUTE_32F,
    };
    let scale = if spec.input == Scalar::F64 { Scalar::F64 } else { Scalar::F32 };
    (compute as c_int, data_type(scale))
}

/// ` (bf16 64x128x256 -> f32, ...)`, for messages.
fn describe(spec: &MatmulSpec) -> String {
    let side = |o: &Operand| if o.transposed { "T" } else { "N" };
    format!(
        " ({} {}x{}x{} {}{} -> {}, batch {}{})",
        spec.input,
        spec.m,
        spec.n,
        spec.k,
        side(&spec.a),
        side(&spec.b),
        spec.output,
        spec.batch,
        if spec.epilogue == Epilogue::Bias { ", bias" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_kept_by_shape_and_alignment() {
        let spec = MatmulSpec::dense(4, 6, 8, Scalar::F32);
        let key = |a, b, c| Key::new(&spec, &MatmulArgs::new(a, b, c));
        assert_eq!(key(256, 512, 4096), key(2560, 512, 8192));
        assert_eq!(key(256, 512, 4096).align, [256; 3]);
        assert_eq!(key(16, 520, 4), Key { spec, align: [16, 8, 4] });
    }

    #[test]
    fn full_precision_unless_asked() {
        let spec = MatmulSpec::dense(4, 6, 8, Scalar::F32);
        let exact = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F as c_int;
        assert_eq!(compute_of(&spec).0, exact);
        assert_ne!(compute_of(&MatmulSpec { tf32: true, ..spec }).0, exact);
        assert_eq!(describe(&spec), " (f32 4x6x8 NN -> f32, batch 1)");
    }
}
