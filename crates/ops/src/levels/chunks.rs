//! One group of sequences in chunks: inside a chunk a masked product, between chunks a tree of states.
//!
//! Arrays are laid out `[n, b HV, C, ..]`, chunks first, so that a level's chunks are picked by index. Everything that depends on positions alone is
//! a constant: masks, and which blocks a level reads.

use flashlin_tensor::{Result, Tensor, Var, cuda};

use super::Group;
use crate::composed::{Decays, Reads, repeat_heads};

/// Where a group's tokens stand.
struct Grid {
    /// Sequences times value heads.
    rows: usize,
    /// Tokens of a chunk, and its binary logarithm.
    size: usize,
    log: usize,
    /// Chunks.
    n: usize,
    /// Index of the first chunk, counted from the sequences' beginning.
    first: usize,
    /// Places before the first token, after the last one.
    pad: [usize; 2],
    /// First and last position (exclusive).
    from: usize,
    to: usize,
}

impl Grid {
    fn new(x: &Group, most: usize) -> Grid {
        let [b, t, hv] = [x.v.dim(0), x.v.dim(1), x.v.dim(2)];
        let size = t.next_power_of_two().min(most);
        let (from, to) = (x.seen, x.seen + t);
        let (first, end) = (from / size, to.div_ceil(size));
        let pad = [from - first * size, end * size - to];
        Grid { rows: b * hv, size, log: size.trailing_zeros() as usize, n: end - first, first, pad, from, to }
    }

    /// `[b, T, HV, D]` as `[n, b HV, C, D]`, zero where there is no token.
    fn lay(&self, x: &Var) -> Result<Var> {
        let [b, _, h, d] = x.tensor().dims_n::<4>("levels", "x")?;
        let zeros =
            |n: usize| -> Result<Var> { Ok(Tensor::zeros(&[b, n, h, d], x.dtype(), &x.device())?.into()) };
        let all = match self.pad {
            [0, 0] => x.clone(),
            [before, after] => Var::cat(&[&zeros(before)?, x, &zeros(after)?], 1)?,
        };
        all.reshape(&[b, self.n, self.size, h, d])?.permute(&[1, 0, 3, 2, 4])?.reshape(&[
            self.n,
            b * h,
            self.size,
            d,
        ])
    }

    fn unlay(&self, x: &Var, dims: &[usize]) -> Result<Var> {
        let [b, t, h, d] = [dims[0], dims[1], dims[2], dims[3]];
        let x = x.reshape(&[self.n, b, h, self.size, d])?.permute(&[1, 0, 3, 2, 4])?;
        x.reshape(&[b, self.n * self.size, h, d])?.narrow(1, self.pad[0], t)
    }
}

fn constant(values: Vec<f64>, dims: &[usize], like: &Var) -> Result<Var> {
    let t = Tensor::from_vec(values, dims)?.to_dtype(like.dtype())?;
    Ok(cuda::kept(&t, &like.device())?.into())
}

fn index(rows: &[usize], like: &Var) -> Result<Tensor> {
    let rows: Vec<i64> = rows.iter().map(|&r| r as i64).collect();
    let n = rows.len();
    cuda::kept(&Tensor::from_vec(rows, &[n])?, &like.device())
}

/// The level at which position t reads position s before it.
fn level(t: usize, s: usize) -> usize {
    if t == s { 0 } else { (t ^ s).ilog2() as usize + 1 }
}

/// A call laid out.
struct Laid {
    grid: Grid,
    /// Decayed from the chunk's start `[n, rows, C, K]`.
    far: Var,
    v: Var,
    levels: Var,
    /// Log-decay of whole chunks `[n, rows]`.
    chunk_decay: Var,
    /// Keys decayed to the chunk's end.
    keys: Var,
}

/// Outputs `[b, T, HV, V]` and the state after the last token.
pub(super) fn run(x: &Group, most: usize) -> Result<(Var, Var)> {
    if x.v.dim(1) == 0 || x.v.dim(0) == 0 {
        // Nothing happens, and the state's gradient passes.
        return Ok((x.v.clone(), x.state.clone()));
    }
    let grid = Grid::new(x, most);
    let hv = x.v.dim(2);
    let (q, k) = (grid.lay(&repeat_heads(&x.q, hv)?)?, grid.lay(&repeat_heads(&x.k, hv)?)?);
    let (v, g, levels) = (grid.lay(&x.v)?, grid.lay(&x.g)?, grid.lay(&x.levels)?);
    let decays = Decays::new(Some(g.clone()), grid.size, Reads { after: true, before: false })?;
    let near = decays.scores(&q, &k, false)?.mul(&inside(&grid, &levels)?)?.matmul(&v)?;
    let chunk_decay = g.sum(&[2, 3], false)?;
    let far = decays.times_prefix(&q, false)?;
    let laid = Laid { far, v, levels, chunk_decay, keys: decays.times_suffix(&k)?, grid };
    let mut o = near;
    if let Some(more) = laid.tree()? {
        o = o.add(&more)?;
    }
    if let Some(more) = laid.earlier(&x.state)? {
        o = o.add(&more)?;
    }
    let state = laid.state(&x.state)?;
    Ok((laid.grid.unlay(&o, x.v.dims())?, state))
}

