//! Thin products on AVX-512. bf16 times bf16 uses the dot-product instruction where there is one (a quarter of the
//! instructions; its sums are f32, subnormals count as zero); everything else is widened in registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Block, Isa, Part, Rows, STEP, Stored, WeightRows, tasks};
use crate::{DType, Element};

/// Rows of the left side that one pass over a group of weight rows serves.
const ROW_TILE: usize = 4;

/// How a step of 32 elements is read and multiplied.
trait Dot {
    /// Element of the prepared left side.
    type Left: Element;
    /// Element of the weight.
    type Right: Stored;
    /// A step in registers.
    type Vector: Copy;

    /// # Safety
    /// The machine has what the kind needs; 32 elements are readable.
    unsafe fn left(at: *const Self::Left) -> Self::Vector;

    /// The first `n` elements, the rest zero (`WHOLE` promises n = 32).
    ///
    /// # Safety
    /// The machine has what the kind needs; `n` elements are readable.
    unsafe fn right<const WHOLE: bool>(at: *const Self::Right, n: usize) -> Self::Vector;

    /// # Safety
    /// The machine has what the kind needs.
    unsafe fn accumulate(acc: __m512, a: Self::Vector, b: Self::Vector) -> __m512;
}

fn mask(n: usize) -> u32 {
    if n >= STEP { !0 } else { (1 << n) - 1 }
}

