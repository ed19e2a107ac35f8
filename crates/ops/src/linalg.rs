//! Small dense products inside one task of a chunked kernel.
//!
//! Chunked linear attention multiplies matrices of 16..256 rows and columns, all of them in cache. A general
//! `gemm` packs its operands, which costs about as much as such a product, so the chunked kernels use this
//! register-tiled product without packing: the right operand is row-major with a padded width, the left one may
//! have any strides (so a transposed left operand is free), and the sum over the inner dimension always runs in
//! order, so the result does not depend on how the output is cut into tiles or threads.
//!
//! Policy: every width `n` is a multiple of [`LANES`]; callers pad their panels with zeros.

use flashlin_tensor::Real;
use flashlin_tensor::cpu::vectorized;
use pulp::{Arch, Simd, WithSimd};

/// Widths of panels are multiples of this many elements (one AVX-512 register of f32).
pub(crate) const LANES: usize = 16;

/// `n` rounded up to a multiple of [`LANES`].
pub(crate) fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// A read-only matrix with any strides: element (i, j) is `data[i * rs + j * cs]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    data: &'a [T],
    rs: usize,
    cs: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major with rows `ld` apart.
    pub fn new(data: &'a [T], ld: usize) -> Self {
        Mat { data, rs: ld, cs: 1 }
    }

    /// The transpose of a row-major matrix with rows `ld` apart.
    pub fn transposed(data: &'a [T], ld: usize) -> Self {
        Mat { data, rs: 1, cs: ld }
    }
}

/// What a product does with the output's old contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Into {
    /// c = a b
    Set,
    /// c += a b
    Add,
    /// c -= a b
    Sub,
}

/// f32 or f64 with a register-tiled product.
pub(crate) trait Product: Real {
    /// `c[m, n] (= | += | -=) a[m, k] b[k, n]`, with `b` and `c` row-major, rows `ldb` and `ldc` apart, and `n` a
    /// multiple of [`LANES`].
    fn product(
        dims: [usize; 3],
        a: Mat<'_, Self>,
        b: &[Self],
        ldb: usize,
        c: &mut [Self],
        ldc: usize,
        into: Into,
    );
}

struct Args<'a, T> {
    dims: [usize; 3],
    a: Mat<'a, T>,
    b: &'a [T],
    ldb: usize,
    c: &'a mut [T],
    ldc: usize,
    into: Into,
}

macro_rules! product {
    ($t:ident, $vec:ident, $lanes:ident, $splat:ident, $fma:ident, $add:ident, $sub:ident, $as:ident, $as_mut:ident) => {
        impl Product for $t {
            fn product(
                dims: [usize; 3],
                a: Mat<'_, $t>,
                b: &[$t],
                ldb: usize,
                c: &mut [$t],
                ldc: usize,
                into: Into,
            ) {
                debug_assert!(dims[1] % LANES == 0 && dims[1] <= ldb && dims[1] <= ldc);
                if dims[0] == 0 || dims[1] == 0 || (dims[2] == 0 && into != Into::Set) {
                    return;
                }
                Arch::new().dispatch(Args { dims, a, b, ldb, c, ldc, into });
            }
        }

        impl WithSimd for Args<'_, $t> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(mut self, simd: S) {
                let [m, n, k] = self.dims;
                if k == 0 {
                    return self.c.chunks_mut(self.ldc).take(m).for_each(|row| row[..n].fill(0.0));
                }
                let mut j = 0;
                while j < n {
                    // Tile shapes keep 16 sums in flight (8 where there are 16 registers only).
                    let (left, wide) = (n - j, S::REGISTER_COUNT >= 32);
                    let width = match left / S::$lanes {
                        l if wide && l >= 4 => 4,
                        l if l >= 2 => 2,
                        _ => 1,
                    };
                    let mut i = 0;
                    while i < m {
                        i += match (width, m - i) {
                            (4, r) if r >= 4 => self.tile::<S, 4, 4>(simd, i, j),
                            (4, r) if r >= 2 => self.tile::<S, 2, 4>(simd, i, j),
                            (4, _) => self.tile::<S, 1, 4>(simd, i, j),
                            (2, r) if wide && r >= 8 => self.tile::<S, 8, 2>(simd, i, j),
                            (2, r) if r >= 4 => self.tile::<S, 4, 2>(simd, i, j),
                            (2, _) => self.tile::<S, 1, 2>(simd, i, j),
                            (_, r) if wide && r >= 16 => self.tile::<S, 16, 1>(simd, i, j),
                            (_, r) if r >= 8 => self.tile::<S, 8, 1>(simd, i, j),
                            _ => self.tile::<S, 1, 1>(simd, i, j),
                        };
                    }
                    j += width * S::$lanes;
                }
            }
        }

        impl Args<'_, $t> {
            /// The output tile of MR rows and NV registers at (i0, j0); returns MR.
            #[inline(always)]
            fn tile<S: Simd, const MR: usize, const NV: usize>(
                &mut self,
                simd: S,
                i0: usize,
                j0: usize,
            ) -> usize {
                let width = NV * S::$lanes;
                let mut acc = [[simd.$splat(0.0); NV]; MR];
                let a = &self.a.data[i0 * self.a.rs..];
                let k = self.dims[2];
                let b = &self.b[j0..];
                for p in 0..k {
                    let (bv, _) = S::$as(&b[p * self.ldb..][..width]);
                    let bv: &[S::$vec; NV] = bv.try_into().expect("a tile is NV registers wide");
                    let ap = &a[p * self.a.cs..];
                    for r in 0..MR {
                        let x = simd.$splat(ap[r * self.a.rs]);
                        for v in 0..NV {
                            acc[r][v] = simd.$fma(x, bv[v], acc[r][v]);
                        }
                    }
                }
                for r in 0..MR {
                    let row = &mut self.c[(i0 + r) * self.ldc + j0..][..width];
                    let (cv, _) = S::$as_mut(row);
                    let cv: &mut [S::$vec; NV] = cv.try_into().expect("a tile is NV registers wide");
                    for v in 0..NV {
                        cv[v] = match self.into {
                            Into::Set => acc[r][v],
                            Into::Add => simd.$add(cv[v], acc[r][v]),
                            Into::Sub => simd.$sub(cv[v], acc[r][v]),
                        };
                    }
                }
                MR
            }
        }
    };
}
product!(
    f32,
    f32s,
    F32_LANES,
    splat_f32s,
    mul_add_e_f32s,
    add_f32s,
    sub_f32s,
    as_simd_f32s,
    as_mut_simd_f32s
);
product!(
    f64,
    f64s,
    F64_LANES,
    splat_f64s,
    mul_add_e_f64s,
    add_f64s,
    sub_f64s,
    as_simd_f64s,
    as_mut_simd_f64s
);

