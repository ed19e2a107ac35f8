//! A model's state as a value: named tensors per layer with kind and layout, one row a sequence. It forks by an
//! explicit call, is never copied behind the caller's back, and knows how to be saved.

use flashlin_ops::{RecurrentState, StateLayout};
use flashlin_tensor::{DType, Device, Tensor, Var, cuda};

use crate::{Error, Result};

/// Version of the meaning of state tensors; a saved state of another version is refused.
pub const STATE_VERSION: u32 = 1;

/// What a state tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StateKind {
    /// A recurrence's matrix (or vector) state; its size does not depend on the length.
    Recurrent,
    /// The last inputs of a short convolution.
    Conv,
    /// The last token that a token shift saw.
    Shift,
    /// Keys or values of softmax attention; grows with the length unless windowed.
    KeyValue,
    /// A number per row.
    Counter,
}

impl StateKind {
    /// Name in saved states.
    pub fn name(self) -> &'static str {
        match self {
            StateKind::Recurrent => "recurrent",
            StateKind::Conv => "conv",
            StateKind::Shift => "shift",
            StateKind::KeyValue => "kv",
            StateKind::Counter => "counter",
        }
    }
}

/// Declares one tensor of a layer's state.
#[derive(Clone, Debug)]
pub struct StateSpec {
    /// Name within the layer.
    pub name: &'static str,
    /// What it is.
    pub kind: StateKind,
    /// Order of the matrix dimensions, for recurrent states.
    pub layout: Option<StateLayout>,
    /// Shape after the leading row dimension.
    pub dims: Vec<usize>,
    /// Element type.
    pub dtype: DType,
}

/// One tensor of a layer's state.
#[derive(Clone, Debug)]
pub struct StateTensor {
    /// What was declared.
    pub spec: StateSpec,
    /// `[rows, dims..]`; for key/value tensors the second dimension is a capacity.
    pub value: Var,
}

/// The state of one layer.
#[derive(Clone, Debug, Default)]
pub struct LayerState {
    tensors: Vec<StateTensor>,
}

impl LayerState {
    /// Zeros for `rows` sequences. Counters stay on the host: they decide what is launched.
    ///
    /// # Errors
    /// When memory is short.
    pub fn zeros(specs: Vec<StateSpec>, rows: usize, device: &Device) -> Result<Self> {
        let tensors = specs.into_iter().map(|spec| {
            let dims: Vec<usize> = std::iter::once(rows).chain(spec.dims.iter().copied()).collect();
            let device = if spec.kind == StateKind::Counter { &Device::Cpu } else { device };
            let value = Var::constant(Tensor::zeros(&dims, spec.dtype, device)?);
            Ok(StateTensor { spec, value })
        });
        Ok(LayerState { tensors: tensors.collect::<Result<_>>()? })
    }

    /// Of tensors that belong together.
    pub(crate) fn of(tensors: Vec<StateTensor>) -> Self {
        LayerState { tensors }
    }

    /// The tensors in declared order.
    pub fn tensors(&self) -> &[StateTensor] {
        &self.tensors
    }

    /// The tensors in declared order, for replacing values.
    pub fn tensors_mut(&mut self) -> &mut [StateTensor] {
        &mut self.tensors
    }

    fn slot(&mut self, name: &str) -> Result<&mut StateTensor> {
        self.tensors
            .iter_mut()
            .find(|t| t.spec.name == name)
            .ok_or_else(|| Error::state(format!("the layer's state has no tensor `{name}`")))
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// When the layer declares none of this name.
    pub fn get(&mut self, name: &str) -> Result<Var> {
        Ok(self.slot(name)?.value.clone())
    }

    /// Takes a tensor out, leaving an empty one, so that it can be updated in place.
    ///
    /// # Errors
    /// When the layer declares none of this name.
    pub fn take(&mut self, name: &str) -> Result<Var> {
        let slot = self.slot(name)?;
        let empty = Tensor::zeros(&[0], slot.spec.dtype, &slot.value.device())?;
        Ok(std::mem::replace(&mut slot.value, Var::constant(empty)))
    }

    /// Replaces a tensor.
    ///
    /// # Errors
    /// When the layer declares none of this name.
    pub fn set(&mut self, name: &str, value: Var) -> Result<()> {
        self.slot(name)?.value = value;
        Ok(())
    }

    /// Takes a recurrent state out, as [`LayerState::take`], with its layout.
    ///
    /// # Errors
    /// When the layer declares no such recurrent state.
    pub fn take_recurrent(&mut self, name: &str) -> Result<RecurrentState> {
        let layout = self.slot(name)?.spec.layout;
        let layout = layout.ok_or_else(|| Error::state(format!("`{name}` is no recurrent state")))?;
        Ok(RecurrentState { value: self.take(name)?, layout })
    }
}

/// The state of a whole model for some number of sequences.
#[derive(Debug)]
pub struct ModelState {
    pub(crate) layers: Vec<LayerState>,
    pub(crate) seen: Vec<usize>,
}

impl ModelState {
    /// Number of sequences.
    pub fn rows(&self) -> usize {
        self.seen.len()
    }

