//! Scratch of one task (one sequence and head) of the chunked path, and the loading of a chunk into it.

use super::args::{Args, Seq};
use crate::pairs::{Pairs, exact, panel};
use crate::simd::{Arch, Buf, Real, exp_in_place, padded};

/// Decay by one number a token: the mask `D_ij` over token pairs and the decays to the chunk's edges.
pub(super) struct ScalarGate<R> {
    /// Decays of the tokens.
    e: Buf<R>,
    /// From the chunk's start to each token.
    pub from_start: Buf<R>,
    /// After each token to the chunk's end.
    pub to_end: Buf<R>,
    /// Strictly lower `D_ij`, rows `ldm` apart.
    mask: Buf<R>,
    /// Of the whole chunk.
    pub total: R,
    /// Length for which a constant gate's tables already stand.
    ready: usize,
}

impl<R: Real> ScalarGate<R> {
    fn new(chunk: usize) -> Self {
        let row = || Buf::zeros(chunk);
        let mask = Buf::zeros(chunk * padded(chunk));
        ScalarGate { e: row(), from_start: row(), to_end: row(), mask, total: R::ONE, ready: 0 }
    }

    /// All pairwise products by running multiplication: exact for any strength.
    fn prepare(&mut self, len: usize, ldm: usize, exclusive: bool) {
        let mut run = R::ONE;
        for t in 0..len {
            self.from_start[t] = if exclusive { run } else { run * self.e[t] };
            run *= self.e[t];
        }
        self.total = run;
        run = R::ONE;
        for t in (0..len).rev() {
            self.to_end[t] = run;
            run *= self.e[t];
        }
        for i in 1..len {
            let (before, row) = self.mask.split_at_mut(i * ldm);
            let before = &before[(i - 1) * ldm..];
            let step = self.e[if exclusive { i - 1 } else { i }];
            for j in 0..i - 1 {
                row[j] = before[j] * step;
            }
            row[i - 1] = if exclusive { R::ONE } else { step };
        }
    }
}

/// Panels of one task.
pub(super) struct Work<R> {
    pub arch: Arch,
    /// x = queries (scaled), y = keys.
    pub keys: Pairs<R>,
    /// x = output gradients (backward only), y = values.
    pub values: Pairs<R>,
    /// Set when the key side decays by a number a token and no channel gate takes it over.
    pub scalar: Option<ScalarGate<R>>,
    /// Row length of the score matrices.
    pub ldm: usize,
    /// Strictly lower scores of queries and keys.
    pub m: Buf<R>,
    /// Diagonal scores.
    pub diag: Buf<R>,
    /// Bonus of this head, padded.
    pub bonus: Option<Buf<R>>,
    gammas: R,
}

impl<R: Real> Work<R> {
    /// Scratch for value head `j`.
    pub fn new(arch: Arch, a: &Args<R>, j: usize) -> Self {
        let exclusive = a.u.is_some();
        let keys = Pairs::new(arch, a.chunk, a.key_dim, a.gk.is_some(), [exclusive]);
        let bonus = a.u.map(|u| {
            let mut row = Buf::zeros(keys.ld);
            row[..a.key_dim].copy_from_slice(&u[j / a.group() * a.key_dim..][..a.key_dim]);
            row
        });
        let ldm = padded(a.chunk);
        Work {
            arch,
            keys,
            values: Pairs::new(arch, a.chunk, a.value_dim, a.gv.is_some(), [exclusive]),
            scalar: (a.gk.is_none() && a.has_scalar()).then(|| ScalarGate::new(a.chunk)),
            ldm,
            m: Buf::zeros(a.chunk * ldm),
            diag: Buf::zeros(a.chunk),
            bonus,
            gammas: a.g_gamma.map_or(R::ZERO, |g| g[j]),
        }
    }

    /// Loads tokens `t0 .. t0 + len` and prepares both sides. `queries`: q too (not needed for states alone).
    /// The x panel of the value side must be loaded before, when it is used.
    pub fn load(&mut self, a: &Args<R>, (seq, j): (&Seq, usize), (t0, len): (usize, usize), queries: bool) {
        let (arch, hk) = (self.arch, j / a.group());
        let (keys, values) = (&mut self.keys, &mut self.values);
        let (kld, vld) = (keys.ld, values.ld);
        let (ksize, vsize) = ((t0, len, a.key_dim), (t0, len, a.value_dim));
        if queries {
            a.q.load(arch, (seq, hk), ksize, a.scale, (&mut keys.x[0].rows, kld));
        }
        a.k.load(arch, (seq, hk), ksize, R::ONE, (&mut keys.y, kld));
        a.v.load(arch, (seq, j), vsize, R::ONE, (&mut values.y, vld));
        if let Some(gk) = &a.gk {
            clear_padding(&mut keys.decay, kld, a.key_dim);
            gk.load(arch, (seq, a.gk_head(j)), ksize, R::ONE, (&mut keys.decay, kld));
        }
        if let Some(gv) = &a.gv {
            clear_padding(&mut values.decay, vld, a.value_dim);
            gv.load(arch, (seq, j), vsize, R::ONE, (&mut values.decay, vld));
            exp_in_place(arch, &mut values.decay[..len * vld]);
        }
        self.load_scalar(a, (seq, j), (t0, len));
        if a.gk.is_some() {
            exp_in_place(arch, &mut self.keys.decay[..len * kld]);
        }
        let edges = self.scalar.as_ref().map(|s| (&s.from_start[..], &s.to_end[..]));
        self.keys.prepare(len, edges);
        self.values.prepare(len, None);
    }

