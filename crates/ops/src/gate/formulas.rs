//! The scalar formulas of the gates, each in one place: the gate ops and the delta kernels both call these.

use flashlin_tensor::cpu::math::{log_sigmoid, sigmoid, softplus};
use flashlin_tensor::{Error, Real, Result, Var};

/// How a gate logit becomes a log-decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DecayGate {
    /// `g = -exp(A_log) softplus(x + dt_bias)` (Mamba, Gated DeltaNet, Kimi Delta Attention).
    Softplus,
    /// `g = lower_bound sigmoid(exp(A_log) (x + dt_bias))`, in `(lower_bound, 0)` (KDA's safe gate).
    LowerBound(f64),
}

impl DecayGate {
    /// The log-decay of logit `x` (bias included) with `a = exp(A_log)`.
    #[inline(always)]
    pub fn value<R: Real>(self, x: R, a: R) -> R {
        match self {
            DecayGate::Softplus => -a * softplus(x),
            DecayGate::LowerBound(lb) => R::from_f64(lb) * sigmoid(a * x),
        }
    }

    /// Derivatives of [`DecayGate::value`] by `x` and by `A_log`.
    #[inline(always)]
    pub fn derivatives<R: Real>(self, x: R, a: R) -> (R, R) {
        match self {
            DecayGate::Softplus => (-a * sigmoid(x), -a * softplus(x)),
            DecayGate::LowerBound(lb) => {
                let s = sigmoid(a * x);
                // 1 - s as sigmoid(-ax): no cancellation where the gate saturates.
                let d = R::from_f64(lb) * s * sigmoid(-a * x) * a;
                (d, d * x)
            }
        }
    }
}

/// Checks the parameters of a [`DecayGate`] over `hv` heads with `n` numbers each.
pub(crate) fn check_parameters(
    op: &'static str,
    formula: DecayGate,
    a_log: Option<&Var>,
    dt_bias: Option<&Var>,
    hv: usize,
    n: usize,
) -> Result<()> {
    match (formula, a_log) {
        (DecayGate::Softplus, None) => {
            return Err(Error::invalid(op, "a_log", "is missing, expected [HV] for the softplus gate"));
        }
        (DecayGate::LowerBound(lb), _) if !(lb < 0.0 && lb.is_finite()) => {
            return Err(Error::invalid(
                op,
                "lower_bound",
                format!("is {lb}, expected a finite number below 0"),
            ));
        }
        _ => {}
    }
    if let Some(x) = a_log
        && x.dims() != [hv]
    {
        return Err(Error::shape(op, "a_log", x.dims(), format!("[{hv}] = [HV]")));
    }
    if let Some(x) = dt_bias
        && x.dims() != [hv * n]
        && (n == 1 || x.dims() != [hv, n])
    {
        let want =
            if n == 1 { format!("[{hv}] = [HV]") } else { format!("[{}] = [HV K] or [{hv}, {n}]", hv * n) };
        return Err(Error::shape(op, "dt_bias", x.dims(), want));
    }
    Ok(())
}

/// `log sigmoid(x) / normalizer`, not below `clamp` when there is one (GLA's gate).
#[inline(always)]
pub fn log_sigmoid_gate<R: Real>(x: R, normalizer: R, clamp: Option<R>) -> R {
    let g = log_sigmoid(x) / normalizer;
    match clamp {
        Some(c) if g < c => c,
        _ => g,
    }
}

/// Derivative of [`log_sigmoid_gate`]: 0 where the clamp holds.
#[inline(always)]
pub fn log_sigmoid_gate_derivative<R: Real>(x: R, normalizer: R, clamp: Option<R>) -> R {
    match clamp {
        Some(c) if log_sigmoid(x) / normalizer < c => R::ZERO,
        _ => sigmoid(-x) / normalizer,
    }
}

/// Write strength of a logit: `factor sigmoid(x)`; factor 2 allows negative eigenvalues (arXiv:2411.12537).
#[inline(always)]
pub fn beta<R: Real>(x: R, factor: R) -> R {
    factor * sigmoid(x)
}

/// Derivative of [`beta`] by its logit.
#[inline(always)]
pub fn beta_derivative<R: Real>(x: R, factor: R) -> R {
    factor * sigmoid(x) * sigmoid(-x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(f: impl Fn(f64) -> f64, x: f64) -> f64 {
        (f(x + 1e-6) - f(x - 1e-6)) / 2e-6
    }

    #[test]
    fn derivatives_match_finite_differences() {
        for gate in [DecayGate::Softplus, DecayGate::LowerBound(-5.0)] {
            for x in [-30.0, -2.0, -0.1, 0.0, 0.3, 4.0, 25.0] {
                for a_log in [-2.0, 0.0, 1.5f64] {
                    let (dx, da) = gate.derivatives(x, a_log.exp());
                    let want = difference(|x| gate.value(x, a_log.exp()), x);
                    assert!((dx - want).abs() < 1e-7 * (1.0 + want.abs()), "{gate:?} {x} {a_log}");
                    let want = difference(|a| gate.value(x, a.exp()), a_log);
                    assert!((da - want).abs() < 1e-6 * (1.0 + want.abs()), "{gate:?} {x} {a_log}");
                }
            }
        }
        for x in [-40.0, -3.0, 0.2, 7.0] {
            for clamp in [None, Some(-1.0)] {
                let got = log_sigmoid_gate_derivative(x, 16.0, clamp);
                assert!((got - difference(|x| log_sigmoid_gate(x, 16.0, clamp), x)).abs() < 1e-8);
            }
            assert!((beta_derivative(x, 2.0) - difference(|x| beta(x, 2.0), x)).abs() < 1e-8);
        }
    }

    #[test]
    fn extremes_stay_in_range() {
        assert_eq!(DecayGate::LowerBound(-5.0).value(1e6f32, 1.0), -5.0);
        assert_eq!(DecayGate::LowerBound(-5.0).value(-1e6f32, 1.0), 0.0);
        assert_eq!(DecayGate::Softplus.value(-1e6f32, 3.0), 0.0);
        assert_eq!(DecayGate::Softplus.value(1e4f32, 2.0), -2e4);
        assert_eq!(log_sigmoid_gate(-1e4f32, 16.0, Some(-10.0)), -10.0);
    }
}
