//! Arguments of the family, their defaults and their validation.

use flashlin_tensor::{DType, Device, Error, Result, Tensor, Var};

use super::cpu::{GateKind, Seq, Spec};
use crate::gate::DecayGate;
use crate::gate::formulas::check_parameters;
use crate::simd::Arch;
use crate::{Mode, PackedSeqs, RecurrentState, StateLayout};

/// When the erase key reads the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EraseOrder {
    /// After this token's decay: `y = v - (D S)^T p` (delta rule, Gated DeltaNet, KDA).
    #[default]
    AfterDecay,
    /// Before it: `y = v - S^T p` (Comba as its kernels compute it).
    BeforeDecay,
}

/// Parameters that turn gate logits into log-decays inside the kernel.
#[derive(Clone, Copy, Debug)]
pub struct GateActivation<'a> {
    /// The formula.
    pub formula: DecayGate,
    /// `A_log` `[HV]`; optional with [`DecayGate::LowerBound`] (then `exp(A_log)` is 1).
    pub a_log: Option<&'a Var>,
    /// Bias of the logit: `[HV]` for a scalar gate, `[HV K]` or `[HV, K]` for a gate a channel.
    pub dt_bias: Option<&'a Var>,
}

/// The decay `D` of the state.
#[derive(Clone, Copy, Debug, Default)]
pub enum DeltaGate<'a> {
    /// No decay.
    #[default]
    None,
    /// One log-decay a value head.
    Scalar {
        /// Log-decay (or logit, with an activation) `[B, T, HV]`.
        g: &'a Var,
        /// How a logit becomes a log-decay; absent when `g` is the log-decay itself.
        activation: Option<GateActivation<'a>>,
    },
    /// One log-decay a key channel.
    Channel {
        /// Log-decay (or logit, with an activation) `[B, T, HV, K]`.
        g: &'a Var,
        /// How a logit becomes a log-decay; absent when `g` is the log-decay itself.
        activation: Option<GateActivation<'a>>,
    },
}

/// Arguments of [`delta_rule`](super::delta_rule). Start from one of the constructors and set what differs:
/// `DeltaArgs { qk_l2norm: true, ..DeltaArgs::gated_delta_rule(&q, &k, &v, &g, &beta) }`.
#[derive(Clone, Copy, Debug)]
pub struct DeltaArgs<'a> {
    /// Name in error messages.
    pub op: &'static str,
    /// Queries `[B, T, H, K]`.
    pub q: &'a Var,
    /// Write keys `[B, T, H, K]`.
    pub k: &'a Var,
    /// Values `[B, T, HV, V]`; HV is a multiple of H, and value head j reads key head `j / (HV / H)`.
    pub v: &'a Var,
    /// Erase keys `[B, T, H, K]`; the write keys when absent.
    pub erase: Option<&'a Var>,
    /// When the erase key reads the state. Default: after the decay.
    pub erase_order: EraseOrder,
    /// Write strength `[B, T, HV]`, or `[B, T, HV, V]` for one a value channel; 1 when absent.
    pub beta: Option<&'a Var>,
    /// `beta` is a logit: a sigmoid is applied first. Default: false.
    pub beta_sigmoid: bool,
    /// Doubles beta, so that eigenvalues of the transition reach -1 (arXiv:2411.12537). Default: false.
    pub allow_neg_eigval: bool,
    /// Decay. Default: none.
    pub gate: DeltaGate<'a>,
    /// Divides q, k and the erase key by `sqrt(sum x^2 + 1e-6)` first. Default: false.
    pub qk_l2norm: bool,
    /// Factor on the output. Default: `K^-0.5`.
    pub scale: Option<f64>,
    /// State before the first token of every sequence; zero when absent. Rows are sequences.
    pub initial_state: Option<&'a RecurrentState>,
    /// Return the state after the last token of every sequence. Default: false.
    pub output_final_state: bool,
    /// Packed sequences (B must be 1); B dense sequences when absent.
    pub seqs: Option<&'a PackedSeqs>,
    /// Layout of both states. Default: KV.
    pub layout: StateLayout,
    /// Form of evaluation. Default: by length.
    pub mode: Mode,
    /// Tokens of a chunk: 16, 32 or 64. Default: 64.
    pub chunk_size: usize,
}

