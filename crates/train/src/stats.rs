//! Statistics of weights, gradients and activations, computed when asked for (they read every value).

use flashlin_tensor::{DType, Device, Gradients, Tensor, Var, cpu::BLOCK};
use rayon::prelude::*;
use serde::Serialize;

use crate::{Result, trainable::Trainable};

/// Size of the values of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stat {
    /// What it is about: a parameter's name, or `layer.<i>`.
    pub name: String,
    /// Root of the mean square.
    pub rms: f64,
    /// Largest absolute value; NaN if there is one.
    pub max: f64,
    /// Root of the mean square of the gradient, for parameters that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_rms: Option<f64>,
}

/// rms and largest absolute value. Values of a GPU come to the host for it: whoever asks for statistics reads them all.
fn size(t: &Tensor) -> Result<(f64, f64)> {
    let t = &t.to_device(&Device::Cpu)?;
    let rms = (t.sum_squares()? / t.numel().max(1) as f64).sqrt();
    let values = t.to_dtype(DType::F32)?.contiguous()?;
    let larger = |a: f32, b: f32| if b.is_nan() || b > a { b } else { a };
    let block = |c: &[f32]| c.iter().fold(0f32, |a, x| larger(a, x.abs()));
    let max = values.as_slice::<f32>()?.par_chunks(BLOCK).map(block).reduce(|| 0.0, larger);
    Ok((rms, f64::from(max)))
}

/// One entry a parameter, in their order.
pub(crate) fn weight_stats<M: Trainable>(model: &M, grads: &Gradients) -> Result<Vec<Stat>> {
    let one = |p: &std::sync::Arc<flashlin_tensor::Parameter>| {
        let (rms, max) = size(&p.tensor())?;
        let grad_rms = grads.get_param(p).map(size).transpose()?.map(|(rms, _)| rms);
        Ok(Stat { name: p.name().to_string(), rms, max, grad_rms })
    };
    model.params().iter().map(one).collect()
}

/// One entry a layer output.
pub(crate) fn activation_stats(hidden: &[Var]) -> Result<Vec<Stat>> {
    let one = |(i, v): (usize, &Var)| {
        let (rms, max) = size(v.tensor())?;
        Ok(Stat { name: format!("layer.{i}"), rms, max, grad_rms: None })
    };
    hidden.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_values() {
        let t = Tensor::from_vec(vec![3f32, -4.0], &[2]).unwrap();
        assert_eq!(size(&t).unwrap(), (12.5f64.sqrt(), 4.0));
        let bad = Tensor::from_vec(vec![1f32, f32::NAN, 2.0], &[3]).unwrap();
        assert!(size(&bad).unwrap().1.is_nan());
        assert_eq!(size(&Tensor::from_vec(Vec::<f32>::new(), &[0]).unwrap()).unwrap(), (0.0, 0.0));
    }
}
