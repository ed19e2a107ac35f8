#![doc = include_str!("README.md")]

mod chunks;
pub(crate) mod conform;
pub mod reference;
#[cfg(test)]
mod tests;

use flashlin_tensor::{DType, Error, Result, Tensor, Var};

use crate::{Mode, OpInfo, PackedSeqs};

const OP: &str = "log_linear_attn";

/// Registry entry of [`log_linear_attn`].
pub static LOG_LINEAR_ATTN: OpInfo = OpInfo {
    name: OP,
    family: "levels",
    summary: "o_t = sum_s lambda_t[level(t, s)] e^{g_{s+1} + .. + g_t} (q_t . k_s) v_s, levels of a Fenwick tree",
    source: "arXiv:2506.04761",
    modes: &[Mode::Chunk, Mode::Recurrent],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["q", "k", "v", "g", "levels", "state"],
};

/// Arguments of [`log_linear_attn`]; shapes in the module's table.
#[derive(Clone, Copy, Debug)]
pub struct LogLinearArgs<'a> {
    /// Queries `[B, T, H, K]`.
    pub q: &'a Var,
    /// Keys `[B, T, H, K]`.
    pub k: &'a Var,
    /// Values `[B, T, HV, V]`.
    pub v: &'a Var,
    /// Log-decay `[B, T, HV]`.
    pub g: &'a Var,
    /// Weights of the levels `[B, T, HV, L]`.
    pub levels: &'a Var,
    /// Factor on the output. Default: 1.
    pub scale: f64,
    /// The state to continue from `[N, L, HV, K, V]` and the tokens that each sequence has had. Default: none, no tokens.
    pub initial: Option<(&'a Var, &'a [usize])>,
    /// Packed sequences (B must be 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
    /// Form of evaluation. Default: by length.
    pub mode: Mode,
    /// Most tokens of a chunk, a power of two. Default: 64.
    pub chunk_size: usize,
}

impl<'a> LogLinearArgs<'a> {
    /// A call with every option at its default.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var, g: &'a Var, levels: &'a Var) -> Self {
        LogLinearArgs {
            q,
            k,
            v,
            g,
            levels,
            scale: 1.0,
            initial: None,
            seqs: None,
            mode: Mode::Auto,
            chunk_size: 64,
        }
    }
}

/// What [`log_linear_attn`] returns.
#[derive(Clone, Debug)]
pub struct LogLinearOutput {
    /// `[B, T, HV, V]` in the dtype of v.
    pub o: Var,
    /// The state after the last token of every sequence `[N, L, HV, K, V]`.
    pub state: Var,
}

/// Sequences of equal length that have had equally many tokens, in the accumulator's dtype.
struct Group {
    q: Var,
    k: Var,
    v: Var,
    /// `[b, T, HV, 1]`
    g: Var,
    levels: Var,
    /// `[b, L, HV, K, V]`
    state: Var,
    seen: usize,
}

/// Log-linear attention.
///
/// # Errors
/// When a shape, dtype or option does not fit, and for sequences longer than the levels reach.
pub fn log_linear_attn(a: &LogLinearArgs<'_>) -> Result<LogLinearOutput> {
    let [b, t, h, dk] = a.q.tensor().dims_n::<4>(OP, "q")?;
    let [_, _, hv, dv] = a.v.tensor().dims_n::<4>(OP, "v")?;
    let [.., count] = a.levels.tensor().dims_n::<4>(OP, "levels")?;
    let packed = PackedSeqs::resolve(OP, a.seqs, b, t)?;
    let n = packed.len();
    let zero;
    let none = vec![0; n];
    let dtype = a.v.dtype().accumulator();
    let (state, seen) = match a.initial {
        Some((state, seen)) => (state, seen),
        None => {
            zero = Tensor::zeros(&[n, count, hv, dk, dv], dtype, &a.v.device())?.into();
            (&zero, none.as_slice())
        }
    };
    check(a, &packed, state, seen, [b, t, h, hv, dk, dv, count])?;
    let cast = |x: &Var| x.to_dtype(dtype);
    let all = Group {
        q: cast(a.q)?.affine(a.scale, 0.0)?,
        k: cast(a.k)?,
        v: cast(a.v)?,
        g: cast(a.g)?.reshape(&[b, t, hv, 1])?,
        levels: cast(a.levels)?,
        state: state.clone(),
        seen: 0,
    };
    let alike = a.seqs.is_none() && seen.windows(2).all(|w| w[0] == w[1]);
    let groups: Vec<Group> = if alike && n > 0 {
        vec![Group { seen: seen[0], ..all }]
    } else {
        packed.ranges().enumerate().map(|(row, r)| all.cut(row, r, seen[row])).collect::<Result<_>>()?
    };
    let (mut o, mut states) = (Vec::new(), Vec::new());
    for group in &groups {
        let (x, state) = match a.mode.resolve(packed.longest()) {
            Mode::Recurrent => group.stepped()?,
            _ => chunks::run(group, a.chunk_size)?,
        };
        o.push(x);
        states.push(state);
    }
    let joined = |parts: &[Var], dim| Var::cat(&parts.iter().collect::<Vec<_>>(), dim);
    // Groups of a packed call lie along T, those of a dense one are rows.
    let o = match (groups.len(), a.seqs) {
        (0, _) => a.v.clone(),
        (_, None) => joined(&o, 0)?,
        _ => joined(&o, 1)?,
    };
    let state = if groups.is_empty() { state.clone() } else { joined(&states, 0)? };
    Ok(LogLinearOutput { o: o.reshape(a.v.dims())?.to_dtype(a.v.dtype())?, state })
}

