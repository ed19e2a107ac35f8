//! Backward of [`super::scores`]: from the gradients of scores and decayed panels to those of queries, keys, erase
//! keys and the log-decay.
//!
//! The gradient of `g_r` is the sum over everything that decays across token r: pairs (t, s) with s < r <= t inside
//! the chunk, reads of the chunk's first state by t >= r, writes s < r to its last state, and the state itself. Where
//! the erase key reads the state before the decay (Comba), its pairs end at t - 1.

use flashlin_tensor::cpu::vectorized;

use super::panels::{GateKind, Panels, Spec};
use super::scores::{Scores, mul_rows, product_row};
use crate::simd::{Buf, Extent, Mat, PAD, Real, Store, dot, mm_nn, mm_tn};

/// Working memory of the scores' backward.
pub(crate) struct ScoreGrads<R> {
    /// In: gradients of `Aq` over `Ap`, `[2c, c]` (lower blocks). Scratch afterwards.
    pub da: Buf<R>,
    /// Out: gradient of the log-decay, `[c]` or `[c, Kp]`.
    pub dg: Buf<R>,
    /// What the decay of the whole state contributes: `[1]` or `[Kp]`.
    whole: Buf<R>,
    /// Scalar gate: products of scores and their gradients, `[c, c]`.
    pairs: Buf<R>,
    /// A running row, `[max(c, Kp)]`.
    run: Buf<R>,
    /// Per-channel gate: local keys, gradients of local panels and keys, writes' part, decayed rows of a block.
    keys: Buf<R>,
    dlocal: Buf<R>,
    dkeys: Buf<R>,
    writes: Buf<R>,
    block: Buf<R>,
}

impl<R: Real> ScoreGrads<R> {
    pub fn new(s: &Spec) -> Self {
        let (c, kp) = (s.chunk, s.kp());
        let zeros = |n: usize| Buf::zeros(n);
        let channel = |n: usize| Buf::zeros(if s.gate == GateKind::Channel { n } else { 0 });
        ScoreGrads {
            da: zeros(2 * c * c),
            dg: zeros(match s.gate {
                GateKind::None => 0,
                GateKind::Scalar => c,
                GateKind::Channel => c * kp,
            }),
            whole: zeros(kp),
            pairs: zeros(if s.gate == GateKind::Scalar { c * c } else { 0 }),
            run: zeros(c.max(kp)),
            keys: channel(c * kp),
            dlocal: channel(2 * c * kp),
            dkeys: channel(c * kp),
            writes: channel(c * kp),
            block: channel(2 * PAD * kp),
        }
    }

    /// The whole state's decay: `state` at the chunk's start, `ds` the gradient at its end.
    pub fn state_decay(&mut self, s: &Spec, total: &[R], state: &[R], ds: &[R]) {
        let (kp, vp) = (s.kp(), s.vp());
        let whole = &mut self.whole;
        vectorized(
            #[inline(always)]
            || {
                for ch in 0..kp {
                    whole[ch] = total[ch] * dot(&state[ch * vp..][..vp], &ds[ch * vp..][..vp]);
                }
            },
        );
        if s.gate == GateKind::Scalar {
            self.whole[0] = self.whole[..kp].iter().copied().sum();
        }
    }

    /// `dx` and `dk` come in as gradients of the panels decayed from the chunk's start and to its end, and leave as
    /// those of queries, erase keys and keys.
    pub fn run(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &mut [R], dk: &mut [R]) {
        match s.gate {
            GateKind::Channel => self.channel(s, p, sc, dx, dk),
            _ => self.scalar(s, p, sc, dx, dk),
        }
    }

    fn scalar(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &mut [R], dk: &mut [R]) {
        let (c, kp) = (p.c, s.kp());
        if s.gate == GateKind::Scalar {
            self.scalar_panels_decay_grad(s, p, sc, dx, dk);
        }
        self.mask_score_grads(s, p, sc);
        if s.gate == GateKind::Scalar {
            self.scalar_pairs_decay_grad(c);
        }
        undecay_scalar(s, p, sc, dx, dk);
        for half in [0, c] {
            let (da, x) = (Mat::new(&self.da[half * c..], c), Mat::new(&p.x[half * kp..], kp));
            let out = (&mut dx[half * kp..], kp);
            mm_nn(s.arch, (c, kp, c), da, Mat::new(&p.k, kp), out, Store::Add, Extent::LowerInner);
            mm_tn(s.arch, (c, kp, c), da, x, (dk, kp), Store::Add, Extent::UpperInner);
        }
    }

