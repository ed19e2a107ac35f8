//! What the CPU paths read and write, free of tensors: typed strided sources, sequences, gradients.

use crate::simd::{Arch, Real};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};

/// One sequence: its place in the `[B, T, ..]` inputs and in the flattened `[B * T, ..]` outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seq {
    /// Batch row.
    pub batch: usize,
    /// First token within the row.
    pub start: usize,
    /// Tokens; 0 is legal.
    pub len: usize,
    /// First token of the flattened outputs.
    pub row: usize,
}

impl Seq {
    /// B sequences of T tokens.
    pub fn dense(batch: usize, len: usize) -> Vec<Seq> {
        (0..batch).map(|b| Seq { batch: b, start: 0, len, row: b * len }).collect()
    }

    /// Sequences packed one after another in a batch of 1.
    pub fn packed(cu_seqlens: &[usize]) -> Vec<Seq> {
        cu_seqlens.windows(2).map(|w| Seq { batch: 0, start: w[0], len: w[1] - w[0], row: w[0] }).collect()
    }
}

/// Elements of a source.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// f64.
    F64(&'a [f64]),
    /// f32.
    F32(&'a [f32]),
    /// bf16, computed in f32.
    BF16(&'a [bf16]),
    /// f16, computed in f32.
    F16(&'a [f16]),
}

/// A read-only `[B, T, H, D]` view with a contiguous last dimension; strides in elements.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// From the first element of the view on.
    pub data: Elements<'a>,
    /// Elements between batch rows.
    pub batch_stride: usize,
    /// Elements between tokens.
    pub token_stride: usize,
    /// Elements between heads.
    pub head_stride: usize,
}

impl<'a> Source<'a> {
    /// A contiguous `[B, T, H, D]` array.
    pub fn contiguous(data: Elements<'a>, len: usize, heads: usize, dim: usize) -> Self {
        Source { data, batch_stride: len * heads * dim, token_stride: heads * dim, head_stride: dim }
    }

    /// Copies tokens `t0 .. t0 + rows` of a sequence's head into rows of `dst`, `ld` apart, times `factor`.
    pub(crate) fn load<R: Real>(
        &self,
        arch: Arch,
        (seq, head): (&Seq, usize),
        (t0, rows, width): (usize, usize, usize),
        factor: R,
        (dst, ld): (&mut [R], usize),
    ) {
        let base =
            seq.batch * self.batch_stride + (seq.start + t0) * self.token_stride + head * self.head_stride;
        let at = (base, self.token_stride);
        let size = (rows, width);
        match self.data {
            Elements::F64(x) => copy_rows(arch, x, at, size, (dst, ld), |v| R::from_f64(v) * factor),
            Elements::F32(x) => copy_rows(arch, x, at, size, (dst, ld), |v| R::from_f32(v) * factor),
            Elements::BF16(x) => copy_rows(arch, x, at, size, (dst, ld), |v| {
                R::from_f32(f32::from_bits((v.to_bits() as u32) << 16)) * factor
            }),
            Elements::F16(x) => copy_rows(arch, x, at, size, (dst, ld), |v| R::from_f32(v.to_f32()) * factor),
        }
    }
}

#[inline(always)]
fn copy_rows<E: Copy, R: Real>(
    arch: Arch,
    src: &[E],
    (base, stride): (usize, usize),
    (rows, width): (usize, usize),
    (dst, ld): (&mut [R], usize),
    convert: impl Fn(E) -> R,
) {
    arch.dispatch(CopyRows { src, base, stride, rows, width, dst, ld, convert });
}

struct CopyRows<'a, E, R, F> {
    src: &'a [E],
    base: usize,
    stride: usize,
    rows: usize,
    width: usize,
    dst: &'a mut [R],
    ld: usize,
    convert: F,
}

impl<E: Copy, R: Real, F: Fn(E) -> R> WithSimd for CopyRows<'_, E, R, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _set: S) {
        for r in 0..self.rows {
            let from = &self.src[self.base + r * self.stride..][..self.width];
            for (d, &s) in self.dst[r * self.ld..][..self.width].iter_mut().zip(from) {
                *d = (self.convert)(s);
            }
        }
    }
}

/// Everything one call of the recurrence reads.
#[derive(Clone, Debug)]
pub struct Args<'a, R> {
    /// Sequences, in the order of the states' rows; together they cover the outputs' rows in order.
    pub seqs: &'a [Seq],
    /// Heads of q and k.
    pub heads: usize,
    /// Heads of v and of the state; a multiple of `heads`.
    pub value_heads: usize,
    /// K.
    pub key_dim: usize,
    /// V.
    pub value_dim: usize,
    /// Factor on q.
    pub scale: R,
    /// `[B, T, H, K]`.
    pub q: Source<'a>,
    /// `[B, T, H, K]`.
    pub k: Source<'a>,
    /// `[B, T, HV, V]`.
    pub v: Source<'a>,
    /// Scalar log-decay `[B, T, HV]`, as heads of width 1.
    pub g: Option<Source<'a>>,
    /// Constant log-decay `[HV]`.
    pub g_gamma: Option<&'a [R]>,
    /// Log-decay by key channel, with `gk_heads` heads.
    pub gk: Option<Source<'a>>,
    /// H or HV.
    pub gk_heads: usize,
    /// Log-decay by value channel `[B, T, HV, V]`.
    pub gv: Option<Source<'a>>,
    /// Bonus `[H, K]`.
    pub u: Option<&'a [R]>,
    /// First states `[N, HV, K, V]`, or `[N, HV, V, K]` when `transposed`.
    pub h0: Option<&'a [R]>,
    /// Whether states (h0, final, and their gradients) are `[V, K]`.
    pub transposed: bool,
    /// Tokens of a chunk: 16, 32 or 64 (unused by the recurrent path).
    pub chunk: usize,
}

impl<R: Real> Args<'_, R> {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.seqs.iter().map(|s| s.len).sum()
    }

    /// Value heads that share one key head.
    pub fn group(&self) -> usize {
        self.value_heads / self.heads
    }

    /// K * V.
    pub fn state_len(&self) -> usize {
        self.key_dim * self.value_dim
    }

    /// Whether anything decays on the key side, with one number a token and head.
    pub(crate) fn has_scalar(&self) -> bool {
        self.g.is_some() || self.g_gamma.is_some()
    }

    /// Head of gk that value head `j` reads.
    pub(crate) fn gk_head(&self, j: usize) -> usize {
        j / (self.value_heads / self.gk_heads)
    }
}

/// Where gradients go, flattened and contiguous, in the compute type; an empty slice is not wanted. Every element of
/// the others is written.
#[derive(Debug, Default)]
pub struct GradsMut<'a, R> {
    /// `[tokens, H, K]`.
    pub q: &'a mut [R],
    /// `[tokens, H, K]`.
    pub k: &'a mut [R],
    /// `[tokens, HV, V]`.
    pub v: &'a mut [R],
    /// `[tokens, HV]`.
    pub g: &'a mut [R],
    /// `[HV]`.
    pub g_gamma: &'a mut [R],
    /// `[tokens, gk_heads, K]`.
    pub gk: &'a mut [R],
    /// `[tokens, HV, V]`.
    pub gv: &'a mut [R],
    /// `[H, K]`.
    pub u: &'a mut [R],
    /// As the states.
    pub h0: &'a mut [R],
}

/// Which gates' gradients are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Any on the key side: g, g_gamma or gk.
    pub key_gate: bool,
    /// gv.
    pub value_gate: bool,
}
