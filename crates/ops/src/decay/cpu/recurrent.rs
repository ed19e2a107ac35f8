//! The recurrence token by token: decode, short sequences, and the check of the chunked path.
//!
//! The backward keeps one state every [`SEGMENT`] tokens and recomputes the others a segment at a time: memory is
//! `T / 64 + 64` states, and no decay is ever inverted.

use super::args::{Args, Needs, Seq, Source};
use super::chunk::GradRows;
use super::step::{Token, advance};
use super::work::{load_state, store_state};
use crate::pairs::{exact, panel};
use crate::simd::{Arch, Buf, Real, exp_in_place, padded};

/// Tokens loaded at once, and between two kept states.
const SEGMENT: usize = 64;

/// A segment's rows, padded.
struct Rows<R> {
    arch: Arch,
    kld: usize,
    vld: usize,
    q: Buf<R>,
    k: Buf<R>,
    v: Buf<R>,
    /// Decays of key channels; empty when the key side does not decay.
    a: Buf<R>,
    /// Decays of value channels, or empty.
    b: Buf<R>,
    u: Option<Buf<R>>,
    gamma: R,
}

impl<R: Real> Rows<R> {
    fn new(arch: Arch, a: &Args<R>, j: usize) -> Self {
        let (kld, vld) = (padded(a.key_dim), padded(a.value_dim));
        let keys = |on: bool| Buf::zeros(if on { SEGMENT * kld } else { 0 });
        Rows {
            arch,
            kld,
            vld,
            q: keys(true),
            k: keys(true),
            v: Buf::zeros(SEGMENT * vld),
            a: keys(a.gk.is_some() || a.has_scalar()),
            b: Buf::zeros(if a.gv.is_some() { SEGMENT * vld } else { 0 }),
            u: a.u.map(|u| {
                let mut row = Buf::zeros(kld);
                row[..a.key_dim].copy_from_slice(&u[j / a.group() * a.key_dim..][..a.key_dim]);
                row
            }),
            gamma: a.g_gamma.map_or(R::ZERO, |g| g[j]),
        }
    }

    fn load(&mut self, x: &Args<R>, (seq, j): (&Seq, usize), (t0, len): (usize, usize)) {
        let (arch, kld, vld, hk) = (self.arch, self.kld, self.vld, j / x.group());
        let (ksize, vsize) = ((t0, len, x.key_dim), (t0, len, x.value_dim));
        x.q.load(arch, (seq, hk), ksize, x.scale, (&mut self.q, kld));
        x.k.load(arch, (seq, hk), ksize, R::ONE, (&mut self.k, kld));
        x.v.load(arch, (seq, j), vsize, R::ONE, (&mut self.v, vld));
        if !self.a.is_empty() {
            self.a.fill(self.gamma);
            if let Some(g) = &x.g {
                let mut logs = [R::ZERO; SEGMENT];
                g.load(arch, (seq, j), (t0, len, 1), R::ONE, (&mut logs, 1));
                for (row, &g) in self.a.chunks_mut(kld).zip(&logs[..len]) {
                    row.iter_mut().for_each(|v| *v += g);
                }
            }
            if let Some(gk) = &x.gk {
                let mut row = Buf::zeros(len * kld);
                gk.load(arch, (seq, x.gk_head(j)), ksize, R::ONE, (&mut row, kld));
                self.a.iter_mut().zip(row.iter()).for_each(|(v, &g)| *v += g);
            }
            exp_in_place(arch, &mut self.a[..len * kld]);
        }
        if let Some(gv) = &x.gv {
            self.b.fill(R::ZERO);
            gv.load(arch, (seq, j), vsize, R::ONE, (&mut self.b, vld));
            exp_in_place(arch, &mut self.b[..len * vld]);
        }
    }

    /// Token t of the segment.
    fn token(&self, t: usize, key_dim: usize) -> Token<'_, R> {
        let (k, v) = (t * self.kld..t * self.kld + key_dim, t * self.vld..(t + 1) * self.vld);
        Token {
            q: &self.q[k.clone()],
            k: &self.k[k.clone()],
            v: &self.v[v.clone()],
            key_decay: (!self.a.is_empty()).then(|| &self.a[k]),
            value_decay: (!self.b.is_empty()).then(|| &self.b[v]),
            bonus: self.u.as_ref().map(|u| &u[..key_dim]),
        }
    }
}

