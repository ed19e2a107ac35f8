//! Running products of decays along a chunk, and the panels that are scaled by them on the way. Explicit vectors: a column
//! of them keeps its running product in a register from row to row.

use pulp::{Simd, WithSimd};

use crate::simd::{Arch, Real, kernel};

kernel! {
    /// Products by column over groups of `group` rows: `out` has one row a group.
    pub fn group_products<'a, R>(
        e: &'a [R],
        ld: usize,
        group: usize,
        out: &'a mut [R],
    ) {
        for (o, rows) in out.chunks_exact_mut(ld).zip(e.chunks(group * ld)) {
            o.fill(R::ONE);
            for row in rows.chunks_exact(ld) {
                for (o, &v) in o.iter_mut().zip(row) {
                    *o *= v;
                }
            }
        }
    }
}

/// `pre[t]` = product of the rows of `e` up to and with t; the product of all into `total`.
pub fn prefix_products<R: Real>(arch: Arch, e: &[R], pre: &mut [R], total: &mut [R]) {
    arch.dispatch(Prefix { e, y: &[], pre, inverse: None, total });
}

/// As [`prefix_products`], with `inverse` = (1 / pre, y / pre).
pub fn prefix_and_inverse<R: Real>(
    arch: Arch,
    e: &[R],
    y: &[R],
    pre: &mut [R],
    inverse: (&mut [R], &mut [R]),
    total: &mut [R],
) {
    arch.dispatch(Prefix { e, y, pre, inverse: Some(inverse), total });
}

struct Prefix<'a, R> {
    e: &'a [R],
    y: &'a [R],
    pre: &'a mut [R],
    inverse: Option<(&'a mut [R], &'a mut [R])>,
    total: &'a mut [R],
}

impl<R: Real> WithSimd for Prefix<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let columns = self.total.len() / R::lanes::<S>();
        let mut at = 0;
        while at + 4 <= columns {
            self.columns::<S, 4>(simd, at);
            at += 4;
        }
        for at in at..columns {
            self.columns::<S, 1>(simd, at);
        }
    }
}

impl<R: Real> Prefix<'_, R> {
    /// N columns of vectors from `at` on: their chains of products run side by side.
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S, at: usize) {
        let one = R::splat(simd, R::ONE);
        let mut run = [one; N];
        let ld = self.total.len() / R::lanes::<S>();
        let (e, pre) = (R::vecs::<S>(self.e), R::vecs_mut::<S>(self.pre));
        let rows = e.chunks_exact(ld).zip(pre.chunks_exact_mut(ld));
        match &mut self.inverse {
            None => {
                for (e, pre) in rows {
                    for j in 0..N {
                        run[j] = R::vmul(simd, run[j], e[at + j]);
                        pre[at + j] = run[j];
                    }
                }
            }
            Some((inv, local)) => {
                let (inv, local) = (R::vecs_mut::<S>(inv), R::vecs_mut::<S>(local));
                let outs = inv.chunks_exact_mut(ld).zip(local.chunks_exact_mut(ld));
                let y = R::vecs::<S>(self.y).chunks_exact(ld);
                for ((e, pre), (y, (inv, local))) in rows.zip(y.zip(outs)) {
                    for j in 0..N {
                        run[j] = R::vmul(simd, run[j], e[at + j]);
                        pre[at + j] = run[j];
                        let inverse = R::vdiv(simd, one, run[j]);
                        inv[at + j] = inverse;
                        local[at + j] = R::vmul(simd, y[at + j], inverse);
                    }
                }
            }
        }
        let total = R::vecs_mut::<S>(self.total);
        total[at..at + N].copy_from_slice(&run);
    }
}

/// `out` = (suf, y suf), where `suf[t]` is the product of the rows of `e` after t.
pub fn suffix_products<R: Real>(arch: Arch, e: &[R], y: &[R], out: (&mut [R], &mut [R]), ld: usize) {
    arch.dispatch(Suffix { e, y, out, ld });
}

struct Suffix<'a, R> {
    e: &'a [R],
    y: &'a [R],
    out: (&'a mut [R], &'a mut [R]),
    ld: usize,
}

impl<R: Real> WithSimd for Suffix<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let columns = self.ld / R::lanes::<S>();
        let mut at = 0;
        while at + 4 <= columns {
            self.columns::<S, 4>(simd, at);
            at += 4;
        }
        for at in at..columns {
            self.columns::<S, 1>(simd, at);
        }
    }
}

impl<R: Real> Suffix<'_, R> {
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S, at: usize) {
        let ld = self.ld / R::lanes::<S>();
        let mut run = [R::splat(simd, R::ONE); N];
        let (suf, decayed) = (R::vecs_mut::<S>(self.out.0), R::vecs_mut::<S>(self.out.1));
        let outs = suf.chunks_exact_mut(ld).zip(decayed.chunks_exact_mut(ld));
        let ins = R::vecs::<S>(self.e).chunks_exact(ld).zip(R::vecs::<S>(self.y).chunks_exact(ld));
        for ((e, y), (suf, decayed)) in ins.zip(outs).rev() {
            for j in 0..N {
                suf[at + j] = run[j];
                decayed[at + j] = R::vmul(simd, y[at + j], run[j]);
                run[j] = R::vmul(simd, run[j], e[at + j]);
            }
        }
    }
}
