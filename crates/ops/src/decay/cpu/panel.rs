//! Elementwise loops over panels (rows of `ld` numbers, back to back), compiled for the widest instruction set.

use crate::simd::{Arch, Real, kernel};

kernel! {
    /// `out = x * y`.
    pub fn mul<'a, R>(
        x: &'a [R],
        y: &'a [R],
        out: &'a mut [R],
    ) {
        for ((o, &a), &b) in out.iter_mut().zip(x).zip(y) {
            *o = a * b;
        }
    }
}

kernel! {
    /// `x *= y`.
    pub fn mul_assign<'a, R>(
        x: &'a mut [R],
        y: &'a [R],
    ) {
        for (a, &b) in x.iter_mut().zip(y) {
            *a *= b;
        }
    }
}

kernel! {
    /// `x *= factor`.
    pub fn scale<'a, R>(
        x: &'a mut [R],
        factor: R,
    ) {
        for a in x {
            *a *= factor;
        }
    }
}

kernel! {
    /// `out += x * y`.
    pub fn add_mul<'a, R>(
        out: &'a mut [R],
        x: &'a [R],
        y: &'a [R],
    ) {
        for ((o, &a), &b) in out.iter_mut().zip(x).zip(y) {
            *o += a * b;
        }
    }
}

kernel! {
    /// Every row of `out` = the row of `x` times `w`.
    pub fn mul_row<'a, R>(
        x: &'a [R],
        w: &'a [R],
        out: &'a mut [R],
    ) {
        for (o, x) in out.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
            for ((o, &a), &b) in o.iter_mut().zip(x).zip(w) {
                *o = a * b;
            }
        }
    }
}

kernel! {
    /// Every row of `x` times `w`.
    pub fn mul_rows_assign<'a, R>(
        x: &'a mut [R],
        w: &'a [R],
    ) {
        for row in x.chunks_exact_mut(w.len()) {
            for (a, &b) in row.iter_mut().zip(w) {
                *a *= b;
            }
        }
    }
}

kernel! {
    /// Row i of `out` = row i of `x` times the number `w[i]`.
    pub fn mul_by_row<'a, R>(
        x: &'a [R],
        w: &'a [R],
        ld: usize,
        out: &'a mut [R],
    ) {
        for ((o, x), &w) in out.chunks_exact_mut(ld).zip(x.chunks_exact(ld)).zip(w) {
            for (o, &a) in o.iter_mut().zip(x) {
                *o = a * w;
            }
        }
    }
}

kernel! {
    /// Row i of `x` times the number `w[i]`.
    pub fn mul_by_row_assign<'a, R>(
        x: &'a mut [R],
        w: &'a [R],
        ld: usize,
    ) {
        for (row, &w) in x.chunks_exact_mut(ld).zip(w) {
            for a in row {
                *a *= w;
            }
        }
    }
}

kernel! {
    /// Row i of `out` += row i of `x` times the number `w[i]`.
    pub fn add_by_row<'a, R>(
        out: &'a mut [R],
        x: &'a [R],
        w: &'a [R],
        ld: usize,
    ) {
        for ((o, x), &w) in out.chunks_exact_mut(ld).zip(x.chunks_exact(ld)).zip(w) {
            for (o, &a) in o.iter_mut().zip(x) {
                *o += a * w;
            }
        }
    }
}

kernel! {
    /// Sums of `|x|` by column over groups of `group` rows: `out` has one row a group.
    pub fn abs_sums<'a, R>(
        x: &'a [R],
        ld: usize,
        group: usize,
        out: &'a mut [R],
    ) {
        for (o, rows) in out.chunks_exact_mut(ld).zip(x.chunks(group * ld)) {
            o.fill(R::ZERO);
            for row in rows.chunks_exact(ld) {
                for (o, &v) in o.iter_mut().zip(row) {
                    *o += v.abs();
                }
            }
        }
    }
}

kernel! {
    /// Running products of the rows of `e` into `pre` (without the row itself when exclusive), and the product of all rows
    /// into `total`.
    pub fn prefix_products<'a, R>(
        e: &'a [R],
        pre: &'a mut [R],
        exclusive: bool,
        total: &'a mut [R],
    ) {
        let ld = total.len();
        total.fill(R::ONE);
        for (e, pre) in e.chunks_exact(ld).zip(pre.chunks_exact_mut(ld)) {
            for ((t, &e), p) in total.iter_mut().zip(e).zip(pre) {
                let next = *t * e;
                *p = if exclusive { *t } else { next };
                *t = next;
            }
        }
    }
}

kernel! {
    /// `inv = 1 / prefix` for inclusive running products; from exclusive ones, one more row of decay is taken along.
    pub fn invert<'a, R>(
        pre: &'a [R],
        e: &'a [R],
        exclusive: bool,
        inv: &'a mut [R],
    ) {
        if exclusive {
            for ((i, &p), &e) in inv.iter_mut().zip(pre).zip(e) {
                *i = R::ONE / (p * e);
            }
        } else {
            for (i, &p) in inv.iter_mut().zip(pre) {
                *i = R::ONE / p;
            }
        }
    }
}

kernel! {
    /// `suf[t]` = product of the rows of `e` after t; `run` is one row of scratch.
    pub fn suffix_products<'a, R>(
        e: &'a [R],
        suf: &'a mut [R],
        run: &'a mut [R],
    ) {
        let ld = run.len();
        run.fill(R::ONE);
        for (e, suf) in e.chunks_exact(ld).zip(suf.chunks_exact_mut(ld)).rev() {
            for ((r, &e), s) in run.iter_mut().zip(e).zip(suf) {
                *s = *r;
                *r *= e;
            }
        }
    }
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

kernel! {
    /// Gradients by a gate from the products of panels with their gradients.
    ///
    /// Token t's decay lies between key j and query i when `j < t <= i` (`j < t < i` when exclusive). Pairs within the
    /// chunk are counted from the last row up: `q dq` of the rows passed minus what `k dk` they hold. Pairs that leave the
    /// chunk are counted from the first row down: `far` holds `k dk` of what lies after the chunk, and `run` enters with
    /// the part of the chunk's first state. Neither direction ever subtracts a pair that does not decay, so gradients
    /// through strong decays keep their relative precision.
    pub fn gate_gradient<'a, R>(
        x: (&'a [R], &'a [R]),
        y: (&'a [R], &'a [R]),
        far: &'a [R],
        exclusive: bool,
        run: &'a mut [R],
        out: &'a mut [R],
    ) {
        let ((x, dx), (y, dy)) = (x, y);
        let ld = run.len();
        for (out, far) in out.chunks_exact_mut(ld).zip(far.chunks_exact(ld)) {
            for ((o, &f), r) in out.iter_mut().zip(far).zip(run.iter_mut()) {
                *o = *r;
                *r += f;
            }
        }
        run.fill(R::ZERO);
        for t in (0..out.len() / ld).rev() {
            let r = t * ld..(t + 1) * ld;
            let (x, dx, y) = (&x[r.clone()], &dx[r.clone()], &y[r.clone()]);
            let (dy, far, out) = (&dy[r.clone()], &far[r.clone()], &mut out[r]);
            for c in 0..ld {
                let q = x[c] * dx[c];
                let k = y[c] * dy[c] - far[c];
                let sum = if exclusive { run[c] - k } else { run[c] + (q - k) };
                out[c] += sum;
                run[c] = if exclusive { sum + q } else { sum };
            }
        }
    }
}
