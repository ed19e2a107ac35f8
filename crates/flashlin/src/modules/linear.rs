//! Linear maps.

use std::sync::Arc;

use flashlin_tensor::{DType, Parameter, Var};

use crate::{
    Error, Result,
    init::{Dist, Init, Role},
};

/// y = W x + b, with W `[out, in]`.
pub struct Linear {
    weight: Arc<Parameter>,
    bias: Option<Arc<Parameter>>,
}

impl Linear {
    /// Normal weights with the model's standard deviation, zero bias.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(init: &Init, input: usize, output: usize, bias: bool) -> Result<Self> {
        Self::with_init(init, input, output, bias, Dist::Normal(init.std()))
    }

    /// As [`Linear::new`] with another distribution of the weights.
    ///
    /// # Errors
    /// When memory is short.
    pub fn with_init(init: &Init, input: usize, output: usize, bias: bool, dist: Dist) -> Result<Self> {
        let weight = init.param("weight", &[output, input], dist, Role::Weight)?;
        let bias = if bias { Some(init.param("bias", &[output], Dist::Zeros, Role::NoDecay)?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// As [`Linear::with_init`], with a bias that starts as a function of the channel.
    ///
    /// # Errors
    /// When memory is short.
    pub fn with_bias(
        init: &Init,
        input: usize,
        output: usize,
        dist: Dist,
        bias: Option<&dyn Fn(usize) -> f64>,
    ) -> Result<Self> {
        let Linear { weight, .. } = Self::with_init(init, input, output, false, dist)?;
        let bias = bias.map(|f| init.values("bias", &[output], Role::NoDecay, f)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// When the last dimension is not `in`.
    pub fn forward(&self, x: &Var) -> Result<Var> {
        self.add_bias(x.linear(&self.weight.var())?)
    }

    fn add_bias(&self, y: Var) -> Result<Var> {
        match &self.bias {
            Some(b) => Ok(y.add(&b.var())?),
            None => Ok(y),
        }
    }

    /// The weight.
    pub fn weight(&self) -> &Arc<Parameter> {
        &self.weight
    }

    /// Element type of the weight.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }
}

/// Several maps of one input, the second group as far as there: in a decode step one pass over all weights.
///
/// # Errors
/// When the last dimension does not fit a map.
pub fn linears<const N: usize, const M: usize>(
    x: &Var,
    always: [&Linear; N],
    optional: [Option<&Linear>; M],
) -> Result<([Var; N], [Option<Var>; M])> {
    let maps = || always.into_iter().chain(optional.into_iter().flatten());
    let weights: Vec<Var> = maps().map(|m| m.weight.var()).collect();
    let products = x.linear_many(&weights.iter().collect::<Vec<_>>())?;
    let mut outputs =
        maps().zip(products).map(|(map, y)| map.add_bias(y)).collect::<Result<Vec<_>>>()?.into_iter();
    let mut next = || outputs.next().ok_or_else(|| Error::state("a linear map gave no output"));
    let first = always.map(|_| next());
    let second = optional.map(|m| m.map(|_| next()).transpose());
    Ok((all(first)?, all(second)?))
}

fn all<T, const N: usize>(results: [Result<T>; N]) -> Result<[T; N]> {
    let values = results.into_iter().collect::<Result<Vec<T>>>()?;
    values.try_into().map_err(|_| Error::state("a linear map gave no output"))
}

/// Two linear maps through a bottleneck; keys `0` and `1` as in a Python `Sequential`.
pub struct LowRank {
    down: Linear,
    up: Linear,
}

impl LowRank {
    /// `dims` are input, bottleneck, output; a bias only on the second map.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(init: &Init, dims: [usize; 3], bias: bool) -> Result<Self> {
        Ok(LowRank {
            down: Linear::new(&init.sub(0), dims[0], dims[1], false)?,
            up: Linear::new(&init.sub(1), dims[1], dims[2], bias)?,
        })
    }

    /// `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// When the last dimension is not `in`.
    pub fn forward(&self, x: &Var) -> Result<Var> {
        self.up.forward(&self.down.forward(x)?)
    }

    /// The first map.
    pub fn down(&self) -> &Linear {
        &self.down
    }

    /// The second map.
    pub fn up(&self) -> &Linear {
        &self.up
    }
}