/// lambda of each pair of a chunk `[n, rows, C, C]`.
fn inside(grid: &Grid, levels: &Var) -> Result<Var> {
    let c = grid.size;
    let mut sum: Option<Var> = None;
    for l in 0..=grid.log {
        let on = |i: usize, j: usize| j <= i && level(i, j) == l;
        let mask = (0..c * c).map(|at| f64::from(u8::from(on(at / c, at % c)))).collect();
        let part = levels.narrow(3, l, 1)?.mul(&constant(mask, &[c, c], levels)?)?;
        sum = Some(match sum {
            Some(sum) => sum.add(&part)?,
            None => part,
        });
    }
    sum.map_or_else(|| levels.narrow(3, 0, 1), Ok)
}

impl Laid {
    /// Sums of chunks' log-decays, `on(c, other)` says which for chunk c: e^sum `[n, rows, 1, 1]`.
    fn decay_over(&self, on: impl Fn(usize, usize) -> bool) -> Result<Var> {
        let n = self.grid.n;
        let table = (0..n * n).map(|at| f64::from(u8::from(on(at / n, at % n)))).collect();
        let sums = constant(table, &[n, n], &self.chunk_decay)?.matmul(&self.chunk_decay)?;
        sums.exp()?.reshape(&[n, self.grid.rows, 1, 1])
    }

    /// What chunks read of earlier chunks of this call; None where no chunk reads another.
    fn tree(&self) -> Result<Option<Var>> {
        let grid = &self.grid;
        let (n, first) = (grid.n, grid.first);
        // Blocks of the current level: their states and log-decays, and the index of the first.
        let mut states = self.keys.transpose(2, 3)?.matmul(&self.v)?;
        let mut decay = self.chunk_decay.clone();
        let mut at = first;
        let mut sum: Option<Var> = None;
        let mut m = 0;
        while (first >> m) != (first + n - 1) >> m {
            // Chunk c reads the block before its own where that is a left one.
            let readers: Vec<usize> =
                (0..n).filter(|c| ((first + c) >> m) & 1 == 1 && (first + c) >> m > at).collect();
            if !readers.is_empty() {
                let blocks: Vec<usize> = readers.iter().map(|c| ((first + c) >> m) - 1 - at).collect();
                let pick = |x: &Var| x.index_select(&index(&readers, x)?);
                let since =
                    self.decay_over(|c, other| other < c && (first + other) >> m == (first + c) >> m)?;
                let weight = pick(&self.levels.narrow(3, grid.log + m + 1, 1)?)?.mul(&pick(&since)?)?;
                let read = pick(&self.far)?.matmul(&states.index_select(&index(&blocks, &states)?)?)?;
                let part = read.mul(&weight)?.index_add(&index(&readers, &read)?, n)?;
                sum = Some(match sum {
                    Some(sum) => sum.add(&part)?,
                    None => part,
                });
            }
            (states, decay, at) = merged(&states, &decay, at)?;
            m += 1;
        }
        Ok(sum)
    }

    /// e^(log-decay of all chunks of this call before each one).
    fn since_start(&self) -> Result<Var> {
        self.decay_over(|c, other| other < c)
    }

