//! The suite, and what it does not reach.

use flashlin_tensor::{DType, Device, Tensor, Var};

use super::token_shift;
use crate::PackedSeqs;

crate::module_conformance!(shift, crate::rwkv::conform::Shift);
crate::module_conformance!(pointwise, crate::rwkv::conform::Pointwise);

#[test]
fn no_tokens_keep_the_last_one_and_wrong_shapes_are_named() {
    let last = Var::constant(Tensor::ones(&[2, 3], DType::F32, &Device::Cpu).unwrap());
    let none = Var::constant(Tensor::zeros(&[2, 0, 3], DType::F32, &Device::Cpu).unwrap());
    let out = token_shift(&none, None, Some(&last)).unwrap();
    assert_eq!(out.previous.dims(), [2, 0, 3]);
    assert_eq!(out.last.tensor().to_f64_vec().unwrap(), [1.0; 6]);
    let x = Var::constant(Tensor::zeros(&[1, 4, 3], DType::F32, &Device::Cpu).unwrap());
    assert!(token_shift(&x, None, Some(&last)).unwrap_err().to_string().contains("last"));
    assert!(token_shift(&x, Some(&PackedSeqs::from_lens(&[1, 2])), None).is_err());
}
