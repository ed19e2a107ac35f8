//! Elementwise work and strided copies: one element a lane, views read where they lie.

use flashlin_cuda::Arg;

use super::{Launcher, launcher::ALIGN, plan::vector, too_long};
use crate::{DType, Error, Result, Tensor, layout::Layout};

/// Elements of a block.
const BLOCK: usize = 1024;
/// Dimensions that the kernels take apart.
const RANK: usize = 5;

/// Sizes and strides of several views of one shape, neighbouring dimensions merged where all views allow it, to exactly [`RANK`].
#[derive(Debug)]
struct Common<const N: usize> {
    dims: [usize; RANK],
    strides: [[usize; RANK]; N],
}

impl<const N: usize> Common<N> {
    fn of(op: &'static str, views: [&Layout; N]) -> Result<Self> {
        let mut dims: Vec<usize> = Vec::new();
        let mut strides: [Vec<usize>; N] = std::array::from_fn(|_| Vec::new());
        for (i, &d) in views[0].dims.iter().enumerate() {
            if d == 1 {
                continue;
            }
            let merges = dims.last().is_some()
                && strides.iter().zip(views).all(|(s, v)| s.last() == Some(&(v.strides[i] * d)));
            if merges {
                let last = dims.len() - 1;
                dims[last] *= d;
                strides.iter_mut().zip(views).for_each(|(s, v)| s[last] = v.strides[i]);
            } else {
                dims.push(d);
                strides.iter_mut().zip(views).for_each(|(s, v)| s.push(v.strides[i]));
            }
        }
        if dims.len() > RANK {
            let what =
                format!("a view of {:?} with {} separate dimensions on a GPU", views[0].dims, dims.len());
            return Err(Error::unsupported(op, what, "up to 5; call contiguous() on parts of it first"));
        }
        if views.iter().any(|v| v.span() > i32::MAX as usize) {
            return Err(too_long(op, views.iter().map(|v| v.span()).max().unwrap_or(0)));
        }
        let missing = RANK - dims.len();
        let fill = |v: &[usize], with: usize| -> [usize; RANK] {
            std::array::from_fn(|i| if i < missing { with } else { v[i - missing] })
        };
        Ok(Common { dims: fill(&dims, 1), strides: std::array::from_fn(|n| fill(&strides[n], 0)) })
    }

    /// The inner four sizes, then each view's five strides.
    fn args(&self, on: &Launcher) -> Result<Vec<Arg>> {
        let sizes = self.dims[1..].iter();
        sizes.chain(self.strides.iter().flatten()).map(|&x| on.int(x)).collect()
    }
}

fn blocks(n: usize) -> [usize; 3] {
    [n.div_ceil(BLOCK), 1, 1]
}

/// Elements of a block of the kernels of dense arrays.
const FLAT: usize = 2048;

fn flat_blocks(n: usize) -> [usize; 3] {
    [n.div_ceil(FLAT), 1, 1]
}

