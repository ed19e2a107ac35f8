//! The norms as the conformance suite sees them.

use flashlin_tensor::Var;

use super::{Gate, NormArgs, NormKind, norm, reference, rms_norm_linear};
use crate::Result;
use crate::activation::Activation;
use crate::conformance::{Fill, ModuleInput, ModuleOp};

/// [`norm`] in every kind, with every gate, grouped, with parameters and residual; and the norm with a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

/// D: no multiple of the vectors' length, and of 3.
const WIDTH: usize = 39;
/// D of the forms that a GPU does in tiles: a multiple of 8.
const EVEN: usize = 56;
const OUT: usize = 7;
const EPS: f64 = 1e-3;

#[derive(Clone, Copy)]
struct Variant {
    kind: NormKind,
    groups: usize,
    gate: Option<(Activation, bool)>,
    affine: bool,
    residual: bool,
    linear: bool,
    width: usize,
}

fn variants() -> Vec<Variant> {
    let gates = [
        None,
        Some((Activation::Silu, false)),
        Some((Activation::Sigmoid, false)),
        Some((Activation::Silu, true)),
    ];
    let forms = [(1, true, false), (3, true, true), (1, false, true), (3, false, false)];
    let mut all = Vec::new();
    for kind in [NormKind::Rms, NormKind::Layer, NormKind::L2] {
        for gate in gates {
            for (groups, affine, residual) in forms {
                all.push(Variant { kind, groups, gate, affine, residual, linear: false, width: WIDTH });
            }
        }
    }
    let plain = Variant {
        kind: NormKind::Rms,
        groups: 1,
        gate: None,
        affine: true,
        residual: false,
        linear: true,
        width: WIDTH,
    };
    all.push(plain);
    for kind in [NormKind::Rms, NormKind::Layer, NormKind::L2] {
        for gate in gates {
            for residual in [false, true] {
                let affine = residual || gate.is_some();
                all.push(Variant { kind, gate, affine, residual, linear: false, width: EVEN, ..plain });
            }
        }
    }
    all
}

impl Variant {
    fn spec(&self) -> reference::Spec {
        reference::Spec { kind: self.kind, groups: self.groups, eps: EPS, gate: self.gate, width: self.width }
    }

    /// Names of the inputs beyond x, in order.
    fn names(&self) -> Vec<&'static str> {
        if self.linear {
            return vec!["weight", "linear"];
        }
        let all = [
            (self.affine, "weight"),
            (self.affine, "bias"),
            (self.residual, "residual"),
            (self.gate.is_some(), "gate"),
        ];
        all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect()
    }

    fn find<'a, T>(&self, x: &'a [T], name: &str) -> Option<&'a T> {
        self.names().iter().position(|n| *n == name).map(|i| &x[i + 1])
    }

    fn arrays<'a>(&self, x: &'a [Vec<f64>]) -> reference::Inputs<'a, f64> {
        let find = |name| self.find(x, name).map(Vec::as_slice);
        reference::Inputs {
            x: &x[0],
            weight: find("weight"),
            bias: find("bias"),
            residual: find("residual"),
            gate: find("gate"),
        }
    }
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cases(&self) -> Vec<String> {
        let name = |v: &Variant| {
            let gate = v.gate.map_or("no gate".into(), |(act, before)| {
                format!("{act} gate {}", if before { "before" } else { "after" })
            });
            let linear = if v.linear { ", linear" } else { "" };
            let Variant { kind, groups, affine, residual, width, .. } = v;
            format!(
                "{kind:?}, {groups} groups of {width}, {gate}, affine {affine}, residual {residual}{linear}"
            )
        };
        variants().iter().map(name).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let width = variants()[case].width;
        let (rows, normal) = ([2, 5, width], Fill::Normal(1.0));
        let mut all = vec![ModuleInput::token("x", &rows, normal)];
        all.extend(variants()[case].names().into_iter().map(|name| match name {
            "weight" | "bias" => ModuleInput::shared(name, &[width], normal),
            "linear" => ModuleInput::shared(name, &[OUT, WIDTH], normal),
            _ => ModuleInput::token(name, &rows, normal),
        }));
        all
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let v = variants()[case];
        if let Some(linear) = v.find(x, "linear") {
            return Ok(vec![rms_norm_linear(&x[0], v.find(x, "weight"), linear, None, EPS)?]);
        }
        let gate = v.gate.zip(v.find(x, "gate"));
        let out = norm(&NormArgs {
            weight: v.find(x, "weight"),
            bias: v.find(x, "bias"),
            residual: v.find(x, "residual"),
            gate: gate.map(|((activation, before_norm), value)| Gate { value, activation, before_norm }),
            kind: v.kind,
            groups: v.groups,
            eps: EPS,
            prenorm: v.residual,
            ..NormArgs::new(&x[0])
        })?;
        Ok([Some(out.y), out.residual].into_iter().flatten().collect())
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let v = variants()[case];
        let (y, sum) = reference::forward(&v.spec(), &v.arrays(x));
        match v.find(x, "linear") {
            Some(w) => vec![product(&y, w)],
            None if v.residual => vec![y, sum],
            None => vec![y],
        }
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let v = variants()[case];
        let (spec, arrays) = (v.spec(), v.arrays(x));
        let mut d_linear = Vec::new();
        let mut dy = d_out[0].clone();
        if let Some(w) = v.find(x, "linear") {
            (dy, d_linear) = product_backward(&reference::forward(&spec, &arrays).0, w, &d_out[0]);
        }
        let g = reference::backward(&spec, &arrays, &dy, d_out.get(1).map(Vec::as_slice));
        let mut all = vec![g.x];
        let of = |name| match name {
            "weight" => g.weight.clone(),
            "bias" => g.bias.clone(),
            "residual" => g.residual.clone(),
            "linear" => d_linear.clone(),
            _ => g.gate.clone(),
        };
        all.extend(v.names().into_iter().map(of));
        all
    }
}

/// `y w^T` for rows of [`WIDTH`] numbers and `w [OUT, WIDTH]`.
fn product(y: &[f64], w: &[f64]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    y.chunks(WIDTH).flat_map(|row| w.chunks(WIDTH).map(move |w| dot(row, w))).collect()
}

/// Gradients of y and w from that of [`product`].
fn product_backward(y: &[f64], w: &[f64], d: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut dy, mut dw) = (vec![0.0; y.len()], vec![0.0; w.len()]);
    for (row, d) in d.chunks(OUT).enumerate() {
        for (o, &d) in d.iter().enumerate() {
            for c in 0..WIDTH {
                dy[row * WIDTH + c] += d * w[o * WIDTH + c];
                dw[o * WIDTH + c] += d * y[row * WIDTH + c];
            }
        }
    }
    (dy, dw)
}
