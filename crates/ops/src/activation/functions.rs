//! The scalar functions and their slopes, one zero-sized type each, so that loops over them are compiled without a
//! branch on the kind of activation.

use flashlin_tensor::{Real, cpu::math};

/// An activation function of one number and its derivative.
pub(crate) trait Function: Sync {
    fn value<R: Real>(x: R) -> R;
    fn slope<R: Real>(x: R) -> R;
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident: |$x:ident| $value:expr, $slope:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl Function for $name {
            #[inline(always)]
            fn value<R: Real>($x: R) -> R { $value }
            #[inline(always)]
            fn slope<R: Real>($x: R) -> R { $slope }
        }
    )*};
}

#[inline(always)]
fn lit<R: Real>(x: f64) -> R {
    R::from_f64(x)
}

/// sigmoid'(x), from the smaller of the two tails: exact far out on both sides.
#[inline(always)]
pub(crate) fn sigmoid_slope<R: Real>(x: R) -> R {
    math::sigmoid(x) * math::sigmoid(-x)
}

/// The tanh approximation of GELU is x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3); this is 2u.
#[inline(always)]
fn gelu_arg<R: Real>(x: R) -> R {
    lit::<R>(1.595_769_121_605_730_7) * (x + lit::<R>(0.044_715) * x * x * x)
}

functions! {
    /// max(x, 0)
    Relu: |x| x.max(R::ZERO), if x > R::ZERO { R::ONE } else { R::ZERO };
    /// 1 / (1 + e^-x)
    Sigmoid: |x| math::sigmoid(x), sigmoid_slope(x);
    /// ln sigmoid(x)
    LogSigmoid: |x| math::log_sigmoid(x), math::sigmoid(-x);
    /// x sigmoid(x)
    Silu: |x| math::silu(x), math::sigmoid(x) * (R::ONE + x * math::sigmoid(-x));
    /// max(x, 0)^2
    SqRelu: |x| { let r = x.max(R::ZERO); r * r }, { let r = x.max(R::ZERO); r + r };
    /// GELU with the tanh approximation
    GeluTanh: |x| x * math::sigmoid(gelu_arg(x)), {
        let a = gelu_arg(x);
        let da = lit::<R>(1.595_769_121_605_730_7) * (R::ONE + lit::<R>(3.0 * 0.044_715) * x * x);
        math::sigmoid(a) + x * sigmoid_slope(a) * da
    };
    /// GELU, x Phi(x)
    GeluErf: |x| lit::<R>(0.5) * x * (R::ONE + (x * lit::<R>(std::f64::consts::FRAC_1_SQRT_2)).erf()), {
        let cdf = lit::<R>(0.5) * (R::ONE + (x * lit::<R>(std::f64::consts::FRAC_1_SQRT_2)).erf());
        cdf + x * (-(x * x) * lit::<R>(0.5)).exp() * lit::<R>(0.398_942_280_401_432_7)
    };
}

/// Calls `$body` with `$F` bound to the function type of an [`Activation`](super::Activation).
macro_rules! with_function {
    ($act:expr, $F:ident => $body:expr) => {{
        use $crate::activation::{Activation as Act, functions as f};
        match $act {
            Act::Relu => {
                type $F = f::Relu;
                $body
            }
            Act::Sigmoid => {
                type $F = f::Sigmoid;
                $body
            }
            Act::LogSigmoid => {
                type $F = f::LogSigmoid;
                $body
            }
            Act::Silu => {
                type $F = f::Silu;
                $body
            }
            Act::SqRelu => {
                type $F = f::SqRelu;
                $body
            }
            Act::Gelu => {
                type $F = f::GeluTanh;
                $body
            }
            Act::GeluErf => {
                type $F = f::GeluErf;
                $body
            }
        }
    }};
}
pub(crate) use with_function;
