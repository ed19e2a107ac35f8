//! One group of sequences in chunks; arrays are `[n, b HQ, C, ..]`, chunks first.

use flashlin_tensor::{Result, Tensor, Var, cuda};

use super::Group;
use crate::composed::{inverse, mask};

/// Added to hidden scores.
const HIDDEN: f64 = -1e30;

/// Chunks of a call.
struct Grid {
    rows: usize,
    size: usize,
    n: usize,
    t: usize,
}

impl Grid {
    fn new(b: usize, t: usize, h: usize, most: usize) -> Grid {
        let size = t.next_power_of_two().min(most);
        Grid { rows: b * h, size, n: t.div_ceil(size), t }
    }

    /// `[b, T, H, D]` as `[n, b H, C, D]`, zero beyond the end.
    fn lay(&self, x: &Var) -> Result<Var> {
        let [b, t, h, d] = x.tensor().dims_n::<4>("path_attn", "x")?;
        let rest = self.n * self.size - t;
        let x = if rest == 0 {
            x.clone()
        } else {
            let zeros = Var::constant(Tensor::zeros(&[b, rest, h, d], x.dtype(), &x.device())?);
            Var::cat(&[x, &zeros], 1)?
        };
        let x = x.reshape(&[b, self.n, self.size, h, d])?.permute(&[1, 0, 3, 2, 4])?;
        x.reshape(&[self.n, self.rows, self.size, d])
    }

    fn unlay(&self, x: &Var, [b, h]: [usize; 2]) -> Result<Var> {
        let d = x.dim(3);
        let x = x.reshape(&[self.n, b, h, self.size, d])?.permute(&[1, 0, 3, 2, 4])?;
        x.reshape(&[b, self.n * self.size, h, d])?.narrow(1, 0, self.t)
    }
}

/// The transformations of each chunk.
struct Householder {
    w: Var,
    /// `beta w`
    scaled: Var,
    /// `(I + L)^-1 beta w`, L the products of `beta w` and earlier w.
    solved: Var,
    inverse: Option<Var>,
    /// Of whole chunks: a row x goes to `x - x step`.
    step: Var,
}

impl Householder {
    fn new(w: Var, beta: &Var) -> Result<Householder> {
        let scaled = w.mul(beta)?;
        let strict = mask(w.dim(2), |i, j| j < i, &w)?;
        let inverse = inverse(&scaled.matmul(&w.transpose(2, 3)?)?.mul(&strict)?)?;
        let solved = match &inverse {
            Some(inverse) => inverse.matmul(&scaled)?,
            None => scaled.clone(),
        };
        let step = w.transpose(2, 3)?.matmul(&solved)?;
        Ok(Householder { w, scaled, solved, inverse, step })
    }

    /// `(I + L)^-1` times the products of `beta w` and earlier keys: `[n, rows, C, C]`.
    fn onto(&self, k: &Var) -> Result<Var> {
        let strict = mask(k.dim(2), |i, j| j < i, k)?;
        let products = self.scaled.matmul(&k.transpose(2, 3)?)?.mul(&strict)?;
        match &self.inverse {
            Some(inverse) => inverse.matmul(&products),
            None => Ok(products),
        }
    }

    /// Keys taken to their chunk's end, from [`Householder::onto`].
    fn to_end(&self, k: &Var, onto: &Var) -> Result<Var> {
        k.sub(&onto.transpose(2, 3)?.matmul(&self.w)?)
    }
}

/// Sums of gates `[n, rows, C, 1]`, all of one sign.
struct Gates {
    /// Up to each token and it, from its chunk's start `[n, rows, C, 1]`.
    upto: Var,
    /// After each token to its chunk's end `[n, rows, 1, C]`.
    after: Var,
    /// Between tokens of a chunk `[n, rows, C, C]`.
    pairs: Var,
    /// Of whole chunks `[n, rows, 1, 1]`.
    whole: Var,
}

impl Gates {
    fn new(g: &Var) -> Result<Gates> {
        let [n, rows, c, _] = g.tensor().dims_n::<4>("path_attn", "g")?;
        let table: Vec<f64> = (0..c * c * c)
            .map(|at| {
                let (i, j, m) = (at / (c * c), at / c % c, at % c);
                f64::from(u8::from(m > j && m <= i))
            })
            .collect();
        let table = Tensor::from_vec(table, &[c * c, c])?.to_dtype(g.dtype())?;
        let table = Var::constant(cuda::kept(&table, &g.device())?);
        let after = mask(c, |i, j| j > i, g)?.matmul(g)?;
        Ok(Gates {
            upto: mask(c, |i, j| j <= i, g)?.matmul(g)?,
            after: after.reshape(&[n, rows, 1, c])?,
            pairs: table.matmul(g)?.reshape(&[n, rows, c, c])?,
            whole: g.sum(&[2], true)?,
        })
    }
}

