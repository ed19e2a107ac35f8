//! Tokens of several sequences in chunks, ordered so that a pass over all of them at once narrows instead of gathering: sequences by falling
//! length, chunks by their number in the sequence first.

use flashlin_tensor::{Backward, BackwardCtx, Device, Result, Tensor, Var, cuda};

use crate::PackedSeqs;

/// Where tokens lie.
pub(super) struct Chunks {
    /// Tokens of a chunk.
    pub size: usize,
    /// For each place of a chunk its token; the number of tokens where there is none.
    to_chunks: Tensor,
    /// For each token its place.
    to_tokens: Tensor,
    /// Places beyond a sequence's end exist.
    padded: bool,
    /// First chunk and number of chunks of each step.
    steps: Vec<[usize; 2]>,
    /// Sequences by falling length, and where each went; None where that is the order they came in.
    order: Option<[Tensor; 2]>,
}

impl Chunks {
    /// Chunks of at most `most` tokens (fewer where all sequences are shorter).
    pub fn new(seqs: &PackedSeqs, most: usize, device: &Device) -> Result<Chunks> {
        let size = seqs.longest().next_power_of_two().min(most);
        let mut by_length: Vec<usize> = (0..seqs.len()).collect();
        by_length.sort_by_key(|&n| std::cmp::Reverse(seqs.range(n).len()));
        let (mut forward, mut steps) = (Vec::new(), Vec::new());
        for step in 0..seqs.longest().div_ceil(size) {
            let first = forward.len() / size;
            for range in by_length.iter().map(|&n| seqs.range(n)).take_while(|r| r.len() > step * size) {
                let from = range.start + step * size;
                forward.extend((from..from + size).map(|t| if t < range.end { t } else { seqs.total() }));
            }
            steps.push([first, forward.len() / size - first]);
        }
        let mut back = vec![0i64; seqs.total()];
        forward
            .iter()
            .enumerate()
            .filter(|(_, t)| **t < seqs.total())
            .for_each(|(at, &t)| back[t] = at as i64);
        let mut home = vec![0i64; by_length.len()];
        by_length.iter().enumerate().for_each(|(at, &n)| home[n] = at as i64);
        let table = |v: Vec<i64>| {
            let n = v.len();
            cuda::kept(&Tensor::from_vec(v, &[n])?, device)
        };
        let sorted = by_length.is_sorted();
        let by_length = by_length.into_iter().map(|n| n as i64).collect();
        Ok(Chunks {
            size,
            padded: forward.len() > seqs.total(),
            to_chunks: table(forward.into_iter().map(|t| t as i64).collect())?,
            to_tokens: table(back)?,
            steps,
            order: if sorted { None } else { Some([table(by_length)?, table(home)?]) },
        })
    }

    /// `[B, T, H, D]` as `[n, H, C, D]`, zero beyond the ends.
    pub fn lay(&self, x: &Var) -> Result<Var> {
        let [b, t, h, d] = x.tensor().dims_n::<4>("composed", "x")?;
        let flat = x.reshape(&[b * t, h * d])?;
        let to = Taken { rows: self.to_chunks.clone(), beyond: self.padded };
        let laid = take(&flat, to, Taken { rows: self.to_tokens.clone(), beyond: false })?;
        laid.reshape(&[laid.dim(0) / self.size, self.size, h, d])?.permute(&[0, 2, 1, 3])
    }

    /// The way back, into `dims` = `[B, T, H, D]`.
    pub fn unlay(&self, x: &Var, dims: &[usize]) -> Result<Var> {
        let [n, h, c, d] = x.tensor().dims_n::<4>("composed", "x")?;
        let flat = x.permute(&[0, 2, 1, 3])?.reshape(&[n * c, h * d])?;
        let back = Taken { rows: self.to_chunks.clone(), beyond: self.padded };
        take(&flat, Taken { rows: self.to_tokens.clone(), beyond: false }, back)?.reshape(dims)
    }

    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Sequences that have a chunk at this step.
    pub fn active(&self, step: usize) -> usize {
        self.steps[step][1]
    }

