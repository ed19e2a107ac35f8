//! The losses as the conformance suite sees them.

use flashlin_tensor::{Tensor, Var};

use super::{LossOptions, Reduction, cross_entropy, linear_cross_entropy, linear_kl_divergence, reference};
use crate::Result;
use crate::conformance::{Fill, ModuleInput, ModuleOp, Number, dot, trace};

/// [`cross_entropy`] with every option and reduction.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// [`linear_cross_entropy`] with every option, mean and sum, with and without bias.
#[derive(Clone, Copy, Debug)]
pub struct Linear;

const TOKENS: usize = 7;
const CLASSES: usize = 37;
const HIDDEN: usize = 9;

fn variants(reductions: &[Reduction]) -> Vec<LossOptions> {
    let d = LossOptions::default();
    let forms = [
        d,
        LossOptions { label_smoothing: 0.1, ignore_index: -1, ..d },
        LossOptions { lse_square_scale: 0.02, logit_scale: 0.7, ..d },
        LossOptions { logit_softcapping: Some(2.0), label_smoothing: 0.3, lse_square_scale: 0.1, ..d },
    ];
    let each = |&reduction: &Reduction| forms.map(|o| LossOptions { reduction, ..o });
    reductions.iter().flat_map(each).collect()
}

fn name(o: &LossOptions) -> String {
    let LossOptions { label_smoothing, lse_square_scale, logit_scale, logit_softcapping, reduction, .. } = o;
    format!(
        "{reduction:?}, smoothing {label_smoothing}, z {lse_square_scale}, scale {logit_scale}, cap {logit_softcapping:?}"
    )
}

/// Ignored tokens, the last class, and a class twice.
fn labels(o: &LossOptions) -> [i64; TOKENS] {
    [3, o.ignore_index, 0, CLASSES as i64 - 1, 12, o.ignore_index, 12]
}

impl Plain {
    fn options(case: usize) -> LossOptions {
        variants(&[Reduction::Mean, Reduction::Sum, Reduction::None])[case]
    }
}

impl ModuleOp for Plain {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cases(&self) -> Vec<String> {
        variants(&[Reduction::Mean, Reduction::Sum, Reduction::None]).iter().map(name).collect()
    }

    fn inputs(&self, _case: usize) -> Vec<ModuleInput> {
        vec![ModuleInput::token("logits", &[1, TOKENS, CLASSES], Fill::Normal(1.0))]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let o = Self::options(case);
        let labels = Tensor::from_vec(labels(&o).to_vec(), &[1, TOKENS])?;
        Ok(vec![cross_entropy(&x[0], &labels, &o)?.loss])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let o = Self::options(case);
        vec![reference::forward(&o, &x[0], &labels(&o))]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let o = Self::options(case);
        vec![reference::backward(&o, &x[0], &labels(&o), &d_out[0])]
    }
}

impl Linear {
    /// Options and whether there is a bias.
    fn options(case: usize) -> (LossOptions, bool) {
        let all = variants(&[Reduction::Mean, Reduction::Sum]);
        (all[case / 2], case % 2 == 1)
    }

    fn layer(case: usize, x: &[Vec<f64>]) -> reference::Linear<'_, f64> {
        let bias = Self::options(case).1.then(|| &x[2][..]);
        reference::Linear { hidden: HIDDEN, x: &x[0], weight: &x[1], bias }
    }
}

impl ModuleOp for Linear {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn cases(&self) -> Vec<String> {
        let all = variants(&[Reduction::Mean, Reduction::Sum]);
        all.iter().flat_map(|o| [name(o), format!("{}, bias", name(o))]).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let normal = Fill::Normal(1.0);
        let mut all = vec![
            ModuleInput::token("x", &[1, TOKENS, HIDDEN], normal),
            ModuleInput::shared("weight", &[CLASSES, HIDDEN], Fill::Normal(0.3)),
        ];
        if Self::options(case).1 {
            all.push(ModuleInput::shared("bias", &[CLASSES], normal));
        }
        all
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let (o, _) = Self::options(case);
        let labels = Tensor::from_vec(labels(&o).to_vec(), &[1, TOKENS])?;
        Ok(vec![linear_cross_entropy(&x[0], &x[1], x.get(2), &labels, &o)?.loss])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (o, _) = Self::options(case);
        vec![reference::forward(&o, &Self::layer(case, x).logits(), &labels(&o))]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (o, bias) = Self::options(case);
        let layer = Self::layer(case, x);
        let d = reference::backward(&o, &layer.logits(), &labels(&o), &d_out[0]);
        let [dx, dw, db] = layer.backward(&d);
        let mut all = vec![dx, dw];
        all.extend(bias.then_some(db));
        all
    }
}

/// [`linear_kl_divergence`], mean and sum.
#[derive(Clone, Copy, Debug)]
pub struct Divergence;

/// The teacher: wider than the student, with numbers of no particular meaning.
fn teacher(n: usize, width: usize) -> Vec<f64> {
    (0..n * width).map(|i| ((i * 37 % 101) as f64 / 50.0 - 1.0) * 0.5).collect()
}

const TEACHER: usize = 5;

fn log_softmax<N: Number>(x: &[N], weight: &[N], width: usize) -> Vec<N> {
    let logits: Vec<N> = weight.chunks(width).map(|w| dot(x, w)).collect();
    let sum = logits.iter().fold(N::of(0.0), |sum, l| sum + l.exp());
    logits.into_iter().map(|l| l - sum.ln()).collect()
}

fn divergence<N: Number>(case: usize, x: &[Vec<N>]) -> Vec<Vec<N>> {
    let constant = |v: Vec<f64>| v.into_iter().map(N::of).collect::<Vec<N>>();
    let (tx, tw) = (constant(teacher(TOKENS, TEACHER)), constant(teacher(CLASSES, TEACHER)));
    let mut sum = N::of(0.0);
    for t in 0..TOKENS {
        let q = log_softmax(&x[0][t * HIDDEN..][..HIDDEN], &x[1], HIDDEN);
        let p = log_softmax(&tx[t * TEACHER..][..TEACHER], &tw, TEACHER);
        sum = p.iter().zip(q).fold(sum, |sum, (&p, q)| sum + p.exp() * (p - q));
    }
    vec![vec![if case == 0 { sum / N::of(TOKENS as f64) } else { sum }]]
}

impl ModuleOp for Divergence {
    fn name(&self) -> &'static str {
        "linear_kl_divergence"
    }

    fn cases(&self) -> Vec<String> {
        vec!["mean".into(), "sum".into()]
    }

    fn inputs(&self, _: usize) -> Vec<ModuleInput> {
        vec![
            ModuleInput::token("x", &[1, TOKENS, HIDDEN], Fill::Normal(1.0)),
            ModuleInput::shared("weight", &[CLASSES, HIDDEN], Fill::Normal(0.3)),
        ]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let wide = |v: Vec<f64>, dims: &[usize]| {
            Tensor::from_vec(v, dims)?.to_dtype(x[0].dtype().accumulator())?.to_device(&x[0].device())
        };
        let (tx, tw) = (
            wide(teacher(TOKENS, TEACHER), &[TOKENS, TEACHER])?,
            wide(teacher(CLASSES, TEACHER), &[CLASSES, TEACHER])?,
        );
        let reduction = [Reduction::Mean, Reduction::Sum][case];
        Ok(vec![linear_kl_divergence(&x[0], &x[1], &tx, &tw, reduction)?])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        divergence(case, x)
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        trace(x, d_out, |x| divergence(case, x)).1
    }
}
