//! A network small enough for tests of the loop: S_t = a S_{t-1} + E[x_t], logits = S_t W^T, with a fixed decay a.

mod tests;

use std::{path::Path, sync::Arc};

use flashlin::weights;
use flashlin_ops::PackedSeqs;
use flashlin_tensor::{DType, Device, Parameter, Philox, Tensor, Var};

use crate::{
    Result,
    trainable::{CarriedState, Pass, PassOptions, Piece, Trainable},
};

const DECAY: f64 = 0.8;
const WIDTH: usize = 8;

/// See the module.
pub(crate) struct Toy {
    params: Vec<Arc<Parameter>>,
    vocab: usize,
}

impl Toy {
    pub fn new(vocab: usize, dtype: DType, seed: u64) -> Result<Toy> {
        let one = |name: &str| -> Result<Arc<Parameter>> {
            let init = Philox::named(seed, name).randn(0.0, 0.3, &[vocab, WIDTH], dtype, &Device::Cpu)?;
            Ok(Arc::new(Parameter::new(name, init)))
        };
        Ok(Toy { params: vec![one("embed")?, one("out")?], vocab })
    }

    /// What tokens add to states [BT, BT], what the start state adds [BT, rows], and which tokens are last [rows, BT].
    fn matrices(sequences: &PackedSeqs) -> Result<[Var; 3]> {
        let (n, rows) = (sequences.total(), sequences.len());
        let mut m = [vec![0f32; n * n], vec![0f32; n * rows], vec![0f32; rows * n]];
        for (s, r) in sequences.ranges().enumerate() {
            for i in r.clone() {
                for j in r.start..=i {
                    m[0][i * n + j] = DECAY.powi((i - j) as i32) as f32;
                }
                m[1][i * rows + s] = DECAY.powi((i + 1 - r.start) as i32) as f32;
            }
            m[2][s * n + r.end - 1] = 1.0;
        }
        let [a, b, c] = m;
        let var = |v, dims: &[usize]| Tensor::from_vec(v, dims).map(Var::constant);
        Ok([var(a, &[n, n])?, var(b, &[n, rows])?, var(c, &[rows, n])?])
    }

    /// Mean of log-sum-exp minus the target's logit.
    fn cross_entropy(&self, logits: &Var, targets: &Tensor, counted: u64) -> Result<Var> {
        let (targets, v) = (targets.to_vec::<i64>()?, self.vocab);
        let mut one_hot = vec![0f32; targets.len() * v];
        let mut mask = vec![0f32; targets.len()];
        for (i, &t) in targets.iter().enumerate().filter(|(_, t)| **t >= 0) {
            one_hot[i * v + t as usize] = 1.0;
            mask[i] = 1.0 / counted as f32;
        }
        let one_hot = Var::constant(Tensor::from_vec(one_hot, &[targets.len(), v])?);
        let mask = Var::constant(Tensor::from_vec(mask, &[targets.len()])?);
        let picked = logits.mul(&one_hot)?.sum(&[1], false)?;
        Ok(logits.exp()?.sum(&[1], false)?.log()?.sub(&picked)?.mul(&mask)?.sum_all()?)
    }
}

/// One matrix [rows, WIDTH].
pub(crate) struct ToyState(Var);

impl CarriedState for ToyState {
    fn as_leaves(&self) -> Result<Self> {
        Ok(ToyState(Var::leaf(self.0.tensor().clone())))
    }

    fn detach(&self) -> Result<Self> {
        Ok(ToyState(self.0.detach()))
    }

    fn vars(&self) -> Vec<Var> {
        vec![self.0.clone()]
    }
}

impl Trainable for Toy {
    type State = ToyState;

    fn params(&self) -> &[Arc<Parameter>] {
        &self.params
    }

    fn wants_weight_decay(&self, name: &str) -> bool {
        name == "out"
    }

    fn new_state(&self, rows: usize) -> Result<ToyState> {
        Ok(ToyState(Var::constant(Tensor::zeros(&[rows, WIDTH], DType::F32, &Device::Cpu)?)))
    }

    fn pass(&self, piece: &Piece, state: Option<&mut ToyState>, options: PassOptions) -> Result<Pass> {
        let sequences = PackedSeqs::resolve("toy", piece.seqs.as_ref(), piece.ids.dim(0), piece.ids.dim(1))?;
        let [within, from_start, last] = Self::matrices(&sequences)?;
        let n = sequences.total();
        let [embed, out] = [&self.params[0], &self.params[1]].map(|p| p.var().to_dtype(DType::F32));
        let inputs = embed?.index_select(&piece.ids.reshape(&[n])?)?;
        let mut hidden = within.matmul(&inputs)?;
        if let Some(state) = &state {
            hidden = hidden.add(&from_start.matmul(&state.0)?)?;
        }
        if let Some(state) = state {
            state.0 = last.matmul(&hidden)?;
        }
        let logits = hidden.linear(&out?)?;
        let loss =
            piece.targets.as_ref().map(|t| self.cross_entropy(&logits, t, piece.counted)).transpose()?;
        let hidden_states = if options.hidden_states { vec![inputs, hidden] } else { Vec::new() };
        Ok(Pass { loss, hidden_states })
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let tensors: Vec<_> = self.params.iter().map(|p| (p.name().to_string(), p.tensor())).collect();
        Ok(weights::save(dir, &tensors, None, weights::DEFAULT_SHARD_BYTES)?)
    }

    fn load(&self, dir: &Path) -> Result<()> {
        let map = weights::WeightMap::open(dir)?;
        Ok(weights::load_into(&self.params, &[], &map, weights::LoadOptions::default())?)
    }
}
