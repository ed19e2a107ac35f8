//! Gradients of one optimizer step: over micro-batches, and through the segments of long sequences.
//!
//! Policy: a micro-batch weighs by its number of targets, so k micro-batches give the gradient of one large batch. Long sequences
//! run in segments whose graph is freed before the next; with [`Carry::Exact`] the gradient flows back through the carried state:
//! states at segment boundaries are kept from a first pass without gradients, then segments are recomputed from the last to the
//! first. Beyond [`STORED`] segments boundaries are kept in levels, so memory grows with the logarithm of the length.

use flashlin_tensor::{DType, Gradients, Tensor, Var, no_grad};

use crate::{
    Result,
    config::{Carry, LoopConfig},
    data::Batch,
    pieces::{Unit, units},
    stats::{Stat, activation_stats},
    trainable::{CarriedState, PassOptions, Piece, Trainable},
};

/// Boundary states that are kept on each level.
const STORED: usize = 32;

/// The gradient of the mean loss over all targets of a step.
pub(crate) struct StepGradient {
    pub grads: Gradients,
    /// Mean loss over all targets, f32 scalar.
    pub loss: Tensor,
    /// Statistics of the first pass's layer outputs, where asked for.
    pub activations: Vec<Stat>,
}

/// Runs forward and backward over the micro-batches of a step.
pub(crate) fn step_gradient<M: Trainable>(
    model: &M,
    batches: &[Batch],
    how: &LoopConfig,
    want_activations: bool,
) -> Result<StepGradient> {
    let targets: u64 = batches.iter().map(|b| b.targets).sum();
    let device = model.params().first().map_or(flashlin_tensor::Device::Cpu, |p| p.tensor().device());
    let mut pass = Accumulate {
        model,
        options: PassOptions { recompute: how.checkpoint_layers, hidden_states: false },
        scale: 1.0 / targets.max(1) as f64,
        out: StepGradient {
            grads: Gradients::default(),
            loss: Tensor::zeros(&[], DType::F32, &device)?,
            activations: Vec::new(),
        },
        want_activations,
    };
    for batch in batches {
        for unit in units(batch, how.segment_len)? {
            match (unit, how.carry) {
                (Unit::Whole(piece), _) => pass.whole(&piece)?,
                (Unit::Long(segments), Carry::Truncated) => pass.truncated(&segments)?,
                (Unit::Long(segments), Carry::Exact) => {
                    let start = model.new_state(segments[0].rows())?;
                    pass.exact(&segments, start, false, Vec::new())?;
                }
            }
        }
    }
    Ok(pass.out)
}

struct Accumulate<'a, M> {
    model: &'a M,
    options: PassOptions,
    /// Weight of one target.
    scale: f64,
    out: StepGradient,
    want_activations: bool,
}

impl<M: Trainable> Accumulate<'_, M> {
    /// One forward pass; its loss (if it has one) and the weight of that.
    fn forward(&mut self, piece: &Piece, state: Option<&mut M::State>) -> Result<Option<(Var, Tensor)>> {
        let options = PassOptions { hidden_states: self.want_activations, ..self.options };
        let pass = self.model.pass(piece, state, options)?;
        if std::mem::take(&mut self.want_activations) {
            self.out.activations = activation_stats(&pass.hidden_states)?;
        }
        let Some(loss) = pass.loss.filter(|_| piece.counted > 0) else { return Ok(None) };
        let weight = piece.counted as f64 * self.scale;
        self.out.loss = self.out.loss.add(&loss.tensor().to_dtype(DType::F32)?.affine(weight, 0.0)?)?;
        let weight = Tensor::full(weight, loss.dims(), loss.dtype(), &loss.device())?;
        Ok(Some((loss, weight)))
    }

    fn backward(&mut self, roots: Vec<(&Var, Tensor)>) -> Result<()> {
        let tracked: Vec<_> = roots.into_iter().filter(|(v, _)| v.is_tracked()).collect();
        if !tracked.is_empty() {
            self.out.grads.add(Var::backward_with(tracked)?)?;
        }
        Ok(())
    }

    fn whole(&mut self, piece: &Piece) -> Result<()> {
        match self.forward(piece, None)? {
            Some((loss, weight)) => self.backward(vec![(&loss, weight)]),
            None => Ok(()),
        }
    }

    fn truncated(&mut self, segments: &[Piece]) -> Result<()> {
        let mut state = self.model.new_state(segments[0].rows())?;
        for piece in segments {
            state = state.detach()?;
            if let Some((loss, weight)) = self.forward(piece, Some(&mut state))? {
                self.backward(vec![(&loss, weight)])?;
            }
        }
        Ok(())
    }

    /// Segments from the state `start`; `after` is the gradient of the state behind the last one (empty: none). Gives the gradient
    /// of `start` if `track` asks for it.
    fn exact(
        &mut self,
        segments: &[Piece],
        start: M::State,
        track: bool,
        after: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        if let [only] = segments {
            return self.segment(only, start, track, after);
        }
        let groups: Vec<&[Piece]> = segments.chunks(segments.len().div_ceil(STORED)).collect();
        let mut states = vec![start];
        for group in &groups[..groups.len() - 1] {
            let mut state = states[states.len() - 1].detach()?;
            no_grad(|| {
                group.iter().try_for_each(|piece| {
                    let piece = piece.without_targets();
                    self.model.pass(&piece, Some(&mut state), PassOptions::default()).map(|_| ())
                })
            })?;
            states.push(state);
        }
        let mut grads = after;
        for (i, group) in groups.iter().enumerate().rev() {
            // The state is dropped as soon as its segments are done.
            let Some(state) = states.pop() else { break };
            grads = self.exact(group, state, track || i > 0, grads)?;
        }
        Ok(grads)
    }

    fn segment(
        &mut self,
        piece: &Piece,
        start: M::State,
        track: bool,
        after: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut state = if track { start.as_leaves()? } else { start.detach()? };
        let leaves = if track { state.vars() } else { Vec::new() };
        let loss = self.forward(piece, Some(&mut state))?;
        let ends = state.vars();
        let carried = ends.iter().zip(after).filter_map(|(v, g)| Some((v, g?)));
        let roots: Vec<_> = loss.iter().map(|(l, w)| (l, w.clone())).chain(carried).collect();
        let tracked: Vec<_> = roots.into_iter().filter(|(v, _)| v.is_tracked()).collect();
        if tracked.is_empty() {
            return Ok(vec![None; leaves.len()]);
        }
        let grads = Var::backward_with(tracked)?;
        let at_start = leaves.iter().map(|v| grads.get(v).cloned()).collect();
        self.out.grads.add(grads)?;
        Ok(at_start)
    }
}

/// Mean loss over a batch without gradients: pairs of (mean loss, targets) whose weighted sum is the whole.
pub(crate) fn losses<M: Trainable>(
    model: &M,
    batch: &Batch,
    segment_len: Option<usize>,
) -> Result<Vec<(Tensor, u64)>> {
    let mut out = Vec::new();
    let mut run = |piece: &Piece, state: Option<&mut M::State>| -> Result<()> {
        let pass = no_grad(|| model.pass(piece, state, PassOptions::default()))?;
        out.extend(pass.loss.filter(|_| piece.counted > 0).map(|l| (l.into_tensor(), piece.counted)));
        Ok(())
    };
    for unit in units(batch, segment_len)? {
        match unit {
            Unit::Whole(piece) => run(&piece, None)?,
            Unit::Long(segments) => {
                let mut state = model.new_state(segments[0].rows())?;
                segments.iter().try_for_each(|piece| run(piece, Some(&mut state)))?;
            }
        }
    }
    Ok(out)
}
