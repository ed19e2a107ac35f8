//! The selective scan from its definition, one token, channel and state at a time.

use flashlin_tensor::Real;

use crate::scan::reference::Span;

/// Inputs: `[tokens, D]`, `[D, S]`, `[tokens, G, S]`, `[D]`; states `[N, D, S]`. Absent ones are None.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Inputs<'a, R> {
    pub seqs: &'a [Span],
    pub channels: usize,
    pub state: usize,
    pub groups: usize,
    pub u: &'a [R],
    pub delta: &'a [R],
    pub a: &'a [R],
    pub b: &'a [R],
    pub c: &'a [R],
    pub d: Option<&'a [R]>,
    pub z: Option<&'a [R]>,
    pub delta_bias: Option<&'a [R]>,
    pub softplus: bool,
    pub h0: &'a [R],
}

/// Gradients in the shapes of the inputs.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Gradients<R> {
    pub u: Vec<R>,
    pub delta: Vec<R>,
    pub a: Vec<R>,
    pub b: Vec<R>,
    pub c: Vec<R>,
    pub d: Vec<R>,
    pub z: Vec<R>,
    pub delta_bias: Vec<R>,
    pub h0: Vec<R>,
}

fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

impl<R: Real> Inputs<'_, R> {
    /// delta + bias, and the step size.
    fn step(&self, t: usize, ch: usize) -> (R, R) {
        let raw = self.delta[t * self.channels + ch] + self.delta_bias.map_or(R::ZERO, |b| b[ch]);
        (raw, if self.softplus { (R::ONE + raw.exp()).ln() } else { raw })
    }

    /// Where B and C of a token and channel begin.
    fn shared(&self, t: usize, ch: usize) -> usize {
        (t * self.groups + ch / (self.channels / self.groups)) * self.state
    }
}

/// y `[tokens, D]`, the last states, and the states after every token `[tokens, D, S]`.
pub fn forward<R: Real>(x: &Inputs<R>) -> (Vec<R>, Vec<R>, Vec<R>) {
    let (d, s) = (x.channels, x.state);
    let (mut y, mut last) = (vec![R::ZERO; x.u.len()], x.h0.to_vec());
    let mut all = vec![R::ZERO; x.u.len() * s];
    for (row, &(start, len)) in x.seqs.iter().enumerate() {
        for t in start..start + len {
            for ch in 0..d {
                let (i, at) = (t * d + ch, x.shared(t, ch));
                let (_, dt) = x.step(t, ch);
                let mut sum = x.d.map_or(R::ZERO, |w| w[ch] * x.u[i]);
                for n in 0..s {
                    let h = &mut last[(row * d + ch) * s + n];
                    *h = (dt * x.a[ch * s + n]).exp() * *h + dt * x.u[i] * x.b[at + n];
                    sum += x.c[at + n] * *h;
                    all[i * s + n] = *h;
                }
                y[i] = sum * x.z.map_or(R::ONE, |z| z[i] * sigmoid(z[i]));
            }
        }
    }
    (y, last, all)
}

/// Gradients of everything from those of y and of the last states.
pub fn backward<R: Real>(x: &Inputs<R>, dy: &[R], d_last: &[R]) -> Gradients<R> {
    let (d, s) = (x.channels, x.state);
    let (_, _, all) = forward(x);
    let zeros = |n: usize| vec![R::ZERO; n];
    let mut g = Gradients {
        u: zeros(x.u.len()),
        delta: zeros(x.u.len()),
        a: zeros(d * s),
        b: zeros(x.b.len()),
        c: zeros(x.b.len()),
        d: zeros(d),
        z: zeros(x.u.len()),
        delta_bias: zeros(d),
        h0: d_last.to_vec(),
    };
    for (row, &(start, len)) in x.seqs.iter().enumerate() {
        for t in (start..start + len).rev() {
            for ch in 0..d {
                let (i, at) = (t * d + ch, x.shared(t, ch));
                let (raw, dt) = x.step(t, ch);
                let skip = x.d.map_or(R::ZERO, |w| w[ch]);
                let read: R = (0..s).map(|n| x.c[at + n] * all[i * s + n]).sum::<R>() + skip * x.u[i];
                let mut ds = dy[i];
                if let Some(z) = x.z {
                    let gate = sigmoid(z[i]);
                    g.z[i] = dy[i] * read * gate * (R::ONE + z[i] * (R::ONE - gate));
                    ds = dy[i] * z[i] * gate;
                }
                g.d[ch] += ds * x.u[i];
                g.u[i] = ds * skip;
                let mut ddt = R::ZERO;
                for n in 0..s {
                    let prior = if t == start { x.h0[(row * d + ch) * s + n] } else { all[(i - d) * s + n] };
                    let flow = g.h0[(row * d + ch) * s + n] + ds * x.c[at + n];
                    let decay = (dt * x.a[ch * s + n]).exp();
                    g.c[at + n] += ds * all[i * s + n];
                    g.b[at + n] += flow * dt * x.u[i];
                    g.u[i] += flow * dt * x.b[at + n];
                    g.a[ch * s + n] += flow * decay * prior * dt;
                    ddt += flow * (decay * prior * x.a[ch * s + n] + x.u[i] * x.b[at + n]);
                    g.h0[(row * d + ch) * s + n] = flow * decay;
                }
                g.delta[i] = if x.softplus { ddt * sigmoid(raw) } else { ddt };
                g.delta_bias[ch] += g.delta[i];
            }
        }
    }
    g
}
