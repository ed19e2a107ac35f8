//! The scans in the conformance suite, by the kernels and by tensor operations; what they refuse; extremes.

use flashlin_tensor::{DType, Device, Tensor, Var};

use super::*;
use crate::testing::{close, randn};

crate::module_conformance!(linear_suite, crate::scan::conform::Linear);
crate::module_conformance!(sums_suite, crate::scan::conform::Sum);
crate::module_conformance!(log_sums_suite, crate::scan::conform::LogSum);
crate::module_conformance!(selective_suite, crate::scan::selective::conform::Conformance);

/// The way of other devices, through the same suite.
mod by_tensor_operations {
    use super::*;
    use crate::conformance::{MODULE_CHECKS, ModuleInput, ModuleOp};

    struct Composed<T>(T);

    impl<T: ModuleOp> ModuleOp for Composed<T> {
        fn name(&self) -> &'static str {
            self.0.name()
        }
        fn cases(&self) -> Vec<String> {
            self.0.cases()
        }
        fn inputs(&self, case: usize) -> Vec<ModuleInput> {
            self.0.inputs(case)
        }
        fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
            crate::composed::force(|| self.0.run(case, x))
        }
        fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
            self.0.reference(case, x)
        }
        fn reference_backward(&self, case: usize, x: &[Vec<f64>], d: &[Vec<f64>]) -> Vec<Vec<f64>> {
            self.0.reference_backward(case, x, d)
        }
    }

    #[test]
    fn match_the_reference() {
        let ops: [&dyn ModuleOp; 4] = [
            &Composed(conform::Linear),
            &Composed(conform::Sum),
            &Composed(conform::LogSum),
            &Composed(selective::conform::Conformance),
        ];
        for op in ops {
            for (name, check) in MODULE_CHECKS {
                // The backward of a call made here runs outside of it, on the kernels: the forward is what differs.
                if *name == "matches_reference" {
                    check(op, &Device::Cpu).assert();
                }
            }
        }
    }

    #[test]
    fn gradients_are_those_of_the_kernels() {
        let (x, g) = (randn(1, &[1, 70, 3], DType::F64), randn(2, &[1, 70, 3], DType::F64));
        let g = g.abs().unwrap().neg().unwrap();
        let seqs = PackedSeqs::from_lens(&[40, 0, 30]);
        let h0 = randn(3, &[3, 3], DType::F64);
        let run = || {
            let vars = [&x, &g, &h0].map(|t| Var::leaf(t.clone()));
            let args = ScanArgs {
                initial_state: Some(&vars[2]),
                seqs: Some(&seqs),
                ..ScanArgs::new(&vars[0], &vars[1])
            };
            let out = linear_scan(&args).unwrap();
            let z = logcumsumexp(&CumArgs { reverse: true, seqs: Some(&seqs), ..CumArgs::new(&out.o) }, None);
            let loss = z.unwrap().o.mul(&out.o).unwrap().sum_all().unwrap();
            let loss = loss.add(&out.final_state.sum_all().unwrap()).unwrap();
            let grads = loss.backward().unwrap();
            vars.map(|v| grads.get(&v).unwrap().clone())
        };
        for (a, b) in run().iter().zip(crate::composed::force(run)) {
            close("gradient", a, &b, 1e-12);
        }
    }
}

fn zeros(dims: &[usize], dtype: DType) -> Var {
    Var::constant(Tensor::zeros(dims, dtype, &Device::Cpu).unwrap())
}

#[test]
fn refusals_name_the_argument() {
    let (x, g) = (zeros(&[2, 3, 4], DType::F32), zeros(&[2, 3, 5], DType::F32));
    let says = |e: Error, word: &str| assert!(e.to_string().contains(word), "{e}");
    says(linear_scan(&ScanArgs::new(&x, &g)).unwrap_err(), "`g`");
    let wide = zeros(&[2, 3, 4], DType::F64);
    says(linear_scan(&ScanArgs::new(&x, &wide)).unwrap_err(), "`g`");
    let h0 = zeros(&[1, 4], DType::F32);
    let args = ScanArgs { initial_state: Some(&h0), ..ScanArgs::new(&x, &x) };
    says(linear_scan(&args).unwrap_err(), "initial_state");
    says(cumsum(&CumArgs { chunk: Some(0), ..CumArgs::new(&x) }).unwrap_err(), "chunk");
    says(logcumsumexp(&CumArgs { chunk: Some(2), ..CumArgs::new(&x) }, Some(&h0)).unwrap_err(), "chunks");
    let (a, b) = (zeros(&[4, 2], DType::F32), zeros(&[2, 3, 3, 2], DType::F32));
    let args = selective::SelectiveArgs::new(&x, &x, &a, &b, &b);
    says(selective::selective_scan(&args).unwrap_err(), "`b`");
}

#[test]
fn nothing_at_all_and_extremes() {
    let none = zeros(&[2, 0, 4], DType::F32);
    let out = linear_scan(&ScanArgs::new(&none, &none)).unwrap();
    assert_eq!((out.o.dims(), out.final_state.dims()), (&[2, 0, 4][..], &[2, 4][..]));
    // Sums of exponentials that neither overflow nor lose what is far below.
    let x = Tensor::from_vec(vec![500f32, -500.0, 500.0, -1e30, f32::NEG_INFINITY], &[1, 5, 1]).unwrap();
    let run =
        || logcumsumexp(&CumArgs::new(&Var::leaf(x.clone())), None).unwrap().o.tensor().to_f64_vec().unwrap();
    let two = 500.0 + 2f64.ln();
    for z in [run(), crate::composed::force(run)] {
        let far = z.iter().zip([500.0, 500.0, two, two, two]).any(|(a, b)| (a - b).abs() > 1e-4);
        assert!(!far, "{z:?}");
    }
}
