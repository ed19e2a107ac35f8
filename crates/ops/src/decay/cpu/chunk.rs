//! The chunked form of one sequence and head: forward, and backward from the last chunk to the first.
//!
//! With Q~ = queries decayed from the chunk's start, K^ = keys decayed to its end, A = masked, decayed scores:
//!
//! ```text
//! O  = A V + Q~ S            S'  = D S + K^^T V^
//! dA = (dO V^T) o D          dQ  = dA K + (dO~ S^T) decayed     dK = dA^T Q + (V^ dS^T) decayed
//! dV = A^T dO + (K^ dS) decayed                                 dS = D dS' + Q~^T dO~
//! ```
//!
//! A gate's gradient is made of `q dq - k dk` over later tokens and of `S o dS'` (see [`panel::gate_gradient`]), so no
//! sum runs longer than a chunk; pairs of a token with itself do not decay and are left out, not cancelled.

use super::args::{Args, Needs, Source};
use super::work::{Work, load_state, store_rows, store_state};
use crate::pairs::{exact, panel};
use crate::simd::{Arch, Buf, Extent, Mat, Real, Store, mm_nn, mm_tn, transpose};

/// Writes outputs, the last state, and the state before every chunk into `save` (`[chunks][K][padded V]`, or empty).
pub(super) fn forward<R: Real>(
    arch: Arch,
    a: &Args<R>,
    (n, j): (usize, usize),
    o: &mut [&mut [R]],
    last: Option<&mut [R]>,
    save: &mut [R],
) {
    let seq = &a.seqs[n];
    let mut w = Work::new(arch, a, j);
    let vld = w.values.ld;
    let mut state = Buf::zeros(a.key_dim * vld);
    let mut out = Buf::zeros(a.chunk * vld);
    load_state(a, head_state(a, a.h0, n, j), vld, &mut state);
    let mut save = save.chunks_exact_mut(state.len());
    for t0 in (0..seq.len).step_by(a.chunk) {
        let len = a.chunk.min(seq.len - t0);
        if let Some(save) = save.next() {
            save.copy_from_slice(&state);
        }
        w.load(a, (seq, j), (t0, len), true);
        w.score_keys(len);
        outputs(&mut w, a, len, &state, &mut out);
        store_rows(&out, vld, &mut o[t0..t0 + len]);
        push_state(&w, a, len, &mut state);
    }
    if let Some(last) = last {
        store_state(a, &state, vld, last);
    }
}

/// The state of (sequence, head) in a `[N, HV, ..]` array.
fn head_state<'a, R: Real>(a: &Args<R>, all: Option<&'a [R]>, n: usize, j: usize) -> Option<&'a [R]> {
    all.map(|h| &h[(n * a.value_heads + j) * a.state_len()..][..a.state_len()])
}

/// `out = A V + Q~ S`, diagonal included.
fn outputs<R: Real>(w: &mut Work<R>, a: &Args<R>, len: usize, state: &[R], out: &mut [R]) {
    strict_outputs(w, a, len, state, out, a.gv.is_none());
    if a.gv.is_some() {
        let vld = w.values.ld;
        panel::add_by_row(w.arch, &mut out[..len * vld], &w.values.y[..len * vld], &w.diag[..len], vld);
    }
}

/// As [`outputs`], with a token's own value only when `own` is set (possible without value gates).
fn strict_outputs<R: Real>(w: &mut Work<R>, a: &Args<R>, len: usize, state: &[R], out: &mut [R], own: bool) {
    let (kld, vld) = (w.keys.ld, w.values.ld);
    let x = Mat::new(w.keys.x_far(0, w.scalar.is_some()), kld);
    mm_nn(w.arch, (len, vld, a.key_dim), x, Mat::new(state, vld), (out, vld), Store::Set, Extent::Full);
    let diag = if own { Some(&w.diag[..]) } else { None };
    set_diagonal(&mut w.m, w.ldm, len, diag);
    w.values.finish_x(0, len, (&w.m, w.ldm), None, out);
}

