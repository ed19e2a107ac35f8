//! A case of the suite: sizes, dtype, mode, boundaries; and its random inputs.

use std::collections::BTreeMap;

use flashlin_tensor::{DType, Device, Philox};
use half::{bf16, f16};

use crate::{Mode, PackedSeqs, StateLayout};

/// Heads and dims.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Heads of q and k.
    pub h: usize,
    /// Heads of v.
    pub hv: usize,
    /// Width of q and k.
    pub k: usize,
    /// Width of v.
    pub v: usize,
}

impl Shape {
    /// Equal powers of two; grouped value heads with odd, unequal dims; the smallest; wide keys and wide values.
    pub const LIST: [Shape; 5] = [
        Shape { h: 2, hv: 2, k: 16, v: 16 },
        Shape { h: 2, hv: 4, k: 5, v: 19 },
        Shape { h: 1, hv: 2, k: 1, v: 1 },
        Shape { h: 2, hv: 2, k: 33, v: 8 },
        Shape { h: 1, hv: 2, k: 7, v: 40 },
    ];
}

/// One call of an operator.
#[derive(Clone, Debug)]
pub struct Case {
    /// Index into the operator's variants.
    pub variant: usize,
    /// Its name.
    pub variant_name: &'static str,
    /// Sizes.
    pub shape: Shape,
    /// Batch; 1 when packed.
    pub b: usize,
    /// Tokens of a batch row (all packed tokens together).
    pub t: usize,
    /// Boundaries when packed.
    pub packed: Option<PackedSeqs>,
    /// Dtype of the main inputs.
    pub dtype: DType,
    /// Form to run.
    pub mode: Mode,
    /// Tokens of a chunk.
    pub chunk_size: usize,
    /// Layout of the states.
    pub layout: StateLayout,
    /// Whether there is an initial state.
    pub initial: bool,
    /// Gates lie in `[-strength, 0]`.
    pub strength: f64,
    /// Seed of the random inputs.
    pub seed: u64,
    /// Where the inputs lie.
    pub device: Device,
}

impl Case {
    /// Number of sequences.
    pub fn n(&self) -> usize {
        self.packed.as_ref().map_or(self.b, PackedSeqs::len)
    }

    /// (first row, tokens) of each sequence in arrays of flattened tokens.
    pub fn spans(&self) -> Vec<(usize, usize)> {
        match &self.packed {
            Some(p) => p.ranges().map(|r| (r.start, r.len())).collect(),
            None => (0..self.b).map(|i| (i * self.t, self.t)).collect(),
        }
    }

    /// Dims of the state in KV order.
    pub fn state_dims(&self) -> [usize; 4] {
        [self.n(), self.shape.hv, self.shape.k, self.shape.v]
    }

    /// Dtype of inputs that stay precise beside half-precision ones.
    pub fn accumulator(&self) -> DType {
        self.dtype.accumulator()
    }

    /// Random numbers that belong to a name, rounded to `dtype`.
    pub fn random(&self, name: &str, n: usize, fill: Fill, dtype: DType) -> Vec<f64> {
        draw(self.seed, name, n, fill, self.strength, dtype)
    }

    /// One line for reports.
    pub fn describe(&self) -> String {
        let Shape { h, hv, k, v } = self.shape;
        let seqs = match &self.packed {
            Some(p) => format!("packed {:?}", p.cu_seqlens()),
            None => format!("B {} T {}", self.b, self.t),
        };
        format!(
            "{} {} C {} {seqs} H {h} HV {hv} K {k} V {v} {} {} h0 {} gates to -{}",
            self.variant_name,
            self.mode,
            self.chunk_size,
            self.dtype,
            self.layout,
            self.initial,
            self.strength
        )
    }
}

/// Random numbers that belong to a seed and a name, rounded to `dtype`.
pub(super) fn draw(seed: u64, name: &str, n: usize, fill: Fill, strength: f64, dtype: DType) -> Vec<f64> {
    let rng = Philox::named(seed, name);
    let one = |i: u64| match fill {
        Fill::Normal(std) => std * rng.normal(i),
        Fill::Uniform(lo, hi) => lo + (hi - lo) * rng.uniform(i),
        // Mostly weak with strong ones among them: uniform^3.
        Fill::LogDecay => -strength * rng.uniform(i).powi(3),
    };
    (0..n as u64).map(|i| round(one(i), dtype)).collect()
}

/// `x` rounded to what `dtype` can hold.
pub(super) fn round(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => x as f32 as f64,
        DType::BF16 => bf16::from_f64(x).to_f64(),
        DType::F16 => f16::from_f64(x).to_f64(),
        _ => x,
    }
}

/// Distribution of an input.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in `[lo, hi)`.
    Uniform(f64, f64),
    /// Log-decays in `[-strength, 0]` of the case, mostly weak.
    LogDecay,
}

/// How an input relates to tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// `[B, T, ..]`: one row a token.
    Token,
    /// The same for all tokens.
    Shared,
}

/// A named random input.
#[derive(Clone, Debug)]
pub struct Input {
    /// Name, as in the operator's arguments.
    pub name: &'static str,
    /// All dimensions.
    pub dims: Vec<usize>,
    /// Row-major values, representable in `dtype`.
    pub values: Vec<f64>,
    /// Dtype of the variable made of it.
    pub dtype: DType,
    /// By token or shared.
    pub role: Role,
}

impl Input {
    /// `[B, T, tail..]` in the case's dtype.
    pub fn token(case: &Case, name: &'static str, tail: &[usize], fill: Fill) -> Input {
        let dims = [&[case.b, case.t], tail].concat();
        Input::new(case, name, dims, fill, case.dtype, Role::Token)
    }

    /// `[B, T, tail..]` that stays f32 beside half-precision inputs (gates).
    pub fn precise_token(case: &Case, name: &'static str, tail: &[usize], fill: Fill) -> Input {
        let dims = [&[case.b, case.t], tail].concat();
        Input::new(case, name, dims, fill, case.accumulator(), Role::Token)
    }

    /// The same for all tokens, f32 beside half-precision inputs.
    pub fn shared(case: &Case, name: &'static str, dims: &[usize], fill: Fill) -> Input {
        Input::new(case, name, dims.to_vec(), fill, case.accumulator(), Role::Shared)
    }

    fn new(case: &Case, name: &'static str, dims: Vec<usize>, fill: Fill, dtype: DType, role: Role) -> Input {
        let values = case.random(name, dims.iter().product(), fill, dtype);
        Input { name, dims, values, dtype, role }
    }
}

/// Inputs of a case by name, in f64; the initial state is `initial_state`, `[N, HV, K, V]`.
#[derive(Clone, Debug, Default)]
pub struct Arrays(pub BTreeMap<&'static str, Vec<f64>>);

impl Arrays {
    /// The array, or None when the case has no such input.
    pub fn find(&self, name: &str) -> Option<&[f64]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// The array.
    ///
    /// # Panics
    /// When the operator's own `inputs` did not make it.
    pub fn get(&self, name: &str) -> &[f64] {
        self.find(name).unwrap_or_else(|| panic!("the operator's inputs() makes no `{name}`"))
    }
}