/// `dst[j, i] = src[i, j]` for i < rows, j < cols; rows are `lds` and `ldd` apart. Both sizes are multiples of
/// [`LANES`].
pub(crate) fn transpose<T: Real>(rows: usize, cols: usize, src: &[T], lds: usize, dst: &mut [T], ldd: usize) {
    vectorized(
        #[inline(always)]
        || {
            for i in (0..rows).step_by(8) {
                for j in (0..cols).step_by(8) {
                    let mut block = [[T::ZERO; 8]; 8];
                    for r in 0..8 {
                        let row: &[T; 8] = src[(i + r) * lds + j..][..8].try_into().expect("eight columns");
                        for c in 0..8 {
                            block[c][r] = row[c];
                        }
                    }
                    for c in 0..8 {
                        dst[(j + c) * ldd + i..][..8].copy_from_slice(&block[c]);
                    }
                }
            }
        },
    );
}

/// Sum of products, in [`LANES`] partial sums: the same order on every processor.
#[inline(always)]
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; LANES];
    let (ac, bc) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ar, br) = (ac.remainder(), bc.remainder());
    for (x, y) in ac.zip(bc) {
        for l in 0..LANES {
            sums[l] = x[l].mul_add(y[l], sums[l]);
        }
    }
    for (l, (&x, &y)) in ar.iter().zip(br).enumerate() {
        sums[l] = x.mul_add(y, sums[l]);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            sums[l] += sums[l + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(n: usize, seed: u64) -> Vec<f64> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (s >> 40) as f64 / (1u64 << 23) as f64 - 1.0
            })
            .collect()
    }

    fn check<T: Product>(tol: f64) {
        for (m, n, k) in
            [(1, 16, 1), (5, 32, 7), (16, 48, 16), (64, 64, 64), (21, 112, 130), (19, 16, 3), (4, 16, 0)]
        {
            let (a, b, c0) = (fill(m * k, 1), fill(k * n, 2), fill(m * n, 3));
            let cast = |x: &[f64]| x.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>();
            for into in [Into::Set, Into::Add, Into::Sub] {
                for t in [false, true] {
                    let mut c = cast(&c0);
                    let view = cast(&a);
                    let view = if t { Mat::transposed(&view, m) } else { Mat::new(&view, k) };
                    T::product([m, n, k], view, &cast(&b), n, &mut c, n, into);
                    for i in 0..m {
                        for j in 0..n {
                            let at = |p: usize| if t { a[p * m + i] } else { a[i * k + p] };
                            let sum: f64 = (0..k).map(|p| at(p) * b[p * n + j]).sum();
                            let want = match into {
                                Into::Set => sum,
                                Into::Add => c0[i * n + j] + sum,
                                Into::Sub => c0[i * n + j] - sum,
                            };
                            let got = c[i * n + j].to_f64();
                            assert!((got - want).abs() < tol, "{m} {n} {k} {into:?} {t}: {got} {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn product_is_the_definition() {
        check::<f32>(2e-5);
        check::<f64>(1e-13);
    }

    #[test]
    fn transposing_twice_is_the_identity() {
        let src: Vec<f64> = fill(48 * 32, 4);
        let (mut t, mut back) = (vec![0.0; 48 * 32], vec![0.0; 48 * 32]);
        transpose(48, 32, &src, 32, &mut t, 48);
        assert_eq!(t[5 * 48 + 7], src[7 * 32 + 5]);
        transpose(32, 48, &t, 48, &mut back, 32);
        assert_eq!(src, back);
    }
}
