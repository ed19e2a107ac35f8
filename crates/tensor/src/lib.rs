//! Arrays on a device, random numbers and reverse-mode autograd: the ground every flashlin crate stands on.
//!
//! [`Tensor`] is an array (dtype, shape, strides, storage on one [`Device`]) and knows nothing of gradients.
//! [`Var`] is a tensor with an optional graph node; a differentiable operation has many inputs and many outputs
//! and is recorded with [`Var::from_op`]. Nothing here knows a model.
//!
//! Policy: results do not depend on the number of threads (fixed block sizes, fixed reduction order); half
//! precision is stored, never accumulated; user input never panics.

mod autograd;
pub mod checks;
pub mod cpu;
pub mod cuda;
mod device;
mod dtype;
mod elementwise;
mod error;
mod index;
mod layout;
mod matmul;
mod random;
mod reduce;
mod storage;
mod tensor;
mod view;

pub use autograd::{
    Backward, BackwardCtx, Gradients, Parameter, Saved, Var, checkpoint, grad_enabled, in_pool, no_grad,
};
pub use device::Device;
pub use dtype::{DType, Element, Real};
pub use error::{Error, ErrorKind, Result};
pub use layout::Strided;
pub use matmul::rows_alike;
pub use random::Philox;
pub use storage::{MappedFile, poison_outputs};
pub use tensor::Tensor;
