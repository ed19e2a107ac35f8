//! Logits to log-decays with a learned rate and bias a head: Gated DeltaNet's gate (a number a head) and KDA's (a number
//! a channel), forward and backward.

use flashlin_tensor::cpu::vectorized;
use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Element, Error, Real, Result, Tensor, Var};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{cuda, formulas::DecayGate};

/// Tokens of a parallel block; fixed, so that sums over tokens do not depend on the number of threads.
const BLOCK: usize = 256;

/// Arguments of [`decay_gate`].
#[derive(Clone, Copy, Debug)]
pub struct DecayGateArgs<'a> {
    /// Logits `[..., HV]`, or `[..., HV, K]` with `per_channel`.
    pub x: &'a Var,
    /// The last dimension of `x` is K rather than HV.
    pub per_channel: bool,
    /// The formula.
    pub formula: DecayGate,
    /// `A_log` `[HV]`; optional with [`DecayGate::LowerBound`].
    pub a_log: Option<&'a Var>,
    /// Bias of the logit: `[HV]`, or `[HV K]` with `per_channel`.
    pub dt_bias: Option<&'a Var>,
}

/// Log-decays in f32 (f64 for f64 logits) of the shape of `x`. Gradients flow to `x`, `a_log` and `dt_bias`.
///
/// # Errors
/// When a shape, dtype or device does not fit, when `a_log` is missing for the softplus formula, or when the lower
/// bound is not a finite number below 0.
pub fn decay_gate(args: DecayGateArgs<'_>) -> Result<Var> {
    let gate = Gate::new(&args)?;
    let y = match (gate.x.device(), gate.x.dtype().accumulator()) {
        (Device::Cpu, DType::F64) => gate.forward::<f64>()?,
        (Device::Cpu, _) => gate.forward::<f32>()?,
        _ => cuda::forward(&gate)?,
    };
    let mut inputs = vec![args.x];
    inputs.extend(args.a_log);
    inputs.extend(args.dt_bias);
    Ok(Var::from_op1(OP, &inputs, y, || Box::new(gate)))
}

pub(super) const OP: &str = "decay_gate";

/// A checked call: contiguous logits, `[tokens, HV, n]`.
pub(super) struct Gate {
    pub(super) x: Tensor,
    pub(super) a_log: Option<Tensor>,
    pub(super) dt_bias: Option<Tensor>,
    pub(super) formula: DecayGate,
    pub(super) hv: usize,
    pub(super) n: usize,
}

impl Gate {
    fn new(a: &DecayGateArgs<'_>) -> Result<Gate> {
        let dims = a.x.dims();
        let (hv, n) = match (a.per_channel, dims) {
            (false, [.., hv]) => (*hv, 1),
            (true, [.., hv, k]) => (*hv, *k),
            _ => {
                let want = if a.per_channel { "[..., HV, K]" } else { "[..., HV]" };
                return Err(Error::shape(OP, "x", dims, want));
            }
        };
        super::formulas::check_parameters(OP, a.formula, a.a_log, a.dt_bias, hv, n)?;
        for (arg, x) in [("x", Some(a.x)), ("a_log", a.a_log), ("dt_bias", a.dt_bias)] {
            if let Some(x) = x
                && !x.dtype().is_float()
            {
                return Err(Error::dtype(OP, arg, x.dtype(), "a float dtype"));
            }
        }
        Ok(Gate {
            x: a.x.tensor().contiguous()?,
            a_log: a.a_log.map(|x| x.tensor().clone()),
            dt_bias: a.dt_bias.map(|x| x.tensor().clone()),
            formula: a.formula,
            hv,
            n,
        })
    }

    /// `exp(A_log)` and the bias, in the type of the computation.
    fn params<R: Real>(&self) -> Result<(Vec<R>, Vec<R>)> {
        let read = |t: &Option<Tensor>, default: f64, n: usize| match t {
            Some(t) => t.to_f64_vec(),
            None => Ok(vec![default; n]),
        };
        let a = read(&self.a_log, 0.0, self.hv)?.into_iter().map(|x| R::from_f64(x.exp())).collect();
        let bias = read(&self.dt_bias, 0.0, self.hv * self.n)?.into_iter().map(R::from_f64).collect();
        Ok((a, bias))
    }

    fn forward<R: Real>(&self) -> Result<Tensor> {
        match self.x.dtype() {
            DType::BF16 => self.forward_from::<R, bf16>(),
            DType::F16 => self.forward_from::<R, f16>(),
            _ => self.forward_from::<R, R>(),
        }
    }