    /// Reads of the first state, writes to the last state and the state itself.
    fn scalar_panels_decay_grad(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &[R], dk: &[R]) {
        let (c, kp) = (p.c, s.kp());
        let (dg, whole) = (&mut self.dg, self.whole[0]);
        vectorized(
            #[inline(always)]
            || {
                let mut later = R::ZERO;
                for t in (0..c).rev() {
                    if s.erase_before_decay {
                        later += row_dot(&sc.x, dx, t, kp);
                        dg[t] = later;
                        later += row_dot(&sc.x, dx, c + t, kp);
                    } else {
                        later += row_dot(&sc.x, dx, t, kp) + row_dot(&sc.x, dx, c + t, kp);
                        dg[t] = later;
                    }
                }
                let mut earlier = whole;
                for t in 0..c {
                    dg[t] += earlier;
                    earlier += sc.suffix[t] * dot(&p.k[t * kp..][..kp], &dk[t * kp..][..kp]);
                }
            },
        );
    }

    /// `da` becomes the gradient of the undecayed products; `pairs` gets score times gradient at the row of the last
    /// decay that the pair crosses.
    fn mask_score_grads(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>) {
        let c = p.c;
        let gated = s.gate == GateKind::Scalar;
        let scale = R::from_f64(s.scale);
        let ScoreGrads { da, pairs, run, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let (dq, dp) = da.split_at_mut(c * c);
                let lanes = &mut run[..c];
                lanes.fill(R::ZERO);
                for t in 0..c {
                    let n = t / PAD * PAD + PAD;
                    let (dq, dp) = (&mut dq[t * c..][..n], &mut dp[t * c..][..n]);
                    let lanes = &mut lanes[..n];
                    if gated {
                        product_row(dq, &sc.a[t * c..][..n], R::ONE, &mut pairs[t * c..][..n]);
                        let at = if s.erase_before_decay { t.wrapping_sub(1) } else { t };
                        if at < c {
                            let ap = &sc.a[(c + t) * c..][..n];
                            let row = &mut pairs[at * c..][..at / PAD * PAD + PAD];
                            for (o, (&a, &d)) in row.iter_mut().zip(ap.iter().zip(dp.iter())) {
                                *o = a.mul_add(d, *o);
                            }
                        }
                        if s.erase_before_decay {
                            mul_rows(dp, lanes, R::ONE);
                        }
                        lanes.iter_mut().for_each(|l| *l *= p.decay[t]);
                        if !s.erase_before_decay {
                            mul_rows(dp, lanes, R::ONE);
                        }
                    } else {
                        mul_rows(dp, lanes, R::ONE);
                    }
                    lanes[t] = R::ONE;
                    mul_rows(dq, lanes, scale);
                }
            },
        );
    }

    /// Pairs (t, s) with s < r <= t, for each r.
    fn scalar_pairs_decay_grad(&mut self, c: usize) {
        let ScoreGrads { dg, pairs, run, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let sums = &mut run[..c];
                sums.fill(R::ZERO);
                for t in (0..c).rev() {
                    let n = t / PAD * PAD + PAD;
                    for (a, &m) in sums[..n].iter_mut().zip(&pairs[t * c..][..n]) {
                        *a += m;
                    }
                    // Columns from t on take part in no further pair (and the diagonal in none).
                    sums[t] = R::ZERO;
                    let mut partial = [R::ZERO; PAD];
                    for block in sums[..n].chunks_exact(PAD) {
                        for l in 0..PAD {
                            partial[l] += block[l];
                        }
                    }
                    dg[t] += partial.iter().copied().sum::<R>();
                }
            },
        );
    }

    fn channel(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &mut [R], dk: &mut [R]) {
        let c = p.c;
        self.channel_panels_decay_grad(s, p, sc, dx, dk);
        self.channel_blocks(s, p, sc);
        self.undecay_channel(s, p, sc, dx, dk);
        for i in (0..c).step_by(PAD) {
            self.diagonal_queries(s, p, i, dx);
            self.diagonal_keys(s, p, i, dk);
        }
        self.finish_channel_decay_grad(s, c);
    }

    /// Reads of the first state (into `dg`, by the row of their last decay) and writes to the last (into `writes`).
    fn channel_panels_decay_grad(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &[R], dk: &[R]) {
        let (c, kp) = (p.c, s.kp());
        let ScoreGrads { dg, writes, keys, run, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                product_row(&sc.x[..c * kp], &dx[..c * kp], R::ONE, &mut dg[..c * kp]);
                add_erase_part(s, c, kp, &sc.x[c * kp..], &dx[c * kp..], dg);
                // Keys decayed to the end of their block of 16, and the same to the chunk's end.
                let run = &mut run[..kp];
                for t in (0..c).rev() {
                    if t % PAD == PAD - 1 {
                        run.fill(R::ONE);
                    }
                    product_row(&p.k[t * kp..][..kp], run, R::ONE, &mut keys[t * kp..][..kp]);
                    mul_rows(run, &p.decay[t * kp..][..kp], R::ONE);
                }
                run.fill(R::ONE);
                for t in (0..c).rev() {
                    let (k, d) = (&p.k[t * kp..][..kp], &dk[t * kp..][..kp]);
                    for (ch, o) in writes[t * kp..][..kp].iter_mut().enumerate() {
                        *o = k[ch] * run[ch] * d[ch];
                    }
                    mul_rows(run, &p.decay[t * kp..][..kp], R::ONE);
                }
            },
        );
    }

    /// Scores below the diagonal blocks, through the reference point at the start of each row block.
    fn channel_blocks(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>) {
        let (c, kp) = (p.c, s.kp());
        let ScoreGrads { da, dg, keys, dlocal, dkeys, .. } = self;
        let whole = |i: usize| &sc.into[(i + PAD - 1) * kp..][..kp];
        // Rows: keys move forward from reference point to reference point.
        dkeys[..c * kp].copy_from_slice(&keys[..c * kp]);
        for half in [0, c] {
            dlocal[half * kp..][..PAD * kp].fill(R::ZERO);
        }
        for i in (PAD..c).step_by(PAD) {
            if i > PAD {
                scale_block_rows(&mut dkeys[..(i - PAD) * kp], whole(i - PAD));
            }
            for half in [0, c] {
                let (rows, keys) = (Mat::new(&da[(half + i) * c..], c), Mat::new(dkeys, kp));
                let out = (&mut dlocal[(half + i) * kp..], kp);
                mm_nn(s.arch, (PAD, kp, i), rows, keys, out, Store::Set, Extent::Full);
            }
        }
        // Columns: gradients of keys move backward the same way.
        dkeys[..c * kp].fill(R::ZERO);
        for i in (PAD..c).step_by(PAD).rev() {
            if i + PAD < c {
                scale_block_rows(&mut dkeys[..i * kp], whole(i));
            }
            for half in [0, c] {
                let cols = Mat::new(&da[(half + i) * c..], c);
                let local = Mat::new(&sc.local[(half + i) * kp..], kp);
                mm_tn(s.arch, (i, kp, PAD), cols, local, (dkeys, kp), Store::Add, Extent::Full);
            }
        }
        vectorized(
            #[inline(always)]
            || {
                for (o, (&x, &d)) in dg.iter_mut().zip(sc.local.iter().zip(dlocal.iter())).take(c * kp) {
                    *o = x.mul_add(d, *o);
                }
                add_erase_part(s, c, kp, &sc.local[c * kp..], &dlocal[c * kp..], dg);
                for (o, (&k, &d)) in dg.iter_mut().zip(keys.iter().zip(dkeys.iter())).take(c * kp) {
                    *o = (-k).mul_add(d, *o);
                }
            },
        );
    }

    /// From gradients of decayed panels (`dx`, `dk`, `dlocal`, `dkeys`) to those of the panels.
    fn undecay_channel(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &mut [R], dk: &mut [R]) {
        let (c, kp) = (p.c, s.kp());
        let scale = R::from_f64(s.scale);
        let ScoreGrads { dlocal, dkeys, run, block, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                // `run`: decay from the chunk's start to the block's; `sc.into`: from the block's start to a token.
                let run = &mut run[..kp];
                let before = &mut block[..kp];
                run.fill(R::ONE);
                for t in 0..c {
                    if t % PAD == 0 {
                        if t > 0 {
                            mul_rows(run, &sc.into[(t - 1) * kp..][..kp], R::ONE);
                        }
                        before.fill(R::ONE);
                    }
                    let into = &sc.into[t * kp..][..kp];
                    let at_erase: &[R] = if s.erase_before_decay { before } else { into };
                    undecay_row(&mut dx[t * kp..][..kp], &dlocal[t * kp..], run, into, scale);
                    undecay_row(
                        &mut dx[(c + t) * kp..][..kp],
                        &dlocal[(c + t) * kp..],
                        run,
                        at_erase,
                        R::ONE,
                    );
                    before.copy_from_slice(into);
                }
                // Keys: `run` from the block's end to the chunk's, `before` from a token to its block's end.
                run.fill(R::ONE);
                for t in (0..c).rev() {
                    if t % PAD == PAD - 1 {
                        if t + 1 < c {
                            mul_rows(run, &sc.into[(t + PAD) * kp..][..kp], R::ONE);
                        }
                        before.fill(R::ONE);
                    }
                    undecay_row(&mut dk[t * kp..][..kp], &dkeys[t * kp..], run, before, R::ONE);
                    mul_rows(before, &p.decay[t * kp..][..kp], R::ONE);
                }
            },
        );
    }

    /// Gradients of queries and erase keys from a diagonal block: keys decay along.
    fn diagonal_queries(&mut self, s: &Spec, p: &Panels<R>, i: usize, dx: &mut [R]) {
        let (c, kp) = (p.c, s.kp());
        let scale = R::from_f64(s.scale);
        let ScoreGrads { da, dg, run, block, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let sum = &mut run[..kp];
                for l in 0..PAD {
                    let t = i + l;
                    let (aq, ap) = (&da[t * c + i..], &da[(c + t) * c + i..]);
                    let erase = &p.x[(c + t) * kp..][..kp];
                    if s.erase_before_decay {
                        weighted_rows(&block[..l * kp], ap, R::ONE, sum);
                        add_to(&mut dx[(c + t) * kp..][..kp], sum);
                        if t > 0 {
                            add_product(&mut dg[(t - 1) * kp..][..kp], erase, sum);
                        }
                    }
                    scale_block_rows_inline(&mut block[..l * kp], &p.decay[t * kp..][..kp]);
                    if !s.erase_before_decay {
                        weighted_rows(&block[..l * kp], ap, R::ONE, sum);
                        add_to(&mut dx[(c + t) * kp..][..kp], sum);
                        add_product(&mut dg[t * kp..][..kp], erase, sum);
                    }
                    weighted_rows(&block[..l * kp], aq, scale, sum);
                    add_product(&mut dg[t * kp..][..kp], &p.x[t * kp..][..kp], sum);
                    let (own, key) = (scale * aq[l], &p.k[t * kp..][..kp]);
                    for (d, (&x, &k)) in dx[t * kp..][..kp].iter_mut().zip(sum.iter().zip(key)) {
                        *d += own.mul_add(k, x);
                    }
                    block[l * kp..][..kp].copy_from_slice(key);
                }
            },
        );
    }

    /// Gradients of keys from a diagonal block: queries and erase keys decay backwards along.
    fn diagonal_keys(&mut self, s: &Spec, p: &Panels<R>, i: usize, dk: &mut [R]) {
        let (c, kp) = (p.c, s.kp());
        let scale = R::from_f64(s.scale);
        let ScoreGrads { da, dg, run, block, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let (qs, ps) = block.split_at_mut(PAD * kp);
                let sum = &mut run[..kp];
                for l in (0..PAD).rev() {
                    let t = i + l;
                    sum.fill(R::ZERO);
                    if l + 1 < PAD {
                        // Token t + 1 enters, and all from it on decay across it.
                        let next = t + 1;
                        let decay = &p.decay[next * kp..][..kp];
                        qs[(l + 1) * kp..][..kp].copy_from_slice(&p.x[next * kp..][..kp]);
                        scale_block_rows_inline(&mut qs[(l + 1) * kp..], decay);
                        let (fresh, older) = ps[(l + 1) * kp..].split_at_mut(kp);
                        fresh.copy_from_slice(&p.x[(c + next) * kp..][..kp]);
                        scale_block_rows_inline(older, decay);
                        if !s.erase_before_decay {
                            mul_rows(fresh, decay, R::ONE);
                        }
                    }
                    for m in l + 1..PAD {
                        let (aq, ap) = (scale * da[(i + m) * c + t], da[(c + i + m) * c + t]);
                        let (q, e) = (&qs[m * kp..][..kp], &ps[m * kp..][..kp]);
                        for (o, (&q, &e)) in sum.iter_mut().zip(q.iter().zip(e)) {
                            *o = ap.mul_add(e, aq.mul_add(q, *o));
                        }
                    }
                    let key = &p.k[t * kp..][..kp];
                    for (o, (&k, &x)) in dg[t * kp..][..kp].iter_mut().zip(key.iter().zip(sum.iter())) {
                        *o = (-k).mul_add(x, *o);
                    }
                    let (own, query) = (scale * da[t * c + t], &p.x[t * kp..][..kp]);
                    for (d, (&x, &q)) in dk[t * kp..][..kp].iter_mut().zip(sum.iter().zip(query)) {
                        *d += own.mul_add(q, x);
                    }
                }
            },
        );
    }

    /// Sums what crosses each token: reads and pairs from the end, writes from the start, the state always.
    fn finish_channel_decay_grad(&mut self, s: &Spec, c: usize) {
        let kp = s.kp();
        let ScoreGrads { dg, writes, whole, run, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let run = &mut run[..kp];
                run.fill(R::ZERO);
                for t in (0..c).rev() {
                    add_to(run, &dg[t * kp..][..kp]);
                    dg[t * kp..][..kp].copy_from_slice(run);
                }
                run.copy_from_slice(&whole[..kp]);
                for t in 0..c {
                    add_to(&mut dg[t * kp..][..kp], run);
                    add_to(run, &writes[t * kp..][..kp]);
                }
            },
        );
    }
}

