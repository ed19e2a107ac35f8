use super::*;
use crate::Philox;

fn rand(seed: u64, dims: &[usize]) -> Tensor {
    Philox::new(seed, 0).rand(0.3, 1.7, dims, DType::F64, &Device::Cpu).unwrap()
}

/// Compares the gradients of sum(w * f(inputs)) with central differences.
fn check(name: &str, dims: &[&[usize]], f: impl Fn(&[Var]) -> Result<Var>) {
    let inputs: Vec<Tensor> = dims.iter().enumerate().map(|(i, d)| rand(i as u64 + 1, d)).collect();
    let loss = |xs: &[Var]| {
        let y = f(xs).unwrap();
        let w = Var::constant(rand(99, y.dims()));
        y.mul(&w).unwrap().sum_all().unwrap()
    };
    let leaves: Vec<Var> = inputs.iter().cloned().map(Var::leaf).collect();
    let grads = loss(&leaves).backward().unwrap();
    for (i, leaf) in leaves.iter().enumerate() {
        let g = grads
            .get(leaf)
            .unwrap_or_else(|| panic!("{name}: input {i} got no gradient"))
            .to_f64_vec()
            .unwrap();
        for j in 0..g.len() {
            let at = |h: f64| {
                let mut xs: Vec<Var> = inputs.iter().cloned().map(Var::constant).collect();
                let mut v = inputs[i].to_f64_vec().unwrap();
                v[j] += h;
                xs[i] = Var::constant(Tensor::from_vec(v, inputs[i].dims()).unwrap());
                loss(&xs).tensor().to_scalar().unwrap()
            };
            let fd = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((fd - g[j]).abs() < 1e-6 * (1.0 + fd.abs()), "{name}: input {i}[{j}]: {} but {fd}", g[j]);
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    check("add", &[&[2, 3], &[3]], |x| x[0].add(&x[1]));
    check("sub", &[&[2, 1], &[2, 3]], |x| x[0].sub(&x[1]));
    check("mul", &[&[2, 3], &[2, 1]], |x| x[0].mul(&x[1]));
    check("div", &[&[3], &[2, 3]], |x| x[0].div(&x[1]));
    for (name, f) in [
        ("exp", Var::exp as fn(&Var) -> Result<Var>),
        ("log", Var::log),
        ("sqrt", Var::sqrt),
        ("sigmoid", Var::sigmoid),
        ("silu", Var::silu),
        ("tanh", Var::tanh),
        ("softplus", Var::softplus),
        ("neg", Var::neg),
    ] {
        check(name, &[&[2, 3]], |x| f(&x[0]));
    }
    check("relu", &[&[5]], |x| x[0].affine(1.0, -1.0)?.relu());
    check("clamp", &[&[9]], |x| x[0].clamp(0.7, 1.3));
    check("views", &[&[2, 3, 4]], |x| {
        x[0].transpose(0, 2)?.reshape(&[4, 6])?.narrow(1, 1, 3)?.permute(&[1, 0])
    });
    check("cat", &[&[2, 2], &[2, 3]], |x| Var::cat(&[&x[0], &x[1], &x[0]], 1));
    check("expand", &[&[2, 1]], |x| x[0].expand(&[3, 2, 4]));
    check("sum", &[&[2, 3, 2]], |x| x[0].sum(&[1], false)?.mul(&x[0].mean(&[1], false)?));
    check("matmul", &[&[2, 3], &[3, 4]], |x| x[0].matmul(&x[1]));
    check("tall matmul", &[&[2, 2, 3], &[3, 4]], |x| x[0].matmul(&x[1]));
    check("batched matmul", &[&[2, 2, 3], &[2, 3, 2]], |x| x[0].matmul(&x[1]));
    check("broadcast matmul", &[&[2, 3], &[2, 3, 2]], |x| x[0].matmul(&x[1]));
    check("linear", &[&[2, 2, 3], &[4, 3]], |x| x[0].linear(&x[1]));
    let idx = Tensor::from_vec(vec![1i64, 1, 0], &[3]).unwrap();
    check("index_select", &[&[2, 3]], |x| x[0].index_select(&idx));
    check("index_add", &[&[3, 2]], |x| x[0].index_add(&idx, 4));
    check("to_dtype", &[&[3]], |x| x[0].mul(&x[0])?.to_dtype(DType::F64));
}

#[test]
fn several_outputs_and_consumers_add_up() {
    check("split", &[&[6]], |x| {
        let p = x[0].split(0, &[2, 3, 1])?;
        // The middle piece is not used: its gradient is zero.
        p[0].mul(&p[2])?.add(&p[2].mul(&p[2])?)
    });
}

#[test]
fn checkpoint_recomputes_and_reaches_parameters() {
    let w = std::sync::Arc::new(Parameter::new("w", rand(5, &[3, 3])));
    let x = Var::leaf(rand(6, &[2, 3]));
    let body = {
        let w = w.clone();
        move |v: &[Var]| Ok(vec![v[0].linear(&w.var())?.silu()?, v[0].exp()?])
    };
    let run = |outs: Vec<Var>| {
        let y = outs[0].add(&outs[1]).unwrap().sum_all().unwrap();
        let g = y.backward().unwrap();
        (g.get(&x).unwrap().to_f64_vec().unwrap(), g.get_param(&w).unwrap().to_f64_vec().unwrap())
    };
    let plain = run(body(std::slice::from_ref(&x)).unwrap());
    let again = run(checkpoint(body.clone(), &[&x]).unwrap());
    assert_eq!(plain, again);
    // Parameters alone: the input itself is not tracked.
    let c = Var::constant(rand(6, &[2, 3]));
    let y = checkpoint(body, &[&c]).unwrap()[0].sum_all().unwrap();
    assert!(y.backward().unwrap().get_param(&w).is_some());
}

#[test]
fn no_grad_records_nothing() {
    let x = Var::leaf(rand(1, &[2]));
    assert!(!no_grad(|| x.exp().unwrap()).is_tracked());
    assert!(x.exp().unwrap().is_tracked());
    assert!(grad_enabled());
}

#[test]
fn misuse_is_an_error() {
    let x = Var::leaf(rand(1, &[2]));
    let y = x.exp().unwrap();
    assert!(y.backward().is_err(), "not a scalar");
    let s = y.sum_all().unwrap();
    s.backward().unwrap();
    assert!(matches!(s.backward(), Err(Error::GraphFreed { .. })));
    assert!(s.backward_create_graph().is_err());
    assert!(matches!(
        Var::refuse_tracked("argmax", &[&x]),
        Err(Error::NoBackward { op: "argmax", input: 0 })
    ));
    assert!(x.to_dtype(DType::I64).is_err());
    assert!(Var::constant(rand(1, &[1])).backward().is_err());
}

#[test]
fn deep_graphs_neither_recurse_nor_leak() {
    let x = Var::leaf(Tensor::ones(&[1], DType::F64, &Device::Cpu).unwrap());
    let deep = || (0..200_000).fold(x.clone(), |v, _| v.affine(1.0, 1e-9).unwrap());
    let g = deep().sum_all().unwrap().backward().unwrap();
    assert_eq!(g.get(&x).unwrap().to_scalar().unwrap(), 1.0);
    drop(deep());
}

#[test]
fn backward_frees_what_was_saved() {
    let x = Var::leaf(rand(1, &[4]));
    let guard = std::sync::Arc::new(());
    let held = guard.clone();
    let y = Var::from_op1("probe", &[&x], x.tensor().copy().unwrap(), || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, g: Vec<Option<Tensor>>| {
            let _keep = &held;
            Ok(g)
        })
    });
    let s = y.sum_all().unwrap();
    assert_eq!(std::sync::Arc::strong_count(&guard), 2);
    s.backward().unwrap();
    assert_eq!(std::sync::Arc::strong_count(&guard), 1);
}

