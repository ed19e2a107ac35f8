//! Arrays on an NVIDIA GPU: what the operations of this crate launch there, and [`Launcher`], through which operators of other crates do.
//!
//! Policy: an operation without a kernel for what is asked is an error that names it, never a copy to the host. Nothing waits for the
//! device but reading values ([`Tensor::to_vec`] and its kin). Kernels count elements in 32 bits; longer arrays are cut by the host
//! where the operation allows it, else refused.

pub mod adamw;
mod array;
mod kept;
mod launcher;
mod matmul;
mod record;
mod rows;
#[cfg(test)]
mod tests;
mod thin;

pub use flashlin_cuda::Arg;
use flashlin_cuda::{Buffer, Gpu};
pub use flashlin_kernels::{Kernel, Result as KernelResult, plan};
pub use kept::kept;
pub use launcher::{Launcher, Operands};
pub use matmul::{Products, products, set_products};
pub use record::{Place, Recording, record};

pub(crate) use array::{compare, copy_into, select, sum_all, unary, zip};
pub(crate) use matmul::product;
pub(crate) use rows::{gather, max_last, scatter_add, sum};
pub use thin::thin;
pub(crate) use thin::thin_linear;

use crate::{Device, Error, Result, Tensor, storage::Storage};

/// The device of this ordinal.
pub(crate) fn gpu(ordinal: usize) -> Result<Gpu> {
    Gpu::open(ordinal).map_err(Error::Cuda)
}

/// A buffer of the device, for tensors.
pub(crate) fn alloc(ordinal: usize, bytes: usize) -> Result<Storage> {
    Ok(Storage::Cuda(gpu(ordinal)?.alloc(bytes).map_err(Error::Cuda)?))
}

/// The same filled with zeros.
pub(crate) fn zeros(ordinal: usize, bytes: usize) -> Result<Storage> {
    Ok(Storage::Cuda(gpu(ordinal)?.zeros(bytes).map_err(Error::Cuda)?))
}

impl Tensor {
    /// The values on `device`: this tensor itself where it is there already, else a row-major copy. From a GPU this waits for everything
    /// queued there.
    ///
    /// # Errors
    /// Memory, a device that is not there, a strided view that no kernel gathers.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        if self.device() == *device {
            return Ok(self.clone());
        }
        let t = self.contiguous()?;
        let bytes = t.numel() * t.dtype.size();
        match (&*t.storage, device) {
            (Storage::Cuda(b), Device::Cpu) => {
                let mut out = Tensor::empty(self.dims(), self.dtype, device)?;
                b.read(t.layout.offset * t.dtype.size(), out.as_bytes_mut()?).map_err(Error::Cuda)?;
                Ok(out)
            }
            (Storage::Cuda(_), _) => t.to_device(&Device::Cpu)?.to_device(device),
            (_, Device::Cuda(ordinal)) => {
                let buffer = gpu(*ordinal)?.alloc(bytes).map_err(Error::Cuda)?;
                buffer.write(0, t.as_bytes()?).map_err(Error::Cuda)?;
                Ok(Self::from_storage(Storage::Cuda(buffer), self.dims(), self.dtype))
            }
            _ => Err(Error::unsupported("to_device", format!("device {device}"), "cpu, cuda:N")),
        }
    }

    /// Where the elements begin on the device, for launches.
    ///
    /// # Errors
    /// When the tensor is not on a GPU.
    pub fn device_address(&self) -> Result<u64> {
        let (buffer, offset) = buffer(self)?;
        Ok(buffer.address() + offset as u64)
    }
}

/// The buffer behind a tensor of a GPU, and where its first element lies in it, in bytes.
fn buffer(t: &Tensor) -> Result<(&Buffer, usize)> {
    match &*t.storage {
        Storage::Cuda(b) => Ok((b, t.layout.offset * t.dtype.size())),
        _ => Err(Error::unsupported("a launch", "a tensor of the host", "tensors of one GPU")),
    }
}

fn too_long(op: &'static str, n: usize) -> Error {
    Error::unsupported(op, format!("{n} elements in one array of a GPU"), "up to 2^31 - 1")
}
