//! The gate ops in the conformance suite, and what they refuse.

use flashlin_tensor::{DType, Device, Result, Tensor, Var};

use super::{DecayGate, DecayGateArgs, decay_gate, log_sigmoid_gate};

crate::module_conformance!(decay, crate::gate::conform::Decay);
crate::module_conformance!(log_sigmoid, crate::gate::conform::LogSigmoid);

#[test]
fn refusals_name_the_argument() {
    let z = |dims: &[usize], dtype| Var::constant(Tensor::zeros(dims, dtype, &Device::Cpu).unwrap());
    let (x, a) = (z(&[2, 3], DType::F32), z(&[3], DType::F32));
    let args = DecayGateArgs {
        x: &x,
        per_channel: false,
        formula: DecayGate::Softplus,
        a_log: Some(&a),
        dt_bias: None,
    };
    assert!(decay_gate(args).is_ok());
    let says = |r: Result<Var>, word: &str| {
        let message = r.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    says(decay_gate(DecayGateArgs { a_log: None, ..args }), "`a_log` is missing");
    let wrong = z(&[2], DType::F32);
    says(decay_gate(DecayGateArgs { a_log: Some(&wrong), ..args }), "`a_log` has shape [2]");
    says(decay_gate(DecayGateArgs { dt_bias: Some(&wrong), ..args }), "`dt_bias` has shape [2]");
    says(decay_gate(DecayGateArgs { formula: DecayGate::LowerBound(0.0), ..args }), "`lower_bound` is 0");
    says(decay_gate(DecayGateArgs { x: &a, per_channel: true, ..args }), "[..., HV, K]");
    let ints = z(&[2, 3], DType::I32);
    says(decay_gate(DecayGateArgs { x: &ints, ..args }), "`x` has dtype i32");
    says(log_sigmoid_gate(&ints, 1.0, None), "`x` has dtype i32");
    says(log_sigmoid_gate(&x, 0.0, None), "`normalizer` is 0");
}