#[test]
fn half_precision_gradients_accumulate_in_f32() {
    // 1 + 256 * 2^-8 in bf16 steps would stall at 1: each addend is below half a unit in the last place.
    let p = Parameter::new("p", Tensor::ones(&[1], DType::BF16, &Device::Cpu).unwrap());
    let small = 2f64.powi(-9);
    let mut total = p.var().sum_all().unwrap();
    for _ in 0..256 {
        total = total.add(&p.var().affine(small, 0.0).unwrap().sum_all().unwrap()).unwrap();
    }
    let g = total.backward().unwrap();
    let g = g.get_param(&p).unwrap();
    assert_eq!(g.dtype(), DType::F32);
    assert_eq!(g.to_scalar().unwrap(), 1.5);
}

#[test]
fn parameters_update_in_place_and_keep_their_identity() {
    let p = Parameter::new("p", rand(1, &[2]));
    let shared = p.tensor();
    p.update(|t| t.as_mut_slice::<f64>().map(|s| s[0] = 7.0)).unwrap();
    assert_ne!(shared.to_f64_vec().unwrap()[0], 7.0, "a shared value is copied first");
    assert_eq!(p.tensor().to_f64_vec().unwrap()[0], 7.0);
    assert!(p.set(rand(1, &[3])).is_err());
    let g = p.var().sum_all().unwrap().backward().unwrap();
    assert_eq!(g.get_param(&p).unwrap().to_f64_vec().unwrap(), [1.0, 1.0]);
}

/// Maps of one input are one node: its gradient is the sum over the maps, whichever of them gradients came to.
#[test]
fn maps_of_one_input_share_a_node() {
    let dims: [&[usize]; 4] = [&[2, 3, 4], &[5, 4], &[6, 4], &[5, 4]];
    check("linear_many", &dims, |v| {
        let y = v[0].linear_many(&[&v[1], &v[2], &v[3]])?;
        y[0].mul(&y[2])?.sum(&[2], true)?.mul(&y[1])
    });
    let (x, w) = (Var::leaf(rand(1, &[2, 4])), [2, 3].map(|i| Var::leaf(rand(i, &[5, 4]))));
    let y = x.linear_many(&w.each_ref()).unwrap();
    let grads = y[1].sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&w[0]).is_none() && grads.get(&w[1]).is_some() && grads.get(&x).is_some());
}
