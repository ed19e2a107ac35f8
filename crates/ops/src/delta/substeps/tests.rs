//! The suite, a second definition of the generalised delta rule, and steps in place.

use flashlin_tensor::{DType, Device, Philox, Tensor, Var, no_grad};

use super::reference::{Dims, Generalised};
use super::{DeltaProductArgs, DplrArgs, Settings, delta_product, dplr};
use crate::{Mode, Recurrence, RecurrentState, StateLayout};

crate::conformance!(product, crate::delta::substeps::conform::Product);
crate::conformance!(generalised, crate::delta::substeps::conform::Generalised);

fn random(stream: u64, dims: &[usize], std: f64, dtype: DType) -> Var {
    Philox::new(3, stream).randn(0.0, std, dims, dtype, &Device::Cpu).unwrap().into()
}

fn values(x: &Var) -> Vec<f64> {
    x.tensor().to_f64_vec().unwrap()
}

fn close(a: &[f64], b: &[f64], tol: f64) {
    let e = crate::conformance::relative_l2(a, b);
    assert!(a.len() == b.len() && e < tol, "{e:e}");
}

/// The recurrence against the product of transitions that the paper writes it as, which shares no code with it.
#[test]
fn the_state_free_definition_agrees() {
    let (t, h, k, v) = (21, 2, 4, 3);
    let f64s = DType::F64;
    let keys = |i, std| random(i, &[1, t, h, k], std, f64s);
    let (q, key, a, b) = (keys(1, 1.0), keys(2, 1.0), keys(3, 0.4), keys(4, 0.4));
    let value = random(5, &[1, t, h, v], 1.0, f64s);
    let gate = random(6, &[1, t, h, k], 1.0, f64s).tanh().unwrap().affine(0.5, -0.5).unwrap();
    for g in [None, Some(&gate)] {
        let settings = Settings { mode: Mode::Chunk, chunk_size: 16, ..Settings::default() };
        let out = dplr(DplrArgs { g, settings, ..DplrArgs::new(&q, &key, &value, &a, &b) }).unwrap();
        let [qs, ks, vs, xs, ys] = [&q, &key, &value, &a, &b].map(values);
        let gs = g.map(values);
        let problem = Generalised {
            dims: Dims { t, h, hv: h, k, v },
            q: &qs,
            k: &ks,
            v: &vs,
            a: &xs,
            b: &ys,
            g: gs.as_deref(),
            h0: None,
            scale: (k as f64).powf(-0.5),
        };
        close(&values(&out.o), &problem.unrolled(), 1e-12);
    }
}

/// Steps of a single token run where the state lies and give what one pass gives.
#[test]
fn single_tokens_step_in_place() {
    let (t, n, h, k, v) = (5, 2, 2, 4, 3);
    let f32s = DType::F32;
    let keys = |i, t| random(i, &[1, t, h, k], 0.4, f32s);
    let (q, key, a, b) = (keys(1, t), keys(2, t), keys(3, t), keys(4, t));
    let value = random(5, &[1, t, h, v], 1.0, f32s);
    let (steps, wide, beta) =
        (keys(6, t * n), random(7, &[1, t * n, h, v], 1.0, f32s), random(8, &[1, t * n, h], 1.0, f32s));
    let general = |from: usize, len: usize, state: &mut RecurrentState| {
        let cut = |x: &Var| x.narrow(1, from, len).unwrap();
        let (q, k, v, a, b) = (cut(&q), cut(&key), cut(&value), cut(&a), cut(&b));
        no_grad(|| DplrArgs::new(&q, &k, &v, &a, &b).run(Some(state))).unwrap()
    };
    let product = |from: usize, len: usize, state: &mut RecurrentState| {
        let cut = |x: &Var, n| x.narrow(1, from * n, len * n).unwrap();
        let (q, k, v, beta) = (cut(&q, 1), cut(&steps, n), cut(&wide, n), cut(&beta, n));
        let args = DeltaProductArgs { beta_sigmoid: true, ..DeltaProductArgs::new(&q, &k, &v, &beta, n) };
        no_grad(|| args.run(Some(state))).unwrap()
    };
    type Step<'a> = &'a dyn Fn(usize, usize, &mut RecurrentState) -> Var;
    for run in [&general as Step<'_>, &product as Step<'_>] {
        let fresh = || RecurrentState {
            value: Tensor::zeros(&[1, h, k, v], f32s, &Device::Cpu).unwrap().into(),
            layout: StateLayout::KV,
        };
        let (mut whole, mut single) = (fresh(), fresh());
        let want = run(0, t, &mut whole);
        let at = single.value.tensor().as_slice::<f32>().unwrap().as_ptr();
        for i in 0..t {
            let o = run(i, 1, &mut single);
            close(&values(&o), &values(&want.narrow(1, i, 1).unwrap()), 1e-5);
        }
        assert_eq!(single.value.tensor().as_slice::<f32>().unwrap().as_ptr(), at, "the state moved");
        close(&values(&single.value), &values(&whole.value), 1e-5);
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let x = |dims: &[usize]| random(1, dims, 1.0, DType::F32);
    let (q, k, v, beta) = (x(&[1, 3, 2, 4]), x(&[1, 6, 2, 4]), x(&[1, 6, 2, 5]), x(&[1, 6, 2]));
    let message = |args| delta_product(args).err().unwrap().to_string();
    assert!(message(DeltaProductArgs::new(&q, &k, &v, &beta, 0)).contains("steps"));
    assert!(message(DeltaProductArgs::new(&q, &k, &v, &beta, 3)).contains("k"));
    let g = x(&[1, 6, 2]);
    assert!(
        message(DeltaProductArgs { g: Some(&g), ..DeltaProductArgs::new(&q, &k, &v, &beta, 2) })
            .contains("g")
    );
    let value = x(&[1, 3, 2, 5]);
    assert!(dplr(DplrArgs::new(&q, &q, &value, &k, &q)).is_err());
}