/// Outputs `[b, T, HQ, V]`.
pub(super) fn run(x: &Group, most: usize) -> Result<Var> {
    let [b, t, h, _] = x.q.tensor().dims_n::<4>("path_attn", "q")?;
    if b * t == 0 {
        return Ok(Tensor::zeros(&[b, t, h, x.v.dim(3)], x.v.dtype(), &x.v.device())?.into());
    }
    let grid = Grid::new(b, t, h, most);
    let (q, k, v) = (grid.lay(&x.q)?, grid.lay(&x.k)?, grid.lay(&x.v)?);
    let turn = Householder::new(grid.lay(&x.w)?, &grid.lay(&x.beta)?)?;
    let gates = x.g.as_ref().map(|g| Gates::new(&grid.lay(g)?)).transpose()?;
    let scores = scores(&grid, &q, &k, &turn, gates.as_ref(), x)?;
    grid.unlay(&weighted(&grid, &scores, &v, x)?, [b, h])
}

/// Scores of each distance between chunks: the m-th entry is `[n - m, rows, C, C]`, chunks m.. against chunks 0.. ; the past's `[n, rows, C, P]`.
struct Scores {
    chunks: Vec<Var>,
    past: Option<Var>,
}

fn scores(
    grid: &Grid,
    q: &Var,
    k: &Var,
    turn: &Householder,
    gates: Option<&Gates>,
    x: &Group,
) -> Result<Scores> {
    let lower = mask(grid.size, |i, j| j <= i, q)?;
    let across = q.matmul(&turn.w.transpose(2, 3)?)?.mul(&lower)?;
    let onto = turn.onto(k)?;
    let near = q.matmul(&k.transpose(2, 3)?)?.sub(&across.matmul(&onto)?)?;
    let near = match gates {
        Some(g) => near.add(&g.pairs)?,
        None => near,
    };
    let hidden = mask(grid.size, |i, j| j > i, q)?.affine(HIDDEN, 0.0)?;
    let mut all = vec![near.mul(&lower)?.add(&hidden)?];
    let keys = turn.to_end(k, &onto)?.transpose(2, 3)?;
    // Queries at the start of their chunk, then one chunk further back each time; `gone` sums the gates of what lies between.
    let mut back = q.sub(&across.matmul(&turn.solved)?)?;
    let mut gone = gates.map(|g| g.upto.clone());
    let mut arrived = vec![back.narrow(0, 0, 1)?];
    let mut arrived_gone: Vec<Var> = gone.iter().map(|g| g.narrow(0, 0, 1)).collect::<Result<_>>()?;
    for m in 1..grid.n {
        let left = grid.n - m;
        let met = |x: &Var| x.narrow(0, 0, left);
        back = back.narrow(0, 1, left)?;
        let far = back.matmul(&met(&keys)?)?;
        gone = gone.map(|g| g.narrow(0, 1, left)).transpose()?;
        all.push(match (gates, &gone) {
            (Some(g), Some(gone)) => far.add(gone)?.add(&met(&g.after)?)?,
            _ => far,
        });
        back = back.sub(&back.matmul(&met(&turn.step)?)?)?;
        arrived.push(back.narrow(0, 0, 1)?);
        if let (Some(g), Some(before)) = (gates, gone) {
            let sum = before.add(&met(&g.whole)?)?;
            arrived_gone.push(sum.narrow(0, 0, 1)?);
            gone = Some(sum);
        } else {
            gone = None;
        }
    }
    let past = match &x.past {
        None => None,
        Some(p) => {
            let [b, len, h, d] = p.k.tensor().dims_n::<4>("path_attn", "past")?;
            let k = p.k.permute(&[0, 2, 3, 1])?.reshape(&[1, b * h, d, len])?;
            let joined = |x: &[Var]| Var::cat(&x.iter().collect::<Vec<_>>(), 0);
            let scores = joined(&arrived)?.matmul(&k)?;
            Some(match &p.decay {
                Some(decay) => {
                    let decay = decay.permute(&[0, 2, 3, 1])?.reshape(&[1, b * h, 1, len])?;
                    scores.add(&joined(&arrived_gone)?)?.add(&decay)?
                }
                None => scores,
            })
        }
    };
    Ok(Scores { chunks: all, past })
}

