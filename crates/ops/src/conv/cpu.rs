//! The convolution over blocks of tokens and tiles of channels. A tile of inputs (with the W - 1 tokens before the
//! block) is copied into L1 as numbers; everything else happens there with channels in vector lanes.

use flashlin_tensor::{
    DType, Real, Result, Tensor,
    cpu::{math, vectorized},
};
use rayon::prelude::*;

use super::Call;
use crate::{
    activation::functions::{Function, Silu},
    rows::{Rows, RowsMut, grad_of, opt_to_real, sum_parts, to_real},
};

/// Tokens of a task; fixed, so that weight gradients do not depend on the number of threads.
const TOKENS: usize = 64;
/// Channels of a tile.
const TILE: usize = 128;

type Line<R> = [R; TILE];

/// A block of tokens: sequence, first and last token within it, and the packed index of the sequence's first.
#[derive(Clone, Copy)]
struct Block {
    seq: usize,
    from: usize,
    to: usize,
    start: usize,
    len: usize,
}

fn blocks_of(call: &Call) -> Vec<Block> {
    let of = |(seq, r): (usize, std::ops::Range<usize>)| {
        let (start, len) = (r.start, r.len());
        (0..len).step_by(TOKENS).map(move |from| Block { seq, from, to: len.min(from + TOKENS), start, len })
    };
    call.seqs.ranges().enumerate().flat_map(of).collect()
}

/// The inputs as numbers.
struct View<'a, R> {
    x: Rows<'a>,
    residual: Option<Rows<'a>>,
    state: Option<Vec<R>>,
    /// `[W][D]`
    weight: Vec<R>,
    bias: Option<Vec<R>>,
    channels: usize,
    taps: usize,
}

impl<'a, R: Real> View<'a, R> {
    fn new(call: &'a Call) -> Result<Self> {
        let (channels, taps) = (call.channels, call.taps);
        let w = to_real::<R>(&call.weight)?;
        let weight = (0..taps * channels).map(|i| w[i % channels * taps + i / channels]).collect();
        Ok(View {
            x: Rows::new(&call.x)?,
            residual: call.residual.as_ref().map(Rows::new).transpose()?,
            state: opt_to_real(call.state.as_ref())?,
            weight,
            bias: opt_to_real(call.bias.as_ref())?,
            channels,
            taps,
        })
    }

    /// Inputs of tokens `from - (W - 1) ..` of a sequence into `lines`, history from the state.
    #[inline(always)]
    fn load(&self, b: &Block, c: usize, n: usize, count: usize, lines: &mut [Line<R>]) {
        let mut buf = [R::ZERO; TILE];
        for (i, line) in lines.iter_mut().enumerate().take(count) {
            match (b.from + i).checked_sub(self.taps - 1) {
                Some(t) if t < b.len => {
                    line[..n].copy_from_slice(self.x.cols(b.start + t, c, n, &mut buf));
                }
                Some(_) => *line = [R::ZERO; TILE],
                None => self.history(b.seq, b.from + i, c, n, line),
            }
        }
    }

    /// The input `i - (W - 1)` tokens from the first: state column i + 1, or zero.
    #[inline(always)]
    fn history(&self, seq: usize, i: usize, c: usize, n: usize, line: &mut Line<R>) {
        *line = [R::ZERO; TILE];
        if let Some(state) = &self.state {
            let at = (seq * self.channels + c) * self.taps + i + 1;
            (0..n).for_each(|j| line[j] = state[at + j * self.taps]);
        }
    }

    #[inline(always)]
    fn weights(&self, c: usize, n: usize) -> Vec<Line<R>> {
        let line = |w: usize| tile_of(&self.weight[w * self.channels + c..][..n]);
        (0..self.taps).map(line).collect()
    }

    #[inline(always)]
    fn bias(&self, c: usize, n: usize) -> Line<R> {
        self.bias.as_ref().map_or([R::ZERO; TILE], |b| tile_of(&b[c..c + n]))
    }
}

#[inline(always)]
fn tile_of<R: Real>(x: &[R]) -> Line<R> {
    let mut line = [R::ZERO; TILE];
    line[..x.len()].copy_from_slice(x);
    line
}

/// bias + sum of W inputs times their weights.
#[inline(always)]
fn convolve<R: Real>(bias: &Line<R>, weight: &[Line<R>], x: &[Line<R>]) -> Line<R> {
    let mut z = *bias;
    match (weight, x) {
        ([w0, w1, w2, w3], [x0, x1, x2, x3, ..]) => {
            for j in 0..TILE {
                z[j] = z[j] + w0[j] * x0[j] + w1[j] * x1[j] + w2[j] * x2[j] + w3[j] * x3[j];
            }
        }
        _ => {
            for (w, x) in weight.iter().zip(x) {
                for j in 0..TILE {
                    z[j] += w[j] * x[j];
                }
            }
        }
    }
    z
}

