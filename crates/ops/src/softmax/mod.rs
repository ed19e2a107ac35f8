#![doc = include_str!("README.md")]

mod backward;
mod cache;
mod composed;
pub(crate) mod conform;
mod cuda;
mod direct;
mod forward;
mod maps;
mod panels;
mod plan;
pub mod reference;
#[cfg(test)]
mod tests;

pub use cache::{KvCache, append_tokens};
use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Error, Result, Tensor, Var};
use plan::Plan;

use crate::{
    OpInfo, PackedSeqs,
    rows::{check_dims, tensor_of, with_rows},
    simd::Real,
};

/// Registry entry of [`attention`].
pub static ATTENTION: OpInfo = OpInfo {
    name: "attention",
    family: "softmax",
    summary: "o_i = sum_j softmax_j(scale q_i k_j + log decay) v_j; causal, window, grouped heads, var-len, cache",
    source: "arXiv:1706.03762, arXiv:2205.14135",
    modes: &[],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["q", "k", "v", "decay"],
};

const OP: &str = "attention";

/// Arguments of [`attention`]; shapes are in the module's table.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// `[B, Tq, HQ, K]`
    pub q: &'a Var,
    /// `[B, Tk, H, K]`
    pub k: &'a Var,
    /// `[B, Tk, H, V]`
    pub v: &'a Var,
    /// Log decays `[B, Tk, HQ]`, `<= 0`; None
    pub decay: Option<&'a Var>,
    /// Factor on the scores; None: K^-1/2
    pub scale: Option<f64>,
    /// Keys after the query are hidden; true
    pub causal: bool,
    /// Keys that a query sees, itself included (needs `causal`); None: all
    pub window: Option<usize>,
    /// Boundaries of packed queries (B = 1)
    pub seqs: Option<&'a PackedSeqs>,
    /// Boundaries of packed keys; None: those of the queries
    pub kv_seqs: Option<&'a PackedSeqs>,
    /// Valid keys of each cache row, where k and v are caches `[N, cap, H, D]`
    pub kv_lens: Option<&'a [usize]>,
    /// Return the attention maps; false
    pub maps: bool,
}

impl<'a> AttentionArgs<'a> {
    /// Causal attention without window.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var) -> Self {
        AttentionArgs {
            q,
            k,
            v,
            decay: None,
            scale: None,
            causal: true,
            window: None,
            seqs: None,
            kv_seqs: None,
            kv_lens: None,
            maps: false,
        }
    }
}

/// What [`attention`] returns.
#[derive(Clone, Debug)]
pub struct AttentionOutput {
    /// `[B, Tq, HQ, V]` in the dtype of q
    pub o: Var,
    /// Probabilities `[B, HQ, Tq, Tk]` in the compute type, zero where nothing is seen; where they were asked for
    pub maps: Option<Tensor>,
}

/// The tensors of one call, rows contiguous.
struct Inputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Option<Tensor>,
}

/// Softmax attention; the module's documentation has the formula.
///
/// # Errors
/// When shapes, boundaries or lengths do not fit, a dtype is no float (on a GPU: f32, bf16 or f16), a head is wider than 256, a window is asked
/// for without `causal`, or the tensors lie on different devices.
pub fn attention(args: &AttentionArgs) -> Result<AttentionOutput> {
    let (plan, inputs) = check(args)?;
    match (inputs.q.device(), inputs.q.dtype()) {
        (Device::Cpu, DType::F64) => run::<f64>(args, plan, inputs),
        (Device::Cpu, _) => run::<f32>(args, plan, inputs),
        _ => cuda::run(args, plan, inputs),
    }
}