    /// A step's chunks of an array `[n, ..]`.
    pub fn part(&self, x: &Var, step: usize) -> Result<Var> {
        x.narrow(0, self.steps[step][0], self.steps[step][1])
    }

    /// The states before the first chunk.
    pub fn start(&self, first: &Var) -> Result<Running> {
        let state = match &self.order {
            Some([by_length, home]) => reorder(first, by_length, home)?,
            None => first.clone(),
        };
        Ok(Running { state, ended: Vec::new() })
    }
}

/// States of the sequences that go on, and those of the ones that ended.
pub(super) struct Running {
    pub state: Var,
    ended: Vec<Var>,
}

impl Running {
    /// Goes on with the first `active` sequences.
    pub fn keep(&mut self, active: usize) -> Result<()> {
        let n = self.state.dim(0);
        if active < n {
            self.ended.push(self.state.narrow(0, active, n - active)?);
            self.state = self.state.narrow(0, 0, active)?;
        }
        Ok(())
    }

    /// All states in the order in which the sequences came.
    pub fn end(mut self, chunks: &Chunks) -> Result<Var> {
        self.ended.push(self.state);
        self.ended.reverse();
        let all = super::joined(&self.ended)?;
        match &chunks.order {
            Some([by_length, home]) => reorder(&all, home, by_length),
            None => Ok(all),
        }
    }
}

/// Rows to take, each at most once; with `beyond`, the number of rows stands for a row of zeros.
struct Taken {
    rows: Tensor,
    beyond: bool,
}

impl Taken {
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        if !self.beyond {
            return x.index_select(&self.rows);
        }
        let zeros = Tensor::zeros(&[1, x.dim(1)], x.dtype(), &x.device())?;
        Tensor::cat(&[x, &zeros], 0)?.index_select(&self.rows)
    }
}

/// Rows of `x`, and where each came from: the gradient is taken, not scattered, so its sums have one order.
fn take(x: &Var, rows: Taken, back: Taken) -> Result<Var> {
    let y = rows.of(&x.tensor().contiguous()?)?;
    Ok(Var::from_op1("take_rows", &[x], y, || Box::new(back)))
}

impl Backward for Taken {
    fn backward(
        self: Box<Self>,
        _: &mut BackwardCtx<'_>,
        mut grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = grads[0].take() else { return Ok(vec![None]) };
        Ok(vec![Some(self.of(&dy.contiguous()?)?)])
    }
}

fn reorder(states: &Var, to: &Tensor, back: &Tensor) -> Result<Var> {
    let flat = states.reshape(&[states.dim(0), states.dims()[1..].iter().product()])?;
    let taken = |rows: &Tensor| Taken { rows: rows.clone(), beyond: false };
    take(&flat, taken(to), taken(back))?.reshape(states.dims())
}

/// The results of a call without tokens: nothing, and the state that it had.
pub(super) fn without_tokens(inputs: &[&Var], v: &Var, first: &Var) -> Result<(Var, Var)> {
    let o = Tensor::zeros(v.dims(), v.dtype(), &v.device())?;
    let all: Vec<&Var> = inputs.iter().copied().chain([first]).collect();
    let like = all.iter().map(|x| x.tensor().clone()).collect();
    let mut out =
        Var::from_op("no_tokens", &all, vec![o, first.tensor().clone()], || Box::new(Nothing(like)));
    let last = out.pop().unwrap_or_else(|| first.clone());
    Ok((out.pop().unwrap_or_else(|| v.clone()), last))
}

/// Zero gradients for all inputs but the state, whose gradient passes.
struct Nothing(Vec<Tensor>);

impl Backward for Nothing {
    fn backward(
        self: Box<Self>,
        _: &mut BackwardCtx<'_>,
        mut grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let zeros = |x: &Tensor| Tensor::zeros(x.dims(), x.dtype(), &x.device());
        let mut all = self.0.iter().map(|x| zeros(x).map(Some)).collect::<Result<Vec<_>>>()?;
        if let (Some(to), Some(Some(d))) = (all.last_mut(), grads.pop()) {
            *to = Some(d);
        }
        Ok(all)
    }
}