    /// Tokens that each sequence has consumed.
    pub fn seen(&self) -> &[usize] {
        &self.seen
    }

    /// The layers' states.
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    /// The layers' states, for replacing values (a loader, a trainer that cuts or tracks them).
    pub fn layers_mut(&mut self) -> &mut [LayerState] {
        &mut self.layers
    }

    /// A copy with storage of its own.
    ///
    /// # Errors
    /// When memory is short.
    pub fn fork(&self) -> Result<ModelState> {
        self.map(|v| Ok(Var::constant(v.tensor().copy()?)))
    }

    /// The same values without history: truncates the gradient.
    ///
    /// # Errors
    /// None today; kept fallible as the other transformations are.
    pub fn detach(&self) -> Result<ModelState> {
        self.map(|v| Ok(v.detach()))
    }

    /// The same values as fresh leaves: the gradient that arrives at them can be carried to an earlier segment.
    ///
    /// # Errors
    /// When a layer is softmax attention, whose keys and values are constants once they are in the state.
    pub fn as_leaves(&self) -> Result<ModelState> {
        let mut all = self.layers.iter().flat_map(|l| &l.tensors);
        if all.any(|t| t.spec.kind == StateKind::KeyValue) {
            return Err(Error::unsupported(
                "a gradient through the state of softmax attention",
                "truncated segments (the state is a constant), or models without attention layers",
            ));
        }
        self.map(|v| Ok(Var::leaf(v.tensor().clone())))
    }

    /// Some of the rows, in the given order (rows may repeat: one prompt, several continuations).
    ///
    /// # Errors
    /// When a row does not exist.
    pub fn select(&self, rows: &[usize]) -> Result<ModelState> {
        let index: Vec<i64> = rows.iter().map(|&r| r as i64).collect();
        let index = Tensor::from_vec(index, &[rows.len()])?;
        let mut out =
            self.map(|v| Ok(Var::constant(v.tensor().index_select(&cuda::kept(&index, &v.device())?)?)))?;
        out.seen = rows.iter().map(|&r| self.seen[r]).collect();
        Ok(out)
    }

    fn map(&self, f: impl Fn(&Var) -> Result<Var>) -> Result<ModelState> {
        let layer = |l: &LayerState| -> Result<LayerState> {
            let one = |t: &StateTensor| Ok(StateTensor { spec: t.spec.clone(), value: f(&t.value)? });
            Ok(LayerState { tensors: l.tensors.iter().map(one).collect::<Result<_>>()? })
        };
        Ok(ModelState {
            layers: self.layers.iter().map(layer).collect::<Result<_>>()?,
            seen: self.seen.clone(),
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let one = |t: &StateTensor| t.value.tensor().numel() * t.value.dtype().size();
        self.layers.iter().flat_map(|l| &l.tensors).map(one).sum()
    }

    /// Every tensor with its saved name, `layers.{i}.{name}`.
    pub fn named(&self) -> Vec<(String, &StateTensor)> {
        let layers = self.layers.iter().enumerate();
        layers
            .flat_map(|(i, l)| l.tensors.iter().map(move |t| (format!("layers.{i}.{}", t.spec.name), t)))
            .collect()
    }

    /// Replaces every value by `load(name, spec)`, as a state file does; shapes and dtypes are checked against what
    /// the model declares (a key/value tensor's capacity is free).
    ///
    /// # Errors
    /// Those of `load`, and a tensor that does not fit.
    pub fn restore(
        &mut self,
        seen: Vec<usize>,
        load: impl Fn(&str, &StateSpec) -> Result<Tensor>,
    ) -> Result<()> {
        let rows = seen.len();
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for t in &mut layer.tensors {
                let name = format!("layers.{i}.{}", t.spec.name);
                let value = load(&name, &t.spec)?;
                let grows = t.spec.kind == StateKind::KeyValue;
                let mut want = t.spec.dims.clone();
                if grows && value.rank() == want.len() + 1 {
                    want[0] = value.dim(1);
                }
                want.insert(0, rows);
                if value.dims() != want || value.dtype() != t.spec.dtype {
                    let why = format!(
                        "state tensor `{name}` is {} {:?}, expected {} {want:?}",
                        value.dtype(),
                        value.dims(),
                        t.spec.dtype
                    );
                    return Err(Error::state(why));
                }
                t.value = Var::constant(value.to_device(&t.value.device())?);
            }
        }
        self.seen = seen;
        Ok(())
    }
}
