//! Products of bf16 matrices on AVX-512's dot product, which sums pairs in f32 at twice the rate of f32
//! multiply-adds (subnormals count as zero). Both operands are packed into pairs along k, whatever their strides, so
//! one microkernel serves every transposition.
//!
//! The order of a sum depends on k alone: blocks of [`KC`] in turn, each summed pair by pair. So the bits are the same
//! for any number of threads.

use std::arch::x86_64::*;

use half::bf16;
use rayon::prelude::*;

use super::Matrix;
use crate::{DType, Element, Result, cpu::features::Isa, storage::HostBuffer};

/// Rows of a register tile.
const MR: usize = 8;
/// Columns of a vector.
const LANES: usize = 16;
/// Vectors across a register tile.
const NV: usize = 3;
/// Elements along k that are summed in registers before the sum is stored.
const KC: usize = 1024;
/// Rows of the output that a task computes.
const TASK_ROWS: usize = 128;
/// Columns of the output that a task computes.
const TASK_COLS: usize = 8 * NV * LANES;
/// Bytes of packed operand that are made at a time.
const PACKED: usize = 8 << 20;
/// Multiply-adds below which threads cost more than they save.
const SERIAL: usize = 1 << 21;

/// One operand, seen along its lanes (rows of the left side, columns of the right) and along k.
#[derive(Clone, Copy)]
struct Operand<'a> {
    data: &'a [bf16],
    lanes: usize,
    k: usize,
    lane_stride: usize,
    k_stride: usize,
}

impl Operand<'_> {
    /// Groups of 16 lanes of which the packed copy stays within [`PACKED`].
    fn groups_at_once(&self) -> usize {
        (PACKED / (LANES * 4 * self.k.div_ceil(2))).next_multiple_of(TASK_COLS / LANES)
    }
}

/// True where this machine has the instructions.
pub(super) fn available() -> bool {
    Isa::detect() == Isa::Avx512Bf16
}

/// out (f32 or bf16, rows `ld` apart) = a b, or out + a b (f32 only).
///
/// # Errors
/// When memory is short.
pub(super) fn gemm<O: Element>(
    out: &mut [O],
    ld: usize,
    add: bool,
    a: Matrix<bf16>,
    b: Matrix<bf16>,
    parallel: bool,
) -> Result<()> {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(available() && k == b.rows && m > 0 && n > 0 && k > 0);
    assert!(a.data.len() >= a.span() && b.data.len() >= b.span() && out.len() >= (m - 1) * ld + n && ld >= n);
    let parallel = parallel && m * n * k > SERIAL;
    let a = Operand { data: a.data, lanes: m, k, lane_stride: a.row_stride, k_stride: a.col_stride };
    let b = Operand { data: b.data, lanes: n, k, lane_stride: b.col_stride, k_stride: b.row_stride };
    let (step_a, step_b) = (a.groups_at_once() * LANES, b.groups_at_once() * LANES);
    let target = Target::new(out, ld, add);
    for row in (0..m).step_by(step_a) {
        let pa = Packed::new(a, row, step_a.min(m - row), true, parallel)?;
        for col in (0..n).step_by(step_b) {
            let pb = Packed::new(b, col, step_b.min(n - col), false, parallel)?;
            multiply(&pa, &pb, &target, row, col, parallel)?;
        }
    }
    Ok(())
}

/// Groups of 16 lanes of an operand, each `[pair][16]` (right side) or two panels `[pair][8]` (left side).
struct Packed {
    data: HostBuffer,
    lanes: usize,
    pairs: usize,
}

impl Packed {
    fn new(x: Operand, first: usize, lanes: usize, halves: bool, parallel: bool) -> Result<Packed> {
        let pairs = x.k.div_ceil(2);
        let group = LANES * pairs;
        let mut data = HostBuffer::scratch(lanes.div_ceil(LANES) * group * 4)?;
        let pack = |(i, out): (usize, &mut [u32])| {
            // SAFETY: `gemm` runs only where the features were found; it checked the operand's span.
            unsafe { pack_group(x, first + i * LANES, halves, out) }
        };
        let groups = bytemuck::cast_slice_mut::<u8, u32>(data.bytes_mut());
        if parallel {
            groups.par_chunks_mut(group).enumerate().for_each(pack);
        } else {
            groups.chunks_mut(group).enumerate().for_each(pack);
        }
        Ok(Packed { data, lanes, pairs })
    }

