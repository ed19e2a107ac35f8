//! Rows of tensors of any float type, read and written as numbers of the type a kernel computes in.
//!
//! The pointwise modules (norms, activations, convolution, rotary embedding) accept f64, f32, bf16 and f16 in any
//! mixture and strided views of fused projections. One kernel for each of f32 and f64 serves all of it: rows that
//! already have the compute type are borrowed, others are converted into a small buffer that stays in L1.

use flashlin_tensor::{
    DType, Device, Element, Error, Real, Result, Tensor, Var,
    cpu::{BLOCK, vectorized},
};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements that pointwise kernels convert at a time: small enough for the stack and for L1.
pub(crate) const PIECE: usize = 512;

/// Elements of one step of the pointwise loop.
const GROUP: usize = 16;

/// The tensor itself where its last dimension is contiguous, else a contiguous copy; an error unless it is a float.
pub(crate) fn with_rows(op: &'static str, arg: &'static str, t: &Tensor) -> Result<Tensor> {
    t.device().require_cpu(op)?;
    if !t.dtype().is_float() {
        return Err(Error::dtype(op, arg, t.dtype(), "a float type"));
    }
    let n = t.rank();
    if n == 0 || t.is_contiguous() || (t.strides()[n - 1] == 1 && t.dim(n - 1) >= 8) {
        return Ok(t.clone());
    }
    t.contiguous()
}

/// What an operator of several devices keeps of an input: rows on the CPU ([`with_rows`]), on a GPU the view itself, as launches make what they need
/// dense.
pub(crate) fn input(op: &'static str, arg: &'static str, t: &Tensor) -> Result<Tensor> {
    match t.device() {
        Device::Cpu => with_rows(op, arg, t),
        _ if !t.dtype().is_float() => Err(Error::dtype(op, arg, t.dtype(), "f32, bf16 or f16 on a GPU")),
        _ => Ok(t.clone()),
    }
}

/// Checks that `arg` has exactly these dims.
pub(crate) fn check_dims(op: &'static str, arg: &'static str, t: &Tensor, dims: &[usize]) -> Result<()> {
    if t.dims() == dims {
        return Ok(());
    }
    Err(Error::shape(op, arg, t.dims(), format!("{dims:?}")))
}

/// A float tensor as a vector of the compute type (weights, biases: small).
pub(crate) fn to_real<R: Real>(t: &Tensor) -> Result<Vec<R>> {
    t.to_dtype(R::DTYPE)?.to_vec::<R>()
}

/// As [`to_real`] for an optional tensor.
pub(crate) fn opt_to_real<R: Real>(v: Option<&Tensor>) -> Result<Option<Vec<R>>> {
    v.map(to_real).transpose()
}

/// The tensor of an optional variable.
pub(crate) fn tensor_of(v: Option<&Var>) -> Option<Tensor> {
    v.map(|v| v.tensor().clone())
}

#[derive(Clone, Copy)]
enum Data<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F16(&'a [f16]),
}

/// Read access to a tensor as rows of its last dimension; a contiguous tensor is one long row.
pub(crate) struct Rows<'a> {
    data: Data<'a>,
    width: usize,
    /// Leading dimensions as (size, stride), innermost first, neighbours merged where they can be.
    outer: Vec<(usize, usize)>,
}

impl<'a> Rows<'a> {
    /// Rows of the last dimension, which must be contiguous ([`with_rows`]).
    pub fn new(t: &'a Tensor) -> Result<Self> {
        let last = t.rank().saturating_sub(1);
        let width = t.dims().last().copied().unwrap_or(1);
        let mut outer: Vec<(usize, usize)> = Vec::new();
        for i in (0..last).rev() {
            let (d, s) = (t.dim(i), t.strides()[i]);
            match outer.last_mut() {
                _ if d == 1 => {}
                Some((pd, ps)) if s == *pd * *ps => *pd *= d,
                _ => outer.push((d, s)),
            }
        }
        Ok(Rows { data: Self::data(t)?, width, outer })
    }

