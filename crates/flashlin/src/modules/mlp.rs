//! The gated MLP.

use flashlin_ops::activation::swiglu_linear;
use flashlin_tensor::Var;

use super::Linear;
use crate::{
    Result,
    config::BaseConfig,
    init::{Dist, Init},
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
        Self::with_down(init, base, Dist::Normal(init.std()))
    }

    /// As [`GatedMlp::new`] with another distribution of the last map's weights.
    ///
    /// # Errors
    /// When memory is short.
    pub fn with_down(init: &Init, base: &BaseConfig, down: Dist) -> Result<Self> {
        let (d, width) = (base.hidden_size, base.mlp_size());
        Ok(GatedMlp {
            gate: Linear::new(&init.sub("gate_proj"), d, width, false)?,
            up: Linear::new(&init.sub("up_proj"), d, width, false)?,
            down: Linear::with_init(&init.sub("down_proj"), width, d, false, down)?,
            width,
        })
    }
}

impl Layer for GatedMlp {
    fn forward(&self, x: &Var, _ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let (gate, up) = (self.gate.weight().var(), self.up.weight().var());
        self.down.forward(&swiglu_linear(x, &gate, &up)?)
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("GatedMlp(width {})", self.width)
    }
}
