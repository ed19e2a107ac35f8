//! Reverse-mode differentiation. A [`Var`] is a tensor with an optional edge to the node that made it; a node is
//! one call of a differentiable operation with many inputs and many outputs.
//!
//! Policy: recording costs nothing when nothing is tracked or under [`no_grad`]; the backward pass is iterative
//! (any depth), frees what an operation saved as soon as it has run, and visits nodes in the reverse order of
//! their creation, so sums of gradients have a fixed order. A graph serves one backward pass; second derivatives
//! are refused. A gradient is never dropped silently: see [`Var::refuse_tracked`].

mod backward;
mod checkpoint;
mod functions;
mod parameter;
mod saved;

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

pub use backward::{BackwardCtx, Gradients};
pub use checkpoint::checkpoint;
pub use parameter::Parameter;
pub use saved::Saved;

use crate::{DType, Device, Error, Result, Tensor};

/// The backward of one recorded operation, holding what forward saved.
pub trait Backward: Send + Sync {
    /// Turns gradients of the outputs (None where nothing flowed back) into gradients of the inputs, one entry
    /// an input; None where an input gets none. Each gradient has its input's shape and dtype.
    ///
    /// # Errors
    /// Whatever its kernels report.
    fn backward(
        self: Box<Self>,
        ctx: &mut BackwardCtx<'_>,
        grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>>;
}

/// Closures are backwards: `|ctx, grads| Ok(vec![...])`.
impl<F> Backward for F
where
    F: FnOnce(&mut BackwardCtx<'_>, Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> + Send + Sync,
{
    fn backward(
        self: Box<Self>,
        ctx: &mut BackwardCtx<'_>,
        grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        self(ctx, grads)
    }
}

/// A tensor that may remember how it was made.
#[derive(Clone)]
pub struct Var {
    tensor: Tensor,
    edge: Option<Edge>,
    /// How to make the value again, where that is cheaper than keeping it.
    recipe: Option<saved::Recipe>,
}

#[derive(Clone)]
pub(crate) struct Edge {
    node: Arc<Node>,
    slot: usize,
}

/// What an output looks like, for checking and for zero gradients.
#[derive(Clone)]
struct OutputMeta {
    dims: Vec<usize>,
    dtype: DType,
    device: Device,
}

pub(crate) struct Node {
    id: u64,
    op: &'static str,
    leaf: bool,
    outputs: Vec<OutputMeta>,
    body: Mutex<Option<Body>>,
}

/// What a backward pass consumes.
struct Body {
    inputs: Vec<Option<Edge>>,
    backward: Box<dyn Backward>,
}

impl Node {
    fn next_id() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    fn meta(t: &Tensor) -> OutputMeta {
        OutputMeta { dims: t.dims().to_vec(), dtype: t.dtype(), device: t.device() }
    }

    fn leaf(t: &Tensor) -> Arc<Node> {
        Arc::new(Node {
            id: Self::next_id(),
            op: "leaf",
            leaf: true,
            outputs: vec![Self::meta(t)],
            body: Mutex::new(None),
        })
    }

    fn take_body(&self) -> Option<Body> {
        self.body.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

impl Drop for Node {
    /// Unlinks iteratively: a long chain of nodes must not recurse once per node.
    fn drop(&mut self) {
        let mut pending: Vec<Body> = self.take_body().into_iter().collect();
        while let Some(body) = pending.pop() {
            for edge in body.inputs.into_iter().flatten() {
                if let Some(node) = Arc::into_inner(edge.node) {
                    pending.extend(node.take_body());
                }
            }
        }
    }
}

thread_local! {
    static GRAD: Cell<bool> = const { Cell::new(true) };
}

/// True when operations on tracked inputs are recorded on this thread.
pub fn grad_enabled() -> bool {
    GRAD.get()
}

struct GradMode(bool);

impl GradMode {
    fn set(on: bool) -> Self {
        GradMode(GRAD.replace(on))
    }
}

impl Drop for GradMode {
    fn drop(&mut self) {
        GRAD.set(self.0);
    }
}

/// Runs `f` without recording anything.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    let _mode = GradMode::set(false);
    f()
}

/// Runs `f` on a thread of the pool, with the calling thread's mode of recording. Work that starts many short parallel
/// loops, as a decode step does, then takes part in them instead of sleeping until each is done.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        return f();
    }
    let recording = grad_enabled();
    rayon::scope(|_| {
        let _mode = GradMode::set(recording);
        f()
    })
}

impl Var {
    /// A value that wants no gradient.
    pub fn constant(tensor: Tensor) -> Var {
        Var { tensor, edge: None, recipe: None }
    }

