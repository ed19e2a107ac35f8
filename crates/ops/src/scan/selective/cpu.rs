//! The selective scan on the CPU. A task walks the tokens of one sequence for a block of channels, [`LANES`] channels side by side in vectors, and
//! keeps their state in L1. Tasks do not depend on the number of threads, and sums over channels are taken in their order.

use std::ops::Range;

use flashlin_tensor::{
    Device, Result, Tensor,
    cpu::{math, vectorized},
};
use rayon::prelude::*;

use super::{SelectiveArgs, Sizes};
use crate::simd::Real;

/// Channels side by side.
const LANES: usize = 16;
/// Channels of a task: fewer sums over channels to keep.
const BLOCK: usize = 64;
/// Tokens between kept states.
const CHUNK: usize = 64;

type Lanes<R> = [R; LANES];

/// The inputs as rows of the compute type.
pub(super) struct Data<R> {
    sizes: Sizes,
    softplus: bool,
    u: Vec<R>,
    delta: Vec<R>,
    a: Vec<R>,
    b: Vec<R>,
    c: Vec<R>,
    d: Option<Vec<R>>,
    z: Option<Vec<R>>,
    bias: Option<Vec<R>>,
    first: Vec<R>,
}

/// One task: a sequence and channels of one group.
struct Task {
    row: usize,
    tokens: Range<usize>,
    channels: Range<usize>,
    group: usize,
}

/// Gradients of one task; by token and channel, by channel, by token and state.
struct Part<R> {
    du: Vec<R>,
    ddelta: Vec<R>,
    dz: Vec<R>,
    da: Vec<R>,
    dd: Vec<R>,
    dbias: Vec<R>,
    dfirst: Vec<R>,
    db: Vec<R>,
    dc: Vec<R>,
}

/// What [`LANES`] channels need at one token.
struct At<R> {
    u: Lanes<R>,
    /// delta + bias
    raw: Lanes<R>,
    dt: Lanes<R>,
    z: Lanes<R>,
}

/// `values[at..]` of `n` channels, the rest 0.
#[inline(always)]
fn lanes<R: Real>(values: &[R], at: usize, n: usize) -> Lanes<R> {
    let mut out = [R::ZERO; LANES];
    out[..n].copy_from_slice(&values[at..at + n]);
    out
}

#[inline(always)]
fn total<R: Real>(mut v: Lanes<R>) -> R {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            v[i] += v[i + half];
        }
        half /= 2;
    }
    v[0]
}

impl<R: Real> Data<R> {
    pub fn new(args: &SelectiveArgs, sizes: Sizes, first: &Tensor) -> Result<Self> {
        let of = |v: &flashlin_tensor::Var| v.tensor().to_dtype(R::DTYPE)?.to_vec::<R>();
        let opt = |v: Option<&flashlin_tensor::Var>| v.map(of).transpose();
        Ok(Data {
            sizes,
            softplus: args.delta_softplus,
            u: of(args.u)?,
            delta: of(args.delta)?,
            a: of(args.a)?,
            b: of(args.b)?,
            c: of(args.c)?,
            d: opt(args.d)?,
            z: opt(args.z)?,
            bias: opt(args.delta_bias)?,
            first: first.to_vec::<R>()?,
        })
    }

    fn tasks(&self) -> Vec<Task> {
        let (d, width) = (self.sizes.dims[2], self.sizes.dims[2] / self.sizes.groups);
        let mut tasks = Vec::new();
        for (row, tokens) in self.sizes.seqs.ranges().enumerate() {
            for start in (0..d).step_by(width) {
                for from in (start..start + width).step_by(BLOCK) {
                    let channels = from..(from + BLOCK).min(start + width);
                    tasks.push(Task { row, tokens: tokens.clone(), channels, group: start / width });
                }
            }
        }
        tasks
    }

    /// Rates of `n` channels from `ch` on, by state.
    fn rates(&self, ch: usize, n: usize) -> Vec<Lanes<R>> {
        self.by_state(&self.a, ch * self.sizes.state, n)
    }

    /// `[n, S]` at `values[at..]` as lanes by state.
    fn by_state(&self, values: &[R], at: usize, n: usize) -> Vec<Lanes<R>> {
        let s = self.sizes.state;
        (0..s)
            .map(|i| std::array::from_fn(|l| if l < n { values[at + l * s + i] } else { R::ZERO }))
            .collect()
    }