/// Writes outputs and the last state.
pub(super) fn forward<R: Real>(
    arch: Arch,
    a: &Args<R>,
    (n, j): (usize, usize),
    o: &mut [&mut [R]],
    last: Option<&mut [R]>,
) {
    let seq = &a.seqs[n];
    let mut rows = Rows::new(arch, a, j);
    let vld = rows.vld;
    let mut state = Buf::zeros(a.key_dim * vld);
    let mut out = Buf::zeros(vld);
    let at = (n * a.value_heads + j) * a.state_len();
    load_state(a, a.h0.map(|h| &h[at..at + a.state_len()]), vld, &mut state);
    for t0 in (0..seq.len).step_by(SEGMENT) {
        let len = SEGMENT.min(seq.len - t0);
        rows.load(a, (seq, j), (t0, len));
        for t in 0..len {
            advance(arch, &rows.token(t, a.key_dim), &mut state, false, Some(&mut out));
            o[t0 + t].copy_from_slice(&out[..a.value_dim]);
        }
    }
    if let Some(last) = last {
        store_state(a, &state, vld, last);
    }
}

/// Gradients of one sequence and head by the reverse recurrence.
pub(super) fn backward<R: Real>(
    arch: Arch,
    a: &Args<R>,
    (n, j): (usize, usize),
    d_o: &Source,
    d_last: Option<&[R]>,
    needs: Needs,
    out: &mut GradRows<R>,
) {
    let seq = &a.seqs[n];
    let mut rows = Rows::new(arch, a, j);
    let vld = rows.vld;
    let size = a.key_dim * vld;
    let at = (n * a.value_heads + j) * a.state_len();
    let own = |x: &'_ [R]| x[at..at + a.state_len()].to_vec();
    let segments = seq.len.div_ceil(SEGMENT);
    let mut kept = Buf::zeros((segments + 1) * size);
    load_state(a, a.h0.map(own).as_deref(), vld, &mut kept);
    for s in 0..segments {
        let (t0, len) = (s * SEGMENT, SEGMENT.min(seq.len - s * SEGMENT));
        rows.load(a, (seq, j), (t0, len));
        let (before, after) = kept[s * size..].split_at_mut(size);
        let after = &mut after[..size];
        after.copy_from_slice(before);
        for t in 0..len {
            advance(arch, &rows.token(t, a.key_dim), after, false, None);
        }
    }
    let mut back = Back::new(a, &rows);
    load_state(a, d_last.map(own).as_deref(), vld, &mut back.ds);
    let mut states = Buf::zeros((SEGMENT + 1) * size);
    let mut d_rows = Buf::zeros(SEGMENT * vld);
    for s in (0..segments).rev() {
        let (t0, len) = (s * SEGMENT, SEGMENT.min(seq.len - s * SEGMENT));
        rows.load(a, (seq, j), (t0, len));
        d_o.load(arch, (seq, j), (t0, len, a.value_dim), R::ONE, (&mut d_rows, vld));
        states[..size].copy_from_slice(&kept[s * size..][..size]);
        for t in 0..len {
            let (before, after) = states[t * size..].split_at_mut(size);
            after[..size].copy_from_slice(before);
            advance(arch, &rows.token(t, a.key_dim), &mut after[..size], false, None);
        }
        for t in (0..len).rev() {
            let (before, after) = (&states[t * size..][..size], &states[(t + 1) * size..][..size]);
            back.token(a, &rows, t, &d_rows[t * vld..(t + 1) * vld], before, after);
            back.store(a, needs, t0 + t, out);
        }
    }
    if !out.h0.is_empty() {
        store_state(a, &back.ds, vld, out.h0);
    }
    out.u.copy_from_slice(&back.du[..out.u.len()]);
}

/// Gradients of one token, and the running gradient by the state.
struct Back<R> {
    arch: Arch,
    ds: Buf<R>,
    dq: Buf<R>,
    dk: Buf<R>,
    dv: Buf<R>,
    /// Gradient by the log-decays of key channels.
    da: Buf<R>,
    /// Gradient by the log-decays of value channels.
    db: Buf<R>,
    du: Buf<R>,
    /// A product row.
    tmp: Buf<R>,
}

