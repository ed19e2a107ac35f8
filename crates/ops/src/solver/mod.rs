#![doc = include_str!("README.md")]

mod cg;
pub(crate) mod conform;
pub mod reference;
#[cfg(test)]
mod tests;

use cg::{System, Tokens};
use flashlin_tensor::{DType, Error, Result, Tensor, Var};

use crate::decay::{DecayArgs, decay_attention};
use crate::{Mode, OpInfo, PackedSeqs, RecurrentState, StateLayout};

const OP: &str = "mesa";

/// Registry entry of [`mesa`].
pub static MESA: OpInfo = OpInfo {
    name: OP,
    family: "solver",
    summary: "o_t = B_t^T (A_t + diag(lambda))^-1 q_t with A, B <- e^g A, B + beta k (k, v)^T",
    source: "arXiv:2506.05233",
    modes: &[Mode::Chunk],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["q", "k", "v", "g", "beta", "lambda", "initial_kk", "initial_kv"],
};

/// Arguments of [`mesa`] and [`mesa_step`]; shapes in the module's table.
#[derive(Clone, Copy, Debug)]
pub struct MesaArgs<'a> {
    /// Queries `[B, T, H, K]`.
    pub q: &'a Var,
    /// Keys `[B, T, H, K]`.
    pub k: &'a Var,
    /// Values `[B, T, H, V]`.
    pub v: &'a Var,
    /// Log-decay `[B, T, H]`.
    pub g: &'a Var,
    /// Write strength `[B, T, H]`.
    pub beta: &'a Var,
    /// Regularisation `[H, K]`.
    pub lambda: &'a Var,
    /// A and B before the first token. Default: zero.
    pub initial: Option<[&'a Var; 2]>,
    /// Iterations of conjugate gradients. Default: 30.
    pub iterations: usize,
    /// Packed sequences (B must be 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
    /// Tokens of a chunk: 16, 32 or 64. Default: 64.
    pub chunk_size: usize,
}

impl<'a> MesaArgs<'a> {
    /// A call with every option at its default.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var, g: &'a Var, beta: &'a Var, lambda: &'a Var) -> Self {
        MesaArgs { q, k, v, g, beta, lambda, initial: None, iterations: 30, seqs: None, chunk_size: 64 }
    }
}

/// What [`mesa`] returns.
#[derive(Clone, Debug)]
pub struct MesaOutput {
    /// `[B, T, H, V]` in the dtype of v.
    pub o: Var,
    /// A and B after the last token of every sequence: `[N, H, K, K]`, `[N, H, K, V]`.
    pub states: [Var; 2],
}

/// Checked inputs in the accumulator's dtype.
struct Call {
    q: Var,
    k: Var,
    v: Var,
    g: Var,
    /// `beta k`
    written: Var,
    /// `[H, K]`
    lambda: Var,
    initial: Option<[Var; 2]>,
}

impl Call {
    fn new(a: &MesaArgs<'_>) -> Result<Self> {
        let [b, t, h, dk] = a.q.tensor().dims_n::<4>(OP, "q")?;
        let [.., dv] = a.v.tensor().dims_n::<4>(OP, "v")?;
        let n = PackedSeqs::resolve(OP, a.seqs, b, t)?.len();
        let dtype = a.v.dtype().accumulator();
        let [kk, kv] = a.initial.map_or([None, None], |[x, y]| [Some(x), Some(y)]);
        for (arg, x, want) in [
            ("k", Some(a.k), vec![b, t, h, dk]),
            ("v", Some(a.v), vec![b, t, h, dv]),
            ("g", Some(a.g), vec![b, t, h]),
            ("beta", Some(a.beta), vec![b, t, h]),
            ("lambda", Some(a.lambda), vec![h, dk]),
            ("initial_kk", kk, vec![n, h, dk, dk]),
            ("initial_kv", kv, vec![n, h, dk, dv]),
        ] {
            let Some(x) = x else { continue };
            if x.dims() != want {
                return Err(Error::shape(OP, arg, x.dims(), format!("{want:?}")));
            }
            if !x.dtype().is_float() {
                return Err(Error::dtype(OP, arg, x.dtype(), "a float dtype"));
            }
        }
        for (arg, x) in [("initial_kk", kk), ("initial_kv", kv)] {
            if let Some(x) = x.filter(|x| x.dtype() != dtype) {
                return Err(Error::dtype(OP, arg, x.dtype(), dtype.to_string()));
            }
        }
        let cast = |x: &Var| x.to_dtype(dtype);
        let k = cast(a.k)?;
        Ok(Call {
            q: cast(a.q)?,
            written: k.mul(&cast(a.beta)?.reshape(&[b, t, h, 1])?)?,
            k,
            v: cast(a.v)?,
            g: cast(a.g)?,
            lambda: cast(a.lambda)?,
            initial: a.initial.map(|[x, y]| [x.clone(), y.clone()]),
        })
    }
}

