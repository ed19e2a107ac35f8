//! The array type: shared storage plus a layout. Cloning is cheap and shares; values are never changed under a
//! second owner.

use std::{fmt, sync::Arc};

use crate::{
    DType, Device, Element, Error, Result, cuda,
    layout::{Layout, Strided, checked_numel},
    storage::{HostBuffer, MappedFile, Storage},
};

/// An n-dimensional array on one device, without any notion of gradients (see [`crate::Var`]).
#[derive(Clone)]
pub struct Tensor {
    pub(crate) storage: Arc<Storage>,
    pub(crate) dtype: DType,
    pub(crate) layout: Layout,
}

/// Calls `$body` with `$T` bound to the Rust type of a dtype.
macro_rules! dispatch {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
        }
    };
}
pub(crate) use dispatch;

impl Tensor {
    /// An array whose content is unspecified: every element must be written before it is read.
    ///
    /// # Errors
    /// When the size overflows, memory is short, or the device has no storage in this build.
    pub fn empty(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let bytes = checked_numel("empty", dims, dtype.size())? * dtype.size();
        let storage = match device {
            Device::Cpu => Storage::Host(HostBuffer::new(bytes)?),
            Device::Cuda(ordinal) => cuda::alloc(*ordinal, bytes)?,
        };
        Ok(Self::from_storage(storage, dims, dtype))
    }

    /// An array of zeros.
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn zeros(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let bytes = checked_numel("zeros", dims, dtype.size())? * dtype.size();
        let storage = match device {
            Device::Cpu => Storage::Host(HostBuffer::zeroed(bytes)?),
            Device::Cuda(ordinal) => cuda::zeros(*ordinal, bytes)?,
        };
        Ok(Self::from_storage(storage, dims, dtype))
    }

    /// An array that holds `value` everywhere (rounded to the dtype).
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn full(value: f64, dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        if *device != Device::Cpu {
            // One element, repeated.
            let one = cuda::kept(&Self::full(value, &[], dtype, &Device::Cpu)?, device)?;
            return one.expand(dims)?.copy();
        }
        let mut t = Self::empty(dims, dtype, device)?;
        dispatch!(dtype, T => t.as_mut_slice::<T>()?.fill(T::from_f64(value)));
        Ok(t)
    }

    /// An array of ones.
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn ones(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        Self::full(1.0, dims, dtype, device)
    }

    /// A CPU tensor from values in row-major order.
    ///
    /// # Errors
    /// When the number of values does not fit the shape.
    pub fn from_slice<T: Element>(values: &[T], dims: &[usize]) -> Result<Tensor> {
        let n = checked_numel("from_slice", dims, T::DTYPE.size())?;
        if n != values.len() {
            let expected = format!("a shape with {} elements", values.len());
            return Err(Error::shape("from_slice", "dims", dims, expected));
        }
        let mut buf = HostBuffer::new(n * T::DTYPE.size())?;
        buf.bytes_mut().copy_from_slice(bytemuck::cast_slice(values));
        Ok(Self::from_storage(Storage::Host(buf), dims, T::DTYPE))
    }

    /// A CPU tensor from values in row-major order (the storage is aligned, so they are copied).
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_vec<T: Element>(values: Vec<T>, dims: &[usize]) -> Result<Tensor> {
        Self::from_slice(&values, dims)
    }

    /// The integers `start..start + n` as i64.
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn arange(start: i64, n: usize) -> Result<Tensor> {
        Self::from_vec((start..start + n as i64).collect(), &[n])
    }

    /// A tensor over a mapped file's bytes, without a copy where they are aligned for the dtype (else copied).
    ///
    /// # Errors
    /// When the range is outside the file or does not fit the shape.
    pub fn from_mapped(file: &MappedFile, offset: usize, dims: &[usize], dtype: DType) -> Result<Tensor> {
        let len = checked_numel("from_mapped", dims, dtype.size())? * dtype.size();
        let bytes =
            offset.checked_add(len).and_then(|end| file.bytes().get(offset..end)).ok_or_else(|| {
                Error::invalid("from_mapped", "offset", "and shape reach past the end of the file")
            })?;
        if (bytes.as_ptr() as usize).is_multiple_of(dtype.size()) {
            let storage = Storage::Mapped { file: file.clone(), offset, len };
            return Ok(Self::from_storage(storage, dims, dtype));
        }
        let mut buf = HostBuffer::new(len)?;
        buf.bytes_mut().copy_from_slice(bytes);
        Ok(Self::from_storage(Storage::Host(buf), dims, dtype))
    }

