//! The decoder, once for all models: blocks of (norm, sub-layer) pairs with residual connections, generic over
//! what the sub-layers are.

use std::sync::Arc;

use flashlin_ops::{Mode, PackedSeqs};
use flashlin_tensor::{DType, Var, checkpoint};

use crate::{
    Result,
    layer::{Layer, LayerCtx},
    modules::RmsNorm,
    state::{LayerState, StateSpec},
};

/// One residual branch of a block: x += layer(norm(x)).
pub struct SubLayer {
    /// Name of the sub-layer in checkpoint keys.
    pub key: &'static str,
    /// Normalisation before it.
    pub norm: RmsNorm,
    /// The mixer or MLP.
    pub layer: Box<dyn Layer>,
}

/// A block: residual branches in order.
pub struct Block {
    /// The branches.
    pub parts: Vec<SubLayer>,
    /// Keep the residual stream in f32 where the model computes in half precision.
    pub residual_f32: bool,
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

    fn forward(&self, x: &Var, pass: &PassCtx<'_>, mut state: Option<&mut LayerState>) -> Result<Var> {
        let mut x = if self.residual_f32 { x.to_dtype(x.dtype().accumulator())? } else { x.clone() };
        for part in &self.parts {
            let h = part.norm.forward(&x)?.to_dtype(pass.dtype)?;
            let mut ctx =
                LayerCtx { seqs: pass.seqs, mode: pass.mode, seen: pass.seen, state: state.as_deref_mut() };
            let y = part.layer.forward(&h, &mut ctx)?;
            x = x.add(&y.to_dtype(x.dtype())?)?;
        }
        Ok(x)
    }
}

/// Runs one block; under `recompute` only its inputs are kept for the backward pass.
pub(crate) fn run_block(
    block: &Arc<Block>,
    x: &Var,
    pass: &PassCtx<'_>,
    state: Option<&mut LayerState>,
    recompute: bool,
) -> Result<Var> {
    if !recompute {
        return block.forward(x, pass, state);
    }
    let block = block.clone();
    let (seqs, mode, seen, dtype) = (pass.seqs.cloned(), pass.mode, pass.seen.to_vec(), pass.dtype);
    let template = state.as_deref().cloned();
    let inputs: Vec<Var> = std::iter::once(x.clone())
        .chain(template.iter().flat_map(|s| s.tensors().iter().map(|t| t.value.clone())))
        .collect();
    let body = move |vars: &[Var]| {
        let mut state = template.clone();
        if let Some(s) = &mut state {
            s.tensors_mut().iter_mut().zip(&vars[1..]).for_each(|(t, v)| t.value = v.clone());
        }
        let pass = PassCtx { seqs: seqs.as_ref(), mode, seen: &seen, dtype };
        let y = block.forward(&vars[0], &pass, state.as_mut()).map_err(crate::Error::into_tensor)?;
        let after = state.iter().flat_map(|s| s.tensors().iter().map(|t| t.value.clone()));
        Ok(std::iter::once(y).chain(after).collect())
    };
    let mut outputs = checkpoint(body, &inputs.iter().collect::<Vec<_>>())?.into_iter();
    let y = outputs.next().ok_or_else(|| crate::Error::state("a recomputed block returned nothing"))?;
    if let Some(s) = state {
        s.tensors_mut().iter_mut().zip(outputs).for_each(|(t, v)| t.value = v);
    }
    Ok(y)
}
