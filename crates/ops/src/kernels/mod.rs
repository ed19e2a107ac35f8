//! What the recurrent families share when their kernels run on a GPU: head dims that the kernels have, tables of packed sequences, states.
//!
//! Policy: kernels exist for a few head dims; other heads are padded with zeros, which changes nothing but time. States pass in the kernels' layout
//! `[N, HV, K, V]` and are turned on the device where the caller's is the other one.

use flashlin_tensor::cuda::plan::{self, Recurrence, RecurrentShape, Sequences};
use flashlin_tensor::cuda::{Launcher, Operands};
use flashlin_tensor::{DType, Error, Result, Tensor};

use crate::{PackedSeqs, StateLayout};

mod step;

pub(crate) use step::{Gates, Raw, Step};

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub b: usize,
    pub t: usize,
    pub h: usize,
    pub hv: usize,
    pub k: usize,
    pub v: usize,
}

/// A call that kernels serve.
#[derive(Clone)]
pub(crate) struct Chunked {
    pub on: Launcher,
    pub shape: RecurrentShape,
    pub recurrence: Recurrence,
    pub sizes: Sizes,
    layout: StateLayout,
    dtype: DType,
    kind: &'static str,
    /// Longest sequence.
    longest: usize,
    /// `seqs` and `chunks` of packed sequences.
    tables: Option<[Tensor; 2]>,
}

impl Chunked {
    /// The call with these values, if there are kernels for it: half precision, heads that fit, at least one token.
    pub fn of(
        op: &'static str,
        recurrence: Recurrence,
        v: &Tensor,
        sizes: Sizes,
        seqs: &PackedSeqs,
        (packed, layout): (bool, StateLayout),
    ) -> Result<Option<Chunked>> {
        if !matches!(v.dtype(), DType::BF16 | DType::F16) || seqs.total() == 0 {
            return Ok(None);
        }
        let on = Launcher::on(op, v)?;
        let kind = on.float("v", v.dtype())?;
        let Some([k, value]) =
            plan::head_dims(&on.machine_with(0)?, widest(recurrence), kind, [sizes.k, sizes.v])
        else {
            return Ok(None);
        };
        let sequences = match packed {
            true => Sequences::packed(seqs.cu_seqlens()).map_err(Error::Kernel)?,
            false => Sequences::rows(sizes.b, sizes.t),
        };
        let table = |rows: flashlin_tensor::cuda::KernelResult<Vec<i32>>| -> Result<Tensor> {
            on.table(rows.map_err(Error::Kernel)?)
        };
        let tables = match packed {
            true => Some([table(sequences.sequence_table())?, table(sequences.chunk_table())?]),
            false => None,
        };
        let shape =
            RecurrentShape { sequences, heads: sizes.h, value_heads: sizes.hv, key_dim: k, value_dim: value };
        let (dtype, longest) = (v.dtype(), seqs.longest());
        Ok(Some(Chunked { on, shape, recurrence, sizes, layout, dtype, kind, longest, tables }))
    }

