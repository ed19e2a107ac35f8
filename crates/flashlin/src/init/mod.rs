//! Building parameters: names, shapes, initial values. A parameter's value depends on the seed and its name
//! alone, so adding one moves no other.

mod orthogonal;

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
};

use flashlin_tensor::{DType, Device, Parameter, Philox, Tensor};

use crate::{Error, Result};

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dist {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// All this number.
    Constant(f64),
    /// N(0, std^2).
    Normal(f64),
    /// Uniform in [lo, hi).
    Uniform(f64, f64),
    /// A matrix whose rows (or columns, where there are fewer) are orthogonal and of this length.
    Orthogonal(f64),
    /// ln of a uniform in [lo, hi): how `A_log` starts.
    LogUniform(f64, f64),
    /// ln(1 + i mod n) of element i: rates 1 to n of each channel's state (S4D real).
    LogCount(usize),
    /// logit of a uniform in [lo, hi).
    LogitUniform(f64, f64),
    /// softplus^-1 of a step size drawn log-uniformly from [min, max), at least `floor`: how `dt_bias` starts.
    InverseSoftplusStep {
        /// Smallest step.
        min: f64,
        /// Largest step.
        max: f64,
        /// Steps are at least this.
        floor: f64,
    },
}

impl Dist {
    /// Glorot's uniform distribution of a matrix `[output, input]`, times `gain`.
    pub fn xavier(input: usize, output: usize, gain: f64) -> Dist {
        let bound = gain * (6.0 / (input + output) as f64).sqrt();
        Dist::Uniform(-bound, bound)
    }

    /// Uniform in +-1/sqrt(fan_in): what PyTorch gives layers that a model does not initialise itself.
    pub fn torch_default(fan_in: usize) -> Dist {
        let bound = 1.0 / (fan_in as f64).sqrt();
        Dist::Uniform(-bound, bound)
    }

    fn sample(self, rng: &Philox, i: u64) -> f64 {
        match self {
            Dist::Zeros => 0.0,
            Dist::Ones => 1.0,
            Dist::Constant(x) => x,
            Dist::Normal(std) => std * rng.normal(i),
            Dist::Uniform(lo, hi) => lo + (hi - lo) * rng.uniform(i),
            // Before they are made orthogonal.
            Dist::Orthogonal(_) => rng.normal(i),
            // 1 - u avoids ln 0 when lo is 0.
            Dist::LogUniform(lo, hi) => (hi - (hi - lo) * rng.uniform(i)).ln(),
            Dist::LogCount(n) => ((i % n.max(1) as u64) as f64).ln_1p(),
            Dist::LogitUniform(lo, hi) => {
                let p = lo + (hi - lo) * rng.uniform(i);
                (p / (1.0 - p)).ln()
            }
            Dist::InverseSoftplusStep { min, max, floor } => {
                let dt = (rng.uniform(i) * (max.ln() - min.ln()) + min.ln()).exp().max(floor);
                dt + (-(-dt).exp_m1()).ln()
            }
        }
    }
}

/// What a parameter is to the optimizer and to casts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A matrix: decays, has the model's dtype.
    Weight,
    /// A norm weight or bias: no weight decay.
    NoDecay,
    /// A gate's parameter (`A_log`, `dt_bias`, `D`): no weight decay, kept in f32 whatever the model's dtype.
    Gate,
}

/// All parameters of a model in order, with their roles.
#[derive(Default)]
pub(crate) struct ParamList {
    pub params: Vec<Arc<Parameter>>,
    pub roles: Vec<Role>,
    /// Keys that stand for another parameter: (alias, owner).
    pub tied: Vec<(String, String)>,
}

/// A place in the tree of names where parameters are made.
#[derive(Clone)]
pub struct Init {
    prefix: String,
    list: Rc<RefCell<ParamList>>,
    dtype: DType,
    device: Device,
    seed: u64,
    std: f64,
    /// Values will be loaded: zeros do.
    blank: bool,
    /// Values that may still be made.
    room: Rc<Cell<u64>>,
    bounded_by: Bound,
}

/// What the number of values may not exceed.
#[derive(Clone, Copy)]
enum Bound {
    Memory,
    Checkpoint,
}

/// How many values the memory that is free now could hold: sizes that no machine here carries are refused at once, not after minutes of
/// filling it. Systems that do not tell are not bounded.
fn values_in_memory(dtype: DType, device: &Device) -> u64 {
    let kib = |text: String| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let free = std::fs::read_to_string("/proc/meminfo").ok().filter(|_| *device == Device::Cpu).and_then(kib);
    free.map_or(u64::MAX, |kib| kib.saturating_mul(1024) / dtype.size() as u64)
}