/// 32 two-byte elements at `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_u16<const WHOLE: bool, T>(at: *const T, n: usize) -> __m512i {
    // SAFETY: n elements are readable by the caller's word, and masked-off ones are not touched.
    unsafe {
        if WHOLE { _mm512_loadu_si512(at.cast()) } else { _mm512_maskz_loadu_epi16(mask(n), at.cast()) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_pair(at: *const f32) -> (__m512, __m512) {
    // SAFETY: 32 elements are readable by the caller's word.
    unsafe { (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn fma_pair(acc: __m512, a: (__m512, __m512), b: (__m512, __m512)) -> __m512 {
    _mm512_fmadd_ps(a.1, b.1, _mm512_fmadd_ps(a.0, b.0, acc))
}

/// bf16 by bf16 in one instruction.
struct Bf16Dot;

impl Dot for Bf16Dot {
    type Left = bf16;
    type Right = bf16;
    type Vector = __m512bh;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn left(at: *const bf16) -> __m512bh {
        // SAFETY: by the contract; the types are plain bits of one size.
        unsafe { std::mem::transmute(load_u16::<true, _>(at, STEP)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn right<const WHOLE: bool>(at: *const bf16, n: usize) -> __m512bh {
        // SAFETY: by the contract; the types are plain bits of one size.
        unsafe { std::mem::transmute(load_u16::<WHOLE, _>(at, n)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn accumulate(acc: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        _mm512_dpbf16_ps(acc, a, b)
    }
}

/// Everything else: the weight widened to f32. Of bf16 the even and the odd elements make a vector each (a shift and a
/// mask are cheaper than widening in order), and the left side is laid out likewise.
struct Widened<W>(std::marker::PhantomData<W>);

macro_rules! widened {
    ($t:ty, |$at:ident, $n:ident, $whole:ident| $load:expr) => {
        impl Dot for Widened<$t> {
            type Left = f32;
            type Right = $t;
            type Vector = (__m512, __m512);

            #[inline]
            #[target_feature(enable = "avx512f")]
            unsafe fn left(at: *const f32) -> Self::Vector {
                // SAFETY: by the contract.
                unsafe { load_pair(at) }
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn right<const $whole: bool>($at: *const $t, $n: usize) -> Self::Vector {
                // SAFETY: by the contract; masked-off elements are not touched.
                unsafe { $load }
            }

            #[inline]
            #[target_feature(enable = "avx512f")]
            unsafe fn accumulate(acc: __m512, a: Self::Vector, b: Self::Vector) -> __m512 {
                fma_pair(acc, a, b)
            }
        }
    };
}

widened!(bf16, |at, n, WHOLE| {
    let pairs = load_u16::<WHOLE, _>(at, n);
    let high = _mm512_set1_epi32(0xffff_0000u32 as i32);
    (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(_mm512_and_si512(pairs, high)))
});

widened!(f16, |at, n, WHOLE| {
    let all = load_u16::<WHOLE, _>(at, n);
    (_mm512_cvtph_ps(_mm512_castsi512_si256(all)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(all)))
});

widened!(f32, |at, n, WHOLE| {
    if WHOLE {
        load_pair(at)
    } else {
        let (lo, hi) = (mask(n) as u16, (mask(n) >> 16) as u16);
        (_mm512_maskz_loadu_ps(lo, at), _mm512_maskz_loadu_ps(hi, at.wrapping_add(16)))
    }
});

/// See [`super::products`]; the machine has AVX-512, and all weights have rows of `k`.
pub(super) fn products<X: Stored, W: Stored>(isa: Isa, x: &[X], k: usize, parts: &mut [Part<W>]) {
    assert!(isa.has_avx512() && Isa::available().contains(&isa));
    let rows = x.len() / k;
    if isa == Isa::Avx512Bf16 && X::DTYPE == DType::BF16 && W::DTYPE == DType::BF16 {
        let mut left = Rows::<bf16>::zeros(rows, k);
        for (to, from) in left.data.chunks_exact_mut(left.padded).zip(x.chunks_exact(k)) {
            to[..k].copy_from_slice(bytemuck::cast_slice(from));
        }
        // SAFETY: the features were found at run time.
        return tasks(rows, parts, |w, block| unsafe { dots::block::<Bf16Dot>(&left, w.cast(), block) });
    }
    let x = Rows::widened(x, k, W::DTYPE == DType::BF16);
    macro_rules! widened {
        ($t:ty) => {
            // SAFETY: the features were found at run time.
            tasks(rows, parts, |w, block| unsafe { plain::block::<Widened<$t>>(&x, w.cast(), block) })
        };
    }
    match W::DTYPE {
        DType::BF16 => widened!(bf16),
        DType::F16 => widened!(f16),
        _ => widened!(f32),
    }
}

/// The loops, compiled once for each set of features: code for bf16 dot products must not run where there are none.
macro_rules! kernels {
    ($name:ident, $features:literal) => {
        mod $name {
            use super::*;

            /// Columns of the output, in tiles.
            ///
            /// # Safety
            /// The machine has AVX-512 (F, BW, DQ, VL) and what the kind needs.
            #[target_feature(enable = $features)]
            pub unsafe fn block<D: Dot>(x: &Rows<D::Left>, w: WeightRows<D::Right>, out: &mut Block) {
                // Four sequences of rows side by side: each goes on where it stopped, so the hardware fetches ahead
                // (software prefetches only cost; measured).
                let (start, n) = (out.cols.start, out.cols.len());
                let quarter = n / 4;
                for c in 0..quarter {
                    let mut row = 0;
                    while row < x.rows {
                        let m = (x.rows - row).min(ROW_TILE);
                        let col = start + c;
                        // SAFETY: by the contract.
                        unsafe {
                            match m {
                                1 => tile::<D, 1, 4>(x, w, row, col, quarter, out),
                                2 => tile::<D, 2, 4>(x, w, row, col, quarter, out),
                                3 => tile::<D, 3, 4>(x, w, row, col, quarter, out),
                                _ => tile::<D, ROW_TILE, 4>(x, w, row, col, quarter, out),
                            }
                        }
                        row += m;
                    }
                }
                for col in start + 4 * quarter..start + n {
                    for row in 0..x.rows {
                        // SAFETY: by the contract.
                        unsafe { tile::<D, 1, 1>(x, w, row, col, 0, out) };
                    }
                }
            }

            /// M rows of the left side times N rows of the weight, `apart` from each other.
            ///
            /// # Safety
            /// As `block`.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<D: Dot, const M: usize, const N: usize>(
                x: &Rows<D::Left>,
                w: WeightRows<D::Right>,
                row: usize,
                col: usize,
                apart: usize,
                out: &mut Block,
            ) {
                let xs: [*const D::Left; M] = std::array::from_fn(|r| x.row(row + r).as_ptr());
                let ws: [*const D::Right; N] = std::array::from_fn(|c| w.row(col + c * apart).as_ptr());
                let mut acc = [[_mm512_setzero_ps(); N]; M];
                let whole = w.k / STEP * STEP;
                for at in (0..whole).step_by(STEP) {
                    // SAFETY: at + STEP <= k, which every weight row has; rows of x are padded beyond k.
                    unsafe { step::<D, M, N, true>(&xs, &ws, at, STEP, &mut acc) };
                }
                if whole < w.k {
                    // SAFETY: k - whole elements are left in each weight row; rows of x are padded to a whole step.
                    unsafe { step::<D, M, N, false>(&xs, &ws, whole, w.k - whole, &mut acc) };
                }
                for (r, acc) in acc.iter().enumerate() {
                    for (c, acc) in acc.iter().enumerate() {
                        out.set(row + r, col + c * apart, _mm512_reduce_add_ps(*acc));
                    }
                }
            }

            /// One step along k.
            ///
            /// # Safety
            /// As `block`; `n` elements are readable at `at` in each weight row and 32 in each row of x.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn step<D: Dot, const M: usize, const N: usize, const WHOLE: bool>(
                xs: &[*const D::Left; M],
                ws: &[*const D::Right; N],
                at: usize,
                n: usize,
                acc: &mut [[__m512; N]; M],
            ) {
                // SAFETY: by the contract.
                unsafe {
                    let mut left = [D::left(xs[0].add(at)); M];
                    for r in 1..M {
                        left[r] = D::left(xs[r].add(at));
                    }
                    for c in 0..N {
                        let right = D::right::<WHOLE>(ws[c].add(at), n);
                        for r in 0..M {
                            acc[r][c] = D::accumulate(acc[r][c], left[r], right);
                        }
                    }
                }
            }
        }
    };
}

kernels!(plain, "avx512f,avx512bw,avx512dq,avx512vl");
kernels!(dots, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");
