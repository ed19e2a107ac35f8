//! AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) over a whole parameter list at once.
//!
//! Policy: one call updates every parameter; what it decides on (gradient norm, clip factor, whether everything is finite) stays in
//! small tensors beside the parameters and is read when somebody logs, never by the step itself. A step whose loss or gradient norm
//! is not finite changes nothing but a counter. Moments and master weights are f32; blocks of work have a fixed size, so the bits do
//! not depend on the number of threads. On a GPU the same is queued and nothing waits (`device.rs`).

mod checks;
mod device;
mod kernel;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use checks::run_checks;

use flashlin_tensor::{DType, Device, Gradients, Parameter, Tensor};
use rayon::prelude::*;

use crate::{Error, Result, config::OptimConfig};
use kernel::Coefficients;

/// Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// One parameter with what the optimizer keeps for it.
struct Slot {
    param: Arc<Parameter>,
    decay: bool,
    /// Running mean of gradients, f32, shape of the parameter.
    mean: Tensor,
    /// Running mean of squared gradients, f32, shape of the parameter.
    square: Tensor,
    /// f32 weights behind a half-precision parameter.
    master: Option<Tensor>,
}

/// What one step decided, as tensors on the parameters' device: `values` `[3..]` (norm before clipping, clip factor, 1 if applied)
/// and `counters` `[3]` (steps applied, steps skipped, steps skipped in a row until now), f64 and i64 on the CPU, f32 on a GPU.
#[derive(Debug, Clone)]
pub struct StepStatus {
    values: Tensor,
    counters: Tensor,
}

/// [`StepStatus`], read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepValues {
    /// Global L2 norm of all gradients before clipping.
    pub grad_norm: f64,
    /// What the gradients were multiplied by: min(1, max_norm / norm).
    pub clip: f64,
    /// False when the step was skipped because the loss or the norm was not finite.
    pub applied: bool,
    /// Steps applied since the beginning of the run.
    pub applied_steps: u64,
    /// Steps skipped since the beginning of the run.
    pub skipped_steps: u64,
    /// Steps skipped one after the other until now.
    pub skipped_in_a_row: u64,
}

impl StepStatus {
    /// Reads the values; on an accelerator this waits for the step.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self) -> Result<StepValues> {
        let (v, c) = (self.values.to_f64_vec()?, self.counters.to_f64_vec()?);
        Ok(StepValues {
            grad_norm: v[0],
            clip: v[1],
            applied: v[2] != 0.0,
            applied_steps: c[0] as u64,
            skipped_steps: c[1] as u64,
            skipped_in_a_row: c[2] as u64,
        })
    }
}

/// The optimizer: moments, master weights and counters of a parameter list.
pub struct AdamW {
    config: OptimConfig,
    slots: Vec<Slot>,
    counters: Tensor,
}

impl AdamW {
    /// Zero moments for `params`; `wants_decay(name)` says which of them decay.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible settings or parameters that are neither f32, bf16 nor f16; memory.
    pub fn new(
        config: &OptimConfig,
        params: &[Arc<Parameter>],
        wants_decay: impl Fn(&str) -> bool,
    ) -> Result<AdamW> {
        config.validate()?;
        let slots = params.iter().map(|p| Slot::new(p, wants_decay(p.name()))).collect::<Result<_>>()?;
        let device = params.first().map_or(Device::Cpu, |p| p.tensor().device());
        let counting = if device == Device::Cpu { DType::I64 } else { DType::F32 };
        let counters = Tensor::zeros(&[3], counting, &device)?;
        Ok(AdamW { config: config.clone(), slots, counters })
    }

