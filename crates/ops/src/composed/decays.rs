//! Decays inside chunks from the tokens' log-decays: between two tokens, from the chunk's start, to its end.

use flashlin_tensor::{Result, Tensor, Var, cuda};

/// Which states outputs or erase keys read: those after a token's decay, those before it.
#[derive(Clone, Copy)]
pub(crate) struct Reads {
    pub after: bool,
    pub before: bool,
}

/// A constant matrix `[c, c]` of ones where `on`, of the dtype and device of `like`.
pub(crate) fn mask(c: usize, on: impl Fn(usize, usize) -> bool, like: &Var) -> Result<Var> {
    let at = |n: usize| f64::from(u8::from(on(n / c, n % c)));
    constant((0..c * c).map(at).collect(), &[c, c], like)
}

fn constant(values: Vec<f64>, dims: &[usize], like: &Var) -> Result<Var> {
    let t = Tensor::from_vec(values, dims)?.to_dtype(like.dtype())?;
    Ok(cuda::kept(&t, &like.device())?.into())
}

/// Decays of one of the state's dimensions; none at all where there is no gate.
pub(crate) struct Decays {
    size: usize,
    /// Exponentials `[n, HV, R, W]`: pairs and starts of each kind of read, ends, the total.
    table: Option<Var>,
    reads: Reads,
}

impl Decays {
    /// Of log-decays `[n, HV, C, W]`.
    pub fn new(gate: Option<Var>, size: usize, reads: Reads) -> Result<Decays> {
        let table = match gate {
            Some(gate) => {
                Some(constant(sums(size, reads), &[rows(size, reads), size], &gate)?.matmul(&gate)?.exp()?)
            }
            None => None,
        };
        Ok(Decays { size, table, reads })
    }

    /// Rows `from .. from + n` of the part of the table for one kind of read.
    fn part(&self, before: bool, from: usize, n: usize) -> Result<Option<Var>> {
        let c = self.size;
        let skip = if before && self.reads.after { c * c + c } else { 0 };
        self.table.as_ref().map(|t| t.narrow(2, skip + from, n)).transpose()
    }

    fn pairs(&self, before: bool) -> Result<Option<Var>> {
        self.part(before, 0, self.size * self.size)
    }

    /// Rows counted from the end of the table: `C` decays to the chunk's end, then the whole chunk's.
    fn tail(&self, from: usize, n: usize) -> Result<Option<Var>> {
        let skip = rows(self.size, self.reads) - self.size - 1;
        self.table.as_ref().map(|t| t.narrow(2, skip + from, n)).transpose()
    }

    /// x times the decay from the chunk's start to each token.
    pub fn times_prefix(&self, x: &Var, before: bool) -> Result<Var> {
        times(x, self.part(before, self.size * self.size, self.size)?)
    }

    /// x times the decay from each token to the chunk's end.
    pub fn times_suffix(&self, x: &Var) -> Result<Var> {
        times(x, self.tail(0, self.size)?)
    }

    /// The decay of a whole chunk `[n, HV, 1, W]`.
    pub fn total(&self) -> Result<Option<Var>> {
        self.tail(self.size, 1)
    }

    /// `sum_c x_i[c] y_j[c] decay_ij[c]` for `j <= i` (`j < i` for reads before the decay), `[n, HV, C, C]`.
    pub fn scores(&self, x: &Var, y: &Var, before: bool) -> Result<Var> {
        let [n, hv, c, d] = x.tensor().dims_n::<4>("composed", "x")?;
        let mask = mask(c, |i, j| j < i || (j == i && !before), x)?;
        let scores = match self.pairs(before)? {
            Some(pairs) if pairs.dim(3) > 1 || d == 1 => {
                let decayed = pairs.reshape(&[n * hv, c, c, d])?.mul(&y.reshape(&[n * hv, 1, c, d])?)?;
                let x = x.reshape(&[n * hv * c, d, 1])?;
                decayed.reshape(&[n * hv * c, c, d])?.matmul(&x)?.reshape(&[n, hv, c, c])?
            }
            pairs => {
                let all = x.matmul(&y.transpose(2, 3)?)?;
                times(&all, pairs.map(|p| p.reshape(&[n, hv, c, c])).transpose()?)?
            }
        };
        scores.mul(&mask)
    }

    /// `sum_j scores_ij y_j[c] decay_ij[c]`, `[n, HV, C, D]`.
    pub fn weigh(&self, scores: &Var, y: &Var, before: bool) -> Result<Var> {
        let [n, hv, c, d] = y.tensor().dims_n::<4>("composed", "y")?;
        let Some(pairs) = self.pairs(before)? else { return scores.matmul(y) };
        let decayed = pairs.reshape(&[n * hv, c, c, d])?.mul(&y.reshape(&[n * hv, 1, c, d])?)?;
        let rows = scores.reshape(&[n * hv * c, 1, c])?.matmul(&decayed.reshape(&[n * hv * c, c, d])?)?;
        rows.reshape(&[n, hv, c, d])
    }
}

fn times(x: &Var, by: Option<Var>) -> Result<Var> {
    by.map_or_else(|| Ok(x.clone()), |by| x.mul(&by))
}

fn rows(c: usize, reads: Reads) -> usize {
    (c * c + c) * (usize::from(reads.after) + usize::from(reads.before)) + c + 1
}

/// For each row of the table, which tokens' log-decays it sums. Pairs that nothing reads sum nothing.
fn sums(c: usize, reads: Reads) -> Vec<f64> {
    let mut out = Vec::with_capacity(rows(c, reads) * c);
    let mut row =
        |from: usize, to: usize| out.extend((0..c).map(|m| if m >= from && m < to { 1.0 } else { 0.0 }));
    for late in [reads.after.then_some(1), reads.before.then_some(0)].into_iter().flatten() {
        // The state that token i reads has decayed by the tokens before i + late.
        (0..c).for_each(|i| (0..c).for_each(|j| row(j + 1, i + late)));
        (0..c).for_each(|i| row(0, i + late));
    }
    (0..c).for_each(|j| row(j + 1, c));
    row(0, c);
    out
}