/// y and, where asked for, the final state.
pub(super) fn forward(call: &Call, want_state: bool) -> Result<(Tensor, Option<Tensor>)> {
    let mut y = Tensor::empty(call.x.dims(), call.x.dtype(), &call.x.device())?;
    let state = match call.x.dtype() {
        DType::F64 => forward_as::<f64>(call, &mut y, want_state)?,
        _ => forward_as::<f32>(call, &mut y, want_state)?,
    };
    Ok((y, state))
}

fn forward_as<R: Real>(call: &Call, y: &mut Tensor, want_state: bool) -> Result<Option<Tensor>> {
    let view = View::<R>::new(call)?;
    let blocks = blocks_of(call);
    let outs = RowsMut::of(y)?.split(blocks.iter().map(|b| (b.to - b.from) * call.channels));
    blocks.par_iter().zip(outs).for_each(|(b, mut out)| {
        vectorized(
            #[inline(always)]
            || forward_block(call, &view, b, &mut out),
        );
    });
    want_state.then(|| final_state(call, &view)).transpose()
}

#[inline(always)]
fn forward_block<R: Real>(call: &Call, view: &View<R>, b: &Block, out: &mut RowsMut) {
    let tokens = b.to - b.from;
    let mut lines = vec![[R::ZERO; TILE]; tokens + view.taps - 1];
    let mut buf = [R::ZERO; TILE];
    for c in (0..view.channels).step_by(TILE) {
        let n = TILE.min(view.channels - c);
        let (weight, bias) = (view.weights(c, n), view.bias(c, n));
        view.load(b, c, n, tokens + view.taps - 1, &mut lines);
        for t in 0..tokens {
            let mut z = convolve(&bias, &weight, &lines[t..]);
            if call.silu {
                z.iter_mut().for_each(|z| *z = math::silu(*z));
            }
            if let Some(r) = &view.residual {
                let r = r.cols(b.start + b.from + t, c, n, &mut buf);
                z.iter_mut().zip(r).for_each(|(z, &r)| *z += r);
            }
            out.write(t * view.channels + c, &z[..n]);
        }
    }
}

/// The last W inputs of every sequence, those before its first token from the initial state.
fn final_state<R: Real>(call: &Call, view: &View<R>) -> Result<Tensor> {
    let (d, w) = (view.channels, view.taps);
    let mut state = vec![R::ZERO; call.seqs.len() * d * w];
    let mut buf = vec![R::ZERO; d];
    for (n, range) in call.seqs.ranges().enumerate() {
        let out = &mut state[n * d * w..][..d * w];
        for j in 0..w {
            match (range.len() + j).checked_sub(w) {
                Some(t) => {
                    let x = view.x.row(range.start + t, &mut buf);
                    (0..d).for_each(|c| out[c * w + j] = x[c]);
                }
                None => {
                    if let Some(s) = &view.state {
                        (0..d).for_each(|c| out[c * w + j] = s[(n * d + c) * w + j + range.len()]);
                    }
                }
            }
        }
    }
    let dtype = call.state.as_ref().map_or(call.x.dtype(), Tensor::dtype);
    Tensor::from_vec(state, &[call.seqs.len(), d, w])?.to_dtype(dtype)
}

/// Gradients of x, weight, bias, residual and initial state; `wants` in that order.
pub(super) fn backward(
    call: &Call,
    dy: &Tensor,
    dlast: Option<Tensor>,
    wants: [bool; 5],
) -> Result<Vec<Option<Tensor>>> {
    match call.x.dtype() {
        DType::F64 => backward_as::<f64>(call, dy, dlast, wants),
        _ => backward_as::<f32>(call, dy, dlast, wants),
    }
}

/// Sums of one block.
struct Sums<R> {
    /// `[W][D]`
    weight: Vec<R>,
    bias: Vec<R>,
    /// `[D][W]`, from the first block of a sequence
    state: Option<Vec<R>>,
}

fn backward_as<R: Real>(
    call: &Call,
    dy: &Tensor,
    dlast: Option<Tensor>,
    [_, want_w, want_b, want_r, want_s]: [bool; 5],
) -> Result<Vec<Option<Tensor>>> {
    let (d, w) = (call.channels, call.taps);
    let view = View::<R>::new(call)?;
    let dyc = dy.contiguous()?;
    let dyr = Rows::new(&dyc)?;
    let dlast = opt_to_real::<R>(dlast.as_ref())?;
    let blocks = blocks_of(call);
    let mut dx = Tensor::empty(call.x.dims(), call.x.dtype(), &call.x.device())?;
    let outs = RowsMut::of(&mut dx)?.split(blocks.iter().map(|b| (b.to - b.from) * d));
    let task = |(b, mut out): (&Block, RowsMut)| {
        vectorized(
            #[inline(always)]
            || backward_block(call, &view, b, &dyr, dlast.as_deref(), &mut out),
        )
    };
    let sums: Vec<Sums<R>> = blocks.par_iter().zip(outs).map(task).collect();
    let ds = want_s.then(|| state_gradient(call, &blocks, &sums, dlast.as_deref())).transpose()?.flatten();
    let (dw, db): (Vec<_>, Vec<_>) = sums.into_iter().map(|s| (s.weight, s.bias)).unzip();
    let dw = if want_w {
        let t = sum_parts(&dw, d * w);
        let t = (0..d * w).map(|i| t[i % w * d + i / w]).collect();
        Some(grad_of(t, &call.weight)?)
    } else {
        None
    };
    let db = call.bias.as_ref().filter(|_| want_b).map(|b| grad_of(sum_parts(&db, d), b)).transpose()?;
    let dr = call.residual.as_ref().filter(|_| want_r).map(|r| dyc.to_dtype(r.dtype())).transpose()?;
    Ok(vec![Some(dx), dw, db, dr, ds])
}