    #[inline(always)]
    fn at(&self, t: usize, ch: usize, n: usize) -> At<R> {
        let place = t * self.sizes.dims[2] + ch;
        let mut raw = lanes(&self.delta, place, n);
        if let Some(bias) = &self.bias {
            let bias = lanes(bias, ch, n);
            raw.iter_mut().zip(bias).for_each(|(r, b)| *r += b);
        }
        let mut dt = raw;
        if self.softplus {
            dt.iter_mut().for_each(|x| *x = math::softplus(*x));
        }
        let z = self.z.as_ref().map_or([R::ZERO; LANES], |z| lanes(z, place, n));
        At { u: lanes(&self.u, place, n), raw, dt, z }
    }

    /// Where token `t`'s row of B and C begins.
    fn shared(&self, t: usize, group: usize) -> usize {
        (t * self.sizes.groups + group) * self.sizes.state
    }

    /// Moves the state over token `t`, and reads it: `C . h`.
    #[inline(always)]
    fn step(&self, x: &At<R>, rates: &[Lanes<R>], h: &mut [Lanes<R>], shared: usize) -> Lanes<R> {
        let s = self.sizes.state;
        let (b, c) = (&self.b[shared..shared + s], &self.c[shared..shared + s]);
        let mut y = [R::ZERO; LANES];
        for i in 0..s {
            for l in 0..LANES {
                let decay = (x.dt[l] * rates[i][l]).exp();
                h[i][l] = decay * h[i][l] + x.dt[l] * x.u[l] * b[i];
                y[l] += c[i] * h[i][l];
            }
        }
        y
    }

    /// y `[B, T, D]`, the states after the last tokens `[N, D, S]`, and those before each chunk, by task.
    #[allow(clippy::type_complexity)]
    pub fn forward(&self) -> Result<(Tensor, Tensor, Vec<Vec<Lanes<R>>>)> {
        let [_, _, d] = self.sizes.dims;
        let s = self.sizes.state;
        let tasks = self.tasks();
        let done: Vec<(Vec<R>, Vec<R>, Vec<Lanes<R>>)> = tasks
            .par_iter()
            .map(|task| {
                vectorized(
                    #[inline(always)]
                    || self.forward_task(task),
                )
            })
            .collect();
        let mut last = self.first.clone();
        let (mut ys, mut starts) = (Vec::new(), Vec::new());
        for (task, (y, h, kept)) in tasks.iter().zip(done) {
            last[(task.row * d + task.channels.start) * s..][..h.len()].copy_from_slice(&h);
            ys.push(y);
            starts.push(kept);
        }
        let y = self.gathered(&tasks, &ys.iter().map(|y| &y[..]).collect::<Vec<_>>())?;
        Ok((y, Tensor::from_vec(last, &[self.sizes.seqs.len(), d, s])?, starts))
    }

    #[inline(always)]
    fn forward_task(&self, task: &Task) -> (Vec<R>, Vec<R>, Vec<Lanes<R>>) {
        let (d, s, width) = (self.sizes.dims[2], self.sizes.state, task.channels.len());
        let mut out = vec![R::ZERO; task.tokens.len() * width];
        let mut last = vec![R::ZERO; width * s];
        let mut kept = Vec::new();
        for ch in task.channels.clone().step_by(LANES) {
            let n = LANES.min(task.channels.end - ch);
            let rates = self.rates(ch, n);
            let skip = self.d.as_ref().map(|d| lanes(d, ch, n));
            let mut h = self.by_state(&self.first, (task.row * d + ch) * s, n);
            for (i, t) in task.tokens.clone().enumerate() {
                if i % CHUNK == 0 {
                    kept.extend_from_slice(&h);
                }
                let x = self.at(t, ch, n);
                let mut y = self.step(&x, &rates, &mut h, self.shared(t, task.group));
                if let Some(skip) = &skip {
                    (0..LANES).for_each(|l| y[l] += skip[l] * x.u[l]);
                }
                if self.z.is_some() {
                    (0..LANES).for_each(|l| y[l] *= math::silu(x.z[l]));
                }
                out[i * width + ch - task.channels.start..][..n].copy_from_slice(&y[..n]);
            }
            for (l, of_channel) in last[(ch - task.channels.start) * s..].chunks_mut(s).take(n).enumerate() {
                of_channel.iter_mut().zip(&h).for_each(|(o, h)| *o = h[l]);
            }
        }
        (out, last, kept)
    }

    /// Blocks of channels put side by side: `[B, T, D]`.
    fn gathered(&self, tasks: &[Task], blocks: &[&[R]]) -> Result<Tensor> {
        let [_, _, d] = self.sizes.dims;
        let mut out = Tensor::empty(&self.sizes.dims, R::DTYPE, &Device::Cpu)?;
        let rows = out.as_mut_slice::<R>()?;
        for (task, block) in tasks.iter().zip(blocks) {
            let width = task.channels.len();
            for (t, row) in task.tokens.clone().zip(block.chunks(width.max(1))) {
                rows[t * d + task.channels.start..][..width].copy_from_slice(row);
            }
        }
        Ok(out)
    }

