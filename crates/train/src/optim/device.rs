//! The step on a GPU: decided and applied there, in the order of the queue.
//!
//! Policy: everything that takes memory comes before the first launch that changes something, so that an out-of-memory error leaves
//! weights, moments and counters as they were and training can go on with less.

use flashlin_tensor::{
    DType, Tensor,
    cuda::adamw::{self, AdamwFactors, AdamwUpdate},
};

use super::{AdamW, Slot, StepStatus, own};
use crate::Result;

impl AdamW {
    /// [`AdamW::step`] with contiguous gradients on a GPU.
    pub(super) fn queue(&mut self, grads: &[Option<Tensor>], lr: f64, loss: &Tensor) -> Result<StepStatus> {
        let by = AdamwFactors {
            betas: self.config.betas,
            eps: self.config.eps,
            max_norm: self.config.max_norm,
            skip_non_finite: self.config.skip_non_finite,
        };
        let wide = |g: &Option<Tensor>| g.as_ref().map(|g| g.to_dtype(DType::F32)).transpose();
        let grads = grads.iter().map(wide).collect::<flashlin_tensor::Result<Vec<_>>>()?;
        own(&mut self.counters)?;
        for (slot, _) in self.slots.iter_mut().zip(&grads).filter(|(_, g)| g.is_some()) {
            slot.own_all()?;
        }
        let present: Vec<&Tensor> = grads.iter().flatten().collect();
        let decided = adamw::decide(&present, loss, &mut self.counters, &by)?;
        for (slot, grad) in self.slots.iter_mut().zip(&grads) {
            let Some(grad) = grad else { continue };
            let keep = if slot.decay { 1.0 - lr * self.config.weight_decay } else { 1.0 };
            let Slot { param, mean, square, master, .. } = slot;
            param.update(|param| {
                let u = AdamwUpdate { param, master: master.as_mut(), mean, square, grad };
                decided.update(u, &by, [lr, keep])
            })?;
        }
        Ok(StepStatus { values: decided.values().clone(), counters: self.counters.copy()? })
    }
}

impl Slot {
    /// Copies what somebody else holds too (a snapshot, a mapped file), so that the updates find it writable.
    fn own_all(&mut self) -> Result<()> {
        for t in [Some(&mut self.mean), Some(&mut self.square), self.master.as_mut()].into_iter().flatten() {
            own(t)?;
        }
        Ok(self.param.update(|_| Ok(()))?)
    }
}
