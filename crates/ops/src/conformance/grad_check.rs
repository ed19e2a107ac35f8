//! Finite differences in f64: the check of every reference, and of small ops that need no reference.

use flashlin_tensor::{DType, Device, Philox, Result, Tensor, Var};

use super::compare::Report;

/// Compares gradients with central differences of `loss` along random directions, in f64.
///
/// For each input, 4 random unit directions are tried (a wrong gradient escapes one with probability 0): the report holds
/// one comparison an input, of the directional derivatives, with a tolerance of 1e-6 (the differences themselves are good
/// to about 1e-9).
///
/// # Errors
/// What `loss` reports.
pub fn differences(
    label: &str,
    names: &[&'static str],
    inputs: &[Vec<f64>],
    grads: &[Option<Vec<f64>>],
    loss: impl Fn(&[Vec<f64>]) -> Result<f64>,
) -> Result<Report> {
    let mut report = Report::default();
    if grads.len() != inputs.len() {
        report.fail(label, "gradients", format!("are {}, expected {}", grads.len(), inputs.len()));
        return Ok(report);
    }
    for (i, (name, grad)) in names.iter().zip(grads).enumerate() {
        let Some(grad) = grad.as_ref().filter(|g| g.len() == inputs[i].len()) else {
            report.fail(label, name, "has no gradient of its shape");
            continue;
        };
        let (mut analytic, mut numeric) = (Vec::new(), Vec::new());
        for d in 0..4 {
            let rng = Philox::new(12 + d, i as u64);
            let mut direction: Vec<f64> = (0..grad.len() as u64).map(|j| rng.normal(j)).collect();
            let norm = direction.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-300);
            direction.iter_mut().for_each(|x| *x /= norm);
            let step = 1e-4;
            // Richardson: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h is right up to h^4.
            let at = |scale: f64| {
                let mut moved = inputs.to_vec();
                moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += scale * step * d);
                loss(&moved)
            };
            numeric.push((8.0 * (at(1.0)? - at(-1.0)?) - (at(2.0)? - at(-2.0)?)) / (12.0 * step));
            analytic.push(grad.iter().zip(&direction).map(|(g, d)| g * d).sum());
        }
        report.compare(label, &format!("d_{name}"), &analytic, &numeric, 1e-6);
    }
    Ok(report)
}

/// As [`differences`], for a function of variables: `inputs` are (name, dims, values), `f` maps their variables to any
/// number of outputs, each weighted by random numbers.
///
/// # Errors
/// What `f` or the backward reports.
pub fn grad_check(
    name: &str,
    inputs: &[(&'static str, &[usize], &[f64])],
    f: impl Fn(&[Var]) -> Result<Vec<Var>>,
) -> Result<Report> {
    let make = |values: &[Vec<f64>]| -> Result<Vec<Var>> {
        values.iter().zip(inputs).map(|(v, i)| Ok(Var::leaf(Tensor::from_slice(v, i.1)?))).collect()
    };
    let base: Vec<Vec<f64>> = inputs.iter().map(|i| i.2.to_vec()).collect();
    let weights =
        |k: usize, o: &Var| Philox::new(11, k as u64).randn(0.0, 1.0, o.dims(), DType::F64, &Device::Cpu);
    let loss = |values: &[Vec<f64>]| -> Result<f64> {
        let outs = flashlin_tensor::no_grad(|| f(&make(values)?))?;
        let mut sum = 0.0;
        for (k, o) in outs.iter().enumerate() {
            let (w, o) = (weights(k, o)?.to_f64_vec()?, o.tensor().to_f64_vec()?);
            sum += w.iter().zip(&o).map(|(w, o)| w * o).sum::<f64>();
        }
        Ok(sum)
    };
    let vars = make(&base)?;
    let outs = f(&vars)?;
    let roots = outs.iter().enumerate().map(|(k, o)| Ok((o, weights(k, o)?))).collect::<Result<Vec<_>>>()?;
    let grads = Var::backward_with(roots)?;

    let of = |var: &Var| grads.get(var).map(Tensor::to_f64_vec).transpose();
    let grads = vars.iter().map(of).collect::<Result<Vec<_>>>()?;
    let names: Vec<&'static str> = inputs.iter().map(|i| i.0).collect();
    differences(name, &names, &base, &grads, loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_gradient_passes_and_a_wrong_one_fails() {
        let x = [0.3, -1.2, 0.7];
        let good = grad_check("exp", &[("x", &[3], &x)], |v| Ok(vec![v[0].exp()?])).unwrap();
        good.assert();
        let bad = grad_check("exp", &[("x", &[3], &x)], |v| {
            let y = v[0].tensor().exp()?;
            let grad = y.clone();
            Ok(vec![Var::from_op1("wrong", &[&v[0]], y, || {
                Box::new(move |_: &mut flashlin_tensor::BackwardCtx<'_>, _: Vec<Option<Tensor>>| {
                    Ok(vec![Some(grad)])
                })
            })])
        })
        .unwrap();
        assert_eq!(bad.failures().count(), 1);
    }
}
