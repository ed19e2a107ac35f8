//! The scans from their definitions, one token and one channel at a time. Arrays are `[tokens, D]` with the tokens of all sequences one after
//! another, states `[N, D]`; a sequence is (first token, tokens).

use flashlin_tensor::Real;

/// A sequence: its first token and its length.
pub type Span = (usize, usize);

/// `h_t = e^{g_t} h_{t-1} + x_t`: all h, and the last of each sequence.
pub fn linear<R: Real>(seqs: &[Span], d: usize, x: &[R], g: &[R], h0: &[R]) -> (Vec<R>, Vec<R>) {
    let (mut h, mut last) = (vec![R::ZERO; x.len()], h0.to_vec());
    for (row, &(start, len)) in seqs.iter().enumerate() {
        for t in start..start + len {
            for c in 0..d {
                let state = &mut last[row * d + c];
                *state = g[t * d + c].exp() * *state + x[t * d + c];
                h[t * d + c] = *state;
            }
        }
    }
    (h, last)
}

/// Gradients of x, g and h_0 from those of what [`linear`] gives.
pub fn linear_backward<R: Real>(
    seqs: &[Span],
    d: usize,
    [x, g, h0]: [&[R]; 3],
    [dh, d_last]: [&[R]; 2],
) -> [Vec<R>; 3] {
    let (h, _) = linear(seqs, d, x, g, h0);
    let (mut dx, mut dg, mut state) = (vec![R::ZERO; x.len()], vec![R::ZERO; x.len()], d_last.to_vec());
    for (row, &(start, len)) in seqs.iter().enumerate() {
        for t in (start..start + len).rev() {
            for c in 0..d {
                let i = t * d + c;
                let flow = &mut state[row * d + c];
                *flow += dh[i];
                let prior = if t == start { h0[row * d + c] } else { h[i - d] };
                dx[i] = *flow;
                dg[i] = *flow * g[i].exp() * prior;
                *flow *= g[i].exp();
            }
        }
    }
    [dx, dg, state]
}

/// The tokens of a sequence in walking order.
fn walk((start, len): Span, reverse: bool) -> impl Iterator<Item = usize> {
    (0..len).map(move |i| if reverse { start + len - 1 - i } else { start + i })
}

/// Running sums over each sequence.
pub fn cumsum<R: Real>(seqs: &[Span], d: usize, x: &[R], reverse: bool) -> Vec<R> {
    let mut y = vec![R::ZERO; x.len()];
    for &span in seqs {
        let mut sum = vec![R::ZERO; d];
        for t in walk(span, reverse) {
            for c in 0..d {
                sum[c] += x[t * d + c];
                y[t * d + c] = sum[c];
            }
        }
    }
    y
}

/// `z_t = ln(e^{z_0} + sum_{s <= t} e^{x_s})` and the last z; without `z0` it is minus infinity.
pub fn logcumsumexp<R: Real>(
    seqs: &[Span],
    d: usize,
    x: &[R],
    z0: Option<&[R]>,
    reverse: bool,
) -> (Vec<R>, Vec<R>) {
    let mut z = vec![R::ZERO; x.len()];
    let mut last = z0.map_or_else(|| vec![R::from_f64(f64::NEG_INFINITY); seqs.len() * d], <[R]>::to_vec);
    for (row, &span) in seqs.iter().enumerate() {
        for t in walk(span, reverse) {
            for c in 0..d {
                let (state, new) = (last[row * d + c], x[t * d + c]);
                let most = state.max(new);
                last[row * d + c] = most + ((state - most).exp() + (new - most).exp()).ln();
                z[t * d + c] = last[row * d + c];
            }
        }
    }
    (z, last)
}

/// Gradients of x and z_0: every z a token entered moves with it by its share `e^{x - z}`.
pub fn logcumsumexp_backward<R: Real>(
    seqs: &[Span],
    d: usize,
    (x, z0): (&[R], Option<&[R]>),
    reverse: bool,
    [dz, d_last]: [&[R]; 2],
) -> [Vec<R>; 2] {
    let (z, last) = logcumsumexp(seqs, d, x, z0, reverse);
    let (mut dx, mut d0) = (vec![R::ZERO; x.len()], vec![R::ZERO; d_last.len()]);
    for (row, &span) in seqs.iter().enumerate() {
        let order: Vec<usize> = walk(span, reverse).collect();
        for c in 0..d {
            let end = row * d + c;
            let shares = |value: R, from: usize| {
                let later = order[from..].iter().map(|&t| dz[t * d + c] * (value - z[t * d + c]).exp());
                later.sum::<R>() + d_last[end] * (value - last[end]).exp()
            };
            for (i, &t) in order.iter().enumerate() {
                dx[t * d + c] = shares(x[t * d + c], i);
            }
            if let Some(z0) = z0 {
                d0[end] = shares(z0[end], 0);
            }
        }
    }
    [dx, d0]
}
