//! Lower bounds of forget gates, learnt for all layers together (HGRN, HGRN2): later layers forget less.

use std::sync::Arc;

use flashlin_ops::{gate::log_sigmoid_gate, maps::softmax};
use flashlin_tensor::{Parameter, Var};

use crate::{
    Result,
    config::BaseConfig,
    init::{Dist, Init, Role},
};

/// The forget gate of one layer: sigmoid, above the layer's bound.
pub(crate) struct LowerBound {
    /// `[layers, hidden]`; None for the first layer, whose bound is 0, and for models without bounds.
    table: Option<Arc<Parameter>>,
    layer: usize,
}

impl LowerBound {
    /// The gate of block `layer`; the table is made (and kept in checkpoints) also where only the first layer would read it.
    pub fn new(init: &Init, base: &BaseConfig, used: bool, layer: usize) -> Result<Self> {
        let dims = [base.num_hidden_layers, base.hidden_size];
        let key = "model.lower_bounds";
        let table = if used { Some(init.shared(key, &dims, Dist::Zeros, Role::NoDecay)?) } else { None };
        Ok(LowerBound { table: table.filter(|_| layer > 0), layer })
    }

    /// `ln(bound + (1 - bound) sigmoid(f))` of logits `[.., hidden]`, in f32 (f64 for f64).
    pub fn log_decay(&self, f: &Var) -> Result<Var> {
        let f = f.to_dtype(f.dtype().accumulator())?;
        let g = log_sigmoid_gate(&f, 1.0, None)?;
        let Some(table) = &self.table else { return Ok(g) };
        // Shares of the layers by softmax; the bound of layer l is the sum of those of layers 1 to l.
        let shares = softmax(&table.var().to_dtype(g.dtype())?.transpose(0, 1)?)?;
        let bound = shares.narrow(1, 1, self.layer)?.sum(&[1], false)?;
        // The smallest normal number: a bound that underflows to 0 has no logarithm.
        let floor = bound.clamp(1.2e-38, 1.0)?.log()?;
        let rest = bound.neg()?.affine(1.0, 1.0)?.clamp(1.2e-38, 1.0)?.log()?.add(&g)?;
        // ln(e^a + e^b) = a + softplus(b - a)
        Ok(floor.add(&rest.sub(&floor)?.softplus()?)?)
    }
}