    /// Updates all parameters in place with the gradients of one (accumulated) step at learning rate `lr`. `loss` is looked at only
    /// to see that it is finite. Parameters without a gradient stay as they are.
    ///
    /// # Errors
    /// Memory; a parameter that changed its dtype since [`AdamW::new`].
    pub fn step(&mut self, grads: &Gradients, lr: f64, loss: &Tensor) -> Result<StepStatus> {
        let grads: Vec<Option<Tensor>> = self
            .slots
            .iter()
            .map(|s| grads.get_param(&s.param).map(Tensor::contiguous).transpose())
            .collect::<flashlin_tensor::Result<_>>()?;
        if self.counters.device() != Device::Cpu {
            return self.queue(&grads, lr, loss);
        }
        let values = self.decide(&grads, loss)?;
        let status = StepStatus { values, counters: self.counters.copy()? };
        let Some(by) = self.coefficients(&status, lr)? else { return Ok(status) };
        self.slots
            .par_iter_mut()
            .zip(&grads)
            .filter_map(|(slot, grad)| Some((slot, grad.as_ref()?)))
            .try_for_each(|(slot, grad)| slot.update(grad, &by))?;
        Ok(status)
    }

    /// Norm, clip factor and whether to apply; counts.
    fn decide(&mut self, grads: &[Option<Tensor>], loss: &Tensor) -> Result<Tensor> {
        let norm = global_norm(grads)?;
        let max = self.config.max_norm;
        let clip = if max > 0.0 { (max / (norm + CLIP_EPS)).min(1.0) } else { 1.0 };
        let finite = norm.is_finite() && loss.sum_squares()?.is_finite();
        let apply = finite || !self.config.skip_non_finite;
        own(&mut self.counters)?;
        let counters = self.counters.as_mut_slice::<i64>()?;
        match apply {
            true => (counters[0], counters[2]) = (counters[0] + 1, 0),
            false => (counters[1], counters[2]) = (counters[1] + 1, counters[2] + 1),
        }
        Ok(Tensor::from_slice(&[norm, clip, f64::from(u8::from(apply))], &[3])?)
    }

    /// The factors of this update; None when it is skipped. Bias correction counts applied steps only.
    fn coefficients(&self, status: &StepStatus, lr: f64) -> Result<Option<Coefficients>> {
        let s = status.read()?;
        let [b1, b2] = self.config.betas;
        let t = i32::try_from(s.applied_steps).unwrap_or(i32::MAX);
        Ok(s.applied.then(|| Coefficients {
            beta1: b1 as f32,
            beta2: b2 as f32,
            one_minus_beta1: (1.0 - b1) as f32,
            one_minus_beta2: (1.0 - b2) as f32,
            step: (lr / (1.0 - b1.powi(t))) as f32,
            square_scale: (1.0 / (1.0 - b2.powi(t)).sqrt()) as f32,
            eps: self.config.eps as f32,
            keep: (1.0 - lr * self.config.weight_decay) as f32,
            clip: s.clip as f32,
        }))
    }