    /// Rows of the last dimension, or one row of all elements where the tensor has no gaps.
    pub fn flat(t: &'a Tensor) -> Result<Self> {
        if !t.is_contiguous() {
            return Self::new(t);
        }
        Ok(Rows { data: Self::data(t)?, width: t.numel(), outer: Vec::new() })
    }

    fn data(t: &'a Tensor) -> Result<Data<'a>> {
        Ok(match t.dtype() {
            DType::F64 => Data::F64(t.strided()?.data),
            DType::F32 => Data::F32(t.strided()?.data),
            DType::BF16 => Data::BF16(t.strided()?.data),
            DType::F16 => Data::F16(t.strided()?.data),
            other => return Err(Error::dtype("rows", "tensor", other, "a float type")),
        })
    }

    #[inline(always)]
    fn offset(&self, mut row: usize) -> usize {
        match self.outer[..] {
            [] => 0,
            [(_, s)] => row * s,
            _ => {
                let mut at = 0;
                for &(d, s) in &self.outer {
                    at += (row % d) * s;
                    row /= d;
                }
                at
            }
        }
    }

    /// Row `row`, borrowed or converted into `buf`.
    #[inline(always)]
    pub fn row<'b, R: Real>(&'b self, row: usize, buf: &'b mut [R]) -> &'b [R] {
        self.at(self.offset(row), self.width, buf)
    }

    /// `n` elements of row `row` from column `col` on.
    #[inline(always)]
    pub fn cols<'b, R: Real>(&'b self, row: usize, col: usize, n: usize, buf: &'b mut [R]) -> &'b [R] {
        self.at(self.offset(row) + col, n, buf)
    }

    /// Copies the elements from `start` on (in row-major order); they must lie in one row ([`Rows::reach`]).
    pub fn copy<R: Real>(&self, start: usize, out: &mut [R]) {
        let at = self.offset(start / self.width) + start % self.width;
        match self.data {
            Data::F64(x) if R::DTYPE == DType::F64 => {
                out.copy_from_slice(bytemuck::cast_slice(&x[at..at + out.len()]))
            }
            Data::F32(x) if R::DTYPE == DType::F32 => {
                out.copy_from_slice(bytemuck::cast_slice(&x[at..at + out.len()]))
            }
            data => data.widen(at, out),
        }
    }

    /// Elements from `start` to the end of its row.
    #[inline(always)]
    pub fn reach(&self, start: usize) -> usize {
        self.width - start % self.width
    }

    #[inline(always)]
    fn at<'b, R: Real>(&'b self, at: usize, n: usize, buf: &'b mut [R]) -> &'b [R] {
        match self.data {
            Data::F64(x) if R::DTYPE == DType::F64 => bytemuck::cast_slice(&x[at..at + n]),
            Data::F32(x) if R::DTYPE == DType::F32 => bytemuck::cast_slice(&x[at..at + n]),
            data => {
                let out = &mut buf[..n];
                data.widen(at, out);
                out
            }
        }
    }
}

impl Data<'_> {
    /// Converts elements from `at` on. Never inlined: the kernels around it stay small.
    #[inline(never)]
    fn widen<R: Real>(self, at: usize, out: &mut [R]) {
        let end = at + out.len();
        match self {
            Data::F64(x) => convert(out, &x[at..end], |v| R::from_f64(v)),
            Data::F32(x) => convert(out, &x[at..end], |v| R::from_f32(v)),
            Data::BF16(x) => convert(out, &x[at..end], |v| R::from_f32(Element::to_f32(v))),
            Data::F16(x) => convert(out, &x[at..end], |v| R::from_f32(Element::to_f32(v))),
        }
    }
}

#[inline(always)]
fn convert<A: Copy, O>(out: &mut [O], src: &[A], f: impl Fn(A) -> O) {
    vectorized(
        #[inline(always)]
        || {
            for (o, &x) in out.iter_mut().zip(src) {
                *o = f(x);
            }
        },
    );
}

