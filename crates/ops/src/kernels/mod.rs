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
    fn plan(&self, backward: bool, state: bool) -> Result<plan::Plan> {
        let make = if backward { plan::backward } else { plan::forward };
        make(&self.on.machine()?, &self.shape, self.recurrence, self.kind, state).map_err(Error::Kernel)
    }

    /// The forward on its operands (with their initial state, if there is one): o, and the states after the last tokens where wanted.
    pub fn forward(&self, mut x: Operands, first: bool, want_state: bool) -> Result<Vec<Tensor>> {
        let o = self.rows(false)?;
        let last = want_state.then(|| self.new_state()).transpose()?;
        x.array("o", &o)?;
        x.absent("hs");
        x.absent("us");
        x.optional("ht", "has_ht", last.as_ref())?;
        let plan = self.plan(false, want_state || first)?;
        // SAFETY: every array has the shape that the kernels' documentation states for these sizes.
        unsafe { x.run(&plan) }?;
        let mut out = vec![self.own_values(&o)?];
        out.extend(last.map(|s| self.own_state(&s)).transpose()?);
        Ok(out)
    }

    /// The backward on the forward's operands and the gradients of its gates: those of q, k and v, and of the initial state where wanted.
    pub fn backward(
        &self,
        mut x: Operands,
        (d_o, d_last): (Tensor, Option<Tensor>),
        first: bool,
        want_first: bool,
    ) -> Result<([Option<Tensor>; 3], Option<Tensor>)> {
        let d_o = self.values(&d_o)?;
        let d_last = d_last.map(|d| self.state(&d)).transpose()?;
        let (dq, dk, dv) = (self.rows(true)?, self.rows(true)?, self.rows(false)?);
        let d_first = want_first.then(|| self.new_state()).transpose()?;
        for (name, t) in [("d_o", &d_o), ("dq", &dq), ("dk", &dk), ("dv", &dv)] {
            x.array(name, t)?;
        }
        x.optional("dht", "has_dht", d_last.as_ref())?;
        x.optional("dh0", "has_dh0", d_first.as_ref())?;
        // Of the forward's kernel only the states are wanted.
        x.absent("o");
        x.optional("ht", "has_ht", None)?;
        let plan = self.plan(true, first || d_last.is_some())?;
        // SAFETY: as in `forward`.
        unsafe { x.run(&plan) }?;
        let inputs = [Some(self.own_keys(&dq)?), Some(self.own_keys(&dk)?), Some(self.own_values(&dv)?)];
        Ok((inputs, d_first.map(|d| self.own_state(&d)).transpose()?))
    }

    /// Queries, keys as the kernels read them: dense, of their width.
    fn keys(&self, x: &Tensor) -> Result<Tensor> {
        self.on.dense(&padded(x, 3, self.shape.key_dim)?, x.dtype())
    }

    /// The same for values.
    fn values(&self, x: &Tensor) -> Result<Tensor> {
        self.on.dense(&padded(x, 3, self.shape.value_dim)?, x.dtype())
    }

    /// A state as the kernels read it.
    pub fn state(&self, x: &Tensor) -> Result<Tensor> {
        let dims = [self.shape.key_dim, self.shape.value_dim];
        self.on.dense(&padded_state(&self.layout.turned(x)?, dims)?, DType::F32)
    }

    /// A state as the caller has it.
    fn own_state(&self, x: &Tensor) -> Result<Tensor> {
        self.layout.turned(&x.narrow(2, 0, self.sizes.k)?.narrow(3, 0, self.sizes.v)?)?.contiguous()
    }

    /// `[B, T, HV, width of the kernel]` for keys, or for values.
    fn rows(&self, keys: bool) -> Result<Tensor> {
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
    fn new_state(&self) -> Result<Tensor> {
        let s = &self.shape;
        let dims = [s.sequences.count(), s.value_heads, s.key_dim, s.value_dim];
        Tensor::empty(&dims, DType::F32, &self.on.device())
    }

    /// A result `[B, T, HV, V]` without the padding.
    fn own_values(&self, x: &Tensor) -> Result<Tensor> {
        x.narrow(3, 0, self.sizes.v)?.contiguous()
    }

    /// A gradient `[B, T, HV, K]` as that of the H heads: the sum over those that share one, without the padding.
    fn own_keys(&self, x: &Tensor) -> Result<Tensor> {
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

/// A state `[N, HV, K, V]` with zeros up to the kernels' dims.
fn padded_state(x: &Tensor, [k, v]: [usize; 2]) -> Result<Tensor> {
    padded(&padded(x, 2, k)?, 3, v)
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
