//! The mixer of mixture of memories.

use std::sync::Arc;

use flashlin_ops::{
    activation::activate,
    delta::{DeltaArgs, DeltaGate, GateActivation},
    gate::DecayGate,
};
use flashlin_tensor::{Parameter, Var};

use super::{MomKeys, ROUTER, routing::Lists};
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{Activation, Conv1d, Gate, Heads, Linear, Norm, OutputNorm, STEP_INIT, recur, recurrent_spec},
    state::{LayerState, StateSpec, StateTensor},
};

/// Gain of the Glorot-uniform weights.
const GAIN: f64 = 0.176_776_695_296_636_9; // 2^-2.5

/// What makes keys, values, write strengths and decays: of one memory, of all, or of the shared one.
struct Projections {
    k: Linear,
    v: Linear,
    b: Linear,
    a: Linear,
}

impl Projections {
    /// Maps of `x` `[tokens, D]`: k, v, b, a.
    fn forward(&self, x: &Var) -> Result<[Var; 4]> {
        Ok([self.k.forward(x)?, self.v.forward(x)?, self.b.forward(x)?, self.a.forward(x)?])
    }
}

/// Several gated delta-rule memories, of which each token enters the few that a router chooses, beside one that all enter.
pub struct MomMixer {
    router: Linear,
    q: Linear,
    /// One for each memory, or one for all.
    memories: Vec<Projections>,
    shared: Option<Projections>,
    /// Of q, k and v, the same for all memories.
    convs: Option<[Conv1d; 3]>,
    a_log: Arc<Parameter>,
    dt_bias: Arc<Parameter>,
    norm: OutputNorm,
    out: Linear,
    count: usize,
    topk: usize,
    /// The shared projections belong to all memories; whether there is a shared memory.
    single: bool,
    shared_memory: bool,
    heads: usize,
    dims: [usize; 2],
}

/// Names of the memories' states beside those of the shared one.
const STATES: [&str; 4] = ["memory_recurrent", "memory_conv_q", "memory_conv_k", "memory_conv_v"];

impl MomMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &MomKeys) -> Result<Self> {
        let (d, h) = (base.hidden_size, own.num_heads);
        let dims @ [k, v] = [own.head_dim, width(own.head_dim, own.expand_v)];
        let linear =
            |at: Init, from, to| Linear::with_init(&at, from, to, false, Dist::xavier(from, to, GAIN));
        let conv = |name: &str, width, state| {
            let by_torch = Some(Dist::torch_default(own.conv_size.max(1)));
            let at = init.sub(format!("{name}_conv1d"));
            Conv1d::with_init(&at, [width, own.conv_size], [by_torch, None], Some(Activation::Silu), state)
        };
        let maps = |at: &dyn Fn(&str) -> Init| -> Result<Projections> {
            Ok(Projections {
                k: linear(at("k"), d, h * k)?,
                v: linear(at("v"), d, h * v)?,
                b: linear(at("b"), d, h)?,
                a: linear(at("a"), d, h)?,
            })
        };
        let of_memory = |e: usize| maps(&|name| init.sub(format!("{name}_proj")).sub(e));
        let memories = if own.single_kv_proj { 0 } else { own.num_memories };
        let shared = own.shared_mem || own.single_kv_proj;
        let gate = || linear(init.sub("g_proj"), d, h * v);
        let gate = match own.use_output_gate {
            true => Gate::Full(gate()?, Activation::Silu),
            false => Gate::None,
        };
        let norm = Norm::rms(&init.sub("o_norm"), v, base.norm_eps, true)?;
        Ok(MomMixer {
            router: linear(init.sub("gate"), d, own.num_memories)?,
            q: linear(init.sub("q_proj"), d, h * k)?,
            memories: (0..memories).map(of_memory).collect::<Result<_>>()?,
            shared: if shared { Some(maps(&|name| init.sub(format!("shared_{name}")))?) } else { None },
            convs: match own.use_short_conv {
                true => Some([
                    conv("q", h * k, "conv_q")?,
                    conv("k", h * k, "conv_k")?,
                    conv("v", h * v, "conv_v")?,
                ]),
                false => None,
            },
            a_log: init.param("A_log", &[h], Dist::LogUniform(0.0, 16.0), Role::Gate)?,
            dt_bias: init.param("dt_bias", &[h], STEP_INIT, Role::Gate)?,
            norm: OutputNorm::new(norm, gate, h),
            out: linear(init.sub("o_proj"), h * v, d)?,
            count: own.num_memories,
            topk: own.topk,
            single: own.single_kv_proj,
            shared_memory: own.shared_mem,
            heads: h,
            dims,
        })
    }

    /// The gated delta rule over the sequences of `ctx`: q, k, v, b, a `[tokens, ..]` to `[tokens, H V]`.
    fn memory(&self, [q, k, v, b, a]: [Var; 5], ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let tokens = q.dim(0);
        let by_row = |x: &Var| x.reshape(&[1, tokens, x.dim(1)]);
        let mut streams = [by_row(&q)?, by_row(&k)?, by_row(&v)?];
        for (i, x) in streams.iter_mut().enumerate() {
            *x = match &self.convs {
                Some(convs) => convs[i].forward(x, ctx)?,
                None => activate(x, Activation::Silu)?,
            };
        }
        let [q, k, v] =
            [streams[0].heads(self.heads)?, streams[1].heads(self.heads)?, streams[2].heads(self.heads)?];
        let (a, beta) = (by_row(&a)?, by_row(&b)?);
        let (a_log, dt_bias) = (self.a_log.var(), self.dt_bias.var());
        let mut args = DeltaArgs::gated_delta_rule(&q, &k, &v, &a, &beta);
        let activation =
            GateActivation { formula: DecayGate::Softplus, a_log: Some(&a_log), dt_bias: Some(&dt_bias) };
        args.gate = DeltaGate::Scalar { g: &a, activation: Some(activation) };
        args.beta_sigmoid = true;
        args.qk_l2norm = true;
        Ok(recur(args, ctx)?.reshape(&[tokens, self.heads * self.dims[1]])?)
    }

    /// Keys, values and gates of all lists' entries.
    fn projected(&self, x: &Var, lists: &Lists) -> Result<[Var; 4]> {
        if let (true, Some(all)) = (self.single, &self.shared) {
            let [k, v, b, a] = all.forward(x)?;
            let pick = |x: &Var| x.index_select(&lists.tokens);
            return Ok([pick(&k)?, pick(&v)?, pick(&b)?, pick(&a)?]);
        }
        let parts = self.memories.iter().zip(&lists.by_memory).map(|(m, at)| m.forward(&x.index_select(at)?));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let join = |i: usize| -> Result<Var> {
            let of = parts.iter().map(|p| &p[i]).collect::<Vec<_>>();
            Ok(Var::cat(&of, 0)?.index_select(&lists.joined)?)
        };
        Ok([join(0)?, join(1)?, join(2)?, join(3)?])
    }

    /// The memories' states as those of so many rows, taken out of the layer's.
    fn take(&self, state: &mut LayerState) -> Result<LayerState> {
        let one = |(name, spec): (&&'static str, StateSpec)| {
            let value = state.take(name)?;
            let rows = value.dim(0) * self.count;
            let dims: Vec<usize> = std::iter::once(rows).chain(spec.dims.iter().copied()).collect();
            Ok(StateTensor { value: value.reshape(&dims)?, spec })
        };
        let tensors = STATES.iter().zip(self.specs()).map(one).collect::<Result<_>>()?;
        Ok(LayerState::of(tensors))
    }

    fn put(&self, from: &LayerState, state: &mut LayerState) -> Result<()> {
        for (name, t) in STATES.iter().zip(from.tensors()) {
            let rows = t.value.dim(0) / self.count.max(1);
            let dims: Vec<usize> =
                [rows, self.count].into_iter().chain(t.spec.dims.iter().copied()).collect();
            state.set(name, t.value.reshape(&dims)?)?;
        }
        Ok(())
    }

    /// States of one memory.
    fn specs(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        let convs = self.convs.iter().flatten().map(|c| c.state_spec(dtype));
        std::iter::once(recurrent_spec(self.heads, self.dims, dtype)).chain(convs).collect()
    }
}

