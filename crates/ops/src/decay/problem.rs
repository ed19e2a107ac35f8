//! A checked call that owns its tensors: runs forward, is what the graph keeps, and runs backward.
//!
//! Beside the inputs, the chunked path saves the state before every chunk (`K V / C` numbers a token and head: with the
//! usual sizes as many as k holds); scores are recomputed.

use flashlin_tensor::{Backward, BackwardCtx, DType, Element, Result, Tensor};
use half::{bf16, f16};

use super::api::{DecayArgs, output};
use super::cpu::{self, Args, Elements, GradsMut, Path, Seq, Source};
use crate::kernels::Sizes;
use crate::simd::Real;
use crate::{Mode, PackedSeqs, StateLayout};

/// Everything a pass needs; channels' tensors have a contiguous last dimension.
pub(super) struct Problem {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Option<Tensor>,
    g_gamma: Option<Tensor>,
    gk: Option<Tensor>,
    gv: Option<Tensor>,
    bonus: Option<Tensor>,
    h0: Option<Tensor>,
    sizes: Sizes,
    seqs: Vec<Seq>,
    scale: f64,
    layout: StateLayout,
    path: Path,
    chunk: usize,
    /// States that forward saved, where a gradient may be asked for.
    saved: Option<Tensor>,
}

/// The tensor itself, or a copy when its last dimension has gaps.
fn rows(t: &Tensor) -> Result<Tensor> {
    let last = t.rank() - 1;
    if t.dim(last) <= 1 || t.strides()[last] == 1 { Ok(t.clone()) } else { t.contiguous() }
}

fn elements(t: &Tensor) -> Result<Elements<'_>> {
    Ok(match t.dtype() {
        DType::F64 => Elements::F64(t.strided::<f64>()?.data),
        DType::BF16 => Elements::BF16(t.strided::<bf16>()?.data),
        DType::F16 => Elements::F16(t.strided::<f16>()?.data),
        _ => Elements::F32(t.strided::<f32>()?.data),
    })
}

/// `[B, T, H, D]`, or `[B, T, H]` as heads of width 1.
fn source(t: &Tensor) -> Result<Source<'_>> {
    let s = t.strides();
    Ok(Source { data: elements(t)?, batch_stride: s[0], token_stride: s[1], head_stride: s[2] })
}

/// Small or state tensors as contiguous `R`.
fn values<R: Element>(t: &Option<Tensor>) -> Result<Option<Tensor>> {
    t.as_ref().map(|t| t.to_dtype(R::DTYPE)?.contiguous()).transpose()
}

fn slice<R: Element>(t: &Option<Tensor>) -> Result<Option<&[R]>> {
    t.as_ref().map(|t| t.as_slice::<R>()).transpose()
}

impl Problem {
    pub fn new(a: &DecayArgs, sizes: Sizes, seqs: &PackedSeqs) -> Result<Self> {
        let tensor = |x: Option<&flashlin_tensor::Var>| x.map(|x| x.tensor().clone());
        let with_rows = |x: Option<&flashlin_tensor::Var>| x.map(|x| rows(x.tensor())).transpose();
        let path = match a.mode.resolve(seqs.longest()) {
            Mode::Recurrent => Path::Recurrent,
            _ => Path::Chunk,
        };
        Ok(Problem {
            q: rows(a.q.tensor())?,
            k: rows(a.k.tensor())?,
            v: rows(a.v.tensor())?,
            g: tensor(a.g),
            g_gamma: tensor(a.g_gamma),
            gk: with_rows(a.gk)?,
            gv: with_rows(a.gv)?,
            bonus: tensor(a.bonus),
            h0: tensor(a.initial_state.map(|s| &s.value)),
            sizes,
            seqs: match a.seqs {
                Some(packed) => Seq::packed(packed.cu_seqlens()),
                None => Seq::dense(sizes.b, sizes.t),
            },
            scale: a.scale.unwrap_or((sizes.k as f64).powf(-0.5)),
            layout: a.layout,
            path,
            chunk: a.chunk_size,
            saved: None,
        })
    }

    fn accumulator(&self) -> DType {
        self.q.dtype().accumulator()
    }

    fn state_dims(&self) -> [usize; 4] {
        self.layout.dims(self.seqs.len(), self.sizes.hv, self.sizes.k, self.sizes.v)
    }

    fn gk_heads(&self) -> usize {
        self.gk.as_ref().map_or(self.sizes.hv, |g| g.dim(2))
    }

