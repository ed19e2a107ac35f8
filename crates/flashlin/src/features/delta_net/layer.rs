//! The mixer of DeltaNet.

use flashlin_ops::delta::DeltaArgs;
use flashlin_tensor::{Tensor, Var};

use super::DeltaNetKeys;
use crate::{
    Error, Result,
    config::BaseConfig,
    family::width,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{Activation, Heads, Linear, OutputNorm, Stream, linears, mixer_state, recur},
    state::StateSpec,
};

/// What is applied to q and k before their normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkActivation {
    Silu,
    Relu,
    /// elu(x) + 1
    EluPlusOne,
    Identity,
}

impl QkActivation {
    pub(super) fn parse(name: &str) -> Result<Self> {
        match name {
            "silu" => Ok(Self::Silu),
            "relu" => Ok(Self::Relu),
            "elu" => Ok(Self::EluPlusOne),
            "identity" => Ok(Self::Identity),
            other => Err(Error::config(
                "qk_activation",
                format!("is `{other}`; supported: silu, relu, elu, identity"),
            )),
        }
    }

    /// Silu is done by the stream itself.
    fn apply(self, x: &Var) -> Result<Var> {
        Ok(match self {
            Self::Silu | Self::Identity => x.clone(),
            Self::Relu => x.relu()?,
            // elu(x) + 1 = max(x, 0) + e^min(x, 0)
            Self::EluPlusOne => x.relu()?.add(&x.neg()?.relu()?.neg()?.exp()?)?,
        })
    }
}

/// How q and k are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorm {
    L2,
    Sum,
}

impl QkNorm {
    pub(super) fn parse(name: &str) -> Result<Self> {
        match name {
            "l2" => Ok(Self::L2),
            "sum" => Ok(Self::Sum),
            other => Err(Error::config("qk_norm", format!("is `{other}`; supported: l2, sum"))),
        }
    }
}

/// x / max(sum |x|, 1e-6) over the last dimension.
fn sum_norm(x: &Var) -> Result<Var> {
    let size = x.relu()?.add(&x.neg()?.relu()?)?.sum(&[3], true)?;
    Ok(x.div(&size.clamp(1e-6, f64::MAX)?)?)
}

/// The delta rule: S += k (beta (v - S^T k))^T, o = S^T q.
pub struct DeltaNetMixer {
    q: Stream,
    k: Stream,
    v: Stream,
    beta: Option<Linear>,
    norm: OutputNorm,
    out: Linear,
    qk_activation: QkActivation,
    qk_norm: QkNorm,
    neg_eigval: bool,
    heads: usize,
    dims: [usize; 2],
}

impl DeltaNetMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &DeltaNetKeys) -> Result<Self> {
        let (d, h) = (base.hidden_size, own.num_heads);
        let (kd, vd) = (width(d, own.expand_k), width(d, own.expand_v));
        let conv = own.use_short_conv.then_some(own.conv_size);
        let qk_activation = QkActivation::parse(&own.qk_activation)?;
        let silu = Some(Activation::Silu);
        let act = silu.filter(|_| qk_activation == QkActivation::Silu);
        Ok(DeltaNetMixer {
            q: Stream::new(init, "q", [d, kd], conv, act, act)?,
            k: Stream::new(init, "k", [d, kd], conv, act, act)?,
            v: Stream::new(init, "v", [d, vd], conv, silu, silu)?,
            beta: if own.use_beta { Some(Linear::new(&init.sub("b_proj"), d, h, false)?) } else { None },
            norm: OutputNorm::gated(init, base, own.use_gate, vd, h, Activation::Silu)?,
            out: Linear::new(&init.sub("o_proj"), vd, d, false)?,
            qk_activation,
            qk_norm: QkNorm::parse(&own.qk_norm)?,
            neg_eigval: own.allow_neg_eigval,
            heads: h,
            dims: [kd / h, vd / h],
        })
    }
}

impl Layer for DeltaNetMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [self.q.proj(), self.k.proj(), self.v.proj()];
        let ([q, k, v], [beta, gate]) = linears(x, maps, [self.beta.as_ref(), self.norm.gate_proj()])?;
        let [q, k, v] = Stream::finish_all([(&self.q, q), (&self.k, k), (&self.v, v)], ctx)?;
        let mut q = self.qk_activation.apply(&q.heads(self.heads)?)?;
        let mut k = self.qk_activation.apply(&k.heads(self.heads)?)?;
        let v = v.heads(self.heads)?;
        if self.qk_norm == QkNorm::Sum {
            (q, k) = (sum_norm(&q)?, sum_norm(&k)?);
        }
        // A strength that is not learned is 1.
        let ones = || Tensor::ones(&[x.dim(0), x.dim(1), self.heads], x.dtype(), &x.device());
        let beta = beta.map_or_else(|| ones().map(Var::from), Ok)?;
        let mut args = DeltaArgs::delta_rule(&q, &k, &v, &beta);
        args.beta_sigmoid = self.beta.is_some();
        args.allow_neg_eigval = self.neg_eigval;
        args.qk_l2norm = self.qk_norm == QkNorm::L2;
        let o = recur(args, ctx)?;
        self.out.forward(&self.norm.forward(&o, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        mixer_state(self.heads, self.dims, self.out.dtype(), [&self.q, &self.k, &self.v])
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("DeltaNet(heads {}, k {}, v {})", self.heads, self.dims[0], self.dims[1])
    }
}