fn set_diagonal<R: Real>(m: &mut [R], ldm: usize, len: usize, diag: Option<&[R]>) {
    for i in 0..len {
        m[i * ldm + i] = diag.map_or(R::ZERO, |d| d[i]);
    }
}

/// `S <- D S + K^^T V^`.
fn push_state<R: Real>(w: &Work<R>, a: &Args<R>, len: usize, state: &mut [R]) {
    let (kld, vld) = (w.keys.ld, w.values.ld);
    w.decay_state(a, state);
    let k = Mat::new(w.keys.y_far(w.scalar.is_some()), kld);
    let v = Mat::new(w.values.y_far(false), vld);
    mm_tn(w.arch, (a.key_dim, vld, len), k, v, (state, vld), Store::Add, Extent::Full);
}

/// Where one head's gradients go. Rows are tokens of the sequence; empty slices are not wanted.
pub(super) struct GradRows<'a, R> {
    pub q: Vec<&'a mut [R]>,
    pub k: Vec<&'a mut [R]>,
    pub v: Vec<&'a mut [R]>,
    pub gk: Vec<&'a mut [R]>,
    pub gv: Vec<&'a mut [R]>,
    /// Gradient by the number gate, one a token.
    pub g: &'a mut [R],
    /// Gradient by the bonus, K numbers.
    pub u: &'a mut [R],
    /// Gradient by the first state.
    pub h0: &'a mut [R],
}

/// Rows `t0 .. t0 + len`, or none when none are wanted.
fn rows_at<'r, 'a, R>(rows: &'r mut [&'a mut [R]], t0: usize, len: usize) -> &'r mut [&'a mut [R]] {
    if rows.is_empty() { rows } else { &mut rows[t0..t0 + len] }
}

/// Panels of the backward.
struct Back<R> {
    dm: Buf<R>,
    d_diag: Buf<R>,
    /// Gradient by the state at the end of the current chunk, `[K][V]`.
    ds: Buf<R>,
    /// A state transposed, `[V][K]`.
    turned: Buf<R>,
    dq: Buf<R>,
    dk: Buf<R>,
    dv: Buf<R>,
    o: Buf<R>,
    /// Keys (or values) times the part of their gradients that comes from after the chunk.
    far: Buf<R>,
    gate: Buf<R>,
    acc: Buf<R>,
}

/// Gradients of one sequence and head; `states` is what [`forward`] saved.
pub(super) fn backward<R: Real>(
    arch: Arch,
    a: &Args<R>,
    (n, j): (usize, usize),
    d_o: &Source,
    d_last: Option<&[R]>,
    states: &[R],
    needs: Needs,
    out: &mut GradRows<R>,
) {
    let seq = &a.seqs[n];
    let mut w = Work::new(arch, a, j);
    let (kld, vld) = (w.keys.ld, w.values.ld);
    let size = a.key_dim * vld;
    let mut b = Back {
        dm: Buf::zeros(a.chunk * w.ldm),
        d_diag: Buf::zeros(a.chunk),
        ds: Buf::zeros(size),
        turned: Buf::zeros(a.value_dim * kld),
        dq: Buf::zeros(a.chunk * kld),
        dk: Buf::zeros(a.chunk * kld),
        dv: Buf::zeros(a.chunk * vld),
        o: Buf::zeros(a.chunk * vld),
        far: Buf::zeros(a.chunk * kld.max(vld)),
        gate: Buf::zeros(a.chunk * kld.max(vld)),
        acc: Buf::zeros(kld.max(vld)),
    };
    load_state(a, head_state(a, d_last, n, j), vld, &mut b.ds);
    for c in (0..seq.len.div_ceil(a.chunk)).rev() {
        let t0 = c * a.chunk;
        let len = a.chunk.min(seq.len - t0);
        d_o.load(arch, (seq, j), (t0, len, a.value_dim), R::ONE, (&mut w.values.x[0].rows, vld));
        w.load(a, (seq, j), (t0, len), true);
        w.score_keys(len);
        w.score_values(len, &mut b.dm, &mut b.d_diag);
        let first = &states[c * size..][..size];
        value_gradients(&mut w, &mut b, a, needs, (t0, len), first, out);
        key_gradients(&mut w, &mut b, a, needs, (t0, len), first, out);
        w.decay_state(a, &mut b.ds);
        let (q, d) =
            (Mat::new(w.keys.x_far(0, w.scalar.is_some()), kld), Mat::new(w.values.x_far(0, false), vld));
        mm_tn(arch, (a.key_dim, vld, len), q, d, (&mut b.ds, vld), Store::Add, Extent::Full);
    }
    if !out.h0.is_empty() {
        store_state(a, &b.ds, vld, out.h0);
    }
}

