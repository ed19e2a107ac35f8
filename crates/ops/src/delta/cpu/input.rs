//! How the kernels read an argument: rows of any float dtype at any batch, time and head strides, converted to
//! the type that the kernel computes in; and how they write: the rows of one task's head.

use flashlin_tensor::{Element, Real};
use half::{bf16, f16};

/// Elements of an argument.
#[derive(Clone, Copy)]
pub(crate) enum Data<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F16(&'a [f16]),
}

/// An argument `[B, T, heads, n]` with a contiguous last dimension.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub data: Data<'a>,
    /// Distance of batch rows, tokens and heads.
    pub strides: [usize; 3],
    /// Size of the last dimension.
    pub n: usize,
}

#[inline(always)]
fn convert<E: Element, R: Real>(src: &[E], dst: &mut [R], to: impl Fn(E) -> R) {
    for (d, &s) in dst.iter_mut().zip(src) {
        *d = to(s);
    }
}

impl Input<'_> {
    /// Row `[b, t, head, ..]` into the start of `dst`.
    #[inline(always)]
    pub fn row<R: Real>(&self, b: usize, t: usize, head: usize, dst: &mut [R]) {
        let at = b * self.strides[0] + t * self.strides[1] + head * self.strides[2];
        match self.data {
            Data::F64(x) => convert(&x[at..at + self.n], dst, R::from_f64),
            Data::F32(x) => convert(&x[at..at + self.n], dst, R::from_f32),
            Data::BF16(x) => convert(&x[at..at + self.n], dst, |e| R::from_f32(Element::to_f32(e))),
            Data::F16(x) => convert(&x[at..at + self.n], dst, |e| R::from_f32(Element::to_f32(e))),
        }
    }
}

/// A run of tokens with a state of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seq {
    /// Batch row.
    pub batch: usize,
    /// First token.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
}

/// One task's rows of an output, in token order.
pub(crate) type Rows<'a, R> = Vec<&'a mut [R]>;

/// Cuts a `[B, T, heads, n]` buffer into the rows of each (sequence, head), in that order. Sequences cover the
/// tokens in order. An absent output gives absent rows.
pub(crate) fn rows_by_task<'a, R>(
    buffer: Option<&'a mut [R]>,
    seqs: &[Seq],
    heads: usize,
    n: usize,
) -> Vec<Option<Rows<'a, R>>> {
    let Some(buffer) = buffer else {
        return (0..seqs.len() * heads).map(|_| None).collect();
    };
    let mut rows = buffer.chunks_exact_mut(n);
    let mut out = Vec::with_capacity(seqs.len() * heads);
    for seq in seqs {
        let mut tasks: Vec<Rows<'a, R>> = (0..heads).map(|_| Vec::with_capacity(seq.len)).collect();
        for _ in 0..seq.len {
            for task in &mut tasks {
                task.extend(rows.next());
            }
        }
        out.extend(tasks.into_iter().map(Some));
    }
    out
}

/// A state argument or result `[N, HV, K, V]` or `[N, HV, V, K]`: where element (key c, value j) of a head lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateStrides {
    /// Distance of neighbours along the key dimension.
    pub key: usize,
    /// Distance of neighbours along the value dimension.
    pub value: usize,
}

impl StateStrides {
    /// Reads a head's state into a padded `[K, ld]` panel, which is zero elsewhere.
    pub fn load<R: Real>(self, src: &[R], k: usize, v: usize, dst: &mut [R], ld: usize) {
        dst.fill(R::ZERO);
        if self.value == 1 {
            for c in 0..k {
                dst[c * ld..][..v].copy_from_slice(&src[c * self.key..][..v]);
            }
        } else {
            for j in 0..v {
                for c in 0..k {
                    dst[c * ld + j] = src[c * self.key + j * self.value];
                }
            }
        }
    }

    /// Writes a padded panel back.
    pub fn store<R: Real>(self, src: &[R], ld: usize, k: usize, v: usize, dst: &mut [R]) {
        if self.value == 1 {
            for c in 0..k {
                dst[c * self.key..][..v].copy_from_slice(&src[c * ld..][..v]);
            }
        } else {
            for j in 0..v {
                for c in 0..k {
                    dst[c * self.key + j * self.value] = src[c * ld + j];
                }
            }
        }
    }
}
