//! One token a row on a GPU, recorded once and replayed: a launch costs the host more than most kernels take, and a step has hundreds.
//!
//! Policy: recorded is whatever the step launches. The step reads ids from one place and leaves logits in another; a state tensor that it updates where
//! it lies needs nothing, one that it replaces is copied back at the end. Models whose steps depend on what came before (positions, a
//! growing cache) are launched step by step, and so is everything that a recording cannot hold: the results are the same.

use flashlin_ops::Mode;
use flashlin_tensor::{
    DType, Device, Tensor, Var,
    cuda::{Place, Recording, record},
    in_pool, no_grad,
};

use crate::{Error, ForwardOptions, Input, Logits, Model, ModelState, Result};

/// A recorded step of some number of rows, over the state that [`RecordedStep::new`] returned beside it.
#[derive(Debug)]
pub struct RecordedStep {
    recording: Recording,
    ids: Place,
    /// `[rows, 1, V]` on the device, written by every replay.
    logits: Tensor,
    /// The largest of each row and its token, `[rows, 1]`.
    best: (Tensor, Tensor),
    /// Where the state lay: replays go on there.
    addresses: Vec<u64>,
    /// What the step reads besides must not move: later changes of the model's weights are not seen.
    _weights: Vec<Tensor>,
}

impl RecordedStep {
    /// True where every one-token step of the model launches the same work, on a device that can record it.
    pub fn serves(model: &Model) -> bool {
        model.device() != Device::Cpu && model.steps_alike()
    }

    /// Records a step that continues from a copy of `state`, which is returned; `state` itself stays as it is. Takes one step more than is
    /// recorded to learn which tensors a step replaces, so that kernels and tables are there too.
    ///
    /// # Errors
    /// A model that [`RecordedStep::serves`] not; memory; work that no recording holds: the error names it.
    pub fn new(model: &Model, state: &ModelState) -> Result<(RecordedStep, ModelState)> {
        if !Self::serves(model) {
            let what = format!("recording a step of {} on {}", model.config().model_type(), model.device());
            return Err(Error::unsupported(what, "models without positions, on cuda:N"));
        }
        // On one thread, which has the device to itself while it records.
        in_pool(|| Self::build(model, state))
    }

    fn build(model: &Model, state: &ModelState) -> Result<(RecordedStep, ModelState)> {
        let ids = Place::of(Tensor::zeros(&[state.rows(), 1], DType::I64, &model.device())?)?;
        let replaced = replaced(model, &ids, state.fork()?)?;
        let mut own = state.fork()?;
        let addresses = addresses(&own)?;
        // Holding a tensor keeps a step from writing into it: only those that it replaces anyway.
        let kept: Vec<Option<Place>> = tensors(&own)
            .zip(&replaced)
            .map(|(t, replaced)| replaced.then(|| Place::of(t.tensor().clone())).transpose())
            .collect::<flashlin_tensor::Result<_>>()?;
        let (recording, (logits, best)) = record(&model.device(), || {
            let logits = step(model, &ids, &mut own)?;
            let best = logits.max_last()?;
            for (t, kept) in tensors_mut(&mut own).zip(&kept) {
                if let Some(place) = kept {
                    place.take_over(t.tensor())?;
                    *t = Var::constant(place.tensor().clone());
                }
            }
            Ok::<_, Error>((logits, best))
        })?;
        drop(kept);
        own.seen.copy_from_slice(state.seen());
        if addresses != self::addresses(&own)? {
            return Err(Error::state("moved while a step was recorded"));
        }
        let weights = model.params().iter().map(|p| p.tensor()).collect();
        Ok((RecordedStep { recording, ids, logits, best, addresses, _weights: weights }, own))
    }

    /// Queues a step: one token a row, from the state that belongs to this recording. The logits `[rows, 1, V]` are on the device, valid until the next
    /// step.
    ///
    /// # Errors
    /// Another state, ids that are not one a row of the vocabulary; a driver failure.
    pub fn run(&self, model: &Model, state: &mut ModelState, ids: &[u32]) -> Result<&Tensor> {
        if addresses(state)? != self.addresses {
            return Err(Error::state("is not the one that the recorded step belongs to"));
        }
        let (rows, vocab) = (state.rows(), model.config().base().vocab_size);
        if ids.len() != rows || ids.iter().any(|&id| id as usize >= vocab) {
            let problem = format!("are {} tokens, expected {rows} below {vocab}", ids.len());
            return Err(Error::argument("ids", problem));
        }
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        self.ids.send(&Tensor::from_vec(ids, &[rows, 1])?)?;
        self.recording.replay()?;
        state.seen.iter_mut().for_each(|n| *n += 1);
        Ok(&self.logits)
    }

    /// The most likely token of every row after the last step: two numbers a row leave the device, not its logits. Waits for the step.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where the largest logit is NaN or infinite; a failure of the step.
    pub fn greedy(&self) -> Result<Vec<u32>> {
        let (largest, ids) = (self.best.0.to_f64_vec()?, self.best.1.to_vec::<i64>()?);
        if let Some(row) = largest.iter().position(|x| !x.is_finite()) {
            let problem = format!("the largest is {}; the weights or the state are damaged", largest[row]);
            return Err(Error::NotFinite { what: format!("a logit of row {row}"), problem });
        }
        Ok(ids.into_iter().map(|id| id as u32).collect())
    }

    /// Launches, copies and fills of one step.
    pub fn nodes(&self) -> usize {
        self.recording.nodes()
    }
}

/// One token a row, its ids on the device.
fn step(model: &Model, ids: &Place, state: &mut ModelState) -> Result<Tensor> {
    let options = ForwardOptions { mode: Mode::Auto, logits: Logits::Last(1), ..ForwardOptions::default() };
    let out = no_grad(|| model.forward(&Input::ids(ids.tensor().clone()), Some(state), &options))?;
    Ok(out.logits.ok_or_else(|| Error::state("gave no logits"))?.into_tensor().contiguous()?)
}

/// Which tensors of the state a step replaces instead of writing where they lie.
fn replaced(model: &Model, ids: &Place, mut state: ModelState) -> Result<Vec<bool>> {
    let before = addresses(&state)?;
    step(model, ids, &mut state)?.max_last()?;
    Ok(before.iter().zip(addresses(&state)?).map(|(a, b)| *a != b).collect())
}

fn tensors(state: &ModelState) -> impl Iterator<Item = &Var> {
    state.layers.iter().flat_map(|l| l.tensors()).map(|t| &t.value)
}

fn tensors_mut(state: &mut ModelState) -> impl Iterator<Item = &mut Var> {
    state.layers.iter_mut().flat_map(|l| l.tensors_mut()).map(|t| &mut t.value)
}

fn addresses(state: &ModelState) -> Result<Vec<u64>> {
    Ok(tensors(state).map(|t| t.tensor().device_address()).collect::<flashlin_tensor::Result<_>>()?)
}