impl<R: Real> Back<R> {
    fn new(a: &Args<R>, rows: &Rows<R>) -> Self {
        let (k, v) = (|| Buf::zeros(rows.kld), || Buf::zeros(rows.vld));
        Back {
            arch: rows.arch,
            ds: Buf::zeros(a.key_dim * rows.vld),
            dq: k(),
            dk: k(),
            dv: v(),
            da: k(),
            db: v(),
            du: k(),
            tmp: v(),
        }
    }

    /// One step of the reverse recurrence; `before`, `after` are the states around the token.
    fn token(&mut self, a: &Args<R>, rows: &Rows<R>, t: usize, d: &[R], before: &[R], after: &[R]) {
        let (arch, vld, kd) = (self.arch, rows.vld, a.key_dim);
        let x = rows.token(t, kd);
        let read = if x.bonus.is_some() { before } else { after };
        // dq = S d; with a bonus the state is the one before, and the token's own part is added below.
        for i in 0..kd {
            self.tmp.copy_from_slice(d);
            exact::row_dots(
                arch,
                &read[i * vld..(i + 1) * vld],
                &self.tmp,
                None,
                vld,
                &mut self.dq[i..i + 1],
            );
        }
        if x.bonus.is_none() {
            self.add_outer(x.q, d);
        }
        // Gradients by what the token writes.
        self.dv.fill(R::ZERO);
        for i in 0..kd {
            let row = &self.ds[i * vld..(i + 1) * vld];
            exact::row_dots(arch, row, x.v, None, vld, &mut self.dk[i..i + 1]);
            panel::add_by_row(arch, &mut self.dv, row, &[x.k[i]], vld);
        }
        if let Some(u) = x.bonus {
            self.own(x.q, x.k, x.v, u, d);
        }
        // Through the decay: ds <- a ds b, and its product with the state before is the gates' gradient.
        panel::decay_state(arch, &mut self.ds, vld, x.key_decay, x.value_decay);
        self.db.fill(R::ZERO);
        for i in 0..kd {
            let (s, d) = (&before[i * vld..(i + 1) * vld], &self.ds[i * vld..(i + 1) * vld]);
            if x.key_decay.is_some() {
                exact::row_dots(arch, s, d, None, vld, &mut self.da[i..i + 1]);
            }
            if x.value_decay.is_some() {
                panel::add_mul(arch, &mut self.db, s, d);
            }
        }
        if x.bonus.is_some() {
            self.add_outer(x.q, d);
        }
        self.dq[..kd].iter_mut().for_each(|v| *v *= a.scale);
    }

    /// `ds += q d^T`.
    fn add_outer(&mut self, q: &[R], d: &[R]) {
        for (row, &q) in self.ds.chunks_mut(d.len()).zip(q) {
            panel::add_by_row(self.arch, row, d, &[q], d.len());
        }
    }

    /// The bonus part `(q . diag(u) k) v` of the output.
    fn own(&mut self, q: &[R], k: &[R], v: &[R], u: &[R], d: &[R]) {
        let dv: R = v.iter().zip(d).map(|(&v, &d)| v * d).sum();
        let mut score = R::ZERO;
        for i in 0..q.len() {
            self.dq[i] += u[i] * k[i] * dv;
            self.dk[i] += u[i] * q[i] * dv;
            self.du[i] += q[i] * k[i] * dv;
            score += q[i] * u[i] * k[i];
        }
        panel::add_by_row(self.arch, &mut self.dv, d, &[score], d.len());
    }

    fn store(&self, a: &Args<R>, needs: Needs, t: usize, out: &mut GradRows<R>) {
        let kd = a.key_dim;
        let parts =
            [(&mut out.q, &self.dq, kd), (&mut out.k, &self.dk, kd), (&mut out.v, &self.dv, a.value_dim)];
        for (rows, from, n) in parts {
            if let Some(row) = rows.get_mut(t) {
                row.copy_from_slice(&from[..n]);
            }
        }
        if needs.key_gate {
            if let Some(row) = out.gk.get_mut(t) {
                row.copy_from_slice(&self.da[..kd]);
            }
            if let Some(g) = out.g.get_mut(t) {
                *g = self.da[..kd].iter().copied().sum();
            }
        }
        if needs.value_gate
            && let Some(row) = out.gv.get_mut(t)
        {
            row.copy_from_slice(&self.db[..a.value_dim]);
        }
    }
}
