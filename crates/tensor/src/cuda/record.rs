//! Steps of a GPU that are recorded once and replayed as a whole (a CUDA graph): their inputs lie in places that do not move.
//!
//! Policy: what a step allocates belongs to the recording. Values that change from replay to replay are written into a [`Place`]; everything else that the
//! step read (weights, tables) must stay alive and unmoved as long as the recording is replayed, which is its owner's duty.

use flashlin_cuda::{Capture, Graph};

use super::{buffer, copy_into, gpu};
use crate::{Device, Error, Result, Tensor};

/// Recorded work of one GPU.
#[derive(Debug)]
pub struct Recording {
    graph: Graph,
}

impl Recording {
    /// Queues the work once more.
    ///
    /// # Errors
    /// A driver failure.
    pub fn replay(&self) -> Result<()> {
        self.graph.launch().map_err(Error::Cuda)
    }

    /// How many launches, copies and fills one replay is.
    pub fn nodes(&self) -> usize {
        self.graph.nodes()
    }
}

/// Records what `run` queues on the device without running it; tensors that it returns hold values after a replay. The same work must have run before,
/// so that kernels, tables and memory are there. `run` stays on this thread.
///
/// # Errors
/// Those of `run`; work that cannot be recorded (reading a result, sending from the host); a device that records already.
pub fn record<T, E: From<Error>>(
    device: &Device,
    run: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<(Recording, T), E> {
    let Device::Cuda(ordinal) = *device else {
        return Err(Error::unsupported("record", format!("device {device}"), "cuda:N").into());
    };
    let gpu = gpu(ordinal)?;
    // The driver's errors and those of the step, on one way out.
    let (graph, out) = gpu.capture(Capture::Arena, || run().map_err(Failed::Step)).map_err(|e| match e {
        Failed::Step(e) => e,
        Failed::Cuda(e) => Error::Cuda(e).into(),
    })?;
    Ok((Recording { graph }, out))
}

enum Failed<E> {
    Step(E),
    Cuda(flashlin_cuda::Error),
}

impl<E> From<flashlin_cuda::Error> for Failed<E> {
    fn from(e: flashlin_cuda::Error) -> Self {
        Failed::Cuda(e)
    }
}

/// A contiguous tensor of a GPU whose values may change under recorded work that reads it.
#[derive(Debug)]
pub struct Place(Tensor);

impl Place {
    /// Where this tensor lies. Others who hold it see its values change.
    ///
    /// # Errors
    /// When it is not on a GPU, or a strided view.
    pub fn of(tensor: Tensor) -> Result<Place> {
        buffer(&tensor)?;
        match tensor.is_contiguous() {
            true => Ok(Place(tensor)),
            false => Err(Error::invalid("Place", "tensor", "is a strided view; call contiguous() first")),
        }
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// Sends values from the host there, in the order of what is queued.
    ///
    /// # Errors
    /// Another shape or dtype; inside a capture.
    pub fn send(&self, values: &Tensor) -> Result<()> {
        self.fits(values)?;
        let (to, offset) = buffer(&self.0)?;
        to.write(offset, values.contiguous()?.as_bytes()?).map_err(Error::Cuda)
    }

    /// Copies the values of another tensor of the device there; recorded where a capture runs.
    ///
    /// # Errors
    /// Another shape, dtype or device.
    pub fn take_over(&self, values: &Tensor) -> Result<()> {
        self.fits(values)?;
        copy_into("take_over", values, &self.0)
    }

    fn fits(&self, values: &Tensor) -> Result<()> {
        if values.dims() != self.0.dims() {
            return Err(Error::shape("Place", "values", values.dims(), format!("{:?}", self.0.dims())));
        }
        if values.dtype != self.0.dtype {
            return Err(Error::dtype("Place", "values", values.dtype, self.0.dtype.to_string()));
        }
        Ok(())
    }
}