    fn words(&self) -> &[u32] {
        bytemuck::cast_slice(self.data.bytes())
    }
}

/// Packs 16 lanes from `first` on (those beyond the operand as zeros).
///
/// # Safety
/// AVX-512 F, BW and VL are there and the operand's span is inside its slice.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_group(x: Operand, first: usize, halves: bool, out: &mut [u32]) {
    let lanes = (x.lanes - first).min(LANES);
    let pairs = x.k.div_ceil(2);
    assert!(out.len() == LANES * pairs && lanes > 0);
    let start = &x.data[first * x.lane_stride..];
    let mut store = |pair: usize, v: __m512i| {
        // SAFETY: pair < pairs, and `out` holds 16 words a pair.
        unsafe {
            if halves {
                let at = out.as_mut_ptr().add(pair * MR);
                _mm256_storeu_si256(at.cast(), _mm512_castsi512_si256(v));
                _mm256_storeu_si256(at.add(MR * pairs).cast(), _mm512_extracti64x4_epi64::<1>(v));
            } else {
                _mm512_storeu_si512(out.as_mut_ptr().add(pair * LANES).cast(), v);
            }
        }
    };
    if x.k_stride == 1 {
        for at in (0..x.k).step_by(32) {
            let left = (x.k - at).min(32);
            let keep = if left == 32 { !0 } else { (1u32 << left) - 1 };
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (i, row) in rows.iter_mut().enumerate().take(lanes) {
                // SAFETY: `left` elements from `at` on belong to lane `first + i`; others are masked off.
                *row = unsafe {
                    _mm512_maskz_loadu_epi16(keep, start.as_ptr().add(i * x.lane_stride + at).cast())
                };
            }
            let columns = transpose(rows);
            for (j, c) in columns.iter().enumerate().take(left.div_ceil(2)) {
                store(at / 2 + j, *c);
            }
        }
    } else if x.lane_stride == 1 {
        let keep = ((1u32 << lanes) - 1) as u16;
        for pair in 0..pairs {
            let row = |k: usize| {
                if k < x.k {
                    // SAFETY: `lanes` elements from the first lane on are inside row `k`; others are masked off.
                    unsafe { _mm256_maskz_loadu_epi16(keep, start.as_ptr().add(k * x.k_stride).cast()) }
                } else {
                    _mm256_setzero_si256()
                }
            };
            let low = _mm512_cvtepu16_epi32(row(2 * pair));
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(row(2 * pair + 1)));
            store(pair, _mm512_or_si512(low, high));
        }
    } else {
        for pair in 0..pairs {
            let mut words = [0u32; LANES];
            for (i, w) in words.iter_mut().enumerate().take(lanes) {
                let bits = |k: usize| {
                    if k < x.k { start[i * x.lane_stride + k * x.k_stride].to_bits() as u32 } else { 0 }
                };
                *w = bits(2 * pair) | bits(2 * pair + 1) << 16;
            }
            // SAFETY: 16 words are readable.
            store(pair, unsafe { _mm512_loadu_si512(words.as_ptr().cast()) });
        }
    }
}