    /// What tokens read of the state `[b, L, HV, K, V]` that the call continues from.
    fn earlier(&self, state: &Var) -> Result<Option<Var>> {
        let grid = &self.grid;
        let count = state.dim(1);
        let bits: Vec<usize> = (0..count - 1).filter(|b| grid.from >> b & 1 == 1).collect();
        if bits.is_empty() {
            return Ok(None);
        }
        let q = self.far.mul(&self.since_start()?)?;
        let mut sum: Option<Var> = None;
        for b in bits {
            let start = grid.from >> (b + 1) << (b + 1);
            let mut mask = vec![0.0; grid.n * grid.size * count];
            for t in grid.from..grid.to {
                mask[(t - grid.first * grid.size) * count + level(t, start)] = 1.0;
            }
            let mask = constant(mask, &[grid.n, 1, grid.size, count], &self.levels)?;
            let weight = self.levels.mul(&mask)?.sum(&[3], true)?;
            let part = q.matmul(&slot(state, b + 1, grid.rows)?)?.mul(&weight)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&part)?,
                None => part,
            });
        }
        Ok(sum)
    }

    /// The state after the last token: one block for each bit of the number of tokens.
    fn state(&self, before: &Var) -> Result<Var> {
        let grid = &self.grid;
        let [b, count, hv, dk, dv] = before.tensor().dims_n::<5>("levels", "state")?;
        // Keys decayed to the end of the call, and values, by position: [rows, places, D].
        let after = self.decay_over(|c, other| other > c)?;
        let flat = |x: &Var| {
            let d = x.dim(3);
            x.transpose(0, 1)?.reshape(&[grid.rows, grid.n * grid.size, d])
        };
        let (keys, values) = (flat(&self.keys.mul(&after)?)?, flat(&self.v)?);
        let whole = self.chunk_decay.sum(&[0], false)?.exp()?.reshape(&[b, 1, hv, 1, 1])?;
        let mut slots = Vec::with_capacity(count);
        for l in 0..count {
            let in_use = l > 0 && grid.to >> (l - 1) & 1 == 1;
            let mut slot: Option<Var> = None;
            if in_use {
                let start = grid.to >> l << l;
                let end = start + (1 << (l - 1));
                let old = (1..count).filter(|o| {
                    let block = grid.from >> o << o;
                    grid.from >> (o - 1) & 1 == 1 && block >= start && block < end
                });
                for o in old {
                    let part = before.narrow(1, o, 1)?.mul(&whole)?;
                    slot = Some(slot.map_or_else(|| Ok(part.clone()), |s| s.add(&part))?);
                }
                let (from, to) = (start.max(grid.from), end.min(grid.to));
                if from < to {
                    let cut = |x: &Var| x.narrow(1, from - grid.first * grid.size, to - from);
                    let part =
                        cut(&keys)?.transpose(1, 2)?.matmul(&cut(&values)?)?.reshape(&[b, 1, hv, dk, dv])?;
                    slot = Some(slot.map_or_else(|| Ok(part.clone()), |s| s.add(&part))?);
                }
            }
            slots.push(match slot {
                Some(slot) => slot,
                // Empty; a state that nothing reads has a gradient too, zero.
                None => before.narrow(1, l, 1)?.affine(0.0, 0.0)?,
            });
        }
        Var::cat(&slots.iter().collect::<Vec<_>>(), 1)
    }
}

/// A level's state of all sequences and heads `[1, rows, K, V]`.
fn slot(state: &Var, level: usize, rows: usize) -> Result<Var> {
    let (dk, dv) = (state.dim(3), state.dim(4));
    state.narrow(1, level, 1)?.reshape(&[1, rows, dk, dv])
}

/// Pairs of blocks (2i, 2i + 1) as blocks i; what is missing at either end is zero.
fn merged(states: &Var, decay: &Var, at: usize) -> Result<(Var, Var, usize)> {
    let end = at + states.dim(0);
    let (first, last) = (at / 2, end.div_ceil(2));
    let filled = |x: &Var| -> Result<Var> {
        let zeros = |n: usize| -> Result<Var> {
            let dims: Vec<usize> = std::iter::once(n).chain(x.dims()[1..].iter().copied()).collect();
            Ok(Tensor::zeros(&dims, x.dtype(), &x.device())?.into())
        };
        match (at - 2 * first, 2 * last - end) {
            (0, 0) => Ok(x.clone()),
            (before, after) => Var::cat(&[&zeros(before)?, x, &zeros(after)?], 0),
        }
    };
    let n = last - first;
    let halves = |x: Var| -> Result<[Var; 2]> {
        let dims = x.dims()[1..].to_vec();
        let pairs: Vec<usize> = [n, 2].into_iter().chain(dims.iter().copied()).collect();
        let one: Vec<usize> = std::iter::once(n).chain(dims).collect();
        let x = x.reshape(&pairs)?;
        Ok([x.narrow(1, 0, 1)?.reshape(&one)?, x.narrow(1, 1, 1)?.reshape(&one)?])
    };
    let [left, right] = halves(filled(states)?)?;
    let [left_decay, right_decay] = halves(filled(decay)?)?;
    let factor = right_decay.exp()?.reshape(&[n, states.dim(1), 1, 1])?;
    Ok((left.mul(&factor)?.add(&right)?, left_decay.add(&right_decay)?, first))
}
