//! The recurrent state of a sequence operator: a value with its layout in its type.

use std::{fmt, str::FromStr};

use flashlin_tensor::{DType, Error, Result, Tensor, Var};

/// Order of a recurrent state's two matrix dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StateLayout {
    /// `[N, H, K, V]`
    #[default]
    KV,
    /// `[N, H, V, K]` (`state_v_first`, formerly `transpose_state_layout`, in FLA)
    VK,
}

impl StateLayout {
    /// Shape of a state of `n` sequences and `h` heads.
    pub fn dims(self, n: usize, h: usize, k: usize, v: usize) -> [usize; 4] {
        match self {
            StateLayout::KV => [n, h, k, v],
            StateLayout::VK => [n, h, v, k],
        }
    }

    /// A state in this layout as KV, and the way back: a view.
    pub(crate) fn turned(self, state: &Tensor) -> Result<Tensor> {
        if self == StateLayout::KV { Ok(state.clone()) } else { state.transpose(2, 3) }
    }

    /// As [`StateLayout::turned`], in the graph.
    pub(crate) fn turned_var(self, state: &Var) -> Result<Var> {
        if self == StateLayout::KV { Ok(state.clone()) } else { state.transpose(2, 3) }
    }

    /// Distances between neighbours along K and along V in one head's matrix.
    pub fn strides(self, k: usize, v: usize) -> (usize, usize) {
        match self {
            StateLayout::KV => (v, 1),
            StateLayout::VK => (1, k),
        }
    }
}

impl fmt::Display for StateLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StateLayout::KV => "kv",
            StateLayout::VK => "vk",
        })
    }
}

impl FromStr for StateLayout {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "kv" => Ok(StateLayout::KV),
            "vk" => Ok(StateLayout::VK),
            _ => Err(Error::invalid("state layout", "layout", format!("is `{s}`, expected kv or vk"))),
        }
    }
}

/// A recurrent state: f32 (f64 where inputs are f64), one row a sequence.
#[derive(Clone, Debug)]
pub struct RecurrentState {
    /// `[N, H, K, V]` or `[N, H, V, K]`, as the layout says.
    pub value: Var,
    /// Which of the two.
    pub layout: StateLayout,
}

impl RecurrentState {
    /// Checks a state that came from outside against what an operator needs.
    ///
    /// # Errors
    /// When layout, shape or dtype differ; the layout is never guessed from the shape.
    pub fn check(
        &self,
        op: &'static str,
        layout: StateLayout,
        dims: [usize; 4],
        inputs: DType,
    ) -> Result<()> {
        if self.layout != layout {
            let why = format!("has layout {}, but {layout} was asked for", self.layout);
            return Err(Error::invalid(op, "initial_state", why));
        }
        if self.value.dims() != dims {
            let names = if layout == StateLayout::KV { "[N, H, K, V]" } else { "[N, H, V, K]" };
            return Err(Error::shape(op, "initial_state", self.value.dims(), format!("{dims:?} = {names}")));
        }
        let want = inputs.accumulator();
        if self.value.dtype() != want {
            return Err(Error::dtype(op, "initial_state", self.value.dtype(), want.to_string()));
        }
        Ok(())
    }
}

/// What a sequence operator returns.
#[derive(Clone, Debug)]
pub struct SeqOutput {
    /// Output `[B, T, HV, V]` in the dtype of `v`.
    pub o: Var,
    /// State after the last token of every sequence, where it was asked for.
    pub final_state: Option<RecurrentState>,
}
