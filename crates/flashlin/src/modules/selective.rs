//! The mixer of Mamba, which Samba uses too.

use std::sync::Arc;

use flashlin_ops::scan::selective::{SelectiveArgs, selective_scan};
use flashlin_tensor::{Parameter, Var};

use super::{Activation, Conv1d, Linear, activate, vector_spec};
use crate::{
    Result,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    state::StateSpec,
};

const STATE: &str = "recurrent";

/// Sizes and options of a Mamba mixer.
#[derive(Clone, Copy, Debug)]
pub struct MambaOptions {
    /// Input and output width.
    pub hidden: usize,
    /// Inner width.
    pub inner: usize,
    /// State numbers a channel.
    pub state: usize,
    /// Taps of the convolution.
    pub conv: usize,
    /// Width of the step sizes' bottleneck.
    pub rank: usize,
    /// Biases on the input and output projections.
    pub bias: bool,
    /// Biases on the convolution.
    pub conv_bias: bool,
    /// After the convolution, and of the gate.
    pub activation: Activation,
    /// How the step sizes' projection starts.
    pub step_weight: Dist,
    /// How their bias starts.
    pub step_bias: Dist,
    /// How the output projection starts.
    pub out: Dist,
}

/// Selective state space: h <- e^(dt A) h + dt B u, y = C h + D u, gated; dt, B and C are projected from u, which a convolution made.
pub struct MambaMixer {
    in_proj: Linear,
    conv: Conv1d,
    x_proj: Linear,
    step: Arc<Parameter>,
    step_bias: Arc<Parameter>,
    a_log: Arc<Parameter>,
    d: Arc<Parameter>,
    out: Linear,
    options: MambaOptions,
}

impl MambaMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(init: &Init, o: &MambaOptions) -> Result<Self> {
        let by_torch = Dist::torch_default(o.conv.max(1));
        let conv = [Some(by_torch), o.conv_bias.then_some(by_torch)];
        let step = init.sub("dt_proj");
        Ok(MambaMixer {
            a_log: init.param("A_log", &[o.inner, o.state], Dist::LogCount(o.state), Role::Gate)?,
            d: init.param("D", &[o.inner], Dist::Ones, Role::Gate)?,
            conv: Conv1d::with_init(
                &init.sub("conv1d"),
                [o.inner, o.conv],
                conv,
                Some(o.activation),
                "conv",
            )?,
            in_proj: Linear::new(&init.sub("in_proj"), o.hidden, 2 * o.inner, o.bias)?,
            x_proj: Linear::new(&init.sub("x_proj"), o.inner, o.rank + 2 * o.state, false)?,
            step: step.param("weight", &[o.inner, o.rank], o.step_weight, Role::Weight)?,
            step_bias: step.param("bias", &[o.inner], o.step_bias, Role::Gate)?,
            out: Linear::with_init(&init.sub("out_proj"), o.inner, o.hidden, o.bias, o.out)?,
            options: *o,
        })
    }
}

impl Layer for MambaMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let MambaOptions { inner, state, rank, activation, .. } = self.options;
        let projected = self.in_proj.forward(x)?.split(2, &[inner, inner])?;
        let (u, gate) = (self.conv.forward(&projected[0], ctx)?, &projected[1]);
        let selected = self.x_proj.forward(&u)?.split(2, &[rank, state, state])?;
        let delta = selected[0].linear(&self.step.var())?;
        let a = self.a_log.var().exp()?.neg()?;
        let (d, bias) = (self.d.var(), self.step_bias.var());
        let first = ctx.state.as_deref_mut().map(|s| s.take(STATE)).transpose()?;
        // The operator fuses silu; others follow it.
        let fused = activation == Activation::Silu;
        let out = selective_scan(&SelectiveArgs {
            d: Some(&d),
            z: fused.then_some(gate),
            delta_bias: Some(&bias),
            initial_state: first.as_ref(),
            seqs: ctx.seqs,
            ..SelectiveArgs::new(&u, &delta, &a, &selected[1], &selected[2])
        })?;
        if let Some(state) = ctx.state.as_deref_mut() {
            state.set(STATE, out.final_state)?;
        }
        let y = if fused { out.o } else { out.o.mul(&activate(gate, activation)?)? };
        self.out.forward(&y)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        let dims = vec![self.options.inner, self.options.state];
        vec![vector_spec(STATE, dims, dtype), self.conv.state_spec(dtype)]
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let o = &self.options;
        format!("Mamba(inner {}, state {}, dt_rank {})", o.inner, o.state, o.rank)
    }
}