/// dV, and the value gate's gradient.
fn value_gradients<R: Real>(
    w: &mut Work<R>,
    b: &mut Back<R>,
    a: &Args<R>,
    needs: Needs,
    (t0, len): (usize, usize),
    first: &[R],
    out: &mut GradRows<R>,
) {
    let (kld, vld) = (w.keys.ld, w.values.ld);
    let k = Mat::new(w.keys.y_far(w.scalar.is_some()), kld);
    mm_nn(w.arch, (len, vld, a.key_dim), k, Mat::new(&b.ds, vld), (&mut b.dv, vld), Store::Set, Extent::Full);
    let gated = a.gv.is_some();
    let n = len * vld;
    if gated && needs.value_gate {
        panel::mul(w.arch, &b.dv[..n], w.values.y_far(false), &mut b.far[..n]);
    }
    set_diagonal(&mut w.m, w.ldm, len, (!gated).then_some(&w.diag[..]));
    w.values.finish_y(len, [(&w.m, w.ldm)], None, &mut b.dv);
    if gated && needs.value_gate {
        strict_outputs(w, a, len, first, &mut b.o, false);
        let acc = &mut b.acc[..vld];
        acc.fill(R::ZERO);
        first_state_part(w, a, first, &b.ds, acc);
        let x = [(&w.values.x[0].rows[..n], &b.o[..], a.u.is_some()), (&[][..], &[][..], false)];
        panel::gate_gradient(w.arch, x, (&w.values.y[..n], &b.dv), &b.far, acc, &mut b.gate[..n]);
        store_rows(&b.gate, vld, rows_at(&mut out.gv, t0, len));
    }
    let rows = rows_at(&mut out.v, t0, len);
    if gated {
        let own = (&w.values.x[0].rows[..n], &w.diag[..len]);
        panel::store_rows_plus(w.arch, (&b.dv, vld), own, R::ONE, rows);
    } else {
        store_rows(&b.dv, vld, rows);
    }
}

/// `sum over K of (D S) o dS'` by value channel: what the chunk's first state contributes to the gates of all tokens.
fn first_state_part<R: Real>(w: &Work<R>, a: &Args<R>, first: &[R], ds: &[R], acc: &mut [R]) {
    let vld = w.values.ld;
    for (i, (s, d)) in first.chunks(vld).zip(ds.chunks(vld)).enumerate() {
        let row =
            w.scalar.as_ref().map_or(if a.gk.is_some() { w.keys.total[i] } else { R::ONE }, |g| g.total);
        for ((x, &s), &d) in acc.iter_mut().zip(s).zip(d) {
            *x += s * d * row;
        }
    }
    panel::mul_assign(w.arch, acc, &w.values.total);
}

