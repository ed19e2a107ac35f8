//! The typed call: arguments with defaults, validation, and the graph node.

use flashlin_tensor::{DType, Device, Error, Result, Tensor, Var};

use super::problem::Problem;
use crate::kernels::Sizes;
use crate::{Mode, PackedSeqs, RecurrentState, SeqOutput, StateLayout, composed};

pub(super) const OP: &str = "decay_attention";

/// Arguments of [`decay_attention`]; shapes in the [module's table](crate::decay). Start from [`DecayArgs::new`] and
/// set what differs:
///
/// ```
/// use flashlin_ops::decay::{DecayArgs, decay_attention};
/// use flashlin_tensor::{DType, Device, Tensor, Var};
///
/// # fn main() -> flashlin_ops::Result<()> {
/// let ones = |dims: &[usize]| Tensor::ones(dims, DType::F32, &Device::Cpu).map(Var::leaf);
/// let (q, k, v) = (ones(&[1, 5, 2, 4])?, ones(&[1, 5, 2, 4])?, ones(&[1, 5, 2, 8])?);
/// let gk = ones(&[1, 5, 2, 4])?.neg()?;
/// let out = decay_attention(DecayArgs { gk: Some(&gk), output_final_state: true, ..DecayArgs::new(&q, &k, &v) })?;
/// assert_eq!(out.o.dims(), [1, 5, 2, 8]);
/// assert_eq!(out.final_state.map(|s| s.value.dims().to_vec()), Some(vec![1, 2, 4, 8]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct DecayArgs<'a> {
    /// Queries `[B, T, H, K]`.
    pub q: &'a Var,
    /// Keys `[B, T, H, K]`, dtype of q.
    pub k: &'a Var,
    /// Values `[B, T, HV, V]`, dtype of q; HV a multiple of H.
    pub v: &'a Var,
    /// Log-decay by token and head `[B, T, HV]`. Default: none.
    pub g: Option<&'a Var>,
    /// Log-decay by head `[HV]`. Default: none.
    pub g_gamma: Option<&'a Var>,
    /// Log-decay by key channel, `[B, T, HV, K]` or `[B, T, H, K]`. Default: none.
    pub gk: Option<&'a Var>,
    /// Log-decay by value channel `[B, T, HV, V]`. Default: none.
    pub gv: Option<&'a Var>,
    /// Bonus u `[H, K]` (RWKV6). Default: none.
    pub bonus: Option<&'a Var>,
    /// Factor on q. Default: `K^-0.5`.
    pub scale: Option<f64>,
    /// S_0 in `layout`. Default: zero.
    pub initial_state: Option<&'a RecurrentState>,
    /// Whether [`SeqOutput::final_state`] is filled. Default: false.
    pub output_final_state: bool,
    /// Boundaries of sequences packed along T (then B = 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
    /// Layout of both states. Default: `[K, V]`.
    pub layout: StateLayout,
    /// Default: recurrent up to 64 tokens a sequence, else chunked.
    pub mode: Mode,
    /// Tokens of a chunk: 16, 32 or 64. Default: 64.
    pub chunk_size: usize,
}

impl<'a> DecayArgs<'a> {
    /// No gates, default scale, no states, dense, automatic mode.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var) -> Self {
        DecayArgs {
            q,
            k,
            v,
            g: None,
            g_gamma: None,
            gk: None,
            gv: None,
            bonus: None,
            scale: None,
            initial_state: None,
            output_final_state: false,
            seqs: None,
            layout: StateLayout::KV,
            mode: Mode::Auto,
            chunk_size: 64,
        }
    }
}

/// The recurrence of the [decay family](crate::decay), differentiable in every argument given as a [`Var`] and in the
/// initial state.
///
/// # Errors
/// When a shape, dtype, device, layout, boundary or chunk size does not fit; the message names the argument, what came
/// and what was expected.
pub fn decay_attention(args: DecayArgs) -> Result<SeqOutput> {
    let sizes = validate(&args)?;
    let seqs = PackedSeqs::resolve(OP, args.seqs, sizes.b, sizes.t)?;
    if let Some(h0) = args.initial_state {
        let dims = args.layout.dims(seqs.len(), sizes.hv, sizes.k, sizes.v);
        h0.check(OP, args.layout, dims, args.q.dtype())?;
    }
    let optional = [args.g, args.g_gamma, args.gk, args.gv, args.bonus, args.initial_state.map(|s| &s.value)];
    let mut inputs = vec![args.q, args.k, args.v];
    inputs.extend(optional.into_iter().flatten());
    if args.q.device() != Device::Cpu || composed::forced() {
        return super::cuda::run(&args, sizes, &seqs);
    }
    let mut problem = Problem::new(&args, sizes, &seqs)?;
    let save = flashlin_tensor::grad_enabled() && inputs.iter().any(|v| v.is_tracked());
    let outputs = problem.forward(args.output_final_state, save)?;
    let mut outputs = Var::from_op(OP, &inputs, outputs, || Box::new(problem)).into_iter();
    let missing = || Error::invalid(OP, "o", "was not computed");
    let o = outputs.next().ok_or_else(missing)?;
    let final_state = outputs.next().map(|value| RecurrentState { value, layout: args.layout });
    Ok(SeqOutput { o, final_state })
}

