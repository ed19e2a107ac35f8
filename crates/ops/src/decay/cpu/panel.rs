//! Elementwise loops over panels (rows of `ld` numbers, back to back), compiled for the widest instruction set.

use crate::simd::{Arch, Real};

/// `out = x * y`.
pub fn mul<R: Real>(arch: Arch, x: &[R], y: &[R], out: &mut [R]) {
    arch.dispatch(|| {
        for ((o, &a), &b) in out.iter_mut().zip(x).zip(y) {
            *o = a * b;
        }
    });
}

/// `x *= y`.
pub fn mul_assign<R: Real>(arch: Arch, x: &mut [R], y: &[R]) {
    arch.dispatch(|| {
        for (a, &b) in x.iter_mut().zip(y) {
            *a *= b;
        }
    });
}

/// `out += x * y`.
pub fn add_mul<R: Real>(arch: Arch, out: &mut [R], x: &[R], y: &[R]) {
    arch.dispatch(|| {
        for ((o, &a), &b) in out.iter_mut().zip(x).zip(y) {
            *o += a * b;
        }
    });
}

/// Every row of `out` = the row of `x` times `w`.
pub fn mul_row<R: Real>(arch: Arch, x: &[R], w: &[R], out: &mut [R]) {
    arch.dispatch(|| {
        for (o, x) in out.chunks_mut(w.len()).zip(x.chunks(w.len())) {
            for ((o, &a), &b) in o.iter_mut().zip(x).zip(w) {
                *o = a * b;
            }
        }
    });
}

/// Every row of `x` times `w`.
pub fn mul_rows_assign<R: Real>(arch: Arch, x: &mut [R], w: &[R]) {
    arch.dispatch(|| {
        for row in x.chunks_mut(w.len()) {
            for (a, &b) in row.iter_mut().zip(w) {
                *a *= b;
            }
        }
    });
}

/// Row i of `out` = row i of `x` times the number `w[i]`.
pub fn mul_by_row<R: Real>(arch: Arch, x: &[R], w: &[R], ld: usize, out: &mut [R]) {
    arch.dispatch(|| {
        for ((o, x), &w) in out.chunks_mut(ld).zip(x.chunks(ld)).zip(w) {
            for (o, &a) in o.iter_mut().zip(x) {
                *o = a * w;
            }
        }
    });
}

/// Row i of `x` times the number `w[i]`.
pub fn mul_by_row_assign<R: Real>(arch: Arch, x: &mut [R], w: &[R], ld: usize) {
    arch.dispatch(|| {
        for (row, &w) in x.chunks_mut(ld).zip(w) {
            for a in row {
                *a *= w;
            }
        }
    });
}

/// Row i of `out` += row i of `x` times the number `w[i]`.
pub fn add_by_row<R: Real>(arch: Arch, out: &mut [R], x: &[R], w: &[R], ld: usize) {
    arch.dispatch(|| {
        for ((o, x), &w) in out.chunks_mut(ld).zip(x.chunks(ld)).zip(w) {
            for (o, &a) in o.iter_mut().zip(x) {
                *o += a * w;
            }
        }
    });
}

/// Sums of `|x|` by column over groups of `group` rows: `out` has one row a group.
pub fn abs_sums<R: Real>(arch: Arch, x: &[R], ld: usize, group: usize, out: &mut [R]) {
    arch.dispatch(|| {
        for (o, rows) in out.chunks_mut(ld).zip(x.chunks(group * ld)) {
            o.fill(R::ZERO);
            for row in rows.chunks(ld) {
                for (o, &v) in o.iter_mut().zip(row) {
                    *o += v.abs();
                }
            }
        }
    });
}

/// Running products of the rows of `e` into `pre` (without the row itself when exclusive), their inclusive inverses
/// into `inv`, and the product of all rows into `total`.
pub fn prefix_products<R: Real>(
    arch: Arch,
    e: &[R],
    (pre, exclusive): (&mut [R], bool),
    inv: Option<&mut [R]>,
    total: &mut [R],
) {
    let ld = total.len();
    arch.dispatch(|| {
        total.fill(R::ONE);
        for (e, pre) in e.chunks(ld).zip(pre.chunks_mut(ld)) {
            for ((t, &e), p) in total.iter_mut().zip(e).zip(pre) {
                let next = *t * e;
                *p = if exclusive { *t } else { next };
                *t = next;
            }
        }
    });
    let Some(inv) = inv else { return };
    arch.dispatch(|| {
        if exclusive {
            for ((i, &p), &e) in inv.iter_mut().zip(pre.iter()).zip(e) {
                *i = R::ONE / (p * e);
            }
        } else {
            for (i, &p) in inv.iter_mut().zip(pre.iter()) {
                *i = R::ONE / p;
            }
        }
    });
}

/// `suf[t]` = product of the rows of `e` after t; `run` is one row of scratch.
pub fn suffix_products<R: Real>(arch: Arch, e: &[R], suf: &mut [R], run: &mut [R]) {
    let ld = run.len();
    arch.dispatch(|| {
        run.fill(R::ONE);
        for (e, suf) in e.chunks(ld).zip(suf.chunks_mut(ld)).rev() {
            for ((r, &e), s) in run.iter_mut().zip(e).zip(suf) {
                *s = *r;
                *r *= e;
            }
        }
    });
}

/// `state[i][j] *= rows[i] * cols[j]`; a missing side is 1.
pub fn decay_state<R: Real>(arch: Arch, state: &mut [R], ld: usize, rows: Option<&[R]>, cols: Option<&[R]>) {
    if let Some(cols) = cols {
        mul_rows_assign(arch, state, cols);
    }
    if let Some(rows) = rows {
        mul_by_row_assign(arch, state, rows, ld);
    }
}

/// Gradients by a gate from the products of panels with their gradients.
///
/// Token t's decay lies between key j and query i when `j < t <= i` (`j < t < i` when exclusive). Pairs within the
/// chunk are counted from the last row up: `q dq` of the rows passed minus what `k dk` they hold. Pairs that leave the
/// chunk are counted from the first row down: `far` holds `k dk` of what lies after the chunk, and `run` enters with
/// the part of the chunk's first state. Neither direction ever subtracts a pair that does not decay, so gradients
/// through strong decays keep their relative precision.
pub fn gate_gradient<R: Real>(
    arch: Arch,
    (x, dx): (&[R], &[R]),
    (y, dy): (&[R], &[R]),
    far: &[R],
    exclusive: bool,
    run: &mut [R],
    out: &mut [R],
) {
    let ld = run.len();
    let rows = out.len() / ld;
    arch.dispatch(|| {
        for (out, far) in out.chunks_mut(ld).zip(far.chunks(ld)) {
            for ((o, &f), r) in out.iter_mut().zip(far).zip(run.iter_mut()) {
                *o = *r;
                *r += f;
            }
        }
        run.fill(R::ZERO);
        for t in (0..rows).rev() {
            let r = t * ld..(t + 1) * ld;
            let (x, dx, y, dy, far) =
                (&x[r.clone()], &dx[r.clone()], &y[r.clone()], &dy[r.clone()], &far[r.clone()]);
            let out = &mut out[r];
            for c in 0..ld {
                let q = x[c] * dx[c];
                let k = y[c] * dy[c] - far[c];
                let sum = if exclusive { run[c] - k } else { run[c] + (q - k) };
                out[c] += sum;
                run[c] = if exclusive { sum + q } else { sum };
            }
        }
    });
}