/// `dx` and `dk` from gradients of decayed panels to gradients of the panels, for a scalar gate or none.
fn undecay_scalar<R: Real>(s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &mut [R], dk: &mut [R]) {
    let (c, kp) = (p.c, s.kp());
    let scale = R::from_f64(s.scale);
    let gated = s.gate == GateKind::Scalar;
    vectorized(
        #[inline(always)]
        || {
            let mut prefix = R::ONE;
            for t in 0..c {
                let before = prefix;
                if gated {
                    prefix *= p.decay[t];
                    dk[t * kp..][..kp].iter_mut().for_each(|x| *x *= sc.suffix[t]);
                }
                let at_erase = if s.erase_before_decay { before } else { prefix };
                dx[t * kp..][..kp].iter_mut().for_each(|x| *x *= prefix * scale);
                dx[(c + t) * kp..][..kp].iter_mut().for_each(|x| *x *= at_erase);
            }
        },
    );
}

/// Adds the erase keys' `x dx` to `dg`, at the row of the last decay they cross.
#[inline(always)]
fn add_erase_part<R: Real>(s: &Spec, c: usize, kp: usize, x: &[R], dx: &[R], dg: &mut [R]) {
    let shift = if s.erase_before_decay { kp } else { 0 };
    let n = c * kp - shift;
    for (o, (&x, &d)) in dg[..n].iter_mut().zip(x[shift..].iter().zip(&dx[shift..])) {
        *o = x.mul_add(d, *o);
    }
}

