//! One or a few tokens of either family with the state in place: the kernel `delta_step`.

use flashlin_tensor::cuda::plan::{self, Recurrence, RecurrentShape, Sequences};
use flashlin_tensor::cuda::{Launcher, Operands};
use flashlin_tensor::{DType, Error, Result, Tensor};

use super::{Sizes, padded, padded_state};
use crate::delta::L2_EPS;
use crate::{RecurrentState, SeqOutput, StateLayout};

/// Gates as projections, for the kernel to apply: `g = -e^(a_log) softplus(a + dt_bias)`, `beta = most sigmoid(b)`.
pub(crate) struct Raw {
    /// `[B, T, HV]`, dtype of v.
    pub a: Tensor,
    /// `[B, T, HV]`, dtype of v.
    pub b: Tensor,
    /// f32 `[HV]`.
    pub a_log: Tensor,
    /// f32 `[HV]`.
    pub dt_bias: Tensor,
    pub most: f64,
}

/// How the state decays and what is written.
pub(crate) enum Gates {
    /// f32 `[B, T, HV]` log-decays and write strengths.
    Ready {
        g: Option<Tensor>,
        beta: Option<Tensor>,
    },
    Raw(Raw),
}

/// A step that there is a kernel for.
pub(crate) struct Step {
    on: Launcher,
    plan: plan::Plan,
    sizes: Sizes,
    dims: [usize; 2],
}

impl Step {
    /// For these sizes and this dtype, if there is a kernel.
    pub fn of(
        op: &'static str,
        recurrence: Recurrence,
        v: &Tensor,
        sizes: Sizes,
        gates: &Gates,
    ) -> Result<Option<Step>> {
        let raw = matches!(gates, Gates::Raw(_));
        if !matches!(v.dtype(), DType::BF16 | DType::F16 | DType::F32) || sizes.b * sizes.t == 0 {
            return Ok(None);
        }
        let on = Launcher::on(op, v)?;
        let (kind, machine) = (on.float("v", v.dtype())?, on.machine_with(0)?);
        let Some(dims) = plan::head_dims(&machine, "delta_step", kind, [sizes.k, sizes.v]) else {
            return Ok(None);
        };
        let shape = RecurrentShape {
            sequences: Sequences::rows(sizes.b, sizes.t),
            heads: sizes.h,
            value_heads: sizes.hv,
            key_dim: dims[0],
            value_dim: dims[1],
        };
        let plan = plan::step(&machine, &shape, recurrence, kind, raw).map_err(Error::Kernel)?;
        Ok(Some(Step { on, plan, sizes, dims }))
    }

    /// Output and, where wanted, a new state in `layout`, from the state before (zero where absent).
    pub fn anew(
        &self,
        qkv: [&Tensor; 3],
        gates: &Gates,
        how: (bool, f64),
        first: Option<&RecurrentState>,
        layout: StateLayout,
        want_state: bool,
    ) -> Result<SeqOutput> {
        let (s, [k, v]) = (&self.sizes, self.dims);
        let state = match first {
            None => Tensor::zeros(&[s.b, s.hv, k, v], DType::F32, &self.on.device())?,
            Some(h0) => padded_state(&h0.layout.turned(h0.value.tensor())?, [k, v])?.copy()?,
        };
        let o = self.run(qkv, gates, how, &state, None)?;
        let last = || {
            let own = state.narrow(2, 0, s.k)?.narrow(3, 0, s.v)?;
            Ok(RecurrentState { value: layout.turned(&own)?.contiguous()?.into(), layout })
        };
        Ok(SeqOutput { o: o.into(), final_state: want_state.then(last).transpose()? })
    }

    /// Output of single tokens, the states of `rows` advanced where they lie; None, with nothing done, where the kernel cannot do that: another
    /// layout, other dims, a state that somebody else holds.
    pub fn in_place(
        &self,
        qkv: [&Tensor; 3],
        gates: &Gates,
        how: (bool, f64),
        state: &mut RecurrentState,
        rows: &[usize],
    ) -> Result<Option<Tensor>> {
        let s = &self.sizes;
        if self.dims != [s.k, s.v] || state.layout == StateLayout::VK || !state.value.tensor().is_contiguous()
        {
            return Ok(None);
        }
        let Some(pool) = state.value.exclusive_mut() else { return Ok(None) };
        let slots = match rows.len() == pool.dim(0) {
            true => None,
            false => {
                let slots: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
                Some(self.on.table(slots)?)
            }
        };
        // Tokens of packed rows lie behind each other as those of a batch do.
        let row = |x: &Tensor| x.contiguous()?.reshape(&[s.b, 1, x.dim(2), x.dim(3)]);
        let [q, k, v] = qkv;
        let o = self.run([&row(q)?, &row(k)?, &row(v)?], gates, how, pool, slots.as_ref())?;
        o.reshape(v.dims()).map(Some)
    }

    /// Advances `state` `[slots, HV, K, V]` of the kernel's dims and returns o `[B, T, HV, V]`. `slots`: i32 `[B]`, the state of each row.
    fn run(
        &self,
        [q, k, v]: [&Tensor; 3],
        gates: &Gates,
        (norm, scale): (bool, f64),
        state: &Tensor,
        slots: Option<&Tensor>,
    ) -> Result<Tensor> {
        let s = &self.sizes;
        let o = Tensor::empty(&[s.b, s.t, s.hv, self.dims[1]], v.dtype(), &v.device())?;
        let mut x = Operands::new(self.on);
        for (name, t, dim) in [("q", q, 0), ("k", k, 0), ("v", v, 1)] {
            x.array(name, &self.on.dense(&padded(t, 3, self.dims[dim])?, v.dtype())?)?;
        }
        x.array("s", state)?;
        x.array("o", &o)?;
        x.absent("kept");
        x.optional("slot", "has_slot", slots)?;
        self.gates(&mut x, gates)?;
        let flags = [("norm", usize::from(norm)), ("keep", 0), ("slots", state.dim(0))];
        for (name, n) in [("b", s.b), ("t", s.t), ("h", s.h), ("hv", s.hv)].into_iter().chain(flags) {
            x.int(name, n)?;
        }
        x.float("eps", L2_EPS);
        x.float("scale", scale);
        // SAFETY: the arrays have the shapes of the kernel's documentation; slots were made from rows of the state.
        unsafe { x.run(&self.plan) }?;
        o.narrow(3, 0, s.v)?.contiguous()
    }

    fn gates(&self, x: &mut Operands, gates: &Gates) -> Result<()> {
        match gates {
            Gates::Ready { g, beta } => {
                x.optional("g", "has_g", self.on.dense_if(g.as_ref(), DType::F32)?.as_ref())?;
                x.optional("beta", "has_beta", self.on.dense_if(beta.as_ref(), DType::F32)?.as_ref())?;
                ["a", "braw", "a_log", "dt_bias"].into_iter().for_each(|name| x.absent(name));
                x.float("bmax", 1.0);
            }
            Gates::Raw(raw) => {
                x.optional("g", "has_g", None)?;
                x.optional("beta", "has_beta", None)?;
                let (a, b) = (("a", &raw.a), ("braw", &raw.b));
                for (name, t) in [a, b, ("a_log", &raw.a_log), ("dt_bias", &raw.dt_bias)] {
                    x.array(name, &self.on.dense(t, t.dtype())?)?;
                }
                x.float("bmax", raw.most);
            }
        }
        Ok(())
    }
}