#[inline(always)]
fn backward_block<R: Real>(
    call: &Call,
    view: &View<R>,
    b: &Block,
    dy: &Rows,
    dlast: Option<&[R]>,
    out: &mut RowsMut,
) -> Sums<R> {
    let (d, w) = (view.channels, view.taps);
    let tokens = b.to - b.from;
    // Outputs up to W - 1 tokens later depend on this block's inputs.
    let reach = (b.to + w - 1).min(b.len) - b.from;
    let mut lines = vec![[R::ZERO; TILE]; reach + w - 1];
    let mut dz = vec![[R::ZERO; TILE]; reach];
    let first = b.from == 0 && call.state.is_some();
    let mut sums = Sums {
        weight: vec![R::ZERO; w * d],
        bias: vec![R::ZERO; d],
        state: first.then(|| vec![R::ZERO; d * w]),
    };
    let mut buf = [R::ZERO; TILE];
    for c in (0..d).step_by(TILE) {
        let n = TILE.min(d - c);
        let (weight, bias) = (view.weights(c, n), view.bias(c, n));
        view.load(b, c, n, reach + w - 1, &mut lines);
        for (t, dz) in dz.iter_mut().enumerate() {
            *dz = tile_of(dy.cols(b.start + b.from + t, c, n, &mut buf));
            if call.silu {
                let z = convolve(&bias, &weight, &lines[t..]);
                dz.iter_mut().zip(&z).for_each(|(d, &z)| *d *= Silu::slope(z));
            }
        }
        for t in 0..tokens {
            let mut dx = [R::ZERO; TILE];
            for (w, dz) in weight.iter().rev().zip(&dz[t..]) {
                for j in 0..TILE {
                    dx[j] += w[j] * dz[j];
                }
            }
            if let (Some(dlast), Some(col)) = (dlast, (b.from + t + w).checked_sub(b.len)) {
                (0..n).for_each(|j| dx[j] += dlast[(b.seq * d + c + j) * w + col]);
            }
            out.write(t * d + c, &dx[..n]);
        }
        add_products(&mut sums, &lines, &dz[..tokens], c, n, d, w);
        if let Some(ds) = &mut sums.state {
            for (col, t) in (1..w).flat_map(|col| (0..col.min(reach)).map(move |t| (col, t))) {
                (0..n).for_each(|j| ds[(c + j) * w + col] += weight[col - 1 - t][j] * dz[t][j]);
            }
        }
    }
    sums
}

/// Weight and bias gradients of one tile.
#[inline(always)]
fn add_products<R: Real>(
    sums: &mut Sums<R>,
    lines: &[Line<R>],
    dz: &[Line<R>],
    c: usize,
    n: usize,
    d: usize,
    w: usize,
) {
    let mut bias = [R::ZERO; TILE];
    for dz in dz {
        (0..TILE).for_each(|j| bias[j] += dz[j]);
    }
    sums.bias[c..c + n].copy_from_slice(&bias[..n]);
    for tap in 0..w {
        let mut acc = [R::ZERO; TILE];
        for (x, dz) in lines[tap..].iter().zip(dz) {
            for j in 0..TILE {
                acc[j] += x[j] * dz[j];
            }
        }
        sums.weight[tap * d + c..][..n].copy_from_slice(&acc[..n]);
    }
}

/// Gradient of the initial state: through the first outputs, and where it survives into the final state.
fn state_gradient<R: Real>(
    call: &Call,
    blocks: &[Block],
    sums: &[Sums<R>],
    dlast: Option<&[R]>,
) -> Result<Option<Tensor>> {
    let Some(state) = &call.state else { return Ok(None) };
    let (d, w) = (call.channels, call.taps);
    let mut ds = vec![R::ZERO; state.numel()];
    for (b, s) in blocks.iter().zip(sums) {
        if let Some(part) = &s.state {
            ds[b.seq * d * w..][..d * w].copy_from_slice(part);
        }
    }
    if let Some(dlast) = dlast {
        for (n, range) in call.seqs.ranges().enumerate() {
            for (c, j) in (0..d).flat_map(|c| (range.len().min(w)..w).map(move |j| (c, j))) {
                ds[(n * d + c) * w + j] += dlast[(n * d + c) * w + j - range.len()];
            }
        }
    }
    Tensor::from_vec(ds, state.dims())?.to_dtype(state.dtype()).map(Some)
}
