//! Gradients of references written as plain formulas: a number that remembers how it came to be. A reference is a function generic over
//! [`Number`]; over f64 it is the oracle's values, over [`Traced`] also its gradients, exact up to rounding. Nothing here is fast.

use std::{
    cell::RefCell,
    ops::{Add, Div, Mul, Neg, Sub},
};

/// What references calculate with.
pub trait Number:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// A constant.
    fn of(x: f64) -> Self;
    /// Its value.
    fn value(self) -> f64;
    /// e^x
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;

    /// 1 / (1 + e^-x)
    fn sigmoid(self) -> Self {
        Self::of(1.0) / (Self::of(1.0) + (-self).exp())
    }
}

/// sum of the products of two rows
pub fn dot<N: Number>(a: &[N], b: &[N]) -> N {
    a.iter().zip(b).fold(N::of(0.0), |sum, (&a, &b)| sum + a * b)
}

impl Number for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn value(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
}

/// What a number depends on: two earlier ones and the derivatives by them.
type Node = [(u32, f64); 2];

/// Stands for a constant.
const NONE: u32 = u32::MAX;

thread_local! {
    static TAPE: RefCell<Vec<Node>> = const { RefCell::new(Vec::new()) };
}

/// A number on the tape.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    value: f64,
    at: u32,
}

impl Traced {
    fn record(value: f64, node: Node) -> Traced {
        if node.iter().all(|(at, _)| *at == NONE) {
            return Traced { value, at: NONE };
        }
        TAPE.with_borrow_mut(|tape| {
            tape.push(node);
            Traced { value, at: (tape.len() - 1) as u32 }
        })
    }

    fn unary(self, value: f64, slope: f64) -> Traced {
        Self::record(value, [(self.at, slope), (NONE, 0.0)])
    }
}

impl Add for Traced {
    type Output = Self;
    fn add(self, b: Self) -> Self {
        Self::record(self.value + b.value, [(self.at, 1.0), (b.at, 1.0)])
    }
}

impl Sub for Traced {
    type Output = Self;
    fn sub(self, b: Self) -> Self {
        Self::record(self.value - b.value, [(self.at, 1.0), (b.at, -1.0)])
    }
}

impl Mul for Traced {
    type Output = Self;
    fn mul(self, b: Self) -> Self {
        Self::record(self.value * b.value, [(self.at, b.value), (b.at, self.value)])
    }
}

impl Div for Traced {
    type Output = Self;
    fn div(self, b: Self) -> Self {
        let y = self.value / b.value;
        Self::record(y, [(self.at, 1.0 / b.value), (b.at, -y / b.value)])
    }
}

impl Neg for Traced {
    type Output = Self;
    fn neg(self) -> Self {
        self.unary(-self.value, -1.0)
    }
}

impl Number for Traced {
    fn of(value: f64) -> Self {
        Traced { value, at: NONE }
    }
    fn value(self) -> f64 {
        self.value
    }
    fn exp(self) -> Self {
        let y = self.value.exp();
        self.unary(y, y)
    }
    fn ln(self) -> Self {
        self.unary(self.value.ln(), 1.0 / self.value)
    }
    fn sqrt(self) -> Self {
        let y = self.value.sqrt();
        self.unary(y, 0.5 / y)
    }
}

/// Values of a formula's outputs, and the gradients of its inputs from those of its outputs.
pub fn trace(
    inputs: &[Vec<f64>],
    d_out: &[Vec<f64>],
    formula: impl FnOnce(&[Vec<Traced>]) -> Vec<Vec<Traced>>,
) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    TAPE.with_borrow_mut(Vec::clear);
    let leaf = |&x: &f64| {
        TAPE.with_borrow_mut(|tape| {
            tape.push([(NONE, 0.0); 2]);
            Traced { value: x, at: (tape.len() - 1) as u32 }
        })
    };
    let leaves: Vec<Vec<Traced>> = inputs.iter().map(|x| x.iter().map(leaf).collect()).collect();
    let outputs = formula(&leaves);
    let values = outputs.iter().map(|o| o.iter().map(|x| x.value).collect()).collect();
    let tape = TAPE.take();
    let mut grads = vec![0.0; tape.len()];
    for (x, d) in outputs.iter().flatten().zip(d_out.iter().flatten()).filter(|(x, _)| x.at != NONE) {
        grads[x.at as usize] += d;
    }
    for at in (0..tape.len()).rev() {
        let d = grads[at];
        for (from, slope) in tape[at].into_iter().filter(|(from, _)| *from != NONE) {
            grads[from as usize] += d * slope;
        }
    }
    let of = |x: &Vec<Traced>| x.iter().map(|x| grads[x.at as usize]).collect();
    (values, leaves.iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_by_hand() {
        let f = |x: &[Vec<Traced>]| {
            let (a, b) = (x[0][0], x[0][1]);
            vec![vec![a * b - (a / b).exp(), b.ln() + a.sqrt() - a.sigmoid()]]
        };
        let (a, b) = (1.5f64, 0.7f64);
        let (values, grads) = trace(&[vec![a, b]], &[vec![2.0, 3.0]], f);
        let s = 1.0 / (1.0 + (-a).exp());
        let near = |x: f64, y: f64| assert!((x - y).abs() < 1e-12, "{x} {y}");
        near(values[0][0], a * b - (a / b).exp());
        near(grads[0][0], 2.0 * (b - (a / b).exp() / b) + 3.0 * (0.5 / a.sqrt() - s * (1.0 - s)));
        near(grads[0][1], 2.0 * (a + (a / b).exp() * a / b / b) + 3.0 / b);
    }
}
