//! The backward pass: nodes in the reverse order of their creation, from a heap.

use std::{
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use super::{Edge, GradMode, Node, OutputMeta, Parameter, Var};
use crate::{DType, Device, Error, Result, Tensor};

/// Gradients of leaves, kept in f32 for half-precision leaves.
#[derive(Default, Debug)]
pub struct Gradients {
    by_leaf: HashMap<u64, Tensor>,
}

impl Gradients {
    /// Gradient of a leaf made with [`Var::leaf`], or None when nothing flowed to it.
    pub fn get(&self, leaf: &Var) -> Option<&Tensor> {
        self.by_leaf.get(&leaf.edge.as_ref()?.node.id)
    }

    /// Gradient of a parameter.
    pub fn get_param(&self, p: &Parameter) -> Option<&Tensor> {
        self.by_leaf.get(&p.leaf_id())
    }

    /// Takes the gradient of a parameter out.
    pub fn take_param(&mut self, p: &Parameter) -> Option<Tensor> {
        self.by_leaf.remove(&p.leaf_id())
    }

    /// Sets the gradient of a parameter (a resumed accumulation, a test).
    ///
    /// # Errors
    /// When the shape is not the parameter's.
    pub fn set_param(&mut self, p: &Parameter, grad: Tensor) -> Result<()> {
        let dims = p.dims();
        if grad.dims() != dims {
            return Err(Error::shape("set_param", "grad", grad.dims(), format!("{dims:?}")));
        }
        self.by_leaf.insert(p.leaf_id(), grad);
        Ok(())
    }

    /// Adds another set of gradients (gradient accumulation over micro-batches).
    ///
    /// # Errors
    /// When memory is short.
    pub fn add(&mut self, other: Gradients) -> Result<()> {
        for (id, g) in other.by_leaf {
            self.accumulate_leaf(id, g)?;
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Tensor> {
        self.by_leaf.remove(&id)
    }

    fn accumulate_leaf(&mut self, id: u64, grad: Tensor) -> Result<()> {
        let grad = grad.to_dtype(grad.dtype().accumulator())?;
        match self.by_leaf.remove(&id) {
            Some(sum) => self.by_leaf.insert(id, sum_grads(sum, grad)?),
            None => self.by_leaf.insert(id, grad),
        };
        Ok(())
    }
}

/// What flowed to one output, in the order in which it came: one pass over memory on a GPU, which rounds to `dtype` once.
pub(super) fn sum_of(parts: Vec<Tensor>, dtype: DType) -> Result<Option<Tensor>> {
    let on_gpu = |t: &Tensor| t.device() != Device::Cpu && t.dtype() == dtype && dtype != DType::F64;
    if parts.len() > 1 && parts.iter().all(on_gpu) {
        return Ok(Some(crate::cuda::sum_all("gradient", &parts)?));
    }
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else { return Ok(None) };
    Ok(Some(parts.try_fold(first, sum_grads)?.to_dtype(dtype)?))
}

/// Sum of two gradients, in f32 for half precision, reusing the first's storage where nobody else holds it.
fn sum_grads(a: Tensor, b: Tensor) -> Result<Tensor> {
    let mut a = a.to_dtype(a.dtype().accumulator())?;
    let b = b.to_dtype(a.dtype())?;
    if a.is_contiguous() && a.is_unique() {
        a.add_in_place(&b)?;
        return Ok(a);
    }
    a.add(&b)
}

/// What a backward may ask of the pass it runs in.
pub struct BackwardCtx<'a> {
    needs: Vec<bool>,
    outputs: &'a [OutputMeta],
    leaves: &'a mut Gradients,
}

impl BackwardCtx<'_> {
    /// True when input `i` wants a gradient; others may be skipped.
    pub fn needs(&self, i: usize) -> bool {
        self.needs.get(i).copied().unwrap_or(false)
    }

    /// The gradient of output `i`, zeros where nothing flowed back.
    ///
    /// # Errors
    /// When memory is short.
    pub fn or_zeros(&self, i: usize, grads: &mut [Option<Tensor>]) -> Result<Tensor> {
        match grads.get_mut(i).and_then(Option::take) {
            Some(g) => Ok(g),
            None => {
                let m = &self.outputs[i];
                Tensor::zeros(&m.dims, m.dtype, &m.device)
            }
        }
    }

    /// Where nested passes (recomputation) leave the gradients of parameters.
    pub(super) fn leaves(&mut self) -> &mut Gradients {
        self.leaves
    }
}

/// A node waiting for its turn; the heap pops the latest-made first.
struct Ready(Arc<Node>);

impl PartialEq for Ready {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}
impl Eq for Ready {}
impl PartialOrd for Ready {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ready {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

#[derive(Default)]
struct Pass {
    heap: BinaryHeap<Ready>,
    pending: HashMap<u64, Vec<Vec<Tensor>>>,
}

impl Pass {
    fn send(&mut self, edge: Edge, grad: Tensor, leaves: &mut Gradients) -> Result<()> {
        let Edge { node, slot } = edge;
        let meta = &node.outputs[slot];
        if grad.dims() != meta.dims {
            return Err(Error::shape(node.op, "gradient", grad.dims(), format!("{:?}", meta.dims)));
        }
        if node.leaf {
            return leaves.accumulate_leaf(node.id, grad);
        }
        let slots = self.pending.entry(node.id).or_insert_with(|| {
            self.heap.push(Ready(node.clone()));
            vec![Vec::new(); node.outputs.len()]
        });
        slots[slot].push(grad);
        Ok(())
    }

    fn run(&mut self, leaves: &mut Gradients) -> Result<()> {
        while let Some(Ready(node)) = self.heap.pop() {
            let parts = self.pending.remove(&node.id).unwrap_or_default();
            let grads = parts.into_iter().zip(&node.outputs).map(|(g, meta)| sum_of(g, meta.dtype));
            let grads = grads.collect::<Result<Vec<_>>>()?;
            let body = node.take_body().ok_or(Error::GraphFreed { op: node.op })?;
            let needs: Vec<bool> = body.inputs.iter().map(Option::is_some).collect();
            let mut ctx = BackwardCtx { needs, outputs: &node.outputs, leaves };
            let input_grads = body.backward.backward(&mut ctx, grads)?;
            if input_grads.len() != body.inputs.len() {
                let why = format!("gave {} gradients for {} inputs", input_grads.len(), body.inputs.len());
                return Err(Error::invalid(node.op, "backward", why));
            }
            for (edge, grad) in body.inputs.into_iter().zip(input_grads) {
                if let (Some(edge), Some(grad)) = (edge, grad) {
                    self.send(edge, grad, leaves)?;
                }
            }
        }
        Ok(())
    }
}

/// Runs a pass from `roots`, adding leaf gradients to `leaves`.
pub(super) fn run(roots: Vec<(&Var, Tensor)>, leaves: &mut Gradients) -> Result<()> {
    let _mode = GradMode::set(false);
    let mut pass = Pass::default();
    for (var, grad) in roots {
        if let Some(edge) = &var.edge {
            pass.send(edge.clone(), grad, leaves)?;
        }
    }
    pass.run(leaves)
}

impl Var {
    /// Gradients of this scalar with respect to every leaf it depends on. Frees the graph.
    ///
    /// # Errors
    /// When this is no scalar or not tracked, when the graph was already used, or when a backward fails.
    pub fn backward(&self) -> Result<Gradients> {
        if self.tensor.numel() != 1 {
            return Err(Error::shape("backward", "self", self.dims(), "a scalar; or use backward_with"));
        }
        let one = Tensor::ones(self.dims(), self.dtype(), &self.device())?;
        Self::backward_with(vec![(self, one)])
    }

    /// Gradients of a weighted sum of several variables: each comes with the gradient that flows into it.
    ///
    /// # Errors
    /// As [`Var::backward`].
    pub fn backward_with(roots: Vec<(&Var, Tensor)>) -> Result<Gradients> {
        if roots.iter().all(|(v, _)| !v.is_tracked()) {
            return Err(Error::invalid("backward", "self", "is not tracked: no input of it was a leaf"));
        }
        let mut leaves = Gradients::default();
        run(roots, &mut leaves)?;
        Ok(leaves)
    }

    /// Gradients that are themselves differentiable: not available, and said so.
    ///
    /// # Errors
    /// Always [`Error::Unsupported`].
    pub fn backward_create_graph(&self) -> Result<Gradients> {
        Err(Error::unsupported("backward", "second derivatives (create_graph)", "first derivatives"))
    }
}
