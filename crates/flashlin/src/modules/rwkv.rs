//! What RWKV-6 and RWKV-7 share: the token shift with its state, low-rank maps, their block.

use flashlin_ops::{activation::activate, rwkv};
use flashlin_tensor::{DType, Var};

use super::{Activation, Attention, Linear, Norm};
use crate::{
    Result,
    backbone::{Block, SubLayer},
    config::BaseConfig,
    init::{Dist, Init},
    layer::{Layer, LayerCtx},
    state::{StateKind, StateSpec},
};

/// The token before each token; its state is the last token of each sequence.
#[derive(Clone, Copy, Debug)]
pub struct TokenShift {
    state: &'static str,
}

impl TokenShift {
    /// `state` names its state within the block.
    pub fn new(state: &'static str) -> Self {
        TokenShift { state }
    }

    /// `[B, T, D]` to the same shape.
    ///
    /// # Errors
    /// When boundaries or the state do not fit.
    pub fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let Some(state) = ctx.state.as_deref_mut() else {
            return Ok(rwkv::token_shift(x, ctx.seqs, None)?.previous);
        };
        let shifted = rwkv::token_shift(x, ctx.seqs, Some(&state.get(self.state)?))?;
        state.set(self.state, shifted.last)?;
        Ok(shifted.previous)
    }

    /// The tensor of its state.
    pub fn state_spec(&self, hidden: usize, dtype: DType) -> StateSpec {
        StateSpec { name: self.state, kind: StateKind::Shift, layout: None, dims: vec![hidden], dtype }
    }
}

/// What stands between the two maps of a [`Lora`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    /// Nothing.
    Plain,
    /// tanh
    Tanh,
    /// sigmoid
    Sigmoid,
}

/// Two maps through a bottleneck with an activation between them; keys `lora.0` and `lora.2`.
pub struct Lora {
    down: Linear,
    up: Linear,
    middle: Middle,
}

impl Lora {
    /// `dims` are input, bottleneck, output. The first map starts at zero, the second orthogonal with gain 0.1 (more where the bottleneck is
    /// wider than the output), the bias as `bias` says for each channel.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(
        init: &Init,
        dims: [usize; 3],
        middle: Middle,
        bias: Option<&dyn Fn(usize) -> f64>,
    ) -> Result<Self> {
        let [input, rank, output] = dims;
        let gain = 0.1 * if rank > output { (rank as f64 / output as f64).sqrt() } else { 1.0 };
        let at = init.sub("lora");
        Ok(Lora {
            down: Linear::with_init(&at.sub(0), input, rank, false, Dist::Zeros)?,
            up: Linear::with_bias(&at.sub(2), rank, output, Dist::Orthogonal(gain), bias)?,
            middle,
        })
    }

    /// `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// When the last dimension is not `in`.
    pub fn forward(&self, x: &Var) -> Result<Var> {
        let x = self.down.forward(x)?;
        let x = match self.middle {
            Middle::Plain => x,
            Middle::Tanh => x.tanh()?,
            Middle::Sigmoid => activate(&x, Activation::Sigmoid)?,
        };
        self.up.forward(&x)
    }
}

/// RWKV's block: a layer norm of the stream itself in block 0, then mixer (or softmax attention at hybrid layers) and channel mixing, each
/// behind a layer norm.
pub(crate) fn rwkv_block<M: Layer + 'static, F: Layer + 'static>(
    base: &BaseConfig,
    layer: usize,
    init: &Init,
    [norm_first, norm_bias]: [bool; 2],
    mixer: impl FnOnce(&Init) -> Result<M>,
    ffn: impl FnOnce(&Init) -> Result<F>,
) -> Result<Block> {
    let norm = |key: &str| Norm::layer(&init.sub(key), base.hidden_size, base.norm_eps, norm_bias);
    let entry = if norm_first && layer == 0 { Some(norm("pre_norm")?) } else { None };
    let attn_norm = norm("attn_norm")?;
    let at = init.sub("attn");
    let mixer: Box<dyn Layer> = match base.attention_at(layer)? {
        Some(spec) => Box::new(Attention::from_spec(&at, base.hidden_size, &spec)?),
        None => Box::new(mixer(&at)?),
    };
    let ffn_norm = norm("ffn_norm")?;
    let parts = vec![
        SubLayer { key: "attn", norm: attn_norm, layer: mixer },
        SubLayer { key: "ffn", norm: ffn_norm, layer: Box::new(ffn(&init.sub("ffn"))?) },
    ];
    Ok(Block { entry, parts, residual_f32: false })
}

/// Width of RWKV's channel mixing: a multiple of the hidden size, rounded up to 32.
pub(crate) fn ffn_width(base: &BaseConfig, default_ratio: f64) -> usize {
    base.intermediate_size.unwrap_or_else(|| {
        let raw = (base.hidden_size as f64 * base.hidden_ratio.unwrap_or(default_ratio)) as usize;
        raw.div_ceil(32).saturating_mul(32)
    })
}
