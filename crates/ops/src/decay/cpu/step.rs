//! One token: the state update in place, in either layout, and the step over a pool of states for decoding.

use crate::simd::{Arch, Real, exp_in_place};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// What one token brings to one head. All rows have K or V numbers (V may be padded, then the state's rows are too).
#[derive(Clone, Copy, Debug)]
pub struct Token<'a, R> {
    /// Scaled query, K.
    pub q: &'a [R],
    /// Key, K.
    pub k: &'a [R],
    /// Value, V.
    pub v: &'a [R],
    /// Decays (not logs) of key channels, K.
    pub key_decay: Option<&'a [R]>,
    /// Decays of value channels, V.
    pub value_decay: Option<&'a [R]>,
    /// Bonus, K: the token reads the state before it, and itself through the bonus.
    pub bonus: Option<&'a [R]>,
}

/// Updates `state` (`[K][V]`, or `[V][K]` when `transposed`) by one token and writes the output, V numbers.
pub fn advance<R: Real>(
    arch: Arch,
    token: &Token<R>,
    state: &mut [R],
    transposed: bool,
    out: Option<&mut [R]>,
) {
    if transposed {
        return arch.dispatch(ValueRows { token, state, out });
    }
    arch.dispatch(KeyRows { token, state, out });
}

/// `[K][V]`: each key channel's row is updated and its share added to the output.
struct KeyRows<'a, 'b, R> {
    token: &'a Token<'b, R>,
    state: &'a mut [R],
    out: Option<&'a mut [R]>,
}

impl<R: Real> WithSimd for KeyRows<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _set: S) {
        let x = self.token;
        if let Some(out) = &mut self.out {
            out.fill(R::ZERO);
        }
        for (i, row) in self.state.chunks_exact_mut(x.v.len()).enumerate() {
            let (q, k) = (x.q[i], x.k[i]);
            let a = x.key_decay.map_or(R::ONE, |a| a[i]);
            if let (Some(u), Some(out)) = (x.bonus, self.out.as_deref_mut()) {
                let own = u[i] * k;
                for ((o, &s), &v) in out.iter_mut().zip(row.iter()).zip(x.v) {
                    *o += q * (s + own * v);
                }
            }
            match x.value_decay {
                None => row.iter_mut().zip(x.v).for_each(|(s, &v)| *s = *s * a + k * v),
                Some(b) => row.iter_mut().zip(x.v).zip(b).for_each(|((s, &v), &b)| *s = *s * (a * b) + k * v),
            }
            if let (None, Some(out)) = (x.bonus, self.out.as_deref_mut()) {
                out.iter_mut().zip(row.iter()).for_each(|(o, &s)| *o += q * s);
            }
        }
    }
}

/// `[V][K]`: each value channel's row is updated and its output is a dot product with the query.
struct ValueRows<'a, 'b, R> {
    token: &'a Token<'b, R>,
    state: &'a mut [R],
    out: Option<&'a mut [R]>,
}

impl<R: Real> WithSimd for ValueRows<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let x = self.token;
        let own = x.bonus.map(|u| x.q.iter().zip(u).zip(x.k).map(|((&q, &u), &k)| q * u * k).sum::<R>());
        for (c, row) in self.state.chunks_mut(x.k.len()).enumerate() {
            let (v, b) = (x.v[c], x.value_decay.map_or(R::ONE, |b| b[c]));
            let mut o = match own {
                Some(own) => dot::<R, S>(simd, x.q, row) + own * v,
                None => R::ZERO,
            };
            match x.key_decay {
                None => row.iter_mut().zip(x.k).for_each(|(s, &k)| *s = *s * b + k * v),
                Some(a) => row.iter_mut().zip(x.k).zip(a).for_each(|((s, &k), &a)| *s = *s * (a * b) + k * v),
            }
            if let Some(out) = self.out.as_deref_mut() {
                if own.is_none() {
                    o = dot::<R, S>(simd, x.q, row);
                }
                out[c] = o;
            }
        }
    }
}

#[inline(always)]
fn dot<R: Real, S: Simd>(simd: S, x: &[R], y: &[R]) -> R {
    let lanes = R::lanes::<S>();
    let body = x.len() / lanes * lanes;
    let mut acc = R::splat(simd, R::ZERO);
    for (&x, &y) in R::vecs::<S>(&x[..body]).iter().zip(R::vecs::<S>(&y[..body])) {
        acc = R::vfma(simd, x, y, acc);
    }
    let mut sum = R::reduce(simd, acc);
    for (&x, &y) in x[body..].iter().zip(&y[body..]) {
        sum += x * y;
    }
    sum
}