    /// Everything a resumed run needs, named for a safetensors file: `mean.<parameter>`, `square.<parameter>`, `master.<parameter>`
    /// and `counters`. A snapshot: later steps do not change it (they copy what is still held).
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut out = vec![("counters".to_string(), self.counters.clone())];
        for s in &self.slots {
            for (kind, t) in
                [("mean", Some(&s.mean)), ("square", Some(&s.square)), ("master", s.master.as_ref())]
            {
                out.extend(t.map(|t| (format!("{kind}.{}", s.param.name()), t.clone())));
            }
        }
        out
    }

    /// Takes back what [`AdamW::state`] gave. Half-precision parameters are set from their master weights.
    ///
    /// # Errors
    /// [`Error::State`] naming a tensor that is missing, unknown or of another shape or dtype.
    pub fn load_state(&mut self, tensors: Vec<(String, Tensor)>) -> Result<()> {
        let mut saved: std::collections::HashMap<String, Tensor> = tensors.into_iter().collect();
        let mut take = |name: String, like: &Tensor| {
            let t = saved
                .remove(&name)
                .ok_or_else(|| Error::State(format!("optimizer tensor `{name}` is missing")))?;
            // Counters are integers on the CPU and f32 on a GPU: a run may go on elsewhere.
            let t = if name == "counters" { t.to_dtype(like.dtype())? } else { t };
            if t.dims() != like.dims() || t.dtype() != like.dtype() {
                let (got, want) = ((t.dtype(), t.dims()), (like.dtype(), like.dims()));
                return Err(Error::State(format!(
                    "optimizer tensor `{name}` is {got:?}, the model needs {want:?}"
                )));
            }
            Ok(if t.device() == like.device() { t.copy()? } else { t.to_device(&like.device())? })
        };
        self.counters = take("counters".into(), &self.counters)?;
        for slot in &mut self.slots {
            let name = slot.param.name();
            slot.mean = take(format!("mean.{name}"), &slot.mean)?;
            slot.square = take(format!("square.{name}"), &slot.square)?;
            if let Some(master) = &mut slot.master {
                *master = take(format!("master.{name}"), master)?;
                slot.param.set(master.to_dtype(slot.param.dtype())?)?;
            }
        }
        match saved.keys().min() {
            Some(name) => {
                Err(Error::State(format!("optimizer tensor `{name}` belongs to no parameter of the model")))
            }
            None => Ok(()),
        }
    }

    /// Bytes of moments and master weights.
    pub fn bytes(&self) -> usize {
        self.state().iter().map(|(_, t)| t.numel() * t.dtype().size()).sum()
    }
}

/// L2 norm over all gradients: squares in f64 in fixed blocks, summed in the order of the parameters.
fn global_norm(grads: &[Option<Tensor>]) -> Result<f64> {
    let squares: Vec<f64> =
        grads.par_iter().flatten().map(Tensor::sum_squares).collect::<flashlin_tensor::Result<_>>()?;
    Ok(squares.iter().sum::<f64>().sqrt())
}

/// Copies a tensor that somebody else holds too (a snapshot by [`AdamW::state`]), so that it can be written.
fn own(t: &mut Tensor) -> Result<()> {
    if !t.is_unique() {
        *t = t.copy()?;
    }
    Ok(())
}

impl Slot {
    fn new(param: &Arc<Parameter>, decay: bool) -> Result<Slot> {
        let value = param.tensor();
        let zeros = || Tensor::zeros(value.dims(), DType::F32, &value.device());
        let master = match value.dtype() {
            DType::F32 => None,
            DType::BF16 | DType::F16 => Some(value.to_dtype(DType::F32)?),
            other => {
                let problem =
                    format!("parameter `{}` is {other}; AdamW trains f32, bf16 and f16", param.name());
                return Err(Error::config("model.dtype", problem));
            }
        };
        Ok(Slot { param: param.clone(), decay, mean: zeros()?, square: zeros()?, master })
    }

    fn update(&mut self, grad: &Tensor, by: &Coefficients) -> Result<()> {
        let by = Coefficients { keep: if self.decay { by.keep } else { 1.0 }, ..*by };
        let grad = grad.to_dtype(DType::F32)?;
        for t in [Some(&mut self.mean), Some(&mut self.square), self.master.as_mut()].into_iter().flatten() {
            own(t)?;
        }
        let (g, m, v) = (grad.as_slice()?, self.mean.as_mut_slice()?, self.square.as_mut_slice()?);
        let master = &mut self.master;
        Ok(self.param.update(|value| match (value.dtype(), master) {
            (DType::BF16, Some(w)) => {
                kernel::step_half::<half::bf16>(value.as_mut_slice()?, w.as_mut_slice()?, m, v, g, &by);
                Ok(())
            }
            (DType::F16, Some(w)) => {
                kernel::step_half::<half::f16>(value.as_mut_slice()?, w.as_mut_slice()?, m, v, g, &by);
                Ok(())
            }
            _ => {
                kernel::step_f32(value.as_mut_slice()?, m, v, g, &by);
                Ok(())
            }
        })?)
    }
}