/// Write access to a contiguous output of any float type.
pub(crate) enum RowsMut<'a> {
    F64(&'a mut [f64]),
    F32(&'a mut [f32]),
    BF16(&'a mut [bf16]),
    F16(&'a mut [f16]),
}

impl<'a> RowsMut<'a> {
    /// All elements of an output.
    pub fn of(t: &'a mut Tensor) -> Result<Self> {
        Ok(match t.dtype() {
            DType::F64 => RowsMut::F64(t.as_mut_slice()?),
            DType::F32 => RowsMut::F32(t.as_mut_slice()?),
            DType::BF16 => RowsMut::BF16(t.as_mut_slice()?),
            DType::F16 => RowsMut::F16(t.as_mut_slice()?),
            other => return Err(Error::dtype("rows", "output", other, "a float type")),
        })
    }

    /// Pieces of the given lengths, in order.
    pub fn split(self, lens: impl Iterator<Item = usize>) -> Vec<RowsMut<'a>> {
        fn cut<T>(mut x: &mut [T], lens: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
            lens.map(|n| {
                let (a, b) = std::mem::take(&mut x).split_at_mut(n);
                x = b;
                a
            })
            .collect()
        }
        match self {
            RowsMut::F64(x) => cut(x, lens).into_iter().map(RowsMut::F64).collect(),
            RowsMut::F32(x) => cut(x, lens).into_iter().map(RowsMut::F32).collect(),
            RowsMut::BF16(x) => cut(x, lens).into_iter().map(RowsMut::BF16).collect(),
            RowsMut::F16(x) => cut(x, lens).into_iter().map(RowsMut::F16).collect(),
        }
    }

    /// Writes numbers at `at..`, rounded to the element type.
    #[inline(always)]
    pub fn write<R: Real>(&mut self, at: usize, src: &[R]) {
        let n = src.len();
        match self {
            RowsMut::F64(x) if R::DTYPE == DType::F64 => {
                x[at..at + n].copy_from_slice(bytemuck::cast_slice(src))
            }
            RowsMut::F32(x) if R::DTYPE == DType::F32 => {
                x[at..at + n].copy_from_slice(bytemuck::cast_slice(src))
            }
            other => other.narrow(at, src),
        }
    }

    /// As [`Data::widen`], the other way.
    #[inline(never)]
    fn narrow<R: Real>(&mut self, at: usize, src: &[R]) {
        let end = at + src.len();
        match self {
            RowsMut::F64(x) => convert(&mut x[at..end], src, |v| v.to_f64()),
            RowsMut::F32(x) => convert(&mut x[at..end], src, |v| v.to_f32()),
            RowsMut::BF16(x) => convert(&mut x[at..end], src, |v| <bf16 as Element>::from_f32(v.to_f32())),
            RowsMut::F16(x) => convert(&mut x[at..end], src, |v| <f16 as Element>::from_f32(v.to_f32())),
        }
    }
}

/// An output (or none) cut into blocks of `len` elements out of `total`: one entry a block either way.
pub(crate) fn blocks<'a>(
    out: Option<&'a mut Tensor>,
    total: usize,
    len: usize,
) -> Result<Vec<Option<RowsMut<'a>>>> {
    let lens = (0..total).step_by(len.max(1)).map(|s| len.min(total - s));
    Ok(match out {
        Some(t) => RowsMut::of(t)?.split(lens).into_iter().map(Some).collect(),
        None => lens.map(|_| None).collect(),
    })
}

/// Column sums of partial rows, always added in the same order.
pub(crate) fn sum_parts<R: Real>(parts: &[Vec<R>], width: usize) -> Vec<R> {
    let mut out = vec![R::ZERO; width];
    out.par_chunks_mut(1024).enumerate().for_each(|(c, out)| {
        for p in parts {
            for (o, &x) in out.iter_mut().zip(&p[c * 1024..]) {
                *o += x;
            }
        }
    });
    out
}