impl Init {
    /// The root of a new tree: values are drawn from `seed`, linear weights with standard deviation `std`.
    pub fn new(dtype: DType, device: Device, seed: u64, std: f64) -> Self {
        let room = Rc::new(Cell::new(values_in_memory(dtype, &device)));
        let bounded_by = Bound::Memory;
        Init {
            prefix: String::new(),
            list: Rc::default(),
            dtype,
            device,
            seed,
            std,
            blank: false,
            room,
            bounded_by,
        }
    }

    /// As [`Init::new`], but all values are zero, to be replaced by a checkpoint's.
    pub fn blank(dtype: DType, device: Device) -> Self {
        Init { blank: true, ..Self::new(dtype, device, 0, 0.0) }
    }

    /// As [`Init::blank`], for at most `values` values in all: a configuration that asks for far more than a checkpoint holds is
    /// refused before it takes the memory (and the time) for that.
    pub(crate) fn blank_within(dtype: DType, device: Device, values: u64) -> Self {
        let room = Rc::new(Cell::new(values));
        Init { room, bounded_by: Bound::Checkpoint, ..Self::blank(dtype, device) }
    }

    /// A child in the tree of names.
    pub fn sub(&self, name: impl std::fmt::Display) -> Init {
        let prefix =
            if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Init { prefix, ..self.clone() }
    }

    /// The parameter at this absolute key, made by the first block that asks for it: what several blocks share.
    ///
    /// # Errors
    /// As [`Init::param`].
    pub fn shared(&self, key: &str, dims: &[usize], dist: Dist, role: Role) -> Result<Arc<Parameter>> {
        let made = self.list.borrow().params.iter().find(|p| p.name() == key).cloned();
        match made {
            Some(param) => Ok(param),
            None => Init { prefix: String::new(), ..self.clone() }.param(key, dims, dist, role),
        }
    }

    /// The keys below `alias` stand for the parameters made below `owner`: checkpoints may hold either or both.
    pub fn tie(&self, alias: &str, owner: &str) {
        let (alias, owner) = (self.sub(alias).prefix, format!("{}.", self.sub(owner).prefix));
        let mut list = self.list.borrow_mut();
        let names = list.params.iter().filter_map(|p| Some((p.name().strip_prefix(&owner)?, p.name())));
        let pairs: Vec<_> = names.map(|(rest, name)| (format!("{alias}.{rest}"), name.to_string())).collect();
        list.tied.extend(pairs);
    }

    /// Standard deviation of linear weights.
    pub fn std(&self) -> f64 {
        self.std
    }

    /// Makes one parameter.
    ///
    /// # Errors
    /// When memory is short or the shape is absurd.
    pub fn param(&self, name: &str, dims: &[usize], dist: Dist, role: Role) -> Result<Arc<Parameter>> {
        let device = &self.device;
        self.make(name, dims, role, |full, dtype| {
            Ok(match dist {
                Dist::Zeros => Tensor::zeros(dims, dtype, device)?,
                Dist::Ones => Tensor::ones(dims, dtype, device)?,
                Dist::Normal(std) => Philox::named(self.seed, full).randn(0.0, std, dims, dtype, device)?,
                Dist::Orthogonal(gain) => {
                    let rows = orthogonal::orthogonal(&Philox::named(self.seed, full), dims, gain)?;
                    rows.to_dtype(dtype)?.to_device(device)?
                }
                dist => {
                    let rng = Philox::named(self.seed, full);
                    rng.fill(dims, dtype, device, |rng, i| dist.sample(rng, i))?
                }
            })
        })
    }

    /// Makes one parameter whose values follow from their places: `f(i)` for the i-th in row-major order.
    ///
    /// # Errors
    /// As [`Init::param`].
    pub fn values(
        &self,
        name: &str,
        dims: &[usize],
        role: Role,
        f: impl Fn(usize) -> f64,
    ) -> Result<Arc<Parameter>> {
        self.make(name, dims, role, |_, dtype| {
            let values: Vec<f64> = (0..dims.iter().product()).map(f).collect();
            Ok(Tensor::from_vec(values, dims)?.to_dtype(dtype)?.to_device(&self.device)?)
        })
    }