    /// Gradients of all inputs, in the order of [`SelectiveArgs`]; those of absent ones mean nothing.
    pub fn backward(&self, starts: &[Vec<Lanes<R>>], dy: &Tensor, d_last: &Tensor) -> Result<Vec<Tensor>> {
        let (dy, d_last) = (dy.to_dtype(R::DTYPE)?.to_vec::<R>()?, d_last.to_vec::<R>()?);
        let tasks = self.tasks();
        let parts: Vec<Part<R>> = tasks
            .par_iter()
            .zip(starts)
            .map(|(task, starts)| {
                vectorized(
                    #[inline(always)]
                    || self.backward_task(task, starts, &dy, &d_last),
                )
            })
            .collect();
        let [batch, len, d] = self.sizes.dims;
        let (s, g, n) = (self.sizes.state, self.sizes.groups, self.sizes.seqs.len());
        let by_token =
            |of: fn(&Part<R>) -> &[R]| self.gathered(&tasks, &parts.iter().map(of).collect::<Vec<_>>());
        let mut da = vec![R::ZERO; d * s];
        let (mut dd, mut dbias) = (vec![R::ZERO; d], vec![R::ZERO; d]);
        let mut dfirst = vec![R::ZERO; n * d * s];
        let mut shared = [vec![R::ZERO; batch * len * g * s], vec![R::ZERO; batch * len * g * s]];
        let add = |to: &mut [R], from: &[R]| to.iter_mut().zip(from).for_each(|(a, &b)| *a += b);
        for (task, part) in tasks.iter().zip(&parts) {
            add(&mut da[task.channels.start * s..], &part.da);
            add(&mut dd[task.channels.start..], &part.dd);
            add(&mut dbias[task.channels.start..], &part.dbias);
            add(&mut dfirst[(task.row * d + task.channels.start) * s..], &part.dfirst);
            for (all, of) in shared.iter_mut().zip([&part.db, &part.dc]) {
                for (t, row) in task.tokens.clone().zip(of.chunks(s)) {
                    add(&mut all[self.shared(t, task.group)..], row);
                }
            }
        }
        let [db, dc] = shared.map(|x| Tensor::from_vec(x, &[batch, len, g, s]));
        Ok(vec![
            by_token(|p| &p.du)?,
            by_token(|p| &p.ddelta)?,
            Tensor::from_vec(da, &[d, s])?,
            db?,
            dc?,
            Tensor::from_vec(dd, &[d])?,
            by_token(|p| &p.dz)?,
            Tensor::from_vec(dbias, &[d])?,
            Tensor::from_vec(dfirst, &[n, d, s])?,
        ])
    }

    #[inline(always)]
    fn backward_task(&self, task: &Task, starts: &[Lanes<R>], dy: &[R], d_last: &[R]) -> Part<R> {
        let (d, s) = (self.sizes.dims[2], self.sizes.state);
        let (width, len) = (task.channels.len(), task.tokens.len());
        let mut part = Part::zeros(len, width, s);
        let chunks = len.div_ceil(CHUNK);
        // States before every token of a chunk, and the one after its last.
        let mut states = vec![[R::ZERO; LANES]; (CHUNK + 1) * s];
        for (block, ch) in task.channels.clone().step_by(LANES).enumerate() {
            let n = LANES.min(task.channels.end - ch);
            let mut back = Back {
                rates: self.rates(ch, n),
                skip: self.d.as_ref().map_or([R::ZERO; LANES], |d| lanes(d, ch, n)),
                dh: self.by_state(d_last, (task.row * d + ch) * s, n),
                da: vec![[R::ZERO; LANES]; s],
                dd: [R::ZERO; LANES],
                dbias: [R::ZERO; LANES],
            };
            for chunk in (0..chunks).rev() {
                let first = chunk * CHUNK;
                let end = (first + CHUNK).min(len);
                states[..s].copy_from_slice(&starts[(block * chunks + chunk) * s..][..s]);
                for i in first..end {
                    let (old, new) = states[(i - first) * s..].split_at_mut(s);
                    new[..s].copy_from_slice(old);
                    let t = task.tokens.start + i;
                    self.step(&self.at(t, ch, n), &back.rates, &mut new[..s], self.shared(t, task.group));
                }
                for i in (first..end).rev() {
                    let around = states[(i - first) * s..].split_at(s);
                    self.backward_token(&mut back, &mut part, task, [ch, n, i], around, dy);
                }
            }
            back.leave(&mut part, ch - task.channels.start, n);
        }
        part
    }