pub(super) fn validate(a: &DecayArgs) -> Result<Sizes> {
    let [b, t, h, k] = a.q.tensor().dims_n::<4>(OP, "q")?;
    let [_, _, hv, v] = a.v.tensor().dims_n::<4>(OP, "v")?;
    let want = |arg, x: &Var, dims: &[usize], names: &str| match x.dims() == dims {
        true => Ok(()),
        false => Err(Error::shape(OP, arg, x.dims(), format!("{dims:?} = {names}"))),
    };
    if h == 0 || k == 0 {
        return Err(Error::shape(OP, "q", a.q.dims(), "[B, T, H, K] with H and K at least 1"));
    }
    want("k", a.k, a.q.dims(), "the shape of q")?;
    if hv == 0 || v == 0 || !hv.is_multiple_of(h) || a.v.dims()[..2] != [b, t] {
        let expected = format!("[{b}, {t}, HV, V] with HV a multiple of H = {h} and V at least 1");
        return Err(Error::shape(OP, "v", a.v.dims(), expected));
    }
    if let Some(g) = a.g {
        want("g", g, &[b, t, hv], "[B, T, HV]")?;
    }
    if let Some(gamma) = a.g_gamma {
        want("g_gamma", gamma, &[hv], "[HV]")?;
    }
    if let Some(gk) = a.gk
        && gk.dims() != [b, t, h, k]
    {
        want("gk", gk, &[b, t, hv, k], "[B, T, HV, K] (or [B, T, H, K])")?;
    }
    if let Some(gv) = a.gv {
        want("gv", gv, a.v.dims(), "the shape of v")?;
    }
    if let Some(u) = a.bonus {
        want("bonus", u, &[h, k], "[H, K]")?;
    }
    if ![16, 32, 64].contains(&a.chunk_size) {
        let why = format!("is {}, expected 16, 32 or 64", a.chunk_size);
        return Err(Error::invalid(OP, "chunk_size", why));
    }
    if a.scale.is_some_and(|s| !s.is_finite()) {
        return Err(Error::invalid(OP, "scale", "is not finite"));
    }
    validate_types(a)?;
    Ok(Sizes { b, t, h, hv, k, v })
}

fn validate_types(a: &DecayArgs) -> Result<()> {
    let dtype = a.q.dtype();
    let all = [
        ("q", Some(a.q)),
        ("k", Some(a.k)),
        ("v", Some(a.v)),
        ("g", a.g),
        ("g_gamma", a.g_gamma),
        ("gk", a.gk),
        ("gv", a.gv),
        ("bonus", a.bonus),
        ("initial_state", a.initial_state.map(|s| &s.value)),
    ];
    for (arg, x) in all.into_iter().filter_map(|(arg, x)| x.map(|x| (arg, x))) {
        if x.device() != a.q.device() {
            return Err(Error::DeviceMismatch { op: OP, a: a.q.device(), b: x.device() });
        }
        let (fits, expected) = match arg {
            "q" => (dtype.is_float(), "f64, f32, bf16 or f16".to_string()),
            "k" | "v" => (x.dtype() == dtype, format!("{dtype}, as q")),
            // Gates, bonus and states may be wider than bf16 inputs, and f64 stays f64 throughout.
            _ => (
                x.dtype().is_float() && (x.dtype() == DType::F64) == (dtype == DType::F64),
                if dtype == DType::F64 { "f64, as q".into() } else { "f32, bf16 or f16".into() },
            ),
        };
        if !fits {
            return Err(Error::dtype(OP, arg, x.dtype(), expected));
        }
    }
    Ok(())
}

/// Floating-point operations (a multiply-add is 2) in the matrix products of the chunked algorithm, for `tokens` tokens
/// in all, `heads` value heads, chunks of `chunk`:
///
/// ```text
/// forward   tokens * heads * 2 (2 K V + C' (K + V))          Q~ S, K^^T V^; Q K^T, A V
/// backward  tokens * heads * 2 (4 K V + C' (2 K + 2 V))      dO S^T, V^ dS^T, K^ dS, Q~^T dO~; dA K, dA^T Q, dO V^T, A^T dO
/// ```
///
/// `C'` is `chunk`, as dense products count it, or `(chunk + 1) / 2` when `causal`: pairs with `j <= i` only, the least
/// that any chunked implementation multiplies. Recomputation (scores and states in the backward) and all elementwise
/// work count nothing.
pub fn chunk_matrix_flops(
    tokens: usize,
    heads: usize,
    (k, v): (usize, usize),
    chunk: usize,
    causal: bool,
    backward: bool,
) -> f64 {
    let (k, v) = (k as f64, v as f64);
    let pairs = if causal { (chunk as f64 + 1.0) / 2.0 } else { chunk as f64 };
    let forward = 2.0 * (2.0 * k * v + pairs * (k + v));
    let reverse = 2.0 * (4.0 * k * v + pairs * 2.0 * (k + v));
    (tokens * heads) as f64 * if backward { forward + reverse } else { forward }
}

/// A zeroed or written tensor's elements, for kernels.
pub(super) fn output(dims: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::empty(dims, dtype, &Device::Cpu)
}
