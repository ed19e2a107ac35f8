//! Small dense products on L1-resident row-major panels: `C (+)= A B` and `C (+)= A^T B`.
//!
//! Register tile: `MR x NR` vectors of C stay in registers, one row of B is loaded and MR scalars of A are broadcast
//! per step; no packing. A product with B^T goes through [`super::transpose`]. Triangular operands are exploited by
//! bounding the inner loop per tile ([`Extent`]), which never changes the order of the additions that remain.

use super::{Arch, PAD, Real};
use pulp::{Simd, WithSimd};

/// Rows of a register tile.
const MR: usize = 4;

/// A row-major matrix view: element (i, j) is `data[i * ld + j]`.
#[derive(Clone, Copy)]
pub struct Mat<'a, R> {
    /// Elements, at least `(rows - 1) * ld + columns` of them.
    pub data: &'a [R],
    /// Elements between two rows.
    pub ld: usize,
}

impl<'a, R> Mat<'a, R> {
    /// View `data` with row length `ld`.
    pub fn new(data: &'a [R], ld: usize) -> Self {
        Mat { data, ld }
    }
}

/// What happens to the old contents of C.
#[derive(Clone, Copy, PartialEq)]
pub enum Store {
    /// C = product.
    Set,
    /// C = C + product (one rounding of the finished product, then one addition).
    Add,
    /// C = C - product, likewise.
    Sub,
}

/// Which part of the product is needed.
#[derive(Clone, Copy, PartialEq)]
pub enum Extent {
    /// All of it.
    Full,
    /// The left operand is lower triangular (incl. diagonal): row i uses inner indices `0..=i`.
    LowerInner,
    /// The left operand, as multiplied, is upper triangular: row i uses inner indices `i..`.
    UpperInner,
    /// Only entries `j <= i` of C are needed; others are left as they were or written with right values.
    LowerOut,
}

/// `C[m x n] (+)= A[m x k] B[k x n]`. `n` counts padded columns (a multiple of [`PAD`]).
pub fn mm_nn<R: Real>(
    arch: Arch,
    (m, n, k): (usize, usize, usize),
    a: Mat<R>,
    b: Mat<R>,
    (c, ldc): (&mut [R], usize),
    store: Store,
    extent: Extent,
) {
    debug_assert!(n.is_multiple_of(PAD));
    if m == 0 || n == 0 {
        return;
    }
    arch.dispatch(Product::<R, false> { m, n, k, a, b, c, ldc, store, extent });
}

/// `C[m x n] (+)= A^T B` with A stored `[k x m]` and B `[k x n]`. `n` is a multiple of [`PAD`].
pub fn mm_tn<R: Real>(
    arch: Arch,
    (m, n, k): (usize, usize, usize),
    a: Mat<R>,
    b: Mat<R>,
    (c, ldc): (&mut [R], usize),
    store: Store,
    extent: Extent,
) {
    debug_assert!(n.is_multiple_of(PAD));
    if m == 0 || n == 0 {
        return;
    }
    arch.dispatch(Product::<R, true> { m, n, k, a, b, c, ldc, store, extent });
}

struct Product<'a, R, const TN: bool> {
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'a, R>,
    b: Mat<'a, R>,
    c: &'a mut [R],
    ldc: usize,
    store: Store,
    extent: Extent,
}

impl<R: Real, const TN: bool> WithSimd for Product<'_, R, TN> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let lanes = R::lanes::<S>();
        if self.extent == Extent::LowerOut {
            return self.lower::<S>(simd);
        }
        // 4 vectors of accumulators a row need 16 + 5 registers: too many for 16-register sets.
        let wide = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        let mut j = 0;
        while j < self.n {
            let vectors = ((self.n - j) / lanes).min(wide);
            match vectors {
                4.. => self.columns::<S, 4>(simd, j),
                3 => self.columns::<S, 3>(simd, j),
                2 => self.columns::<S, 2>(simd, j),
                _ => self.columns::<S, 1>(simd, j),
            }
            j += vectors * lanes;
        }
    }
}

