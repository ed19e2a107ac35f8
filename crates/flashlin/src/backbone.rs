//! The decoder, once for all models: blocks of (norm, sub-layer) pairs with residual connections, generic over
//! what the sub-layers are.

use std::sync::{Arc, Mutex};

use flashlin_ops::{Mode, PackedSeqs};
use flashlin_tensor::{DType, Var, checkpoint};

use crate::{
    Result,
    layer::{Carried, Layer, LayerCtx},
    modules::Norm,
    state::{LayerState, StateSpec},
};

/// One residual branch of a block: x += layer(norm(x)).
pub struct SubLayer {
    /// Name of the sub-layer in checkpoint keys.
    pub key: &'static str,
    /// Normalisation before it.
    pub norm: Norm,
    /// The mixer or MLP.
    pub layer: Box<dyn Layer>,
}

/// A block: residual branches in order.
pub struct Block {
    /// Normalises the residual stream itself before the first branch (RWKV's first block).
    pub entry: Option<Norm>,
    /// The branches.
    pub parts: Vec<SubLayer>,
    /// Keep the residual stream in f32 where the model computes in half precision.
    pub residual_f32: bool,
}

/// The residual stream on its way through the blocks: what it holds, and the output of the last branch, which the next norm adds as it reads both.
#[derive(Clone)]
pub(crate) struct Stream {
    x: Var,
    branch: Option<Var>,
}

impl Stream {
    /// A stream that begins with `x`.
    pub fn new(x: Var) -> Self {
        Stream { x, branch: None }
    }

    /// All of it as one variable.
    pub fn sum(&self) -> Result<Var> {
        match &self.branch {
            Some(branch) => Ok(self.x.add(&branch.to_dtype(self.x.dtype())?)?),
            None => Ok(self.x.clone()),
        }
    }

    /// norm(x + branch); the stream holds the sum from here on.
    pub fn normed(&mut self, norm: &Norm) -> Result<Var> {
        let Some(branch) = self.branch.take() else { return norm.forward(&self.x) };
        let (normed, sum) = norm.forward_sum(&branch, &self.x)?;
        self.x = sum;
        Ok(normed)
    }
}

/// What all blocks of one forward pass share.
pub(crate) struct PassCtx<'a> {
    pub seqs: Option<&'a PackedSeqs>,
    pub mode: Mode,
    pub seen: &'a [usize],
    pub dtype: DType,
}

impl Block {
    /// The tensors of this block's state.
    pub fn state_spec(&self) -> Vec<StateSpec> {
        self.parts.iter().flat_map(|p| p.layer.state_spec()).collect()
    }

    fn forward(
        &self,
        mut x: Stream,
        pass: &PassCtx<'_>,
        mut state: Option<&mut LayerState>,
        carried: &mut Carried,
    ) -> Result<Stream> {
        if let Some(norm) = &self.entry {
            x = Stream::new(norm.forward(&x.sum()?)?);
        }
        if self.residual_f32 {
            x.x = x.x.to_dtype(x.x.dtype().accumulator())?;
        }
        for part in &self.parts {
            let h = x.normed(&part.norm)?.to_dtype(pass.dtype)?;
            let mut ctx = LayerCtx {
                seqs: pass.seqs,
                mode: pass.mode,
                seen: pass.seen,
                state: state.as_deref_mut(),
                carried: std::mem::take(carried),
            };
            x.branch = Some(part.layer.forward(&h, &mut ctx)?);
            *carried = ctx.carried;
        }
        Ok(x)
    }
}

/// Runs one block; under `recompute` only its inputs are kept for the backward pass.
pub(crate) fn run_block(
    block: &Arc<Block>,
    x: Stream,
    pass: &PassCtx<'_>,
    state: Option<&mut LayerState>,
    carried: &mut Carried,
    recompute: bool,
) -> Result<Stream> {
    if !recompute {
        return block.forward(x, pass, state, carried);
    }
    let block = block.clone();
    let (seqs, mode, seen, dtype) = (pass.seqs.cloned(), pass.mode, pass.seen.to_vec(), pass.dtype);
    let template = state.as_deref().cloned();
    // One variable is kept, not the two of an open sum.
    let inputs: Vec<Var> = std::iter::once(x.sum()?)
        .chain(carried.values().cloned())
        .chain(template.iter().flat_map(|s| s.tensors().iter().map(|t| t.value.clone())))
        .collect();
    let names: Vec<&'static str> = carried.keys().copied().collect();
    // What the block leaves for later ones is known once it ran.
    let left = Arc::new(Mutex::new(Vec::new()));
    let leaving = left.clone();
    let body = move |vars: &[Var]| {
        let mut state = template.clone();
        let mut carried: Carried = names.iter().copied().zip(vars[1..].iter().cloned()).collect();
        if let Some(s) = &mut state {
            s.tensors_mut().iter_mut().zip(&vars[1 + names.len()..]).for_each(|(t, v)| t.value = v.clone());
        }
        let pass = PassCtx { seqs: seqs.as_ref(), mode, seen: &seen, dtype };
        let y = block.forward(Stream::new(vars[0].clone()), &pass, state.as_mut(), &mut carried);
        let y = y.and_then(|y| y.sum()).map_err(crate::Error::into_tensor)?;
        let after = state.iter().flat_map(|s| s.tensors().iter().map(|t| t.value.clone()));
        *lock(&leaving) = carried.keys().copied().collect();
        Ok(std::iter::once(y).chain(carried.values().cloned()).chain(after).collect())
    };
    let mut outputs = checkpoint(body, &inputs.iter().collect::<Vec<_>>())?.into_iter();
    let y = outputs.next().ok_or_else(|| crate::Error::state("a recomputed block returned nothing"))?;
    *carried = lock(&left).iter().copied().zip(outputs.by_ref()).collect();
    if let Some(s) = state {
        s.tensors_mut().iter_mut().zip(outputs).for_each(|(t, v)| t.value = v);
    }
    Ok(Stream::new(y))
}

/// The value, also after a panic elsewhere: it is replaced as a whole.
fn lock<T>(x: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    x.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