    fn make(
        &self,
        name: &str,
        dims: &[usize],
        role: Role,
        value: impl FnOnce(&str, DType) -> Result<Tensor>,
    ) -> Result<Arc<Parameter>> {
        let full = self.sub(name).prefix;
        let count = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        match count.and_then(|n| self.room.get().checked_sub(n)) {
            Some(left) => self.room.set(left),
            None if matches!(self.bounded_by, Bound::Memory) => {
                let bytes = count.map_or(usize::MAX, |n| n as usize).saturating_mul(self.dtype.size());
                return Err(flashlin_tensor::Error::OutOfMemory { device: self.device, bytes }.into());
            }
            None => {
                let problem =
                    format!("the configuration asks for {full} {dims:?} and more than all of them hold");
                return Err(Error::Weights { path: PathBuf::new(), problem });
            }
        }
        let dtype = if role == Role::Gate { self.dtype.accumulator() } else { self.dtype };
        let value = if self.blank { blank(dims, dtype, &self.device)? } else { value(&full, dtype)? };
        let param = Arc::new(Parameter::new(full, value));
        let mut list = self.list.borrow_mut();
        list.params.push(param.clone());
        list.roles.push(role);
        Ok(param)
    }

    /// The parameters made so far, in order.
    pub fn params(&self) -> Vec<Arc<Parameter>> {
        self.list.borrow().params.clone()
    }

    pub(crate) fn finish(self) -> ParamList {
        std::mem::take(&mut *self.list.borrow_mut())
    }
}

/// Zeros to be replaced. On a GPU one zero is repeated: the values that follow are the first to take memory there.
fn blank(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(match device {
        Device::Cpu => Tensor::zeros(dims, dtype, device)?,
        _ => Tensor::zeros(&[], dtype, device)?.expand(dims)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let make = |extra: bool| {
            let init = Init::new(DType::F32, Device::Cpu, 7, 0.02);
            if extra {
                init.sub("a").param("other", &[3], Dist::Normal(1.0), Role::Weight).unwrap();
            }
            init.sub("b")
                .param("w", &[4, 4], Dist::Normal(0.5), Role::Weight)
                .unwrap()
                .tensor()
                .to_f64_vec()
                .unwrap()
        };
        assert_eq!(make(false), make(true));
    }

    #[test]
    fn statistics_of_the_distributions() {
        let init = Init::new(DType::F64, Device::Cpu, 1, 0.02);
        let draw = |name: &str, d| {
            init.param(name, &[50_000], d, Role::Gate).unwrap().tensor().to_f64_vec().unwrap()
        };
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        let normal = draw("n", Dist::Normal(0.02));
        let std = mean(&normal.iter().map(|x| x * x).collect::<Vec<_>>()).sqrt();
        assert!(mean(&normal).abs() < 4e-4 && (std - 0.02).abs() < 4e-4);
        let a: Vec<f64> = draw("a", Dist::LogUniform(0.0, 16.0)).iter().map(|x| x.exp()).collect();
        assert!((mean(&a) - 8.0).abs() < 0.1 && a.iter().all(|x| *x > 0.0 && *x <= 16.0));
        let tau = draw("tau", Dist::LogitUniform(1.0 / 16.0, 0.9));
        let p: Vec<f64> = tau.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        assert!(
            (mean(&p) - (1.0 / 16.0 + 0.9) / 2.0).abs() < 0.01
                && p.iter().all(|p| *p > 0.0624 && *p < 0.9001)
        );
        let counts = draw("count", Dist::LogCount(3));
        assert!(counts.iter().zip([0.0, 2f64.ln(), 3f64.ln(), 0.0]).all(|(a, b)| (a - b).abs() < 1e-12));
        let glorot = draw("glorot", Dist::xavier(2, 4, 0.5));
        assert!(glorot.iter().all(|x| x.abs() < 0.5) && glorot.iter().any(|x| x.abs() > 0.49));
        let dt = draw("dt", Dist::InverseSoftplusStep { min: 1e-3, max: 0.1, floor: 1e-4 });
        let log_step: Vec<f64> = dt.iter().map(|x| x.exp().ln_1p().ln()).collect();
        let middle = (1e-3f64.ln() + 0.1f64.ln()) / 2.0;
        assert!((mean(&log_step) - middle).abs() < 0.03);
        assert!(log_step.iter().all(|s| *s > 1e-3f64.ln() - 1e-6 && *s < 0.1f64.ln() + 1e-6));
    }
}