    /// Number gates go into the channel gate where there is one, else into tables of their own.
    fn load_scalar(&mut self, a: &Args<R>, (seq, j): (&Seq, usize), (t0, len): (usize, usize)) {
        if !a.has_scalar() {
            return;
        }
        let mut logs = [R::ZERO; 64];
        if let Some(g) = &a.g {
            g.load(self.arch, (seq, j), (t0, len, 1), R::ONE, (&mut logs, 1));
        }
        logs[..len].iter_mut().for_each(|g| *g += self.gammas);
        match &mut self.scalar {
            Some(s) if a.g.is_some() || s.ready != len => {
                s.e[..len].copy_from_slice(&logs[..len]);
                exp_in_place(self.arch, &mut s.e[..len]);
                s.prepare(len, self.ldm, a.u.is_some());
                s.ready = len;
            }
            Some(_) => {}
            None => {
                let ld = self.keys.ld;
                for (row, &g) in self.keys.decay.chunks_mut(ld).zip(&logs[..len]) {
                    row.iter_mut().for_each(|v| *v += g);
                }
            }
        }
    }

    /// `m`: strictly lower scores with all decays; `diag`: the scores of a token with itself.
    pub fn score_keys(&mut self, len: usize) {
        self.keys.scores(0, len, &mut self.m, self.ldm);
        mask_scores(self.arch, self.scalar.as_ref(), len, (&mut self.m, self.ldm));
        let (n, ld) = (len * self.keys.ld, self.keys.ld);
        let (x, y) = (&self.keys.x[0].rows[..n], &self.keys.y[..n]);
        exact::row_dots(self.arch, x, y, self.bonus.as_deref(), ld, &mut self.diag);
    }

    /// `dm`, `d_diag`: the same for output gradients and values.
    pub fn score_values(&mut self, len: usize, dm: &mut [R], d_diag: &mut [R]) {
        self.values.scores(0, len, dm, self.ldm);
        mask_scores(self.arch, self.scalar.as_ref(), len, (dm, self.ldm));
        let (n, ld) = (len * self.values.ld, self.values.ld);
        exact::row_dots(self.arch, &self.values.x[0].rows[..n], &self.values.y[..n], None, ld, d_diag);
    }

    /// `state <- decay of the chunk * state`, rows of V.
    pub fn decay_state(&self, a: &Args<R>, state: &mut [R]) {
        let ld = self.values.ld;
        let cols = a.gv.is_some().then_some(&self.values.total[..]);
        let rows = a.gk.is_some().then_some(&self.keys.total[..a.key_dim]);
        panel::decay_state(self.arch, state, ld, rows, cols);
        if let Some(s) = &self.scalar {
            panel::scale(self.arch, state, s.total);
        }
    }
}

/// The panel held decays of the last chunk: its padding must be 0 again.
fn clear_padding<R: Real>(panel: &mut [R], ld: usize, width: usize) {
    if ld > width {
        panel.fill(R::ZERO);
    }
}

fn mask_scores<R: Real>(arch: Arch, gate: Option<&ScalarGate<R>>, len: usize, (m, ldm): (&mut [R], usize)) {
    if let Some(s) = gate {
        for i in 1..len {
            panel::mul_assign(arch, &mut m[i * ldm..i * ldm + i], &s.mask[i * ldm..i * ldm + i]);
        }
    }
}

/// Writes a `len x ld` panel to output rows.
pub(super) fn store_rows<R: Real>(panel: &[R], ld: usize, rows: &mut [&mut [R]]) {
    for (row, from) in rows.iter_mut().zip(panel.chunks(ld)) {
        let n = row.len();
        row.copy_from_slice(&from[..n]);
    }
}

/// Reads a caller's state into `[K][ld]` rows.
pub(super) fn load_state<R: Real>(a: &Args<R>, from: Option<&[R]>, ld: usize, state: &mut [R]) {
    let Some(from) = from else { return };
    for i in 0..a.key_dim {
        for c in 0..a.value_dim {
            state[i * ld + c] =
                if a.transposed { from[c * a.key_dim + i] } else { from[i * a.value_dim + c] };
        }
    }
}

/// Writes `[K][ld]` rows to a caller's state.
pub(super) fn store_state<R: Real>(a: &Args<R>, state: &[R], ld: usize, to: &mut [R]) {
    for i in 0..a.key_dim {
        for c in 0..a.value_dim {
            to[if a.transposed { c * a.key_dim + i } else { i * a.value_dim + c }] = state[i * ld + c];
        }
    }
}