    /// `o`, and the final state when wanted; `save` keeps what the backward pass needs.
    pub fn forward(&mut self, want_state: bool, save: bool) -> Result<Vec<Tensor>> {
        match self.accumulator() {
            DType::F64 => self.forward_in::<f64>(want_state, save),
            _ => self.forward_in::<f32>(want_state, save),
        }
    }

    fn forward_in<R: Real>(&mut self, want_state: bool, save: bool) -> Result<Vec<Tensor>> {
        let mut o = output(self.v.dims(), R::DTYPE)?;
        let mut last = want_state.then(|| output(&self.state_dims(), R::DTYPE)).transpose()?;
        let state = last.as_mut().map_or(Ok(&mut [][..]), |t| t.as_mut_slice::<R>())?;
        let out = o.as_mut_slice::<R>()?;
        let saved = self.with_args::<R, _>(|args| {
            let n = if save && self.path == Path::Chunk { cpu::saved_len(args) } else { 0 };
            let mut saved = output(&[n], R::DTYPE)?;
            cpu::forward(self.path, args, out, state, saved.as_mut_slice::<R>()?);
            Ok(saved)
        })?;
        self.saved = Some(saved);
        let mut outputs = vec![o.to_dtype(self.v.dtype())?];
        outputs.extend(last);
        Ok(outputs)
    }

    /// Hands the call to `f` as slices.
    fn with_args<R: Real, O>(&self, f: impl FnOnce(&Args<R>) -> Result<O>) -> Result<O> {
        let (gamma, bonus, h0) =
            (values::<R>(&self.g_gamma)?, values::<R>(&self.bonus)?, values::<R>(&self.h0)?);
        f(&Args {
            seqs: &self.seqs,
            heads: self.sizes.h,
            value_heads: self.sizes.hv,
            key_dim: self.sizes.k,
            value_dim: self.sizes.v,
            scale: R::from_f64(self.scale),
            q: source(&self.q)?,
            k: source(&self.k)?,
            v: source(&self.v)?,
            g: self.g.as_ref().map(source).transpose()?,
            g_gamma: slice(&gamma)?,
            gk: self.gk.as_ref().map(source).transpose()?,
            gk_heads: self.gk_heads(),
            gv: self.gv.as_ref().map(source).transpose()?,
            u: slice(&bonus)?,
            h0: slice(&h0)?,
            transposed: self.layout == StateLayout::VK,
            chunk: self.chunk,
        })
    }

    fn backward_in<R: Real>(
        &self,
        ctx: &BackwardCtx<'_>,
        d_o: Tensor,
        d_last: Option<Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let d_o = rows(&d_o)?;
        let d_last = values::<R>(&d_last)?;
        let inputs = [Some(&self.q), Some(&self.k), Some(&self.v)].into_iter().chain(
            [&self.g, &self.g_gamma, &self.gk, &self.gv, &self.bonus, &self.h0]
                .into_iter()
                .map(Option::as_ref),
        );
        // Absent inputs have no place in the graph's list: `place` counts those that are there.
        let mut place = 0;
        let mut grads: Vec<(bool, Option<Tensor>)> = Vec::with_capacity(9);
        for input in inputs {
            let wanted = input.is_some() && ctx.needs(place);
            place += usize::from(input.is_some());
            let grad = input.filter(|_| wanted).map(|t| output(t.dims(), R::DTYPE)).transpose()?;
            grads.push((input.is_some(), grad));
        }
        let mut slices = grads.iter_mut().map(|(_, t)| match t {
            Some(t) => t.as_mut_slice::<R>(),
            None => Ok(&mut [][..]),
        });
        let mut next = || slices.next().unwrap_or(Ok(&mut []));
        let out = GradsMut {
            q: next()?,
            k: next()?,
            v: next()?,
            g: next()?,
            g_gamma: next()?,
            gk: next()?,
            gv: next()?,
            u: next()?,
            h0: next()?,
        };
        self.with_args::<R, _>(|args| {
            let saved = slice(&self.saved)?.unwrap_or(&[]);
            cpu::backward(self.path, args, &source(&d_o)?, slice(&d_last)?, saved, out);
            Ok(())
        })?;
        Ok(grads.into_iter().filter(|(given, _)| *given).map(|(_, grad)| grad).collect())
    }
}

impl Backward for Problem {
    fn backward(
        self: Box<Self>,
        ctx: &mut BackwardCtx<'_>,
        mut grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let d_o = ctx.or_zeros(0, &mut grads)?;
        let d_last = grads.get_mut(1).and_then(Option::take);
        match self.accumulator() {
            DType::F64 => self.backward_in::<f64>(ctx, d_o, d_last),
            _ => self.backward_in::<f32>(ctx, d_o, d_last),
        }
    }
}