    fn forward_from<R: Real, E: Element>(&self) -> Result<Tensor> {
        let (a, bias) = self.params::<R>()?;
        let mut y = Tensor::empty(self.x.dims(), R::DTYPE, &self.x.device())?;
        let row = self.hv * self.n;
        if self.x.numel() == 0 {
            return Ok(y);
        }
        let (x, out) = (self.x.as_slice::<E>()?, y.as_mut_slice::<R>()?);
        out.par_chunks_mut(BLOCK * row).zip(x.par_chunks(BLOCK * row)).for_each(|(out, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (out, x) in out.chunks_exact_mut(row).zip(x.chunks_exact(row)) {
                        for h in 0..self.hv {
                            for i in h * self.n..(h + 1) * self.n {
                                out[i] = self.formula.value(R::from_f64(x[i].to_f64()) + bias[i], a[h]);
                            }
                        }
                    }
                },
            )
        });
        Ok(y)
    }

    /// Gradients of x, `A_log` and `dt_bias`.
    fn backward_from<R: Real, E: Element>(&self, dy: &Tensor) -> Result<(Tensor, Vec<f64>, Vec<f64>)> {
        let (a, bias) = self.params::<R>()?;
        let row = self.hv * self.n;
        let mut dx = Tensor::empty(self.x.dims(), R::DTYPE, &self.x.device())?;
        let (mut d_a, mut d_bias) = (vec![0f64; self.hv], vec![0f64; row]);
        if self.x.numel() == 0 {
            return Ok((dx, d_a, d_bias));
        }
        let dy = dy.contiguous()?;
        let (x, g, out) = (self.x.as_slice::<E>()?, dy.as_slice::<R>()?, dx.as_mut_slice::<R>()?);
        let blocks = x.par_chunks(BLOCK * row).zip(g.par_chunks(BLOCK * row));
        let sums: Vec<(Vec<f64>, Vec<f64>)> = out
            .par_chunks_mut(BLOCK * row)
            .zip(blocks)
            .map(|(out, (x, g))| {
                let (mut d_a, mut d_bias) = (vec![0f64; self.hv], vec![0f64; row]);
                vectorized(
                    #[inline(always)]
                    || {
                        for (t, out) in out.chunks_exact_mut(row).enumerate() {
                            let (x, g) = (&x[t * row..][..row], &g[t * row..][..row]);
                            for h in 0..self.hv {
                                for i in h * self.n..(h + 1) * self.n {
                                    let logit = R::from_f64(x[i].to_f64()) + bias[i];
                                    let (by_x, by_a) = self.formula.derivatives(logit, a[h]);
                                    out[i] = g[i] * by_x;
                                    d_bias[i] += out[i].to_f64();
                                    d_a[h] += (g[i] * by_a).to_f64();
                                }
                            }
                        }
                    },
                );
                (d_a, d_bias)
            })
            .collect();
        for (a, b) in sums {
            d_a.iter_mut().zip(a).for_each(|(s, x)| *s += x);
            d_bias.iter_mut().zip(b).for_each(|(s, x)| *s += x);
        }
        Ok((dx, d_a, d_bias))
    }
}

impl Backward for Gate {
    fn backward(
        self: Box<Self>,
        _: &mut BackwardCtx<'_>,
        mut grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let params = [&self.a_log, &self.dt_bias];
        let Some(dy) = grads[0].take() else {
            return Ok(vec![None; 1 + params.iter().filter(|p| p.is_some()).count()]);
        };
        if self.x.device() != Device::Cpu {
            return cuda::backward(&self, &dy);
        }
        let (dx, d_a, d_bias) = match self.x.dtype() {
            DType::F64 => self.backward_from::<f64, f64>(&dy)?,
            DType::F32 => self.backward_from::<f32, f32>(&dy)?,
            DType::BF16 => self.backward_from::<f32, bf16>(&dy)?,
            _ => self.backward_from::<f32, f16>(&dy)?,
        };
        let mut out = vec![Some(dx.to_dtype(self.x.dtype())?)];
        for (param, grad) in params.into_iter().zip([d_a, d_bias]) {
            if let Some(p) = param {
                out.push(Some(Tensor::from_vec(grad, p.dims())?.to_dtype(p.dtype())?));
            }
        }
        Ok(out)
    }
}