/// dQ, dK, and the gradients of the key gates and the bonus.
fn key_gradients<R: Real>(
    w: &mut Work<R>,
    b: &mut Back<R>,
    a: &Args<R>,
    needs: Needs,
    (t0, len): (usize, usize),
    first: &[R],
    out: &mut GradRows<R>,
) {
    let (arch, kld, vld) = (w.arch, w.keys.ld, w.values.ld);
    let n = len * kld;
    transpose(arch, first, vld, a.key_dim, a.value_dim, &mut b.turned, kld);
    let d = Mat::new(w.values.x_far(0, false), vld);
    let size = (len, kld, a.value_dim);
    mm_nn(arch, size, d, Mat::new(&b.turned, kld), (&mut b.dq, kld), Store::Set, Extent::Full);
    transpose(arch, &b.ds, vld, a.key_dim, a.value_dim, &mut b.turned, kld);
    let v = Mat::new(w.values.y_far(false), vld);
    mm_nn(arch, size, v, Mat::new(&b.turned, kld), (&mut b.dk, kld), Store::Set, Extent::Full);
    if needs.key_gate {
        panel::mul(arch, &b.dk[..n], w.keys.y_far(w.scalar.is_some()), &mut b.far[..n]);
    }
    let scalar = w.scalar.as_ref();
    let (from_start, to_end) = (scalar.map(|s| &s.from_start[..]), scalar.map(|s| &s.to_end[..]));
    w.keys.finish_x(0, len, (&b.dm, w.ldm), from_start, &mut b.dq);
    w.keys.finish_y(len, [(&b.dm, w.ldm)], to_end, &mut b.dk);
    if needs.key_gate {
        key_gate_gradient(w, b, a, (t0, len), first, out);
    }
    store_key_gradients(w, b, a, (t0, len), out);
}

/// Gate gradients by channel, and their sums by token for the number gates.
fn key_gate_gradient<R: Real>(
    w: &Work<R>,
    b: &mut Back<R>,
    a: &Args<R>,
    (t0, len): (usize, usize),
    first: &[R],
    out: &mut GradRows<R>,
) {
    let (arch, kld, vld) = (w.arch, w.keys.ld, w.values.ld);
    let n = len * kld;
    b.acc.fill(R::ZERO);
    let cols = a.gv.is_some().then_some(&w.values.total[..]);
    exact::row_dots(arch, first, &b.ds, cols, vld, &mut b.acc[..a.key_dim]);
    match &w.scalar {
        Some(s) => b.acc.iter_mut().for_each(|x| *x *= s.total),
        None => panel::mul_assign(arch, &mut b.acc[..kld], &w.keys.total),
    }
    let x = [(&w.keys.x[0].rows[..n], &b.dq[..n], a.u.is_some()), (&[][..], &[][..], false)];
    panel::gate_gradient(arch, x, (&w.keys.y[..n], &b.dk), &b.far, &mut b.acc[..kld], &mut b.gate[..n]);
    if !out.gk.is_empty() {
        store_rows(&b.gate, kld, rows_at(&mut out.gk, t0, len));
    }
    if !out.g.is_empty() {
        for (g, row) in out.g[t0..t0 + len].iter_mut().zip(b.gate.chunks(kld)) {
            *g = row[..a.key_dim].iter().copied().sum();
        }
    }
}

/// Writes dQ and dK with what a token's own value adds: `o_i` holds `(q_i . k_i) v_i`, weighted by the bonus if there is
/// one.
fn store_key_gradients<R: Real>(
    w: &Work<R>,
    b: &mut Back<R>,
    a: &Args<R>,
    (t0, len): (usize, usize),
    out: &mut GradRows<R>,
) {
    let (arch, kld) = (w.arch, w.keys.ld);
    let n = len * kld;
    let (q, k, d) = (&w.keys.x[0].rows[..n], &w.keys.y[..n], &b.d_diag[..len]);
    for (panel, from, factor, rows) in [(&b.dq, k, a.scale, &mut out.q), (&b.dk, q, R::ONE, &mut out.k)] {
        let rows = rows_at(rows, t0, len);
        let mut other = from;
        if let Some(u) = &w.bonus {
            panel::mul_row(arch, from, u, &mut b.gate[..n]);
            other = &b.gate[..n];
        }
        panel::store_rows_plus(arch, (panel, kld), (other, d), factor, rows);
    }
    if w.bonus.is_some() {
        for (t, &d) in d.iter().enumerate() {
            for (i, du) in out.u.iter_mut().enumerate() {
                *du += d * q[t * kld + i] * k[t * kld + i];
            }
        }
    }
}