impl Group {
    /// One sequence: tokens `range` of the flattened batch.
    fn cut(&self, row: usize, range: std::ops::Range<usize>, seen: usize) -> Result<Group> {
        let one = |x: &Var| {
            let [b, t, h, d] = x.tensor().dims_n::<4>(OP, "x")?;
            x.reshape(&[1, b * t, h, d])?.narrow(1, range.start, range.len())
        };
        Ok(Group {
            q: one(&self.q)?,
            k: one(&self.k)?,
            v: one(&self.v)?,
            g: one(&self.g)?,
            levels: one(&self.levels)?,
            state: self.state.narrow(0, row, 1)?,
            seen,
        })
    }

    /// Token by token through the state.
    fn stepped(&self) -> Result<(Var, Var)> {
        let t = self.q.dim(1);
        let mut group = Group { state: self.state.clone(), ..self.part(0, 0)? };
        let mut o = Vec::new();
        for i in 0..t {
            let one = Group { state: group.state.clone(), ..self.part(i, 1)? };
            let (x, state) = chunks::run(&one, 1)?;
            o.push(x);
            group.state = state;
        }
        if o.is_empty() {
            return Ok((self.v.clone(), group.state));
        }
        Ok((Var::cat(&o.iter().collect::<Vec<_>>(), 1)?, group.state))
    }

    fn part(&self, from: usize, len: usize) -> Result<Group> {
        let cut = |x: &Var| x.narrow(1, from, len);
        Ok(Group {
            q: cut(&self.q)?,
            k: cut(&self.k)?,
            v: cut(&self.v)?,
            g: cut(&self.g)?,
            levels: cut(&self.levels)?,
            state: self.state.clone(),
            seen: self.seen + from,
        })
    }
}

fn check(
    a: &LogLinearArgs<'_>,
    packed: &PackedSeqs,
    state: &Var,
    seen: &[usize],
    [b, t, h, hv, dk, dv, count]: [usize; 7],
) -> Result<()> {
    if h == 0 || hv % h != 0 {
        return Err(Error::shape(OP, "v", a.v.dims(), format!("[B, T, HV, V], HV a multiple of {h}")));
    }
    for (arg, x, want) in [
        ("k", a.k, vec![b, t, h, dk]),
        ("v", a.v, vec![b, t, hv, dv]),
        ("g", a.g, vec![b, t, hv]),
        ("levels", a.levels, vec![b, t, hv, count]),
        ("state", state, vec![packed.len(), count, hv, dk, dv]),
    ] {
        if x.dims() != want {
            return Err(Error::shape(OP, arg, x.dims(), format!("{want:?}")));
        }
        if !x.dtype().is_float() {
            return Err(Error::dtype(OP, arg, x.dtype(), "a float dtype"));
        }
    }
    if state.dtype() != a.v.dtype().accumulator() {
        return Err(Error::dtype(OP, "state", state.dtype(), a.v.dtype().accumulator().to_string()));
    }
    if seen.len() != packed.len() {
        let why = format!("has {} numbers for {} sequences", seen.len(), packed.len());
        return Err(Error::invalid(OP, "seen", why));
    }
    if !a.chunk_size.is_power_of_two() {
        let why = format!("is {}, expected a power of two", a.chunk_size);
        return Err(Error::invalid(OP, "chunk_size", why));
    }
    let most = 1usize.checked_shl(count.saturating_sub(1) as u32).unwrap_or(usize::MAX);
    let longest = packed.ranges().zip(seen).map(|(r, &s)| s.saturating_add(r.len())).max().unwrap_or(0);
    if count == 0 || longest > most {
        let why = format!("has {count} levels, which reach {most} tokens, not {longest}");
        return Err(Error::invalid(OP, "levels", why));
    }
    Ok(())
}