/// Values weighted by the softmax over all blocks of a row, `[n, rows, C, V]`.
fn weighted(grid: &Grid, scores: &Scores, v: &Var, x: &Group) -> Result<Var> {
    // The rows' largest scores, as constants: they cancel.
    let most = |s: &Var| -> Result<Tensor> { s.tensor().max_last()?.0.unsqueeze(3) };
    let larger = |a: &Tensor, b: &Tensor| a.add(&b.sub(a)?.relu()?);
    let mut top = most(&scores.chunks[0])?;
    for (m, s) in scores.chunks.iter().enumerate().skip(1) {
        let high = larger(&top.narrow(0, m, grid.n - m)?, &most(s)?)?;
        top = Tensor::cat(&[&top.narrow(0, 0, m)?, &high], 0)?;
    }
    if let Some(past) = &scores.past {
        top = larger(&top, &most(past)?)?;
    }
    let top = Var::constant(top);
    let (mut out, mut total): (Option<Var>, Option<Var>) = (None, None);
    let mut add = |p: Var, v: &Var| -> Result<()> {
        let (o, sum) = (p.matmul(v)?, p.sum(&[3], true)?);
        let plus = |to: &mut Option<Var>, x: Var| -> Result<()> {
            *to = Some(match to.take() {
                None => x,
                Some(all) => {
                    let skip = all.dim(0) - x.dim(0);
                    if skip == 0 {
                        all.add(&x)?
                    } else {
                        let rest = all.narrow(0, skip, x.dim(0))?.add(&x)?;
                        Var::cat(&[&all.narrow(0, 0, skip)?, &rest], 0)?
                    }
                }
            });
            Ok(())
        };
        plus(&mut out, o)?;
        plus(&mut total, sum)
    };
    for (m, s) in scores.chunks.iter().enumerate() {
        let left = grid.n - m;
        add(s.sub(&top.narrow(0, m, left)?)?.exp()?, &v.narrow(0, 0, left)?)?;
    }
    if let (Some(s), Some(p)) = (&scores.past, &x.past) {
        let [b, len, h, d] = p.v.tensor().dims_n::<4>("path_attn", "past")?;
        let v = p.v.permute(&[0, 2, 1, 3])?.reshape(&[1, b * h, len, d])?;
        add(s.sub(&top)?.exp()?, &v)?;
    }
    match (out, total) {
        (Some(out), Some(total)) => out.div(&total),
        _ => Ok(v.clone()),
    }
}

/// One sequence's keys (those before `[1, P, H, D]`, new ones `[1, T, H, D]`) taken to the end of the new tokens.
pub(super) fn advanced(past: Option<Tensor>, k: Tensor, w: &Var, beta: &Var, most: usize) -> Result<Tensor> {
    let [_, t, h, d] = k.dims_n::<4>("path_attn", "k")?;
    if t == 0 {
        return Ok(past.unwrap_or(k));
    }
    let grid = Grid::new(1, t, h, most);
    let turn = Householder::new(grid.lay(w)?, &grid.lay(&beta.reshape(&[1, t, h, 1])?)?)?;
    let k = grid.lay(&Var::constant(k))?;
    let ends = turn.to_end(&k, &turn.onto(&k)?)?.into_tensor();
    // [1, H, keys so far, D]
    let mut all = match past {
        Some(past) => past.permute(&[0, 2, 1, 3])?.contiguous()?,
        None => Tensor::zeros(&[1, h, 0, d], ends.dtype(), &ends.device())?,
    };
    for c in 0..grid.n {
        let step = turn.step.tensor().narrow(0, c, 1)?.transpose(2, 3)?;
        if all.dim(2) > 0 {
            all = all.sub(&all.matmul(&step.contiguous()?)?)?;
        }
        all = Tensor::cat(&[&all, &ends.narrow(0, c, 1)?], 2)?;
    }
    let len = all.dim(2) - (grid.n * grid.size - t);
    all.narrow(2, 0, len)?.permute(&[0, 2, 1, 3])?.contiguous()
}

/// Of gates `[1, T, HQ]`: the sums after each token, and of all `[1, 1, HQ]`.
pub(super) fn sums_after(g: &Tensor) -> Result<(Tensor, Tensor)> {
    const BLOCK: usize = 64;
    let [_, t, h] = g.dims_n::<3>("path_attn", "g")?;
    let whole = g.sum(&[1], true)?;
    if t == 0 {
        return Ok((g.clone(), whole));
    }
    let n = t.div_ceil(BLOCK);
    let rest = Tensor::zeros(&[1, n * BLOCK - t, h], g.dtype(), &g.device())?;
    let blocks = Tensor::cat(&[g, &rest], 1)?.reshape(&[n, BLOCK, h])?;
    let like = Var::constant(blocks.clone());
    let within = mask(BLOCK, |i, j| j > i, &like)?.into_tensor().matmul(&blocks)?;
    let later = mask(n, |i, j| j > i, &like)?.into_tensor().matmul(&blocks.sum(&[1], false)?)?;
    let all = within.add(&later.reshape(&[n, 1, h])?)?.reshape(&[1, n * BLOCK, h])?;
    Ok((all.narrow(1, 0, t)?, whole))
}