    pub(crate) fn from_storage(storage: Storage, dims: &[usize], dtype: DType) -> Tensor {
        Tensor { storage: Arc::new(storage), dtype, layout: Layout::contiguous(dims) }
    }

    /// Sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.layout.dims
    }

    /// Size of dimension `i`; panics when there is no such dimension (a programming error).
    pub fn dim(&self, i: usize) -> usize {
        self.layout.dims[i]
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.layout.dims.len()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.layout.numel()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device that holds the storage.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// Distance in elements along each dimension.
    pub fn strides(&self) -> &[usize] {
        &self.layout.strides
    }

    /// Row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// The dims as an array of known length, or a shape error that names the argument.
    ///
    /// # Errors
    /// When the rank differs.
    pub fn dims_n<const N: usize>(&self, op: &'static str, arg: &'static str) -> Result<[usize; N]> {
        <[usize; N]>::try_from(self.dims())
            .map_err(|_| Error::shape(op, arg, self.dims(), format!("{N} dimensions")))
    }

    fn check<T: Element>(&self, op: &'static str) -> Result<()> {
        self.device().require_cpu(op)?;
        if T::DTYPE != self.dtype {
            return Err(Error::dtype(op, "self", self.dtype, T::DTYPE.to_string()));
        }
        Ok(())
    }

    /// The elements of a contiguous tensor.
    ///
    /// # Errors
    /// When the dtype differs or the layout has gaps ([`Tensor::contiguous`] first).
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.check::<T>("as_slice")?;
        if !self.is_contiguous() {
            return Err(Error::invalid("as_slice", "self", "is a strided view; call contiguous() first"));
        }
        Ok(&self.all::<T>()[self.layout.offset..][..self.numel()])
    }

    /// The elements for writing in place.
    ///
    /// # Errors
    /// As [`Tensor::as_slice`], and when the storage is shared or mapped.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        self.check::<T>("as_mut_slice")?;
        if !self.is_contiguous() {
            return Err(Error::invalid("as_mut_slice", "self", "is a strided view; call contiguous() first"));
        }
        let (offset, n) = (self.layout.offset, self.numel());
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Host(b)) => {
                Ok(&mut bytemuck::cast_slice_mut::<u8, T>(b.bytes_mut())[offset..offset + n])
            }
            _ => Err(Error::Shared { op: "as_mut_slice" }),
        }
    }

    /// A strided view of the elements, for kernels.
    ///
    /// # Errors
    /// When the dtype differs.
    pub fn strided<T: Element>(&self) -> Result<Strided<'_, T>> {
        self.check::<T>("strided")?;
        let data = &self.all::<T>()[self.layout.offset..][..self.layout.span()];
        Ok(Strided { data, dims: self.dims(), strides: self.strides() })
    }

    /// Strided view whose innermost dimension is contiguous, copying into `keep` when it is not.
    ///
    /// # Errors
    /// When the dtype differs.
    pub fn strided_rows<'a, T: Element>(&'a self, keep: &'a mut Option<Tensor>) -> Result<Strided<'a, T>> {
        let last = self.rank().checked_sub(1);
        if last.is_none_or(|i| self.dim(i) <= 1 || self.strides()[i] == 1) {
            return self.strided();
        }
        keep.insert(self.contiguous()?).strided()
    }

    /// All elements of the storage.
    pub(crate) fn all<T: Element>(&self) -> &[T] {
        bytemuck::cast_slice(self.storage.host_bytes())
    }

    /// The elements in row-major order, whatever the layout.
    ///
    /// # Errors
    /// When the dtype differs.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.device() != Device::Cpu {
            return self.to_device(&Device::Cpu)?.to_vec();
        }
        self.check::<T>("to_vec")?;
        Ok(self.contiguous()?.as_slice::<T>()?.to_vec())
    }

    /// The elements as f64, whatever the dtype and layout.
    ///
    /// # Errors
    /// Memory, or a failure of the device's earlier work.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        if self.device() != Device::Cpu {
            return self.to_device(&Device::Cpu)?.to_f64_vec();
        }
        let t = self.contiguous()?;
        dispatch!(self.dtype, T => Ok(t.as_slice::<T>()?.iter().map(|x| x.to_f64()).collect()))
    }

    /// The single element as f64.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn to_scalar(&self) -> Result<f64> {
        match self.to_f64_vec()?[..] {
            [x] => Ok(x),
            _ => Err(Error::shape("to_scalar", "self", self.dims(), "a single element")),
        }
    }

    /// The little-endian bytes of a contiguous tensor (for writing files).
    ///
    /// # Errors
    /// When the layout has gaps.
    pub fn as_bytes(&self) -> Result<&[u8]> {
        dispatch!(self.dtype, T => Ok(bytemuck::cast_slice(self.as_slice::<T>()?)))
    }

    /// As [`Tensor::as_bytes`], for writing.
    pub(crate) fn as_bytes_mut(&mut self) -> Result<&mut [u8]> {
        dispatch!(self.dtype, T => Ok(bytemuck::cast_slice_mut(self.as_mut_slice::<T>()?)))
    }

    /// A copy with storage of its own.
    ///
    /// # Errors
    /// When memory is short.
    pub fn copy(&self) -> Result<Tensor> {
        if self.device() != Device::Cpu {
            let out = Tensor::empty(self.dims(), self.dtype, &self.device())?;
            cuda::copy_into("copy", self, &out)?;
            return Ok(out);
        }
        let src = self.contiguous()?;
        let mut out = Tensor::empty(self.dims(), self.dtype, &self.device())?;
        dispatch!(self.dtype, T => out.as_mut_slice::<T>()?.copy_from_slice(src.as_slice::<T>()?));
        Ok(out)
    }

    /// True when nobody else holds the storage and it can be written in place.
    pub fn is_unique(&mut self) -> bool {
        matches!(Arc::get_mut(&mut self.storage), Some(Storage::Host(_) | Storage::Cuda(_)))
    }

    /// Errors unless both tensors are on one device.
    pub(crate) fn same_device(&self, op: &'static str, other: &Tensor) -> Result<()> {
        if self.device() == other.device() {
            return Ok(());
        }
        Err(Error::DeviceMismatch { op, a: self.device(), b: other.device() })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?} on {}", self.dtype, self.dims(), self.device())?;
        // Printing must not wait for a device.
        if self.numel() <= 16
            && self.device() == Device::Cpu
            && let Ok(v) = self.to_f64_vec()
        {
            write!(f, " {v:?}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_counts_types_and_sharing_are_errors() {
        assert!(Tensor::from_vec(vec![1f32; 5], &[2, 3]).is_err());
        let mut t = Tensor::zeros(&[2, 3], DType::F32, &Device::Cpu).unwrap();
        assert!(t.as_slice::<f64>().is_err());
        let other = t.clone();
        assert!(matches!(t.as_mut_slice::<f32>(), Err(Error::Shared { .. })));
        drop(other);
        t.as_mut_slice::<f32>().unwrap()[5] = 2.0;
        assert_eq!(t.to_vec::<f32>().unwrap(), [0.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn mapped_files_are_borrowed_and_bounded() {
        let dir = std::env::temp_dir().join(format!("flashlin-map-{}", std::process::id()));
        std::fs::write(&dir, bytemuck::cast_slice::<f32, u8>(&[1.0, 2.0, 3.0])).unwrap();
        let f = MappedFile::open(&dir).unwrap();
        let t = Tensor::from_mapped(&f, 4, &[2], DType::F32).unwrap();
        assert_eq!(t.to_vec::<f32>().unwrap(), [2.0, 3.0]);
        assert!(matches!(*t.storage, Storage::Mapped { .. }));
        let odd = Tensor::from_mapped(&f, 1, &[2], DType::F32).unwrap();
        assert!(matches!(*odd.storage, Storage::Host(_)));
        assert!(Tensor::from_mapped(&f, 8, &[2], DType::F32).is_err());
        assert!(Tensor::from_mapped(&f, usize::MAX, &[2], DType::F32).is_err());
        std::fs::remove_file(dir).unwrap();
    }
}
