//! The mixer of MesaNet.

use std::sync::Arc;

use flashlin_ops::{
    StateLayout,
    activation::logsigmoid,
    norm::l2_norm,
    solver::{MesaArgs, MesaOutput, mesa, mesa_step},
};
use flashlin_tensor::{Parameter, Var};

use super::MesaNetKeys;
use crate::{
    Result,
    config::BaseConfig,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{Activation, Heads, Linear, OutputNorm, Stream, linears},
    state::{StateKind, StateSpec},
};

/// Added under the root when q and k are brought to unit length.
const UNIT_EPS: f64 = 1e-6;
/// Names of the two states.
const STATES: [&str; 2] = ["keys", "values"];

/// Least squares at every token: o = B^T (A + diag(lambda))^-1 q with A, B <- e^g A, B + beta k (k, v)^T.
pub struct MesaNetMixer {
    q: Stream,
    k: Stream,
    v: Linear,
    a: Linear,
    b: Linear,
    lambda: Arc<Parameter>,
    lower: f64,
    norm: OutputNorm,
    out: Linear,
    steps: [usize; 2],
    heads: usize,
    head_dim: usize,
}

impl MesaNetMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &MesaNetKeys) -> Result<Self> {
        let (d, h) = (base.hidden_size, own.num_heads);
        let width = h * own.head_dim;
        let (conv, silu) = (Some(own.conv_size), Some(Activation::Silu));
        // softplus of it is 1 - lower: lambda starts at 1.
        let start = (1.0 - own.lambda_lower_bound).exp_m1().ln();
        Ok(MesaNetMixer {
            lambda: init.param("lambda_params", &[width], Dist::Constant(start), Role::Gate)?,
            q: Stream::new(init, "q", [d, width], conv, silu, silu)?,
            k: Stream::new(init, "k", [d, width], conv, silu, silu)?,
            v: Linear::new(&init.sub("v_proj"), d, width, false)?,
            a: Linear::new(&init.sub("a_proj"), d, h, true)?,
            b: Linear::new(&init.sub("b_proj"), d, h, true)?,
            norm: OutputNorm::gated(init, base, own.use_output_gate, width, h, Activation::Silu)?,
            out: Linear::new(&init.sub("o_proj"), width, d, false)?,
            lower: own.lambda_lower_bound,
            steps: [own.max_cg_step_training, own.max_cg_step_decoding],
            heads: h,
            head_dim: own.head_dim,
        })
    }

    /// The layer's operator, from the context's state, which it leaves advanced.
    fn solve(&self, args: MesaArgs<'_>, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let args = MesaArgs { seqs: ctx.seqs, ..args };
        let Some(state) = ctx.state.as_deref_mut() else { return Ok(mesa(&args)?.o) };
        let [kk, kv] = [state.get(STATES[0])?, state.get(STATES[1])?];
        let args = MesaArgs { initial: Some([&kk, &kv]), ..args };
        let rows = kk.dim(0);
        let one_each = match args.seqs {
            None => args.q.dim(1) == 1,
            Some(seqs) => seqs.ranges().all(|r| r.len() == 1),
        };
        let MesaOutput { o, states } = if one_each && ctx.seen.iter().all(|&n| n > 0) {
            self.step(&MesaArgs { seqs: None, iterations: self.steps[1], ..args }, rows)?
        } else {
            mesa(&args)?
        };
        for (name, value) in STATES.into_iter().zip(states) {
            state.set(name, value)?;
        }
        Ok(o)
    }

    /// One token of each sequence, whether packed along T or in rows.
    fn step(&self, a: &MesaArgs<'_>, rows: usize) -> Result<MesaOutput> {
        let by_row = |x: &Var| -> Result<Var> {
            let dims: Vec<usize> = [rows, 1].into_iter().chain(x.dims()[2..].iter().copied()).collect();
            Ok(x.reshape(&dims)?)
        };
        let (q, k, v) = (by_row(a.q)?, by_row(a.k)?, by_row(a.v)?);
        let (g, beta) = (by_row(a.g)?, by_row(a.beta)?);
        let out = mesa_step(&MesaArgs { q: &q, k: &k, v: &v, g: &g, beta: &beta, ..*a })?;
        Ok(MesaOutput { o: out.o.reshape(a.v.dims())?, states: out.states })
    }
}

impl Layer for MesaNetMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [self.q.proj(), self.k.proj(), &self.v, &self.a, &self.b];
        let ([q, k, v, a, beta], [gate]) = linears(x, maps, [self.norm.gate_proj()])?;
        let precise = |x: &Var| x.to_dtype(x.dtype().accumulator());
        let unit = |x: Var| -> Result<Var> { Ok(l2_norm(&precise(&x.heads(self.heads)?)?, UNIT_EPS)?) };
        let q = unit(self.q.finish(q, ctx)?)?;
        let k = unit(self.k.finish(k, ctx)?)?;
        let v = v.heads(self.heads)?;
        let (beta, g) = (precise(&beta)?.sigmoid()?, logsigmoid(&precise(&a)?, 1.0)?);
        let lambda = self.lambda.var().softplus()?.affine(1.0, self.lower)?;
        let lambda = lambda.reshape(&[self.heads, self.head_dim])?;
        let args = MesaArgs { iterations: self.steps[0], ..MesaArgs::new(&q, &k, &v, &g, &beta, &lambda) };
        let o = self.solve(args, ctx)?;
        self.out.forward(&self.norm.forward(&o, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let d = self.head_dim;
        let matrix = |name| StateSpec {
            name,
            kind: StateKind::Recurrent,
            layout: Some(StateLayout::KV),
            dims: vec![self.heads, d, d],
            dtype: self.out.dtype().accumulator(),
        };
        let convs = [&self.q, &self.k].into_iter().filter_map(Stream::state_spec);
        STATES.into_iter().map(matrix).chain(convs).collect()
    }

    fn describe(&self) -> String {
        let [training, decoding] = self.steps;
        format!("MesaNet(heads {} of {}, iterations {training} / {decoding})", self.heads, self.head_dim)
    }
}