    /// A value whose gradient is wanted ([`Gradients::get`]).
    pub fn leaf(tensor: Tensor) -> Var {
        let node = Node::leaf(&tensor);
        Var { tensor, edge: Some(Edge { node, slot: 0 }), recipe: None }
    }

    /// The array.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The array, by value.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// The array, for writing in place; None where somebody else could see it: its history, or another holder of the
    /// storage.
    pub fn exclusive_mut(&mut self) -> Option<&mut Tensor> {
        let own = !self.is_tracked() && self.tensor.is_contiguous() && self.tensor.is_unique();
        if own { Some(&mut self.tensor) } else { None }
    }

    /// True when a gradient would flow back from here.
    pub fn is_tracked(&self) -> bool {
        self.edge.is_some()
    }

    /// The same array without its history.
    pub fn detach(&self) -> Var {
        Var::constant(self.tensor.clone())
    }

    /// Sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// Size of dimension `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.tensor.dim(i)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Device that holds the storage.
    pub fn device(&self) -> Device {
        self.tensor.device()
    }

    /// Records one call of a differentiable operation: `outputs` were computed from `inputs`, and `backward`
    /// makes its reverse. The closure runs only when something is tracked and recording is on.
    pub fn from_op(
        op: &'static str,
        inputs: &[&Var],
        outputs: Vec<Tensor>,
        backward: impl FnOnce() -> Box<dyn Backward>,
    ) -> Vec<Var> {
        if !grad_enabled() || inputs.iter().all(|v| v.edge.is_none()) {
            return outputs.into_iter().map(Var::constant).collect();
        }
        Self::record(op, inputs, outputs, backward())
    }

    fn record(
        op: &'static str,
        inputs: &[&Var],
        outputs: Vec<Tensor>,
        backward: Box<dyn Backward>,
    ) -> Vec<Var> {
        let body = Body { inputs: inputs.iter().map(|v| v.edge.clone()).collect(), backward };
        let node = Arc::new(Node {
            id: Node::next_id(),
            op,
            leaf: false,
            outputs: outputs.iter().map(Node::meta).collect(),
            body: Mutex::new(Some(body)),
        });
        let track = |(slot, tensor): (usize, Tensor)| {
            let edge = tensor.dtype().is_float().then(|| Edge { node: node.clone(), slot });
            Var { tensor, edge, recipe: None }
        };
        outputs.into_iter().enumerate().map(track).collect()
    }

    /// [`Var::from_op`] for one output.
    pub fn from_op1(
        op: &'static str,
        inputs: &[&Var],
        output: Tensor,
        backward: impl FnOnce() -> Box<dyn Backward>,
    ) -> Var {
        let mut outputs = Self::from_op(op, inputs, vec![output], backward);
        outputs.swap_remove(0)
    }

    /// For operations without a backward: an error as soon as an input is tracked while recording is on.
    ///
    /// # Errors
    /// [`Error::NoBackward`].
    pub fn refuse_tracked(op: &'static str, inputs: &[&Var]) -> Result<()> {
        match inputs.iter().position(|v| v.edge.is_some()) {
            Some(input) if grad_enabled() => Err(Error::NoBackward { op, input }),
            _ => Ok(()),
        }
    }
}

impl From<Tensor> for Var {
    fn from(t: Tensor) -> Var {
        Var::constant(t)
    }
}

impl fmt::Debug for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = self.edge.as_ref().map_or("constant", |e| e.node.op);
        write!(f, "Var<{how}>({:?})", self.tensor)
    }
}

#[cfg(test)]
mod tests;
