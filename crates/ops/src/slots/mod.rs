#![doc = include_str!("README.md")]

pub(crate) mod conform;
pub mod reference;
#[cfg(test)]
mod tests;

use flashlin_tensor::{DType, Error, Result, Tensor, Var, cuda::kept};

use crate::{
    Mode, OpInfo, PackedSeqs, Recurrence, RecurrentState, StateLayout,
    decay::DecayArgs,
    maps::softmax,
    scan::{CumArgs, logcumsumexp},
};

/// Registry entry of [`slot_attention`].
pub static SLOTS: OpInfo = OpInfo {
    name: "slot_attention",
    family: "slots",
    summary: "softmax over M slots of decayed keys and values: GSA, ABC",
    source: "https://arxiv.org/abs/2409.07146",
    modes: &[Mode::Chunk, Mode::Recurrent],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["q", "k", "v", "s", "g", "initial_keys", "initial_values"],
};

/// Arguments of [`slot_attention`].
#[derive(Clone, Copy, Debug)]
pub struct SlotArgs<'a> {
    /// Queries `[B, T, H, K]`.
    pub q: &'a Var,
    /// Keys `[B, T, H, K]`, dtype of q.
    pub k: &'a Var,
    /// Values `[B, T, H, V]`, dtype of q.
    pub v: &'a Var,
    /// How much a token writes into each slot, `[B, T, H, M]`, dtype of q.
    pub s: &'a Var,
    /// Log decays of the slots `[B, T, H, M]`, `<= 0`.
    pub g: &'a Var,
    /// Factor on the scores of the slots. Default: `K^-0.5`.
    pub scale: Option<f64>,
    /// Boundaries of sequences packed along T (then B = 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
    /// Default: recurrent up to 64 tokens a sequence, else chunked.
    pub mode: Mode,
}

impl<'a> SlotArgs<'a> {
    /// Default scale, dense, automatic mode.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var, s: &'a Var, g: &'a Var) -> Self {
        SlotArgs { q, k, v, s, g, scale: None, seqs: None, mode: Mode::Auto }
    }
}

/// Keys `[N, H, K, M]` and values `[N, H, M, V]` of the slots, in the layout `[K, V]` of the decay family.
#[derive(Clone, Debug)]
pub struct SlotState {
    /// Hk
    pub keys: RecurrentState,
    /// Hv
    pub values: RecurrentState,
}

/// Output `[B, T, H, V]`, differentiable in every input and in the state. With a state, it continues from that and leaves the one after the last
/// token in it; after an error the state may be lost.
///
/// # Errors
/// As [`crate::decay::decay_attention`].
pub fn slot_attention(args: &SlotArgs, state: Option<&mut SlotState>) -> Result<Var> {
    let (keys, values) = match state {
        Some(SlotState { keys, values }) => (Some(keys), Some(values)),
        None => (None, None),
    };
    // Between the passes nothing is rounded to half precision: what the softmax reads would lose more than the inputs have.
    let wide = |x: &Var| x.to_dtype(x.dtype().accumulator());
    let (q, k, v, s) = (wide(args.q)?, wide(args.k)?, wide(args.v)?, wide(args.s)?);
    let mut write = DecayArgs::new(&q, &k, &s);
    (write.gv, write.scale) = (Some(args.g), args.scale);
    write.within(args.seqs, args.mode, StateLayout::KV);
    let p = softmax(&write.run(keys)?)?;
    let mut read = DecayArgs::new(&p, &s, &v);
    (read.gk, read.scale) = (Some(args.g), Some(1.0));
    read.within(args.seqs, args.mode, StateLayout::KV);
    read.run(values)?.to_dtype(args.v.dtype())
}

/// What [`running_softmax`] gives.
#[derive(Clone, Debug)]
pub struct Running {
    /// `e^{x_t - z_t}`, of the shape and dtype of x.
    pub share: Var,
    /// `z_{t-1} - z_t`, f32 (f64 for f64); 0 at a sequence's first token, where there is nothing to decay.
    pub log_decay: Var,
    /// z after each sequence's last token, `[N, channels]`, f32 (f64 for f64); minus infinity where it has seen nothing.
    pub state: Var,
}

/// The softmax over time of `x` `[B, T, ..]` as it stands at each token, by channel, with the decay that keeps earlier tokens' shares right.
///
/// `state` is z `[N, channels]` of earlier tokens, and which rows have seen any: the others' values are ignored.
///
/// # Errors
/// When shapes, dtypes or boundaries do not fit.
pub fn running_softmax(
    x: &Var,
    state: Option<(&Var, &[bool])>,
    seqs: Option<&PackedSeqs>,
) -> Result<Running> {
    const OP: &str = "running_softmax";
    let (dims, wide) = (x.dims().to_vec(), x.dtype().accumulator());
    if dims.len() < 3 {
        return Err(Error::shape(OP, "x", &dims, "[B, T, ..] of at least three dimensions"));
    }
    let channels: usize = dims[2..].iter().product();
    let (b, t) = (dims[0], dims[1]);
    let flat = x.reshape(&[b, t, channels])?.to_dtype(wide)?;
    let all = PackedSeqs::resolve(OP, seqs, b, t)?;
    let seen = match state {
        Some((_, seen)) if seen.len() != all.len() => {
            let why = format!("tells of {} rows, but there are {} sequences", seen.len(), all.len());
            return Err(Error::invalid(OP, "state", why));
        }
        Some((_, seen)) => seen.to_vec(),
        None => vec![false; all.len()],
    };
    let z0 = state.map(|(z, _)| started(z, &seen)).transpose()?;
    let out = logcumsumexp(&CumArgs { seqs, ..CumArgs::new(&flat) }, z0.as_ref())?;
    let rows = out.o.reshape(&[b * t, channels])?;
    let n = if z0.is_some() { all.len() } else { 0 };
    let prior = |(row, r): (usize, std::ops::Range<usize>)| {
        let (start, seen) = (r.start, seen[row]);
        r.map(move |t| match (t == start, seen) {
            (true, true) => row as i64,
            (true, false) => (n + t) as i64,
            (false, _) => (n + t - 1) as i64,
        })
    };
    let places: Vec<i64> = all.ranges().enumerate().flat_map(prior).collect();
    let places = kept(&Tensor::from_vec(places, &[b * t])?, &x.device())?;
    let before = match &z0 {
        Some(z0) => Var::cat(&[z0, &rows], 0)?.index_select(&places)?,
        None => rows.index_select(&places)?,
    };
    Ok(Running {
        share: flat.sub(&out.o)?.exp()?.to_dtype(x.dtype())?.reshape(&dims)?,
        log_decay: before.sub(&rows)?.reshape(&dims)?,
        state: out.final_state,
    })
}

/// The states of the rows that have seen something, minus infinity for the others.
fn started(z: &Var, seen: &[bool]) -> Result<Var> {
    let mask = seen.iter().map(|&s| u8::from(s)).collect::<Vec<_>>();
    let mask = kept(&Tensor::from_vec(mask, &[seen.len(), 1])?, &z.device())?;
    let nothing = Tensor::full(f64::NEG_INFINITY, &[], z.dtype(), &z.device())?;
    let values = z.tensor().where_(&mask, &nothing)?;
    Ok(Var::from_op1("started", &[z], values, || {
        Box::new(move |_: &mut flashlin_tensor::BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let drop = |g: Tensor| {
                let zero = Tensor::zeros(&[], g.dtype(), &g.device())?;
                g.where_(&mask, &zero)
            };
            Ok(vec![g[0].take().map(drop).transpose()?])
        })
    }))
}