impl Layer for MomMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let dims = x.dims().to_vec();
        let rows = ctx.resolve_seqs("mom", x)?;
        let flat = x.reshape(&[rows.total(), dims[2]])?;
        let logits = self.router.forward(&flat)?;
        let lists = Lists::new(&logits, &rows, self.topk)?;
        let q = self.q.forward(&flat)?;

        let [k, v, b, a] = self.projected(&flat, &lists)?;
        let mut memories = ctx.state.as_deref_mut().map(|s| self.take(s)).transpose()?;
        let mut within = LayerCtx { seqs: Some(&lists.seqs), mode: ctx.mode, ..LayerCtx::stateless() };
        within.state = memories.as_mut();
        let o = self.memory([q.index_select(&lists.tokens)?, k, v, b, a], &mut within)?;
        if let (Some(memories), Some(state)) = (&memories, ctx.state.as_deref_mut()) {
            self.put(memories, state)?;
        }
        let shares = lists.shares.reshape(&[rows.total() * self.count, 1])?.index_select(&lists.places)?;
        let mut o = o.mul(&shares.to_dtype(o.dtype())?)?.index_add(&lists.tokens, rows.total())?;
        if let (true, Some(shared)) = (self.shared_memory, &self.shared) {
            let [k, v, b, a] = shared.forward(&flat)?;
            let mut all = LayerCtx { seqs: Some(&rows), mode: ctx.mode, ..LayerCtx::stateless() };
            all.state = ctx.state.as_deref_mut();
            o = o.add(&self.memory([q, k, v, b, a], &mut all)?)?;
        }
        let logits = match ctx.carried.get(ROUTER) {
            Some(earlier) => Var::cat(&[earlier, &logits], 0)?,
            None => logits,
        };
        ctx.carried.insert(ROUTER, logits);
        let o = o.reshape(&[dims[0], dims[1], self.heads, self.dims[1]])?;
        let gate = self.norm.gate_proj().map(|proj| proj.forward(x)).transpose()?;
        self.out.forward(&self.norm.forward(&o, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let memories = STATES.into_iter().zip(self.specs()).map(|(name, spec)| {
            let dims = std::iter::once(self.count).chain(spec.dims).collect();
            StateSpec { name, layout: None, dims, ..spec }
        });
        let shared = if self.shared_memory { self.specs() } else { Vec::new() };
        memories.chain(shared).collect()
    }

    fn describe(&self) -> String {
        let [k, v] = self.dims;
        format!("MoM(memories {}, top {}, heads {}, k {k}, v {v})", self.count, self.topk, self.heads)
    }
}