impl<R: Real, const TN: bool> Product<'_, R, TN> {
    /// Row tiles, each only as wide as the diagonal needs.
    #[inline(always)]
    fn lower<S: Simd>(&mut self, simd: S) {
        let lanes = R::lanes::<S>();
        for i in (0..self.m).step_by(MR) {
            let rows = MR.min(self.m - i);
            let end = self.n.min((i + rows).div_ceil(lanes) * lanes);
            let mut j = 0;
            while j < end {
                let vectors = ((end - j) / lanes).min(4);
                match (rows, vectors) {
                    (MR, 4..) => self.tile::<S, MR, 4>(simd, i, j),
                    (MR, 3) => self.tile::<S, MR, 3>(simd, i, j),
                    (MR, 2) => self.tile::<S, MR, 2>(simd, i, j),
                    (MR, _) => self.tile::<S, MR, 1>(simd, i, j),
                    _ => {
                        for r in i..i + rows {
                            for c in 0..vectors {
                                self.tile::<S, 1, 1>(simd, r, j + c * lanes);
                            }
                        }
                    }
                }
                j += vectors * lanes;
            }
        }
    }

    /// One panel of NR vectors of columns, over all rows.
    #[inline(always)]
    fn columns<S: Simd, const NR: usize>(&mut self, simd: S, j: usize) {
        let mut i = 0;
        while i + MR <= self.m {
            self.tile::<S, MR, NR>(simd, i, j);
            i += MR;
        }
        match self.m.saturating_sub(i) {
            3 => self.tile::<S, 3, NR>(simd, i, j),
            2 => self.tile::<S, 2, NR>(simd, i, j),
            1 => self.tile::<S, 1, NR>(simd, i, j),
            _ => {}
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const M: usize, const NR: usize>(&mut self, simd: S, i: usize, j: usize) {
        let (k0, k1) = match self.extent {
            Extent::Full | Extent::LowerOut => (0, self.k),
            Extent::LowerInner => (0, self.k.min(i + M)),
            Extent::UpperInner => (i.min(self.k), self.k),
        };
        let mut acc = [[R::splat(simd, R::ZERO); NR]; M];
        let width = NR * R::lanes::<S>();
        let rows = self.b.data[k0 * self.b.ld..].chunks(self.b.ld).take(k1 - k0);
        if TN {
            let lda = self.a.ld;
            for (row, coef) in rows.zip(self.a.data[k0 * lda..].chunks(lda)) {
                let b: [R::V<S>; NR] = load(&row[j..j + width]);
                let coef = &coef[i..i + M];
                for r in 0..M {
                    let x = R::splat(simd, coef[r]);
                    for c in 0..NR {
                        acc[r][c] = R::vfma(simd, x, b[c], acc[r][c]);
                    }
                }
            }
        } else {
            let mut coef: [&[R]; M] = [&[]; M];
            for r in 0..M {
                coef[r] = &self.a.data[(i + r) * self.a.ld..][k0..k1];
            }
            for (kk, row) in rows.enumerate() {
                let b: [R::V<S>; NR] = load(&row[j..j + width]);
                for r in 0..M {
                    let x = R::splat(simd, coef[r][kk]);
                    for c in 0..NR {
                        acc[r][c] = R::vfma(simd, x, b[c], acc[r][c]);
                    }
                }
            }
        }
        for r in 0..M {
            let out = R::vecs_mut::<S>(&mut self.c[(i + r) * self.ldc + j..][..width]);
            for (o, &x) in out.iter_mut().zip(&acc[r]) {
                *o = match self.store {
                    Store::Set => x,
                    Store::Add => R::vadd(simd, *o, x),
                    Store::Sub => R::vsub(simd, *o, x),
                };
            }
        }
    }
}

/// NR vectors from the start of a row. An explicit loop: with debug assertions `copy_from_slice` stays a call, which
/// spills the whole register tile.
#[allow(clippy::manual_memcpy)]
#[inline(always)]
fn load<R: Real, S: Simd, const NR: usize>(row: &[R]) -> [R::V<S>; NR] {
    let v = &R::vecs::<S>(row)[..NR];
    let mut out = [v[0]; NR];
    for c in 0..NR {
        out[c] = v[c];
    }
    out
}