/// One decode step of many requests: row r advances the state in slot `slots[r]`. Gates are log-decays.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Step<'a, R> {
    /// Slot of each row; no slot twice.
    pub slots: &'a [usize],
    /// Heads of q and k.
    pub heads: usize,
    /// Heads of v and the states.
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Factor on q.
    pub scale: R,
    /// `[rows, H, K]`.
    pub q: &'a [R],
    /// `[rows, H, K]`.
    pub k: &'a [R],
    /// `[rows, HV, V]`.
    pub v: &'a [R],
    /// `[rows, HV]`.
    pub g: Option<&'a [R]>,
    /// `[HV]`.
    pub g_gamma: Option<&'a [R]>,
    /// `[rows, HV, K]`.
    pub gk: Option<&'a [R]>,
    /// `[rows, HV, V]`.
    pub gv: Option<&'a [R]>,
    /// `[H, K]`.
    pub u: Option<&'a [R]>,
    /// States are `[V, K]`.
    pub transposed: bool,
}

/// Largest head dim: decays and the scaled query of one head live on the stack.
const MAX_DIM: usize = 256;

/// Advances the pool `[slots, HV, K, V]` in place and writes `o [rows, HV, V]`. Allocates nothing. Heads run in
/// parallel, rows one after another. Returns false, having done nothing, when a size or slot does not fit.
#[must_use]
pub fn step<R: Real>(s: &Step<R>, pool: &mut [R], o: &mut [R]) -> bool {
    let (state, hv) = (s.key_dim * s.value_dim, s.value_heads);
    let slot_len = hv * state;
    if !fits(s, pool.len(), o.len()) {
        return false;
    }
    let arch = Arch::new();
    for (r, (&slot, o)) in s.slots.iter().zip(o.chunks_mut(hv * s.value_dim)).enumerate() {
        let states = &mut pool[slot * slot_len..][..slot_len];
        let heads = states.par_chunks_mut(state).zip(o.par_chunks_mut(s.value_dim)).enumerate();
        // A head of fewer bytes than this costs less than handing it to another thread.
        heads
            .with_min_len((1 << 14) / state + 1)
            .for_each(|(j, (state, o))| one_head(arch, s, (r, j), state, o));
    }
    true
}

fn fits<R>(s: &Step<R>, pool: usize, out: usize) -> bool {
    let (rows, hv) = (s.slots.len(), s.value_heads);
    let (keys, values) = (rows * s.heads * s.key_dim, rows * hv * s.value_dim);
    let slot_len = hv * s.key_dim * s.value_dim;
    let len = |x: Option<&[R]>, want: usize| x.is_none_or(|x| x.len() == want);
    slot_len > 0
        && s.heads > 0
        && hv.is_multiple_of(s.heads)
        && s.key_dim <= MAX_DIM
        && s.value_dim <= MAX_DIM
        && pool.is_multiple_of(slot_len)
        && (s.q.len(), s.k.len(), s.v.len(), out) == (keys, keys, values, values)
        && len(s.g, rows * hv)
        && len(s.g_gamma, hv)
        && len(s.gk, rows * hv * s.key_dim)
        && len(s.gv, values)
        && len(s.u, s.heads * s.key_dim)
        && s.slots.iter().enumerate().all(|(i, x)| *x < pool / slot_len && !s.slots[..i].contains(x))
}

fn one_head<R: Real>(arch: Arch, s: &Step<R>, (r, j): (usize, usize), state: &mut [R], o: &mut [R]) {
    let (kd, vd) = (s.key_dim, s.value_dim);
    let h = j / (s.value_heads / s.heads);
    let row = r * s.value_heads + j;
    let key = (r * s.heads + h) * kd;
    let (mut q, mut a, mut b) = ([R::ZERO; MAX_DIM], [R::ZERO; MAX_DIM], [R::ZERO; MAX_DIM]);
    q[..kd].iter_mut().zip(&s.q[key..]).for_each(|(d, &x)| *d = x * s.scale);
    let number = s.g.map_or(R::ZERO, |g| g[row]) + s.g_gamma.map_or(R::ZERO, |g| g[j]);
    let decays = s.g.is_some() || s.g_gamma.is_some() || s.gk.is_some();
    if decays {
        a[..kd].fill(number);
        if let Some(gk) = s.gk {
            a[..kd].iter_mut().zip(&gk[row * kd..]).for_each(|(d, &x)| *d += x);
        }
        exp_in_place(arch, &mut a[..kd]);
    }
    if let Some(gv) = s.gv {
        b[..vd].copy_from_slice(&gv[row * vd..][..vd]);
        exp_in_place(arch, &mut b[..vd]);
    }
    let token = Token {
        q: &q[..kd],
        k: &s.k[key..key + kd],
        v: &s.v[row * vd..][..vd],
        key_decay: decays.then_some(&a[..kd]),
        value_decay: s.gv.is_some().then_some(&b[..vd]),
        bonus: s.u.map(|u| &u[h * kd..][..kd]),
    };
    advance(arch, &token, state, s.transposed, Some(o));
}