/// `d = (d * outer + local) * inner * scale`: `d` decays over the chunk, `local` over the block only.
#[inline(always)]
fn undecay_row<R: Real>(d: &mut [R], local: &[R], outer: &[R], inner: &[R], scale: R) {
    for (ch, d) in d.iter_mut().enumerate() {
        *d = d.mul_add(outer[ch], local[ch]) * inner[ch] * scale;
    }
}

fn scale_block_rows<R: Real>(rows: &mut [R], by: &[R]) {
    vectorized(
        #[inline(always)]
        || scale_block_rows_inline(rows, by),
    );
}

/// Multiplies every row by `by`.
#[inline(always)]
fn scale_block_rows_inline<R: Real>(rows: &mut [R], by: &[R]) {
    for row in rows.chunks_exact_mut(by.len()) {
        mul_rows(row, by, R::ONE);
    }
}

/// `out = scale * sum_r weights[r] rows[r]`
#[inline(always)]
fn weighted_rows<R: Real>(rows: &[R], weights: &[R], scale: R, out: &mut [R]) {
    out.fill(R::ZERO);
    for (row, &w) in rows.chunks_exact(out.len()).zip(weights) {
        let w = w * scale;
        for (o, &x) in out.iter_mut().zip(row) {
            *o = w.mul_add(x, *o);
        }
    }
}

/// Sum of products of row `t` of two panels. (A closure would not be compiled for the vectors of its caller.)
#[inline(always)]
fn row_dot<R: Real>(a: &[R], b: &[R], t: usize, width: usize) -> R {
    dot(&a[t * width..][..width], &b[t * width..][..width])
}

#[inline(always)]
fn add_to<R: Real>(a: &mut [R], b: &[R]) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

#[inline(always)]
fn add_product<R: Real>(o: &mut [R], a: &[R], b: &[R]) {
    for (o, (&a, &b)) in o.iter_mut().zip(a.iter().zip(b)) {
        *o = a.mul_add(b, *o);
    }
}
