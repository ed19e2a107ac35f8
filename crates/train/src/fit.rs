//! Training on batches that the caller makes: for synthetic tasks, whose data is drawn and never stored.
//!
//! The steps are those of [`crate::Trainer`]; there is no folder, so nothing can be resumed.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{
    Error, Result,
    config::{LoopConfig, OptimConfig},
    data::Batch,
    gradient::step_gradient,
    optim::AdamW,
    schedule::Schedule,
    trainable::Trainable,
};

/// Trains `model` for `how.steps` steps of `how.accumulate` batches each; `batches` makes the batch with a number. Every `interval`
/// steps, and after the last, `on_step` hears the number of steps and their last loss in nats. Ends early when `stop` becomes true.
///
/// # Errors
/// Settings that cannot be used, a loss that is not finite when it is looked at, those of model and optimizer.
pub fn fit<M: Trainable>(
    model: &M,
    how: &LoopConfig,
    optim: &OptimConfig,
    schedule: &Schedule,
    mut batches: impl FnMut(u64) -> Batch,
    interval: u64,
    mut on_step: impl FnMut(u64, f64),
    stop: &AtomicBool,
) -> Result<()> {
    schedule.validate()?;
    let mut optimizer = AdamW::new(optim, model.params(), |name| model.wants_weight_decay(name))?;
    let accumulate = how.accumulate.max(1) as u64;
    for step in 0..how.steps {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let micro: Vec<Batch> = (0..accumulate).map(|i| batches(step * accumulate + i)).collect();
        let gradient = step_gradient(model, &micro, how, false)?;
        let status = optimizer.step(&gradient.grads, schedule.lr(step), &gradient.loss)?;
        let done = step + 1;
        if done.is_multiple_of(interval.max(1)) || done == how.steps {
            let loss = gradient.loss.to_scalar()?;
            if !loss.is_finite() {
                return Err(Error::Diverged { step: done, skipped: status.read()?.skipped_in_a_row });
            }
            on_step(done, loss);
        }
    }
    Ok(())
}
