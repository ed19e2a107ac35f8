//! What an operation keeps of its inputs for the backward pass.
//!
//! Policy: on a GPU, what a cheap operation made (a norm, a gated unit, a short convolution) is not kept by those who read it. They keep how to make it
//! again from what its own backward needs anyway: the arithmetic is nothing beside the products around it, the activations are most of the memory. A
//! kernel repeats its bits, so gradients are the same. On a CPU everything is kept: there arithmetic is dear and memory is not.

use std::sync::Arc;

use super::Var;
use crate::{Device, Result, Tensor};

/// Makes a value again.
pub(super) type Recipe = Arc<dyn Fn() -> Result<Tensor> + Send + Sync>;

/// An input as an operation keeps it.
#[derive(Clone)]
pub struct Saved {
    dims: Vec<usize>,
    kept: Kept,
}

#[derive(Clone)]
enum Kept {
    Here(Tensor),
    Again(Recipe),
}

impl Saved {
    /// Sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The value, made again where it was not kept.
    ///
    /// # Errors
    /// Those of the operation that made it.
    pub fn get(&self) -> Result<Tensor> {
        match &self.kept {
            Kept::Here(t) => Ok(t.clone()),
            Kept::Again(make) => make()?.reshape(&self.dims),
        }
    }
}

impl Var {
    /// Says how to make this value again from what the operation that made it keeps for its backward. `make` must not hold the value itself.
    #[must_use]
    pub fn made_by(mut self, make: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Var {
        if self.is_tracked() && self.device() != Device::Cpu {
            self.recipe = Some(Arc::new(make));
        }
        self
    }

    /// This value as an operation should keep it for its backward.
    pub fn saved(&self) -> Saved {
        let kept = match &self.recipe {
            Some(recipe) => Kept::Again(recipe.clone()),
            None => Kept::Here(self.tensor().clone()),
        };
        Saved { dims: self.dims().to_vec(), kept }
    }
}
