//! The suite, and what it does not reach.

use flashlin_tensor::{DType, Device, Tensor, Var};

use super::{LogLinearArgs, log_linear_attn};

crate::module_conformance!(suite, crate::levels::conform::Conformance);

#[test]
fn sequences_beyond_the_levels_are_refused() {
    let x = |dims: &[usize]| Var::constant(Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap());
    let (q, v, g) = (x(&[1, 9, 1, 2]), x(&[1, 9, 1, 2]), x(&[1, 9, 1]));
    let levels = x(&[1, 9, 1, 4]);
    let message = log_linear_attn(&LogLinearArgs::new(&q, &q, &v, &g, &levels)).unwrap_err().to_string();
    assert!(message.contains("8 tokens, not 9"), "{message}");
    let cut = |x: &Var| x.narrow(1, 0, 8).unwrap();
    let (q, v, g, levels) = (cut(&q), cut(&v), cut(&g), cut(&levels));
    assert!(log_linear_attn(&LogLinearArgs::new(&q, &q, &v, &g, &levels)).is_ok());
}