impl<'a> DeltaArgs<'a> {
    /// `S += k (v - S^T k)^T` with every option at its default.
    pub fn new(op: &'static str, q: &'a Var, k: &'a Var, v: &'a Var) -> Self {
        DeltaArgs {
            op,
            q,
            k,
            v,
            erase: None,
            erase_order: EraseOrder::AfterDecay,
            beta: None,
            beta_sigmoid: false,
            allow_neg_eigval: false,
            gate: DeltaGate::None,
            qk_l2norm: false,
            scale: None,
            initial_state: None,
            output_final_state: false,
            seqs: None,
            layout: StateLayout::KV,
            mode: Mode::Auto,
            chunk_size: 64,
        }
    }

    /// The delta rule (arXiv:2406.06484).
    pub fn delta_rule(q: &'a Var, k: &'a Var, v: &'a Var, beta: &'a Var) -> Self {
        DeltaArgs { beta: Some(beta), ..Self::new("delta_rule", q, k, v) }
    }

    /// The gated delta rule, with a log-decay a value head (arXiv:2412.06464).
    pub fn gated_delta_rule(q: &'a Var, k: &'a Var, v: &'a Var, g: &'a Var, beta: &'a Var) -> Self {
        let gate = DeltaGate::Scalar { g, activation: None };
        DeltaArgs { beta: Some(beta), gate, ..Self::new("gated_delta_rule", q, k, v) }
    }

    /// Kimi Delta Attention, with a log-decay a key channel (arXiv:2510.26692).
    pub fn kda(q: &'a Var, k: &'a Var, v: &'a Var, g: &'a Var, beta: &'a Var) -> Self {
        let gate = DeltaGate::Channel { g, activation: None };
        DeltaArgs { beta: Some(beta), gate, ..Self::new("kda", q, k, v) }
    }

    /// Comba, with an erase key of its own that reads the state before the decay (arXiv:2506.02475).
    pub fn comba(q: &'a Var, k: &'a Var, v: &'a Var, p: &'a Var, g: &'a Var, beta: &'a Var) -> Self {
        let gated = DeltaArgs::gated_delta_rule(q, k, v, g, beta);
        DeltaArgs { op: "comba", erase: Some(p), erase_order: EraseOrder::BeforeDecay, ..gated }
    }
}

/// A checked call: sizes, sequences and tensors with contiguous rows.
pub(crate) struct Call {
    pub op: &'static str,
    pub spec: Spec,
    pub seqs: Vec<Seq>,
    pub batch: usize,
    pub len: usize,
    /// Dtype of q, k, v and o.
    pub dtype: DType,
    pub device: Device,
    pub layout: StateLayout,
    pub mode: Mode,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub erase: Option<Tensor>,
    pub beta: Option<Tensor>,
    pub gate: Option<Tensor>,
    pub a_log: Option<Tensor>,
    pub dt_bias: Option<Tensor>,
    pub first: Option<Tensor>,
}