/// Whether all views are row-major and begin where whole vectors may be read: such arrays need no arithmetic on places, which costs four times the
/// memory's time.
fn flat(views: &[&Tensor]) -> Result<bool> {
    for t in views {
        if !t.is_contiguous() || !t.device_address()?.is_multiple_of(ALIGN) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Name of a kernel's pair of types; the copies that exist.
fn pair(op: &'static str, from: DType, to: DType) -> Result<String> {
    let halves = [DType::F32, DType::BF16, DType::F16];
    let floats = halves.contains(&from) && halves.contains(&to);
    let same = from == to && matches!(from, DType::I64 | DType::I32 | DType::U8);
    if floats || same {
        return Ok(format!("{from}-{to}"));
    }
    Err(Error::unsupported(
        op,
        format!("{from} to {to} on a GPU"),
        "f32, bf16 and f16 among each other; i64, i32 and u8 to themselves",
    ))
}

/// Writes `src` into the view `dst` of the same shape, converting where dtypes differ.
pub(crate) fn copy_into(op: &'static str, src: &Tensor, dst: &Tensor) -> Result<()> {
    debug_assert_eq!(src.dims(), dst.dims());
    let n = src.numel();
    if n == 0 {
        return Ok(());
    }
    let on = Launcher::on(op, dst)?;
    let kinds = pair(op, src.dtype, dst.dtype)?;
    if src.dtype.is_float() && flat(&[src, dst])? {
        let kernel = on.find("flat_copy", &kinds, &[("V", vector(n))])?;
        let args = [on.at(src)?, on.at(dst)?, on.int(n)?];
        // SAFETY: both arrays are dense and have n elements.
        return unsafe { on.launch(&kernel.name, flat_blocks(n), &args) };
    }
    let common = Common::of(op, [&src.layout, &dst.layout])?;
    let mut args = vec![on.at(src)?, on.at(dst)?, on.int(n)?];
    args.extend(common.args(&on)?);
    // SAFETY: both views have n elements under these sizes and strides, inside their live storage.
    unsafe { on.launch(&on.find("array_copy", &kinds, &[])?.name, blocks(n), &args) }
}

/// Most arrays that one launch of [`sum`] adds.
const TERMS: usize = 6;

/// The sum of two or more dense arrays of one shape and float type, in order, in f32; rounded after every [`TERMS`].
pub(crate) fn sum_all(op: &'static str, terms: &[Tensor]) -> Result<Tensor> {
    let (first, rest) = terms.split_first().ok_or_else(|| Error::invalid(op, "terms", "are none"))?;
    let mut sum = first.clone();
    for terms in rest.chunks(TERMS - 1) {
        let on = Launcher::on(op, &sum)?;
        let out = Tensor::empty(sum.dims(), sum.dtype, &sum.device())?;
        let n = out.numel();
        let kernel = on.find("flat_sum", on.float("self", sum.dtype)?, &[("V", vector(n))])?;
        let terms: Vec<Tensor> =
            std::iter::once(&sum).chain(terms).map(|t| on.dense(t, out.dtype)).collect::<Result<_>>()?;
        let mut args = Vec::with_capacity(TERMS + 3);
        for i in 0..TERMS {
            args.push(on.maybe(terms.get(i))?);
        }
        args.extend([on.at(&out)?, on.int(n)?, on.int(terms.len())?]);
        let lanes = kernel.need_generic("N").map_err(Error::Kernel)?.max(1) as usize;
        // SAFETY: all arrays are dense and have n elements; those beyond the count are not read.
        unsafe { on.launch(&kernel.name, [n.div_ceil(lanes), 1, 1], &args) }?;
        sum = out;
    }
    Ok(sum)
}

/// A function of one number, by its code in the kernel, with two parameters.
pub(crate) fn unary(op: &'static str, x: &Tensor, (code, p, q): (i32, f64, f64)) -> Result<Tensor> {
    let on = Launcher::on(op, x)?;
    let kind = on.float("self", x.dtype)?;
    let x = x.contiguous()?;
    let out = Tensor::empty(x.dims(), x.dtype, &x.device())?;
    let n = x.numel();
    if n > 0 {
        let args =
            [on.at(&x)?, on.at(&out)?, on.int(n)?, Arg::I32(code), Arg::F32(p as f32), Arg::F32(q as f32)];
        // SAFETY: both arrays are contiguous and have n elements.
        unsafe { on.launch(&on.find("array_unary", kind, &[])?.name, blocks(n), &args) }?;
    }
    Ok(out)
}

/// A function of two numbers, by its code in the kernel; both views are expanded to the output's shape.
pub(crate) fn zip(op: &'static str, a: &Tensor, b: &Tensor, code: i32) -> Result<Tensor> {
    let on = Launcher::on(op, a)?;
    let kind = on.float("self", a.dtype)?;
    let out = Tensor::empty(a.dims(), a.dtype, &a.device())?;
    let n = out.numel();
    if n > 0 && code < 4 && flat(&[a, b])? {
        let args = [on.at(a)?, on.at(b)?, on.at(&out)?, on.int(n)?, Arg::I32(code)];
        // SAFETY: all arrays are dense and have n elements.
        unsafe { on.launch(&on.find("flat_zip", kind, &[("V", vector(n))])?.name, flat_blocks(n), &args) }?;
        return Ok(out);
    }
    if n > 0 {
        let common = Common::of(op, [&a.layout, &b.layout])?;
        let mut args = vec![on.at(a)?, on.at(b)?, on.at(&out)?, on.int(n)?, Arg::I32(code)];
        args.extend(common.args(&on)?);
        // SAFETY: the views have n elements under these sizes and strides; the output is contiguous and as long.
        unsafe { on.launch(&on.find("array_zip", kind, &[])?.name, blocks(n), &args) }?;
    }
    Ok(out)
}

/// `a` where `mask` (u8) is not 0, else `b`; all of one shape.
pub(crate) fn select(op: &'static str, mask: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let on = Launcher::on(op, a)?;
    let kind = on.float("self", a.dtype)?;
    let out = Tensor::empty(a.dims(), a.dtype, &a.device())?;
    let n = out.numel();
    if n > 0 {
        let common = Common::of(op, [&mask.layout, &a.layout, &b.layout])?;
        let mut args = vec![on.at(mask)?, on.at(a)?, on.at(b)?, on.at(&out)?, on.int(n)?];
        args.extend(common.args(&on)?);
        // SAFETY: the views have n elements under these sizes and strides; the output is contiguous and as long.
        unsafe { on.launch(&on.find("array_select", kind, &[])?.name, blocks(n), &args) }?;
    }
    Ok(out)
}

/// 1 (u8) where an element is above `bound`, or `equal` to it.
pub(crate) fn compare(op: &'static str, x: &Tensor, bound: f64, equal: bool) -> Result<Tensor> {
    let on = Launcher::on(op, x)?;
    let kind = on.float("self", x.dtype)?;
    let x = x.contiguous()?;
    let out = Tensor::empty(x.dims(), DType::U8, &x.device())?;
    let n = x.numel();
    if n > 0 {
        let args = [on.at(&x)?, on.at(&out)?, on.int(n)?, Arg::I32(i32::from(equal)), Arg::F32(bound as f32)];
        // SAFETY: both arrays are contiguous and have n elements.
        unsafe { on.launch(&on.find("array_compare", kind, &[])?.name, blocks(n), &args) }?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dims: &[usize], strides: &[usize]) -> Layout {
        Layout { dims: dims.to_vec(), strides: strides.to_vec(), offset: 0 }
    }

    #[test]
    fn dimensions_merge_where_every_view_allows_it() {
        let (x, y) = (layout(&[2, 1, 3, 4], &[12, 12, 4, 1]), layout(&[2, 1, 3, 4], &[24, 24, 4, 1]));
        let one = Common::of("t", [&x, &x]).unwrap();
        assert_eq!(one.dims, [1, 1, 1, 1, 24]);
        let two = Common::of("t", [&x, &y]).unwrap();
        assert_eq!((two.dims, two.strides[1]), ([1, 1, 1, 2, 12], [0, 0, 0, 24, 1]));
        // A repeated row merges with nothing but itself.
        let b = layout(&[2, 1, 3, 4], &[0, 0, 0, 1]);
        assert_eq!(Common::of("t", [&x, &b]).unwrap().dims, [1, 1, 1, 6, 4]);
        let scalar = layout(&[], &[]);
        assert_eq!(Common::of("t", [&scalar]).unwrap().dims, [1; 5]);
    }

    #[test]
    fn what_the_kernels_do_not_reach_is_refused() {
        let many = layout(&[2; 6], &[1, 3, 9, 27, 81, 243]);
        assert!(Common::of("t", [&many]).unwrap_err().to_string().contains("up to 5"));
        let long = layout(&[3, 1 << 30], &[1 << 30, 1]);
        assert!(Common::of("t", [&long]).unwrap_err().to_string().contains("2^31"));
        assert!(pair("t", DType::I64, DType::F32).unwrap_err().to_string().contains("i64 to f32"));
        assert_eq!(pair("t", DType::F32, DType::BF16).unwrap(), "f32-bf16");
    }
}
