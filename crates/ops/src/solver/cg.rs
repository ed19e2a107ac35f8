//! Conjugate gradients over all tokens at once, and their derivative by the implicit function theorem.
//!
//! Policy: the derivative is that of the exact solution. Its right-hand sides are brought to unit length first: the constant that keeps divisions from
//! failing would otherwise stop the solver where gradients are small.

use flashlin_tensor::{BackwardCtx, Result, Tensor, Var, no_grad};

use crate::decay::{DecayArgs, decay_attention};
use crate::recurrence::recorded;
use crate::{Mode, PackedSeqs, RecurrentState};

/// Added to denominators, as the peer does.
const EPS: f64 = 1e-5;
/// The same for gradients.
const EPS_BACKWARD: f64 = 1e-30;

/// `A_t + diag(lambda)` of every token, through products with it.
#[derive(Clone)]
pub(super) enum System {
    /// `A_t` decays and grows along T.
    Tokens(Box<Tokens>),
    /// `A [N, H, K, K]`, lambda `[1, H, 1, K]`; vectors are `[N, H, 1, K]`.
    Given { kk: Var, lambda: Var },
}

/// What makes the `A_t` of whole sequences.
#[derive(Clone)]
pub(super) struct Tokens {
    pub k: Var,
    /// `beta k`
    pub written: Var,
    pub g: Var,
    /// `[H, K]`
    pub lambda: Var,
    pub first: Option<RecurrentState>,
    pub seqs: Option<PackedSeqs>,
    pub chunk_size: usize,
}

impl System {
    fn times(&self, x: &Var) -> Result<Var> {
        match self {
            System::Given { kk, lambda } => x.matmul(kk)?.add(&x.mul(lambda)?),
            System::Tokens(t) => {
                let args = DecayArgs {
                    g: Some(&t.g),
                    scale: Some(1.0),
                    initial_state: t.first.as_ref(),
                    seqs: t.seqs.as_ref(),
                    mode: Mode::Chunk,
                    chunk_size: t.chunk_size,
                    ..DecayArgs::new(x, &t.k, &t.written)
                };
                decay_attention(args)?.o.add(&x.mul(&t.lambda)?)
            }
        }
    }

    /// The inputs that gradients flow to, beside the right-hand side.
    fn vars(&self) -> Vec<&Var> {
        match self {
            System::Given { kk, lambda } => vec![kk, lambda],
            System::Tokens(t) => {
                let first = t.first.as_ref().map(|s| &s.value);
                [&t.k, &t.written, &t.g, &t.lambda].into_iter().chain(first).collect()
            }
        }
    }

    /// Where the solver starts: the diagonal's solution of a matrix that is at hand, else zero.
    fn start(&self, q: &Var) -> Result<Var> {
        let System::Given { kk, lambda } = self else {
            return Ok(Tensor::zeros(q.dims(), q.dtype(), &q.device())?.into());
        };
        let dk = kk.dim(3);
        let eye: Vec<f64> = (0..dk * dk).map(|at| f64::from(u8::from(at / dk == at % dk))).collect();
        let eye = Tensor::from_vec(eye, &[dk, dk])?.to_dtype(kk.dtype())?;
        let eye = Var::constant(flashlin_tensor::cuda::kept(&eye, &kk.device())?);
        q.div(&kk.mul(&eye)?.sum(&[2], true)?.add(lambda)?.affine(1.0, EPS)?)
    }

    fn solved(&self, q: &Var, iterations: usize, eps: f64) -> Result<Var> {
        let along = |a: &Var, b: &Var| a.mul(b)?.sum(&[a.dims().len() - 1], true);
        let mut x = self.start(q)?;
        let mut r = match self {
            System::Tokens(_) => q.clone(),
            System::Given { .. } => q.sub(&self.times(&x)?)?,
        };
        let mut p = r.clone();
        let mut old = along(&r, &r)?;
        for _ in 0..iterations {
            let ap = self.times(&p)?;
            let alpha = old.div(&along(&p, &ap)?.affine(1.0, eps)?)?;
            x = x.add(&alpha.mul(&p)?)?;
            r = r.sub(&alpha.mul(&ap)?)?;
            let new = along(&r, &r)?;
            p = r.add(&new.div(&old.affine(1.0, eps)?)?.mul(&p)?)?;
            old = new;
        }
        Ok(x)
    }
}

/// x with `(A_t + diag(lambda)) x_t = q_t`.
///
/// The systems are symmetric: y solves them for the gradient of x, and is that of q; `d(A_t + diag(lambda)) = -y_t x_t^T` flows through the product
/// `(A_t + diag(lambda)) x_t` with x held, which the graph knows how to differentiate.
pub(super) fn solve(system: &System, q: &Var, iterations: usize) -> Result<Var> {
    let x = Var::constant(no_grad(|| system.solved(q, iterations, EPS))?.into_tensor());
    if !recorded(system.vars().into_iter().chain([q])) {
        return Ok(x);
    }
    let product = system.times(&x)?;
    let system = system.clone();
    let backward = move |_: &mut BackwardCtx<'_>, mut grads: Vec<Option<Tensor>>| {
        let Some(dx) = grads[0].take() else { return Ok(vec![None; 2]) };
        let length = dx.mul(&dx)?.sum(&[dx.rank() - 1], true)?.affine(1.0, 1e-30)?.sqrt()?;
        let unit = Var::constant(dx.div(&length)?);
        let y = no_grad(|| system.solved(&unit, iterations, EPS_BACKWARD))?.into_tensor().mul(&length)?;
        Ok(vec![Some(y.clone()), Some(y.neg()?)])
    };
    Ok(Var::from_op1("mesa_solve", &[q, &product], x.into_tensor(), || Box::new(backward)))
}
