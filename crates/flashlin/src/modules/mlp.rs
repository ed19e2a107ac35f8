//! The gated MLP.

use flashlin_ops::activation::swiglu;
use flashlin_tensor::Var;

use super::{Linear, linears};
use crate::{
    Result,
    config::BaseConfig,
    init::Init,
    layer::{Layer, LayerCtx},
};

/// down(silu(gate(x)) * up(x)) (Shazeer, GLU Variants Improve Transformer, 2020).
pub struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    width: usize,
}

impl GatedMlp {
    /// Builds the layer.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(init: &Init, base: &BaseConfig) -> Result<Self> {
        let (d, width) = (base.hidden_size, base.mlp_size());
        Ok(GatedMlp {
            gate: Linear::new(&init.sub("gate_proj"), d, width, false)?,
            up: Linear::new(&init.sub("up_proj"), d, width, false)?,
            down: Linear::new(&init.sub("down_proj"), width, d, false)?,
            width,
        })
    }
}

impl Layer for GatedMlp {
    fn forward(&self, x: &Var, _ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let ([gate, up], []) = linears(x, [&self.gate, &self.up], [])?;
        self.down.forward(&swiglu(&gate, &up)?)
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("GatedMlp(width {})", self.width)
    }
}