/// A tensor of the accumulator type from sums in the compute type.
pub(crate) fn grad_of<R: Real>(sums: Vec<R>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(sums, like.dims())?.to_dtype(like.dtype().accumulator())
}

/// Sum over `f(a_i, b_i)` in sixteen fixed lanes, so that it vectorises and its order depends on the length only.
#[inline(always)]
pub(crate) fn sum2<R: Real>(a: &[R], b: &[R], f: impl Fn(R, R) -> R) -> R {
    let mut lanes = [R::ZERO; 16];
    let (ga, gb) = (a.chunks_exact(16), b[..a.len()].chunks_exact(16));
    let (ta, tb) = (ga.remainder(), gb.remainder());
    for (x, y) in ga.zip(gb) {
        for i in 0..16 {
            lanes[i] += f(x[i], y[i]);
        }
    }
    for (i, (&x, &y)) in ta.iter().zip(tb).enumerate() {
        lanes[i] += f(x, y);
    }
    lanes.into_iter().fold(R::ZERO, |s, x| s + x)
}

/// Sum of a slice, as [`sum2`].
#[inline(always)]
pub(crate) fn sum<R: Real>(a: &[R]) -> R {
    sum2(a, a, |x, _| x)
}

/// A function of `N` numbers to `M` numbers, for both compute types: what [`pointwise`] maps.
pub(crate) trait Pointwise<const N: usize, const M: usize>: Sync {
    fn call<R: Real>(&self, x: [R; N]) -> [R; M];
}

/// Maps `N` inputs of one shape (any float types, any strides) to `M` outputs of that shape, in parallel.
pub(crate) fn pointwise<R: Real, const N: usize, const M: usize>(
    inputs: [&Tensor; N],
    outputs: [&mut Tensor; M],
    f: &impl Pointwise<N, M>,
) -> Result<()> {
    let total = inputs[0].numel();
    let rows = inputs.iter().map(|t| Rows::flat(t)).collect::<Result<Vec<_>>>()?;
    let mut by_block: Vec<Vec<RowsMut>> = (0..total.div_ceil(BLOCK)).map(|_| Vec::with_capacity(M)).collect();
    for out in outputs {
        for (list, b) in by_block.iter_mut().zip(blocks(Some(out), total, BLOCK)?) {
            list.extend(b);
        }
    }
    by_block.into_par_iter().enumerate().for_each(|(b, mut outs)| {
        let (start, end) = (b * BLOCK, total.min((b + 1) * BLOCK));
        pointwise_block::<R, N, M>(&rows, &mut outs, start, end, f);
    });
    Ok(())
}

fn pointwise_block<R: Real, const N: usize, const M: usize>(
    rows: &[Rows],
    outs: &mut [RowsMut],
    start: usize,
    end: usize,
    f: &impl Pointwise<N, M>,
) {
    let mut bufs = [[[R::ZERO; GROUP]; PIECE / GROUP]; N];
    let mut results = [[[R::ZERO; GROUP]; PIECE / GROUP]; M];
    let mut at = start;
    while at < end {
        let n = rows.iter().fold(PIECE.min(end - at), |n, r| n.min(r.reach(at)));
        for (buf, r) in bufs.iter_mut().zip(rows) {
            r.copy(at, &mut buf.as_flattened_mut()[..n]);
        }
        // Only this loop is compiled for each function, and over whole groups: no tail.
        vectorized(
            #[inline(always)]
            || {
                for c in 0..n.div_ceil(GROUP) {
                    let x: [[R; GROUP]; N] = std::array::from_fn(|i| bufs[i][c]);
                    for l in 0..GROUP {
                        let y = f.call::<R>(std::array::from_fn(|i| x[i][l]));
                        (0..M).for_each(|m| results[m][c][l] = y[m]);
                    }
                }
            },
        );
        for (o, r) in outs.iter_mut().zip(&results) {
            o.write(at - start, &r.as_flattened()[..n]);
        }
        at += n;
    }
}
