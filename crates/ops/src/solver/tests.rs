//! The suite, and what it does not reach.

use flashlin_tensor::{DType, Device, Philox, Var};

use super::{MesaArgs, mesa, mesa_step};

crate::module_conformance!(suite, crate::solver::conform::Conformance);

fn random(stream: u64, dims: &[usize], std: f64) -> Var {
    Philox::new(6, stream).randn(0.0, std, dims, DType::F64, &Device::Cpu).unwrap().into()
}

/// A token from a state agrees with the whole sequence within what the solver reaches, and its state exactly.
#[test]
fn steps_continue_a_sequence() {
    let (t, h, d) = (9, 2, 4);
    let heads = |i, std| random(i, &[1, t, h, d], std);
    let (q, k, v) = (heads(1, 100.0), heads(2, 0.5), heads(3, 1.0));
    let one = |i| random(i, &[1, t, h], 1.0).sigmoid().unwrap();
    let (beta, g) = (one(4), one(5).neg().unwrap());
    let lambda = random(6, &[h, d], 0.1).affine(1.0, 1.0).unwrap();
    let whole = mesa(&MesaArgs::new(&q, &k, &v, &g, &beta, &lambda)).unwrap();
    let cut = |from, n| [&q, &k, &v, &g, &beta].map(|x| x.narrow(1, from, n).unwrap());
    let [q1, k1, v1, g1, b1] = cut(0, t - 1);
    let before = mesa(&MesaArgs::new(&q1, &k1, &v1, &g1, &b1, &lambda)).unwrap().states;
    let [q2, k2, v2, g2, b2] = cut(t - 1, 1);
    let args = MesaArgs {
        initial: Some([&before[0], &before[1]]),
        ..MesaArgs::new(&q2, &k2, &v2, &g2, &b2, &lambda)
    };
    let step = mesa_step(&args).unwrap();
    let values = |x: &Var| x.tensor().to_f64_vec().unwrap();
    let near = |a: &Var, b: &Var, tol: f64| {
        assert!(crate::conformance::relative_l2(&values(a), &values(b)) < tol);
    };
    near(&step.o, &whole.o.narrow(1, t - 1, 1).unwrap(), 1e-5);
    near(&step.states[0], &whole.states[0], 1e-12);
    near(&step.states[1], &whole.states[1], 1e-12);
    assert!(mesa_step(&MesaArgs { initial: None, ..args }).is_err());
}
