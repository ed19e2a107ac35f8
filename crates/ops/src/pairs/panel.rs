//! Elementwise loops over panels (rows of `ld` numbers, back to back), compiled for the widest instruction set.

use pulp::{Simd, WithSimd};

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
    /// `out = out * scale + x * y`.
    pub fn mul_add_mul<'a, R>(
        out: &'a mut [R],
        scale: &'a [R],
        x: &'a [R],
        y: &'a [R],
    ) {
        for ((o, &s), (&a, &b)) in out.iter_mut().zip(scale).zip(x.iter().zip(y)) {
            *o = *o * s + a * b;
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

/// `state[i][j] *= rows[i] * cols[j]`; a missing side is 1.
pub fn decay_state<R: Real>(arch: Arch, state: &mut [R], ld: usize, rows: Option<&[R]>, cols: Option<&[R]>) {
    if let Some(cols) = cols {
        mul_rows_assign(arch, state, cols);
    }
    if let Some(rows) = rows {
        mul_by_row_assign(arch, state, rows, ld);
    }
}

/// A reader's rows, their gradients, and whether it is exclusive.
pub type Read<'a, R> = (&'a [R], &'a [R], bool);

kernel! {
    /// Gradients by a gate from the products of panels with their gradients; a second reader may be empty.
    ///
    /// Token t's decay lies between key j and query i when `j < t <= i` (`j < t < i` for an exclusive reader). Pairs within
    /// the chunk are counted from the last row up: `q dq` of the rows passed minus what `k dk` they hold. Pairs that leave
    /// the chunk are counted from the first row down: `far` holds `k dk` of what lies after the chunk, and `run` enters
    /// with the part of the chunk's first state. Neither direction ever subtracts a pair that does not decay, so gradients
    /// through strong decays keep their relative precision.
    pub fn gate_gradient<'a, R>(
        x: [Read<'a, R>; 2],
        y: (&'a [R], &'a [R]),
        far: &'a [R],
        run: &'a mut [R],
        out: &'a mut [R],
    ) {
        let ld = run.len();
        for (out, far) in out.chunks_exact_mut(ld).zip(far.chunks_exact(ld)) {
            for ((o, &f), r) in out.iter_mut().zip(far).zip(run.iter_mut()) {
                *o = *r;
                *r += f;
            }
        }
        run.fill(R::ZERO);
        let [(q, dq, q_after), (p, dp, p_after)] = x;
        let (y, dy) = y;
        for t in (0..out.len() / ld).rev() {
            let r = t * ld..(t + 1) * ld;
            let (q, dq, y, dy) = (&q[r.clone()], &dq[r.clone()], &y[r.clone()], &dy[r.clone()]);
            let far = &far[r.clone()];
            // Without a second reader the first stands in, counted as zero.
            let two = !p.is_empty();
            let (p, dp) = if two { (&p[r.clone()], &dp[r.clone()]) } else { (q, dq) };
            let out = &mut out[r];
            for c in 0..ld {
                let first = q[c] * dq[c];
                let second = if two { p[c] * dp[c] } else { R::ZERO };
                let mut with = if q_after { R::ZERO } else { first };
                with += if p_after { R::ZERO } else { second };
                let mut later = if q_after { first } else { R::ZERO };
                later += if p_after { second } else { R::ZERO };
                let sum = run[c] + (with - (y[c] * dy[c] - far[c]));
                out[c] += sum;
                run[c] = sum + later;
            }
        }
    }
}

/// `rows[t] = (panel_t + other_t w_t) * factor`, for rows that may be narrower than the panels; none when none are wanted.
pub fn store_rows_plus<R: Real>(
    arch: Arch,
    (panel, ld): (&[R], usize),
    (other, w): (&[R], &[R]),
    factor: R,
    rows: &mut [&mut [R]],
) {
    arch.dispatch(StoreRowsPlus { panel, ld, other, w, factor, rows });
}

struct StoreRowsPlus<'p, 'r, 'o, R> {
    panel: &'p [R],
    ld: usize,
    other: &'p [R],
    w: &'p [R],
    factor: R,
    rows: &'r mut [&'o mut [R]],
}

impl<R: Real> WithSimd for StoreRowsPlus<'_, '_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _set: S) {
        let panels = self.panel.chunks_exact(self.ld).zip(self.other.chunks_exact(self.ld));
        for (row, ((x, y), &w)) in self.rows.iter_mut().zip(panels.zip(self.w)) {
            for (o, (&x, &y)) in row.iter_mut().zip(x.iter().zip(y)) {
                *o = (x + y * w) * self.factor;
            }
        }
    }
}