impl Call {
    /// Checks everything that a caller can get wrong.
    pub fn new(a: &DeltaArgs<'_>) -> Result<Call> {
        let op = a.op;
        let [b, t, h, k] = a.q.tensor().dims_n(op, "q")?;
        let [_, _, hv, v] = a.v.tensor().dims_n(op, "v")?;
        let shape = |arg: &'static str, var: &Var, want: &[usize], names: &str| match var.dims() == want {
            true => Ok(()),
            false => Err(Error::shape(op, arg, var.dims(), format!("{want:?} = {names}"))),
        };
        shape("k", a.k, &[b, t, h, k], "[B, T, H, K], as q")?;
        shape("v", a.v, &[b, t, hv, v], "[B, T, HV, V], with B and T as q")?;
        if h == 0 || k == 0 || v == 0 {
            return Err(Error::shape(op, "q", a.q.dims(), "at least one head, and K and V of at least 1"));
        }
        if hv == 0 || hv % h != 0 {
            let why = format!("a multiple of the {h} key heads as number of value heads");
            return Err(Error::shape(op, "v", a.v.dims(), why));
        }
        if let Some(p) = a.erase {
            shape("erase", p, &[b, t, h, k], "[B, T, H, K], as q")?;
        }
        let beta_channel = match a.beta {
            None => false,
            Some(beta) if beta.dims() == [b, t, hv] => false,
            Some(beta) if beta.dims() == [b, t, hv, v] => true,
            Some(beta) => {
                let want = format!("[{b}, {t}, {hv}] = [B, T, HV] or [{b}, {t}, {hv}, {v}] = [B, T, HV, V]");
                return Err(Error::shape(op, "beta", beta.dims(), want));
            }
        };
        let (kind, gate, activation) = match a.gate {
            DeltaGate::None => (GateKind::None, None, None),
            DeltaGate::Scalar { g, activation } => {
                shape("g", g, &[b, t, hv], "[B, T, HV]")?;
                (GateKind::Scalar, Some(g), activation)
            }
            DeltaGate::Channel { g, activation } => {
                shape("g", g, &[b, t, hv, k], "[B, T, HV, K]")?;
                (GateKind::Channel, Some(g), activation)
            }
        };
        check_dtypes(a, gate, activation)?;
        if let Some(x) = activation {
            let n = if kind == GateKind::Channel { k } else { 1 };
            check_parameters(op, x.formula, x.a_log, x.dt_bias, hv, n)?;
        }
        if ![16, 32, 64].contains(&a.chunk_size) {
            return Err(Error::invalid(
                op,
                "chunk_size",
                format!("is {}, expected 16, 32 or 64", a.chunk_size),
            ));
        }
        let packed = PackedSeqs::resolve(op, a.seqs, b, t)?;
        if let Some(s) = a.initial_state {
            s.check(op, a.layout, a.layout.dims(packed.len(), hv, k, v), a.v.dtype())?;
        }
        let scale = a.scale.unwrap_or((k as f64).powf(-0.5));
        if !scale.is_finite() {
            return Err(Error::invalid(op, "scale", format!("is {scale}, expected a finite number")));
        }
        let spec = Spec {
            arch: Arch::new(),
            h,
            hv,
            k,
            v,
            chunk: a.chunk_size,
            scale,
            l2norm: a.qk_l2norm,
            erase_before_decay: a.erase_order == EraseOrder::BeforeDecay,
            gate: kind,
            activation: activation.map(|x| x.formula),
            beta_channel,
            beta_sigmoid: a.beta_sigmoid && a.beta.is_some(),
            beta_factor: if a.allow_neg_eigval { 2.0 } else { 1.0 },
        };
        let seqs = packed.ranges().enumerate().map(|(n, r)| match a.seqs {
            Some(_) => Seq { batch: 0, start: r.start, len: r.len() },
            None => Seq { batch: n, start: 0, len: t },
        });
        let own = |x: &Var| -> Result<Tensor> { Ok(x.tensor().clone()) };
        Ok(Call {
            op,
            spec,
            seqs: seqs.collect(),
            batch: b,
            len: t,
            dtype: a.v.dtype(),
            device: a.v.device(),
            layout: a.layout,
            mode: a.mode.resolve(packed.longest()),
            q: with_rows(a.q)?,
            k: with_rows(a.k)?,
            v: with_rows(a.v)?,
            erase: a.erase.map(with_rows).transpose()?,
            beta: a.beta.map(with_rows).transpose()?,
            gate: gate.map(with_rows).transpose()?,
            a_log: activation.and_then(|x| x.a_log).map(own).transpose()?,
            dt_bias: activation.and_then(|x| x.dt_bias).map(own).transpose()?,
            first: a.initial_state.map(|s| s.value.tensor().contiguous()).transpose()?,
        })
    }
}

/// The tensor with a contiguous last dimension.
fn with_rows(x: &Var) -> Result<Tensor> {
    let t = x.tensor();
    let last = t.rank() - 1;
    if last < 3 || t.dim(last) <= 1 || t.strides()[last] == 1 { Ok(t.clone()) } else { t.contiguous() }
}

fn check_dtypes(a: &DeltaArgs<'_>, gate: Option<&Var>, act: Option<GateActivation<'_>>) -> Result<()> {
    let (op, dtype) = (a.op, a.v.dtype());
    if !dtype.is_float() {
        return Err(Error::dtype(op, "v", dtype, "a float dtype (f32, bf16, f16 or f64)"));
    }
    for (arg, x) in [("q", Some(a.q)), ("k", Some(a.k)), ("erase", a.erase)] {
        if let Some(x) = x
            && x.dtype() != dtype
        {
            return Err(Error::dtype(op, arg, x.dtype(), format!("{dtype}, as v")));
        }
    }
    let (a_log, dt_bias) = (act.and_then(|x| x.a_log), act.and_then(|x| x.dt_bias));
    for (arg, x) in [("beta", a.beta), ("g", gate), ("a_log", a_log), ("dt_bias", dt_bias)] {
        if let Some(x) = x
            && !x.dtype().is_float()
        {
            return Err(Error::dtype(op, arg, x.dtype(), "a float dtype"));
        }
    }
    let all =
        [Some(a.q), Some(a.k), a.erase, a.beta, gate, a_log, dt_bias, a.initial_state.map(|s| &s.value)];
    match all.into_iter().flatten().find(|x| x.device() != a.v.device()) {
        Some(x) => Err(Error::DeviceMismatch { op, a: x.device(), b: a.v.device() }),
        None => Ok(()),
    }
}