/// A 16 x 16 transposition of 32-bit words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let (mut a, mut b) = (r, r);
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        let q = 4 * i;
        b[q] = _mm512_unpacklo_epi64(a[q], a[q + 2]);
        b[q + 1] = _mm512_unpackhi_epi64(a[q], a[q + 2]);
        b[q + 2] = _mm512_unpacklo_epi64(a[q + 1], a[q + 3]);
        b[q + 3] = _mm512_unpackhi_epi64(a[q + 1], a[q + 3]);
    }
    // b[4 i + j] holds, in quarter q, column 4 q + j of rows 4 i .. 4 i + 4.
    for j in 0..4 {
        a[j] = _mm512_shuffle_i32x4::<0x88>(b[j], b[4 + j]);
        a[4 + j] = _mm512_shuffle_i32x4::<0xdd>(b[j], b[4 + j]);
        a[8 + j] = _mm512_shuffle_i32x4::<0x88>(b[8 + j], b[12 + j]);
        a[12 + j] = _mm512_shuffle_i32x4::<0xdd>(b[8 + j], b[12 + j]);
    }
    for j in 0..4 {
        b[j] = _mm512_shuffle_i32x4::<0x88>(a[j], a[8 + j]);
        b[8 + j] = _mm512_shuffle_i32x4::<0xdd>(a[j], a[8 + j]);
        b[4 + j] = _mm512_shuffle_i32x4::<0x88>(a[4 + j], a[12 + j]);
        b[12 + j] = _mm512_shuffle_i32x4::<0xdd>(a[4 + j], a[12 + j]);
    }
    b
}

/// The output, shared by tasks that write disjoint tiles.
#[derive(Clone, Copy)]
enum Target<'a> {
    F32 { at: *mut f32, ld: usize, add: bool, life: std::marker::PhantomData<&'a mut [f32]> },
    Bf16 { at: *mut bf16, ld: usize, life: std::marker::PhantomData<&'a mut [bf16]> },
}

// SAFETY: tasks write disjoint tiles (see `multiply`).
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    fn new<O: Element>(out: &'a mut [O], ld: usize, add: bool) -> Self {
        let life = std::marker::PhantomData;
        if O::DTYPE == DType::F32 {
            return Target::F32 { at: bytemuck::cast_slice_mut(out).as_mut_ptr(), ld, add, life };
        }
        assert!(O::DTYPE == DType::BF16 && !add);
        Target::Bf16 { at: bytemuck::cast_slice_mut(out).as_mut_ptr(), ld, life: std::marker::PhantomData }
    }
}

/// The product of packed operands, written from (row, col) of the target on.
fn multiply(a: &Packed, b: &Packed, out: &Target, row: usize, col: usize, parallel: bool) -> Result<()> {
    let across = b.lanes.div_ceil(TASK_COLS);
    let task = |t: usize| -> Result<()> {
        let (i, j) = (t / across * TASK_ROWS, t % across * TASK_COLS);
        let size = (TASK_ROWS.min(a.lanes - i), TASK_COLS.min(b.lanes - j));
        // SAFETY: the features were found by `gemm`'s caller; tasks cover disjoint parts of the target, whose size
        // `gemm` checked.
        unsafe { task(a, b, out, (i, j), (row + i, col + j), size) }
    };
    let tasks = a.lanes.div_ceil(TASK_ROWS) * across;
    if parallel { (0..tasks).into_par_iter().try_for_each(task) } else { (0..tasks).try_for_each(task) }
}

