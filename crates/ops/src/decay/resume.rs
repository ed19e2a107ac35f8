//! One token a row from a state that belongs to nobody else: updated where it lies, rows without a token untouched.

use flashlin_tensor::{DType, Device, Result, Tensor, Var};

use super::{
    api::{DecayArgs, OP, validate},
    cpu, cuda,
};
use crate::{
    Mode, PackedSeqs, RecurrentState, StateLayout,
    recurrence::{recorded, single_tokens},
};

/// Advances a state where it lies, if the call is one token for each row, nothing is recorded, and the state is nobody else's. None, with nothing
/// done, where that cannot be.
///
/// # Errors
/// As the operator.
pub(crate) fn step_on(a: &DecayArgs<'_>, state: &mut RecurrentState) -> Result<Option<Var>> {
    if a.v.device() != Device::Cpu {
        return cuda::step_on(a, state);
    }
    let inputs = [Some(a.q), Some(a.k), Some(a.v), a.g, a.g_gamma, a.gk, a.gv, a.bonus];
    let other_form = a.mode.resolve(1) != Mode::Recurrent || a.v.dtype() == DType::F64;
    if other_form || recorded(inputs.into_iter().flatten()) {
        return Ok(None);
    }
    let s = validate(a)?;
    let Some(rows) = single_tokens(a.seqs, s.b, s.t).filter(|rows| !rows.is_empty()) else { return Ok(None) };
    let n = a.seqs.map_or(s.b, PackedSeqs::len);
    state.check(OP, a.layout, a.layout.dims(n, s.hv, s.k, s.v), a.v.dtype())?;
    // Shared by the value heads of a key head, these decays are no `[rows, HV, K]`.
    if a.gk.is_some_and(|g| g.dim(2) != s.hv) || !state.value.tensor().is_contiguous() {
        return Ok(None);
    }
    let f32s = |x: Option<&Var>| x.map(|x| x.tensor().to_dtype(DType::F32)?.contiguous()).transpose();
    let [q, k, v] = [a.q, a.k, a.v].map(|x| x.tensor().to_dtype(DType::F32)?.contiguous());
    let (q, k, v) = (q?, k?, v?);
    let [g, g_gamma, gk, gv, u] = [a.g, a.g_gamma, a.gk, a.gv, a.bonus].map(f32s);
    let (g, g_gamma, gk, gv, u) = (g?, g_gamma?, gk?, gv?, u?);
    let step = cpu::Step {
        slots: &rows,
        heads: s.h,
        value_heads: s.hv,
        key_dim: s.k,
        value_dim: s.v,
        scale: a.scale.unwrap_or((s.k as f64).powf(-0.5)) as f32,
        q: q.as_slice()?,
        k: k.as_slice()?,
        v: v.as_slice()?,
        g: slice(&g)?,
        g_gamma: slice(&g_gamma)?,
        gk: slice(&gk)?,
        gv: slice(&gv)?,
        u: slice(&u)?,
        transposed: a.layout == StateLayout::VK,
    };
    let Some(pool) = state.value.exclusive_mut() else { return Ok(None) };
    let mut o = Tensor::empty(a.v.dims(), DType::F32, &Device::Cpu)?;
    // False for heads wider than the step's: nothing was done then.
    if !cpu::step(&step, pool.as_mut_slice()?, o.as_mut_slice()?) {
        return Ok(None);
    }
    Ok(Some(o.to_dtype(a.v.dtype())?.into()))
}

fn slice(x: &Option<Tensor>) -> Result<Option<&[f32]>> {
    x.as_ref().map(|x| x.as_slice()).transpose()
}