/// The Mesa layer over whole sequences.
///
/// # Errors
/// When a shape, dtype or option does not fit.
pub fn mesa(args: &MesaArgs<'_>) -> Result<MesaOutput> {
    let call = Call::new(args)?;
    let first = |i: usize| {
        call.initial.as_ref().map(|s| RecurrentState { value: s[i].clone(), layout: StateLayout::KV })
    };
    let [kk, kv] = [first(0), first(1)];
    let system = System::Tokens(Box::new(Tokens {
        k: call.k.clone(),
        written: call.written.clone(),
        g: call.g.clone(),
        lambda: call.lambda.clone(),
        first: kk.clone(),
        seqs: args.seqs.cloned(),
        chunk_size: args.chunk_size,
    }));
    let x = cg::solve(&system, &call.q, args.iterations)?;
    let read = |q: &Var, v: &Var, first: &Option<RecurrentState>| {
        let args = DecayArgs {
            g: Some(&call.g),
            scale: Some(1.0),
            initial_state: first.as_ref(),
            output_final_state: true,
            seqs: args.seqs,
            mode: Mode::Chunk,
            chunk_size: args.chunk_size,
            ..DecayArgs::new(q, &call.written, v)
        };
        decay_attention(args)
    };
    let out = read(&x, &call.v, &kv)?;
    let last = |state: Option<RecurrentState>| {
        state.map(|s| s.value).ok_or_else(|| Error::invalid(OP, "final_state", "was not returned"))
    };
    // Values of width K: the outputs are not needed, the state is.
    let zero = Var::constant(Tensor::zeros(call.q.dims(), call.q.dtype(), &call.q.device())?);
    let kk_last = last(read(&zero, &call.k, &kk)?.final_state)?;
    Ok(MesaOutput { o: out.o.to_dtype(args.v.dtype())?, states: [kk_last, last(out.final_state)?] })
}

/// One token of each sequence from a state `[N, H, K, K]`, `[N, H, K, V]`: q, k, v `[N, 1, H, ..]`. The solver starts from the diagonal's solution.
///
/// # Errors
/// As [`mesa`], and when there is not exactly one token a sequence or no state.
pub fn mesa_step(args: &MesaArgs<'_>) -> Result<MesaOutput> {
    let call = Call::new(args)?;
    let [n, t, h, dk] = call.q.tensor().dims_n::<4>(OP, "q")?;
    let (Some([kk, kv]), 1, None) = (&call.initial, t, args.seqs) else {
        return Err(Error::invalid(
            OP,
            "q",
            "must hold one token a sequence, with a state and no boundaries",
        ));
    };
    let dv = call.v.dim(3);
    let decay = call.g.exp()?.reshape(&[n, h, 1, 1])?;
    let column = call.written.reshape(&[n, h, dk, 1])?;
    let grown =
        |s: &Var, by: &Var, d: usize| s.mul(&decay)?.add(&column.matmul(&by.reshape(&[n, h, 1, d])?)?);
    let (kk, kv) = (grown(kk, &call.k, dk)?, grown(kv, &call.v, dv)?);
    let system = System::Given { kk: kk.clone(), lambda: call.lambda.reshape(&[1, h, 1, dk])? };
    let x = cg::solve(&system, &call.q.reshape(&[n, h, 1, dk])?, args.iterations)?;
    let o = x.matmul(&kv)?.reshape(&[n, 1, h, dv])?;
    Ok(MesaOutput { o: o.to_dtype(args.v.dtype())?, states: [kk, kv] })
}