/// [`attention`] of checked arguments by tensor operations alone.
fn run_composed(args: &AttentionArgs, plan: Plan, inputs: Inputs) -> Result<AttentionOutput> {
    let composed::Forward { o, lse, maps } = composed::forward(&plan, &inputs, args.maps)?;
    let absent = args.q.detach();
    let all = [args.q, args.k, args.v, args.decay.unwrap_or(&absent)];
    let o = Var::from_op1(OP, &all, o, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(g) = g[0].take() else { return Ok(vec![None; 4]) };
            composed::backward(&plan, &inputs, [&lse, &g])
        })
    });
    Ok(AttentionOutput { o, maps })
}

fn run<R: Real>(args: &AttentionArgs, plan: Plan, inputs: Inputs) -> Result<AttentionOutput> {
    let (o, lse) = if plan.spans.iter().all(|s| s.queries <= direct::QUERIES) {
        direct::forward::<R>(&plan, &inputs)?
    } else {
        forward::forward::<R>(&plan, &inputs)?
    };
    let maps = args.maps.then(|| maps::maps::<R>(&plan, &inputs, &lse)).transpose()?;
    let saved = o.clone();
    let absent = args.q.detach();
    let all = [args.q, args.k, args.v, args.decay.unwrap_or(&absent)];
    let o = Var::from_op1(OP, &all, o, || -> Box<dyn Backward> {
        Box::new(move |ctx: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(g) = g[0].take() else { return Ok(vec![None; 4]) };
            let saved = backward::Saved { o: &saved, lse: &lse, grad: &g.contiguous()? };
            backward::backward::<R>(&plan, &inputs, &saved, std::array::from_fn(|i| ctx.needs(i)))
        })
    });
    Ok(AttentionOutput { o, maps })
}

fn check(args: &AttentionArgs) -> Result<(Plan, Inputs)> {
    let plan = Plan::new(args)?;
    if let Some(g) = args.decay {
        check_dims(OP, "decay", g.tensor(), &[args.k.dim(0), args.k.dim(1), plan.q_heads])?;
    }
    let device = args.q.device();
    let others = [Some(args.k), Some(args.v), args.decay];
    if let Some(other) = others.into_iter().flatten().find(|v| v.device() != device) {
        return Err(Error::DeviceMismatch { op: OP, a: device, b: other.device() });
    }
    let rows = |arg, v: &Var| {
        if device == Device::Cpu { with_rows(OP, arg, v.tensor()) } else { on_gpu(arg, v.tensor()) }
    };
    let inputs = Inputs {
        q: rows("q", args.q)?,
        k: rows("k", args.k)?,
        v: rows("v", args.v)?,
        decay: tensor_of(args.decay).map(|g| g.contiguous()).transpose()?,
    };
    Ok((plan, inputs))
}

/// The tensor, if its dtype is one that a GPU computes with.
fn on_gpu(arg: &'static str, t: &Tensor) -> Result<Tensor> {
    match t.dtype() {
        DType::F32 | DType::BF16 | DType::F16 => Ok(t.clone()),
        other => Err(Error::dtype(OP, arg, other, "f32, bf16 or f16 on a GPU")),
    }
}

/// Running sums of the log decays along each sequence, `[HQ][keys]`, in f64: only differences are used.
fn decay_sums(plan: &Plan, inputs: &Inputs) -> Result<Option<Vec<f64>>> {
    let Some(g) = &inputs.decay else { return Ok(None) };
    let (heads, keys) = (plan.q_heads, plan.key_rows);
    let g = g.to_f64_vec()?;
    let mut sums = vec![0.0; heads * keys];
    for s in &plan.spans {
        for h in 0..heads {
            let mut c = 0.0;
            for t in s.k0..s.k0 + s.keys {
                c += g[t * heads + h];
                sums[h * keys + t] = c;
            }
        }
    }
    Ok(Some(sums))
}

/// Minus infinity.
fn low<R: Real>() -> R {
    R::from_f64(f64::NEG_INFINITY)
}

fn unsupported(what: impl Into<String>, supported: &str) -> Error {
    Error::unsupported(OP, what, supported)
}