/// One block of the output: for each block of k, the register tiles in turn.
///
/// # Safety
/// AVX-512 F, BW, VL and BF16 are there; the target holds `size` from `to` on and nobody else touches that part.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn task(
    a: &Packed,
    b: &Packed,
    out: &Target,
    from: (usize, usize),
    to: (usize, usize),
    size: (usize, usize),
) -> Result<()> {
    let pairs = a.pairs;
    let blocks = pairs.div_ceil(KC / 2);
    // Sums between blocks of k: in the output itself where it is f32.
    let mut keep = None;
    let (sums, ld_sums) = match *out {
        Target::F32 { at, ld, .. } => (at.wrapping_add(to.0 * ld + to.1), ld),
        Target::Bf16 { .. } if blocks == 1 => (std::ptr::null_mut(), 0),
        Target::Bf16 { .. } => {
            let buf = keep.insert(HostBuffer::scratch(TASK_ROWS * TASK_COLS * 4)?);
            (bytemuck::cast_slice_mut::<u8, f32>(buf.bytes_mut()).as_mut_ptr(), TASK_COLS)
        }
    };
    for block in 0..blocks {
        let (first, last) = (block == 0, block + 1 == blocks);
        let k = block * (KC / 2)..((block + 1) * (KC / 2)).min(pairs);
        for j in (0..size.1).step_by(NV * LANES) {
            let cols = (size.1 - j).min(NV * LANES);
            let vectors = cols.div_ceil(LANES);
            let pb = b.words()[(from.1 + j) * pairs + k.start * LANES..].as_ptr();
            for i in (0..size.0).step_by(MR) {
                let pa = a.words()[(from.0 + i) * pairs + k.start * MR..].as_ptr();
                let tile = Tile {
                    // Not used when null.
                    sums: sums.wrapping_add(i * ld_sums + j),
                    ld_sums,
                    add: !first || matches!(*out, Target::F32 { add: true, .. }),
                    rounded: match *out {
                        Target::Bf16 { at, ld, .. } if last => {
                            Some((at.wrapping_add((to.0 + i) * ld + to.1 + j), ld))
                        }
                        _ => None,
                    },
                    rows: MR.min(size.0 - i),
                    cols,
                };
                // SAFETY: by the contract and the sizes above.
                unsafe {
                    match vectors {
                        1 => microkernel::<1>(pa, pb, pairs, k.len(), tile),
                        2 => microkernel::<2>(pa, pb, pairs, k.len(), tile),
                        _ => microkernel::<NV>(pa, pb, pairs, k.len(), tile),
                    }
                }
            }
        }
    }
    Ok(())
}

/// Where a register tile goes.
struct Tile {
    sums: *mut f32,
    ld_sums: usize,
    /// Add to the sums that are there already.
    add: bool,
    /// Write the rounded result here instead of into `sums`.
    rounded: Option<(*mut bf16, usize)>,
    rows: usize,
    cols: usize,
}

/// A tile of 8 rows and V vectors.
///
/// # Safety
/// As [`task`]; `a` and `b` point at `k` pairs of packed panels, and the tile's pointers at its rows and columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn microkernel<const V: usize>(a: *const u32, b: *const u32, pairs: usize, k: usize, to: Tile) {
    let mut acc = [[_mm512_setzero_ps(); V]; MR];
    for p in 0..k {
        // SAFETY: p < k; the groups of b are 16 * pairs words apart. The vector types are plain bits of one size.
        unsafe {
            let mut right = [_mm512_setzero_si512(); V];
            for (v, r) in right.iter_mut().enumerate() {
                *r = _mm512_loadu_si512(b.add(v * LANES * pairs + p * LANES).cast());
            }
            for r in 0..MR {
                let left = _mm512_set1_epi32(*a.add(p * MR + r) as i32);
                for v in 0..V {
                    acc[r][v] = _mm512_dpbf16_ps(
                        acc[r][v],
                        std::mem::transmute::<__m512i, __m512bh>(left),
                        std::mem::transmute::<__m512i, __m512bh>(right[v]),
                    );
                }
            }
        }
    }
    for r in 0..MR {
        if r >= to.rows {
            break;
        }
        for v in 0..V {
            let cols = to.cols - v * LANES;
            let keep = if cols >= LANES { !0u16 } else { (1 << cols) - 1 };
            // SAFETY: the tile's row r and the masked columns are inside its buffers.
            unsafe {
                let at = to.sums.wrapping_add(r * to.ld_sums + v * LANES);
                let x = if to.add {
                    _mm512_add_ps(_mm512_maskz_loadu_ps(keep, at), acc[r][v])
                } else {
                    acc[r][v]
                };
                match to.rounded {
                    Some((o, ld)) => _mm256_mask_storeu_epi16(
                        o.add(r * ld + v * LANES).cast(),
                        keep,
                        std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)),
                    ),
                    None => _mm512_mask_storeu_ps(at, keep, x),
                }
            }
        }
    }
}
