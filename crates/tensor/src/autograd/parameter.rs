//! Named, updatable leaves.

use std::sync::{Arc, PoisonError, RwLock};

use super::{Edge, Node, Var};
use crate::{DType, Error, Result, Tensor};

/// A trainable tensor with a name. It keeps its identity for gradients while its value is replaced or updated
/// in place.
pub struct Parameter {
    name: String,
    leaf: Arc<Node>,
    value: RwLock<Tensor>,
}

impl Parameter {
    /// A parameter with its initial value.
    pub fn new(name: impl Into<String>, value: Tensor) -> Self {
        Parameter { name: name.into(), leaf: Node::leaf(&value), value: RwLock::new(value) }
    }

    /// Its name (the key in a checkpoint).
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn leaf_id(&self) -> u64 {
        self.leaf.id
    }

    /// The current value.
    pub fn tensor(&self) -> Tensor {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The current value as a tracked variable.
    pub fn var(&self) -> Var {
        Var { tensor: self.tensor(), edge: Some(Edge { node: self.leaf.clone(), slot: 0 }), recipe: None }
    }

    /// Sizes of the dimensions.
    pub fn dims(&self) -> Vec<usize> {
        self.leaf.outputs[0].dims.clone()
    }

    /// Element type of the value.
    pub fn dtype(&self) -> DType {
        self.value.read().unwrap_or_else(PoisonError::into_inner).dtype()
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// When the shape differs.
    pub fn set(&self, value: Tensor) -> Result<()> {
        let dims = &self.leaf.outputs[0].dims;
        if value.dims() != dims {
            return Err(Error::shape("set", "value", value.dims(), format!("{dims:?} as `{}`", self.name)));
        }
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = value;
        Ok(())
    }

    /// Changes the value in place; it is copied first where its storage is shared or mapped from a file.
    ///
    /// # Errors
    /// Those of `f`, or when memory is short.
    pub fn update<R>(&self, f: impl FnOnce(&mut Tensor) -> Result<R>) -> Result<R> {
        let mut value = self.value.write().unwrap_or_else(PoisonError::into_inner);
        if !value.is_unique() || !value.is_contiguous() {
            *value = value.copy()?;
        }
        f(&mut value)
    }
}

impl std::fmt::Debug for Parameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parameter({} {} {:?})", self.name, self.dtype(), self.leaf.outputs[0].dims)
    }
}
