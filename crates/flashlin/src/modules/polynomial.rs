//! Linear attention by polynomials of the scores: Based (1 + s + s^2 / 2, the expansion of e^s) and ReBased ((q . k)^2 of normalised features).
//! Mixers without a model of their own, for any backbone.

use std::sync::Arc;

use flashlin_ops::{
    maps,
    norm::{NormArgs, NormKind, norm},
};
use flashlin_tensor::{Parameter, Var};

use super::{Heads, Linear, linears, recur_normalized, recurrent_spec};
use crate::{
    Error, Result,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    state::StateSpec,
};

/// Epsilon of the norm of ReBased's features, a constant of the architecture.
const FEATURE_NORM_EPS: f64 = 1e-5;

/// Sizes of both.
#[derive(Clone, Copy, Debug)]
pub struct PolynomialOptions {
    /// Heads of q and k.
    pub heads: usize,
    /// Heads of v, which groups of the others share; a head is `hidden / kv_heads` wide.
    pub kv_heads: usize,
    /// Channels of a head of q and k.
    pub features: usize,
    /// Added to the sum of the weights that divides the output.
    pub eps: f64,
}

/// Projections and the recurrence.
struct Core {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    options: PolynomialOptions,
    head_dim: usize,
    /// Features after the map.
    expanded: usize,
}

impl Core {
    fn new(init: &Init, hidden: usize, o: &PolynomialOptions, expanded: usize) -> Result<Self> {
        let PolynomialOptions { heads, kv_heads, features, eps } = *o;
        if kv_heads == 0 || !hidden.is_multiple_of(kv_heads) || heads == 0 || !heads.is_multiple_of(kv_heads)
        {
            let why = format!("is {kv_heads}: it must divide num_heads {heads} and hidden_size {hidden}");
            return Err(Error::config("num_key_value_heads", why));
        }
        if features == 0 || features > 64 {
            return Err(Error::config("feature_dim", format!("is {features}, expected 1..=64")));
        }
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(Error::config("eps", format!("is {eps}, expected a number >= 0")));
        }
        let head_dim = hidden / kv_heads;
        let linear = |key: &str, from, to| Linear::new(&init.sub(key), from, to, false);
        Ok(Core {
            q: linear("q_proj", hidden, heads * features)?,
            k: linear("k_proj", hidden, heads * features)?,
            v: linear("v_proj", hidden, hidden)?,
            out: linear("o_proj", heads * head_dim, hidden)?,
            options: *o,
            head_dim,
            expanded,
        })
    }

    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>, map: impl Fn(&Var) -> Result<Var>) -> Result<Var> {
        let PolynomialOptions { heads, kv_heads, eps, .. } = self.options;
        let ([q, k, v], []) = linears(x, [&self.q, &self.k, &self.v], [])?;
        let (q, k) = (map(&q.heads(heads)?)?, map(&k.heads(heads)?)?);
        let v = v.heads(kv_heads)?.repeat_heads(heads / kv_heads)?;
        let o = recur_normalized([&q, &k, &v], Some(1.0), eps, ctx)?;
        self.out.forward(&o.merge_heads()?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        vec![recurrent_spec(self.options.heads, [self.expanded, self.head_dim + 1], self.out.dtype())]
    }

    fn describe(&self, name: &str) -> String {
        let PolynomialOptions { heads, kv_heads, features, .. } = self.options;
        format!("{name}(heads {heads} of {features}, kv_heads {kv_heads} of {})", self.head_dim)
    }
}

/// Based (Arora et al., arXiv:2402.18668): weights `1 + s + s^2 / 2` with `s = q . k / sqrt(features)`.
pub struct BasedAttention(Core);

impl BasedAttention {
    /// The sizes of the paper.
    pub const DEFAULT: PolynomialOptions =
        PolynomialOptions { heads: 12, kv_heads: 12, features: 16, eps: 1e-12 };

    /// Builds the layer for `hidden` channels.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, hidden: usize, options: &PolynomialOptions) -> Result<Self> {
        let d = options.features;
        Ok(BasedAttention(Core::new(init, hidden, options, 1 + d + d * (d + 1) / 2)?))
    }
}

impl Layer for BasedAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        self.0.forward(x, ctx, |x| Ok(maps::taylor(x)?))
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        self.0.state_spec()
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.0.describe("Based")
    }
}

/// ReBased (Aksenov et al., arXiv:2402.10644): weights `(phi(q) . phi(k))^2 / features`, phi a learnt affine map of the normalised channels.
pub struct RebasedAttention {
    core: Core,
    gamma: Option<Arc<Parameter>>,
    beta: Option<Arc<Parameter>>,
    normalize: bool,
}

impl RebasedAttention {
    /// The sizes of the peer's layer.
    pub const DEFAULT: PolynomialOptions =
        PolynomialOptions { heads: 16, kv_heads: 16, features: 16, eps: 1e-5 };

    /// Builds the layer for `hidden` channels; phi has a factor (`gamma`) and a shift (`beta`) a channel where asked for, and normalises first or not.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(
        init: &Init,
        hidden: usize,
        options: &PolynomialOptions,
        [gamma, beta, normalize]: [bool; 3],
    ) -> Result<Self> {
        let (d, at) = (options.features, init.sub("feature_map"));
        let param =
            |key: &str, dist, used: bool| used.then(|| at.param(key, &[d], dist, Role::NoDecay)).transpose();
        Ok(RebasedAttention {
            core: Core::new(init, hidden, options, d * (d + 1) / 2)?,
            gamma: param("gamma", Dist::Ones, gamma)?,
            beta: param("beta", Dist::Zeros, beta)?,
            normalize,
        })
    }

    fn features(&self, x: &Var) -> Result<Var> {
        let mut y = x.clone();
        if self.normalize {
            let args = NormArgs { kind: NormKind::Layer, eps: FEATURE_NORM_EPS, ..NormArgs::new(x) };
            y = norm(&args)?.y;
        }
        if let Some(gamma) = &self.gamma {
            y = y.mul(&gamma.var())?;
        }
        if let Some(beta) = &self.beta {
            y = y.add(&beta.var())?;
        }
        Ok(maps::rebased(&y)?)
    }
}

impl Layer for RebasedAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        self.core.forward(x, ctx, |x| self.features(x))
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        self.core.state_spec()
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.core.describe("ReBased")
    }
}