    /// Token `i` of a task, for `n` channels from `ch` on; `old` and `new` are the states before and after it.
    #[inline(always)]
    fn backward_token(
        &self,
        back: &mut Back<R>,
        part: &mut Part<R>,
        task: &Task,
        [ch, n, i]: [usize; 3],
        (old, new): (&[Lanes<R>], &[Lanes<R>]),
        dy: &[R],
    ) {
        let (d, s) = (self.sizes.dims[2], self.sizes.state);
        let (t, place) = (task.tokens.start + i, i * task.channels.len() + ch - task.channels.start);
        let x = self.at(t, ch, n);
        let shared = self.shared(t, task.group);
        let (b, c) = (&self.b[shared..shared + s], &self.c[shared..shared + s]);
        let mut ds = lanes(dy, t * d + ch, n);
        if self.z.is_some() {
            let dz = gate_back(&x, back.skip, c, new, &mut ds);
            part.dz[place..][..n].copy_from_slice(&dz[..n]);
        }
        let mut ddt = [R::ZERO; LANES];
        let mut du: Lanes<R> = std::array::from_fn(|l| ds[l] * back.skip[l]);
        for j in 0..s {
            let (mut by_b, mut by_c) = ([R::ZERO; LANES], [R::ZERO; LANES]);
            let (rates, dh, da) = (&back.rates[j], &mut back.dh[j], &mut back.da[j]);
            for l in 0..LANES {
                by_c[l] = ds[l] * new[j][l];
                let g = dh[l] + ds[l] * c[j];
                let decay = (x.dt[l] * rates[l]).exp();
                let moved = g * decay * old[j][l];
                ddt[l] += moved * rates[l] + g * x.u[l] * b[j];
                du[l] += g * x.dt[l] * b[j];
                by_b[l] = g * x.dt[l] * x.u[l];
                da[l] += moved * x.dt[l];
                dh[l] = g * decay;
            }
            part.db[i * s + j] += total(by_b);
            part.dc[i * s + j] += total(by_c);
        }
        for l in 0..LANES {
            if self.softplus {
                ddt[l] *= math::sigmoid(x.raw[l]);
            }
            back.dd[l] += ds[l] * x.u[l];
            back.dbias[l] += ddt[l];
        }
        part.du[place..][..n].copy_from_slice(&du[..n]);
        part.ddelta[place..][..n].copy_from_slice(&ddt[..n]);
    }
}

/// What [`LANES`] channels carry from a token to the one before.
struct Back<R> {
    rates: Vec<Lanes<R>>,
    skip: Lanes<R>,
    dh: Vec<Lanes<R>>,
    da: Vec<Lanes<R>>,
    dd: Lanes<R>,
    dbias: Lanes<R>,
}

impl<R: Real> Back<R> {
    /// Writes what belongs to channels, `n` of them from `at` on in the task.
    fn leave(&self, part: &mut Part<R>, at: usize, n: usize) {
        let s = self.da.len();
        for l in 0..n {
            for j in 0..s {
                part.da[(at + l) * s + j] = self.da[j][l];
                part.dfirst[(at + l) * s + j] = self.dh[j][l];
            }
            part.dd[at + l] = self.dd[l];
            part.dbias[at + l] = self.dbias[l];
        }
    }
}

impl<R: Real> Part<R> {
    fn zeros(len: usize, width: usize, s: usize) -> Self {
        let zeros = |n: usize| vec![R::ZERO; n];
        Part {
            du: zeros(len * width),
            ddelta: zeros(len * width),
            dz: zeros(len * width),
            da: zeros(width * s),
            dd: zeros(width),
            dbias: zeros(width),
            dfirst: zeros(width * s),
            db: zeros(len * s),
            dc: zeros(len * s),
        }
    }
}

/// The gradient of the gate, and `ds` from that of the gated output to that of what it gates.
#[inline(always)]
fn gate_back<R: Real>(x: &At<R>, skip: Lanes<R>, c: &[R], h: &[Lanes<R>], ds: &mut Lanes<R>) -> Lanes<R> {
    let mut y: Lanes<R> = std::array::from_fn(|l| skip[l] * x.u[l]);
    for (c, h) in c.iter().zip(h) {
        (0..LANES).for_each(|l| y[l] += *c * h[l]);
    }
    std::array::from_fn(|l| {
        let sigmoid = math::sigmoid(x.z[l]);
        let slope = sigmoid * (R::ONE + x.z[l] * (R::ONE - sigmoid));
        let dz = ds[l] * y[l] * slope;
        ds[l] *= math::silu(x.z[l]);
        dz
    })
}
