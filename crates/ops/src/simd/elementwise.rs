//! `exp` over slices and the blocked transpose.
//!
//! `exp` is here because the chunked ops need one per gate element, and the C library's scalar `expf` would cost as
//! much as a matrix product.

use super::{Arch, PAD, Real};
use pulp::{Simd, WithSimd};

kernel! {
    /// `x <- e^x`, element by element (f32: within 2 ulp, vectorised).
    pub fn exp_in_place<'a, R>(x: &'a mut [R]) {
        for v in x {
            *v = v.exp();
        }
    }
}

/// `dst[c][r] = src[r][c]` for `rows x cols`; `lds` and `ldd` are the row lengths of `src` and `dst`.
/// Groups of four rows go through vector shuffles where the instruction set has them; the rest is a plain loop.
pub fn transpose<R: Real>(
    arch: Arch,
    src: &[R],
    lds: usize,
    rows: usize,
    cols: usize,
    dst: &mut [R],
    ldd: usize,
) {
    arch.dispatch(Transpose { src, lds, rows, cols, dst, ldd });
}

struct Transpose<'a, R> {
    src: &'a [R],
    lds: usize,
    rows: usize,
    cols: usize,
    dst: &'a mut [R],
    ldd: usize,
}

impl<R: Real> WithSimd for Transpose<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Transpose { src, lds, rows, cols, dst, ldd } = self;
        let lanes = R::lanes::<S>();
        let (mut r0, mut c_done) = (0, 0);
        if R::has_tiles::<S>() {
            c_done = cols / lanes * lanes;
            while r0 + 4 <= rows {
                for c0 in (0..c_done).step_by(lanes) {
                    let mut v = [R::splat(simd, R::ZERO); 4];
                    for i in 0..4 {
                        v[i] = R::vecs::<S>(&src[(r0 + i) * lds + c0..][..lanes])[0];
                    }
                    let t = R::tiles(simd, v);
                    let dst = &mut dst[c0 * ldd + r0..];
                    for i in 0..4 {
                        // Lane group l of t[i] holds column c0 + 4 l + i.
                        let column: &[R] = R::flat::<S>(&t[i]);
                        for l in 0..lanes / 4 {
                            dst[(4 * l + i) * ldd..][..4].copy_from_slice(&column[4 * l..4 * l + 4]);
                        }
                    }
                }
                r0 += 4;
            }
        }
        for r in 0..rows {
            let start = if r < r0 { c_done } else { 0 };
            for c in start..cols {
                dst[c * ldd + r] = src[r * lds + c];
            }
        }
    }
}

/// Sum of products, in [`PAD`](super::PAD) partial sums: the same order on every processor. For loops that are
/// already compiled for an instruction set: inlined there.
#[inline(always)]
pub fn dot<T: flashlin_tensor::Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; PAD];
    let (ac, bc) = (a.chunks_exact(PAD), b.chunks_exact(PAD));
    let (ar, br) = (ac.remainder(), bc.remainder());
    for (x, y) in ac.zip(bc) {
        for l in 0..PAD {
            sums[l] = x[l].mul_add(y[l], sums[l]);
        }
    }
    for (l, (&x, &y)) in ar.iter().zip(br).enumerate() {
        sums[l] = x.mul_add(y, sums[l]);
    }
    let mut width = PAD / 2;
    while width > 0 {
        for l in 0..width {
            sums[l] += sums[l + width];
        }
        width /= 2;
    }
    sums[0]
}
