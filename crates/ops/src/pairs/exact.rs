//! Blocks that decay too strongly for quotients of prefix products: pair by pair with running products.
//!
//! `D_ij` is built by multiplying one token's decay at a time, so nothing overflows, an underflow to 0 is right, and
//! the error is that of at most 15 multiplications. All blocks are `rows x ld`, rows = len of the panels / ld.

use crate::simd::{Arch, Real, kernel};
use pulp::{Simd, WithSimd};

/// `m[i][j] = sum_c x_i[c] y_j[c] D_ij[c]` for j < i. `w` is one row of scratch.
pub fn scores<R: Real>(
    arch: Arch,
    x: &[R],
    y: &[R],
    gate: &[R],
    ld: usize,
    exclusive: bool,
    (m, ldm): (&mut [R], usize),
    w: &mut [R],
) {
    arch.dispatch(Scores { x, y, gate, ld, exclusive, m, ldm, w });
}

struct Scores<'a, R> {
    x: &'a [R],
    y: &'a [R],
    gate: &'a [R],
    ld: usize,
    exclusive: bool,
    m: &'a mut [R],
    ldm: usize,
    w: &'a mut [R],
}

impl<R: Real> WithSimd for Scores<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ld = self.ld;
        let rows = self.x.len() / ld;
        for j in 0..rows {
            self.w.copy_from_slice(&self.y[j * ld..][..ld]);
            for i in j + 1..rows {
                let x = R::vecs::<S>(&self.x[i * ld..][..ld]);
                let e = R::vecs::<S>(&self.gate[i * ld..][..ld]);
                let mut acc = R::splat(simd, R::ZERO);
                for ((w, &x), &e) in R::vecs_mut::<S>(self.w).iter_mut().zip(x).zip(e) {
                    let decayed = R::vmul(simd, *w, e);
                    acc = R::vfma(simd, x, if self.exclusive { *w } else { decayed }, acc);
                    *w = decayed;
                }
                self.m[i * self.ldm + j] = R::reduce(simd, acc);
            }
        }
    }
}

kernel! {
    /// `out_i += sum_{j < i} m_ij D_ij y_j`; rows of `m` are `ldm` apart, `w` is one row of scratch.
    pub fn apply<'a, R>(
        m: &'a [R],
        ldm: usize,
        y: &'a [R],
        gate: &'a [R],
        exclusive: bool,
        out: &'a mut [R],
        w: &'a mut [R],
    ) {
        let ld = w.len();
        let rows = out.len() / ld;
        for j in 0..rows {
            w.copy_from_slice(&y[j * ld..][..ld]);
            for i in j + 1..rows {
                let a = m[i * ldm + j];
                let (o, e) = (&mut out[i * ld..][..ld], &gate[i * ld..][..ld]);
                for ((o, w), &e) in o.iter_mut().zip(w.iter_mut()).zip(e) {
                    let decayed = *w * e;
                    *o += a * if exclusive { *w } else { decayed };
                    *w = decayed;
                }
            }
        }
    }
}

kernel! {
    /// `out_j += sum_{i > j} m_ij D_ij x_i`, by Horner from the last row up.
    pub fn apply_t<'a, R>(
        m: &'a [R],
        ldm: usize,
        x: &'a [R],
        gate: &'a [R],
        exclusive: bool,
        out: &'a mut [R],
        w: &'a mut [R],
    ) {
        let ld = w.len();
        let rows = out.len() / ld;
        for j in 0..rows {
            w.fill(R::ZERO);
            for i in (j + 1..rows).rev() {
                let a = m[i * ldm + j];
                let (x, e) = (&x[i * ld..][..ld], &gate[i * ld..][..ld]);
                for ((w, &x), &e) in w.iter_mut().zip(x).zip(e) {
                    *w = if exclusive { *w * e + a * x } else { (*w + a * x) * e };
                }
            }
            for (o, &w) in out[j * ld..][..ld].iter_mut().zip(w.iter()) {
                *o += w;
            }
        }
    }
}

/// Dot products of the rows of two panels, optionally weighted by channel: `out[i] = sum_c x_i[c] y_i[c] w[c]`.
pub fn row_dots<R: Real>(arch: Arch, x: &[R], y: &[R], weights: Option<&[R]>, ld: usize, out: &mut [R]) {
    arch.dispatch(RowDots { x, y, weights, ld, out });
}

struct RowDots<'a, R> {
    x: &'a [R],
    y: &'a [R],
    weights: Option<&'a [R]>,
    ld: usize,
    out: &'a mut [R],
}

impl<R: Real> WithSimd for RowDots<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for ((o, x), y) in self.out.iter_mut().zip(self.x.chunks(self.ld)).zip(self.y.chunks(self.ld)) {
            let mut acc = R::splat(simd, R::ZERO);
            let pairs = R::vecs::<S>(x).iter().zip(R::vecs::<S>(y));
            match self.weights {
                Some(w) => {
                    for ((&x, &y), &w) in pairs.zip(R::vecs::<S>(w)) {
                        acc = R::vfma(simd, R::vmul(simd, x, w), y, acc);
                    }
                }
                None => {
                    for (&x, &y) in pairs {
                        acc = R::vfma(simd, x, y, acc);
                    }
                }
            }
            *o = R::reduce(simd, acc);
        }
    }
}
