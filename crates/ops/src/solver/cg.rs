//! Conjugate gradients over all tokens at once, and their derivative by the implicit function theorem.
//!
//! Policy: the derivative is that of the exact solution. Its right-hand sides are brought to unit length first: the constant that keeps divisions from
//! failing would otherwise stop the solver where gradients are small.

use flashlin_tensor::{Backward, BackwardCtx, Result, Tensor, Var, no_grad};

use crate::decay::{DecayArgs, decay_attention};
use crate::{Mode, PackedSeqs, RecurrentState};

/// Added to denominators, as the peer does.
const EPS: f64 = 1e-5;
/// The same for gradients.
const EPS_BACKWARD: f64 = 1e-12;

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

    /// The same system on other variables, in the order of [`System::vars`].
    fn on(&self, vars: &[Var]) -> System {
        let mut out = self.clone();
        let places: Vec<&mut Var> = match &mut out {
            System::Given { kk, lambda } => vec![kk, lambda],
            System::Tokens(t) => {
                let first = t.first.as_mut().map(|s| &mut s.value);
                [&mut t.k, &mut t.written, &mut t.g, &mut t.lambda].into_iter().chain(first).collect()
            }
        };
        places.into_iter().zip(vars).for_each(|(place, v)| *place = v.clone());
        out
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
pub(super) fn solve(system: &System, q: &Var, iterations: usize) -> Result<Var> {
    let x = no_grad(|| system.solved(q, iterations, EPS))?.into_tensor();
    let inputs: Vec<&Var> = std::iter::once(q).chain(system.vars()).collect();
    let saved = x.clone();
    Ok(Var::from_op1("mesa_solve", &inputs, x, || {
        let vars: Vec<Var> = system.vars().into_iter().map(Var::detach).collect();
        Box::new(Solved { system: system.on(&vars), x: saved, iterations })
    }))
}

struct Solved {
    /// Without history.
    system: System,
    x: Tensor,
    iterations: usize,
}

impl Backward for Solved {
    fn backward(
        self: Box<Self>,
        _: &mut BackwardCtx<'_>,
        mut grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let vars = self.system.vars();
        let Some(dx) = grads[0].take() else { return Ok(vec![None; 1 + vars.len()]) };
        // The systems are symmetric: y solves them for dx, and d(A_t + diag(lambda)) = -y_t x_t^T.
        let length = dx.mul(&dx)?.sum(&[dx.rank() - 1], true)?.affine(1.0, 1e-30)?.sqrt()?;
        let unit = Var::constant(dx.div(&length)?);
        let y = no_grad(|| self.system.solved(&unit, self.iterations, EPS_BACKWARD))?
            .into_tensor()
            .mul(&length)?;
        let leaves: Vec<Var> = vars.into_iter().map(|v| Var::leaf(v.tensor().clone())).collect();
        let product = self.system.on(&leaves).times(&Var::constant(self.x))?;
        let found = Var::backward_with(vec![(&product, y.neg()?)])?;
        let mut out = vec![Some(y)];
        out.extend(leaves.iter().map(|leaf| found.get(leaf).cloned()));
        Ok(out)
    }
}