    /// Operands that all kernels of the family know.
    pub fn operands(&self, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Operands> {
        let mut x = Operands::new(self.on);
        x.array("q", &self.keys(q)?)?;
        x.array("k", &self.keys(k)?)?;
        x.array("v", &self.values(v)?)?;
        match &self.tables {
            Some([seqs, chunks]) => {
                x.array("seqs", seqs)?;
                x.array("chunks", chunks)?;
            }
            None => ["seqs", "chunks"].into_iter().for_each(|name| x.absent(name)),
        }
        let sequences = &self.shape.sequences;
        for (name, n) in [
            ("b", sequences.count()),
            ("t", self.longest),
            ("h", self.sizes.h),
            ("hv", self.sizes.hv),
            ("nc", sequences.chunks()),
            ("nseg", 1),
            ("seg", self.longest.div_ceil(plan::CHUNK)),
        ] {
            x.int(name, n)?;
        }
        x.float("scale", scale);
        Ok(x)
    }

    /// A plan of this call. `state`: one takes part.
    pub fn plan(&self, backward: bool, state: bool) -> Result<plan::Plan> {
        let make = if backward { plan::backward } else { plan::forward };
        make(&self.on.machine()?, &self.shape, self.recurrence, self.kind, state).map_err(Error::Kernel)
    }

    /// Queries, keys as the kernels read them: contiguous, of their width.
    pub fn keys(&self, x: &Tensor) -> Result<Tensor> {
        padded(x, 3, self.shape.key_dim)?.contiguous()
    }

    /// The same for values.
    pub fn values(&self, x: &Tensor) -> Result<Tensor> {
        padded(x, 3, self.shape.value_dim)?.contiguous()
    }

    /// A state as the kernels read it.
    pub fn state(&self, x: &Tensor) -> Result<Tensor> {
        let x = if self.layout == StateLayout::VK { x.transpose(2, 3)? } else { x.clone() };
        padded(&padded(&x, 2, self.shape.key_dim)?, 3, self.shape.value_dim)?.contiguous()
    }

    /// A state as the caller has it.
    pub fn own_state(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.narrow(2, 0, self.sizes.k)?.narrow(3, 0, self.sizes.v)?;
        if self.layout == StateLayout::VK { x.transpose(2, 3)?.contiguous() } else { x.contiguous() }
    }

    /// `[B, T, HV, width of the kernel]` for keys, or for values.
    pub fn rows(&self, keys: bool) -> Result<Tensor> {
        let s = &self.sizes;
        let width = if keys { self.shape.key_dim } else { self.shape.value_dim };
        Tensor::empty(&[s.b, s.t, s.hv, width], self.dtype, &self.on.device())
    }

    /// f32 `[B, T, HV]`.
    pub fn gates(&self) -> Result<Tensor> {
        let s = &self.sizes;
        Tensor::empty(&[s.b, s.t, s.hv], DType::F32, &self.on.device())
    }

    /// An uninitialised state of the kernels.
    pub fn new_state(&self) -> Result<Tensor> {
        let s = &self.shape;
        let dims = [s.sequences.count(), s.value_heads, s.key_dim, s.value_dim];
        Tensor::empty(&dims, DType::F32, &self.on.device())
    }

    /// A result `[B, T, HV, V]` without the padding.
    pub fn own_values(&self, x: &Tensor) -> Result<Tensor> {
        x.narrow(3, 0, self.sizes.v)?.contiguous()
    }

    /// A gradient `[B, T, HV, K]` as that of the H heads: the sum over those that share one, without the padding.
    pub fn own_keys(&self, x: &Tensor) -> Result<Tensor> {
        let s = &self.sizes;
        if s.h == s.hv {
            return x.narrow(3, 0, s.k)?.contiguous();
        }
        let wide = self.shape.key_dim;
        let kernel = self.on.find("group_sum", self.kind, &[("K", wide as i64)])?;
        let rows = kernel.need_generic("R").map_err(Error::Kernel)?.max(1) as usize;
        let y = Tensor::empty(&[s.b, s.t, s.h, wide], self.dtype, &self.on.device())?;
        let n = s.b * s.t * s.h;
        let args = [self.on.at(x)?, self.on.at(&y)?, self.on.int(n)?, self.on.int(s.hv / s.h)?];
        // SAFETY: x has n groups of HV / H rows of the kernels' width, y n rows.
        unsafe { self.on.launch(&kernel.name, [n.div_ceil(rows), 1, 1], &args) }?;
        y.narrow(3, 0, s.k)?.contiguous()
    }
}

/// The kernel whose configurations tell the head dims of a whole family.
fn widest(recurrence: Recurrence) -> &'static str {
    match recurrence {
        Recurrence::Decay(_) => "decay_bwd",
        Recurrence::Delta => "delta_bwd",
    }
}

/// Zeros after the end of a dimension.
pub(crate) fn padded(x: &Tensor, dim: usize, to: usize) -> Result<Tensor> {
    let have = x.dim(dim);
    if have == to {
        return Ok(x.clone());
    }
    let mut dims = x.dims().to_vec();
    dims[dim] = to - have;
    Tensor::cat(&[x, &Tensor::zeros(&dims, x.dtype(), &x.device())?], dim)
}
