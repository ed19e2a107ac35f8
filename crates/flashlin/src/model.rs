//! A causal language model: embedding, blocks, final norm, output projection; forward, loss and state.

use std::sync::Arc;

use flashlin_ops::{Mode, PackedSeqs};
use flashlin_tensor::{BackwardCtx, DType, Device, Parameter, Tensor, Var, in_pool, rows_alike};

use crate::{
    Error, Result,
    backbone::{Block, PassCtx, Stream, run_block},
    config::{Config, Map},
    head::{self, HeadInput},
    init::{Init, ParamList, Role},
    layer::Carried,
    modules::{Linear, Norm},
    padding::Padding,
    state::{LayerState, ModelState},
};

/// Tokens, or embeddings in their place.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Token ids `[B, T]`, i64 or i32.
    Ids(Tensor),
    /// Embeddings `[B, T, D]`.
    Embeds(Var),
}

/// What a forward pass reads.
#[derive(Clone, Debug)]
pub struct Input {
    /// Token ids or embeddings.
    pub tokens: Tokens,
    /// Padding mask `[B, T]` u8, 1 for tokens; excludes `seqs`.
    pub mask: Option<Tensor>,
    /// Boundaries of packed sequences; B must be 1.
    pub seqs: Option<PackedSeqs>,
    /// Labels `[B, T]` i64, -100 to ignore. Shifted by one inside, never across sequences.
    pub labels: Option<Tensor>,
    /// Targets `[B, T]` i64 in place of labels: what follows each token, -100 to ignore. Not shifted, so that the last
    /// token of a piece of a longer text can have one.
    pub targets: Option<Tensor>,
}

impl Input {
    /// Token ids `[B, T]`.
    pub fn ids(ids: Tensor) -> Self {
        Input { tokens: Tokens::Ids(ids), mask: None, seqs: None, labels: None, targets: None }
    }

    /// One row of token ids.
    ///
    /// # Errors
    /// When memory is short.
    pub fn row(ids: &[u32]) -> Result<Self> {
        let ids: Vec<i64> = ids.iter().map(|&i| i64::from(i)).collect();
        let n = ids.len();
        Ok(Self::ids(Tensor::from_vec(ids, &[1, n])?))
    }

    /// Several sequences of any lengths, packed.
    ///
    /// # Errors
    /// When memory is short.
    pub fn packed<S: AsRef<[u32]>>(sequences: &[S]) -> Result<Self> {
        let lens: Vec<usize> = sequences.iter().map(|s| s.as_ref().len()).collect();
        let all: Vec<u32> = sequences.iter().flat_map(|s| s.as_ref()).copied().collect();
        Ok(Input { seqs: Some(PackedSeqs::from_lens(&lens)), ..Self::row(&all)? })
    }

    /// The same input with labels.
    pub fn with_labels(self, labels: Tensor) -> Self {
        Input { labels: Some(labels), ..self }
    }

    fn dims(&self) -> Result<[usize; 2]> {
        Ok(match &self.tokens {
            Tokens::Ids(t) => t.dims_n::<2>("model", "input_ids")?,
            Tokens::Embeds(v) => {
                let [b, t, _] = v.tensor().dims_n::<3>("model", "inputs_embeds")?;
                [b, t]
            }
        })
    }
}

/// Which logits a forward pass returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logits {
    /// `[B, T, V]`
    #[default]
    All,
    /// `[N, n, V]`: of the last n tokens of each of the N sequences (zeros before a shorter one's first).
    Last(usize),
    /// None: a training step needs the loss alone, and the logits are never whole in memory.
    None,
}

/// How a forward pass runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions {
    /// Form of the recurrences.
    pub mode: Mode,
    /// Which logits to return.
    pub logits: Logits,
    /// Return the residual stream before each block and after the final norm.
    pub hidden_states: bool,
    /// Recompute each block in the backward pass instead of keeping its activations.
    pub checkpoint_layers: bool,
    /// On the CPU, a sequence that brings one token gets the same bits whatever sequences are beside it
    /// ([`flashlin_tensor::rows_alike`]).
    pub rows_alike: bool,
}

/// What a forward pass returns.
#[derive(Debug)]
pub struct Output {
    /// As [`ForwardOptions::logits`] asked.
    pub logits: Option<Var>,
    /// Mean cross entropy over counted labels in nats (f32 scalar), where labels were given, and what the family adds to it.
    pub loss: Option<Var>,
    /// Number of counted labels.
    pub loss_tokens: usize,
    /// The residual stream before each block, and the final norm's output, where asked for.
    pub hidden_states: Vec<Var>,
}

/// A causal language model.
pub struct Model {
    config: Config,
    /// The `generation_config.json` that came with the weights.
    pub(crate) generation: Option<Map>,
    params: Vec<Arc<Parameter>>,
    roles: Vec<Role>,
    tied: Vec<(String, String)>,
    embeddings: Arc<Parameter>,
    blocks: Vec<Arc<Block>>,
    final_norm: Norm,
    lm_head: Arc<Parameter>,
    dtype: DType,
    device: Device,
}

impl Model {
    /// A model with fresh weights drawn from `seed` as the family prescribes.
    ///
    /// # Errors
    /// Sizes that do not fit, or memory.
    pub fn new(config: &Config, dtype: DType, device: &Device, seed: u64) -> Result<Model> {
        Self::build(config, Init::new(dtype, *device, seed, config.base().initializer_range), dtype, device)
    }

    /// A model whose weights are zero, to be filled by a checkpoint.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn blank(config: &Config, dtype: DType, device: &Device) -> Result<Model> {
        Self::build(config, Init::blank(dtype, *device), dtype, device)
    }

    /// A model to be filled by a checkpoint of `values` values.
    pub(crate) fn blank_within(config: &Config, dtype: DType, device: &Device, values: u64) -> Result<Model> {
        // What is missing or misshaped by an oversight is told by key later; this stops absurd sizes alone.
        let room = values.saturating_mul(2).saturating_add(1 << 24);
        Self::build(config, Init::blank_within(dtype, *device, room), dtype, device)
    }

    fn build(config: &Config, init: Init, dtype: DType, device: &Device) -> Result<Model> {
        if !dtype.is_float() {
            return Err(Error::argument("dtype", format!("is {dtype}, expected f32, bf16, f16 or f64")));
        }
        let base = config.base();
        let layout = config.family().layout();
        let root = init.sub(layout.root);
        let table = [base.vocab_size, base.hidden_size];
        let ends = config.typed().ends();
        let embeddings = root.sub("embeddings").param("weight", &table, ends.embedding, Role::Weight)?;
        let layer = |i| Ok(Arc::new(config.typed().block(i, &root.sub("layers").sub(i))?));
        let blocks = (0..base.num_hidden_layers).map(layer).collect::<Result<Vec<_>>>()?;
        let at = root.sub(layout.final_norm);
        let final_norm = match ends.layer_norm_bias {
            None => Norm::rms(&at, base.hidden_size, base.norm_eps, true)?,
            Some(bias) => Norm::layer(&at, base.hidden_size, base.norm_eps, bias)?,
        };
        let mut tied = Vec::new();
        let lm_head = if base.tie_word_embeddings {
            tied.push(("lm_head.weight".into(), embeddings.name().into()));
            embeddings.clone()
        } else {
            let (input, output) = (base.hidden_size, base.vocab_size);
            Linear::with_init(&init.sub("lm_head"), input, output, false, ends.head)?.weight().clone()
        };
        let ParamList { params, roles, tied: others } = init.finish();
        tied.extend(others);
        Ok(Model {
            config: config.clone(),
            generation: None,
            params,
            roles,
            tied,
            embeddings,
            blocks,
            final_norm,
            lm_head,
            dtype,
            device: *device,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The element type of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the model lives.
    pub fn device(&self) -> Device {
        self.device
    }

    /// All parameters in a fixed order; names are checkpoint keys. A tied projection appears once.
    pub fn params(&self) -> &[Arc<Parameter>] {
        &self.params
    }

    /// Keys that stand for another parameter: (alias, owner).
    pub fn tied_keys(&self) -> &[(String, String)] {
        &self.tied
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Arc<Block>] {
        &self.blocks
    }

    /// True where every one-token step from a state launches the same work ([`crate::Layer::steps_alike`]).
    pub fn steps_alike(&self) -> bool {
        self.blocks.iter().flat_map(|b| &b.parts).all(|part| part.layer.steps_alike())
    }

    /// Number of trainable values.
    pub fn num_params(&self) -> usize {
        self.params.iter().map(|p| p.dims().iter().product::<usize>()).sum()
    }

    /// Trainable values outside the embedding and the output projection.
    pub fn num_non_embedding_params(&self) -> usize {
        let outer = [self.embeddings.name(), self.lm_head.name()];
        let inner = self.params.iter().filter(|p| !outer.contains(&p.name()));
        inner.map(|p| p.dims().iter().product::<usize>()).sum()
    }

    /// What a parameter is to the optimizer, by name.
    pub fn role(&self, name: &str) -> Option<Role> {
        self.params.iter().position(|p| p.name() == name).map(|i| self.roles[i])
    }

    /// Whether weight decay applies: to matrices, not to norms, biases and gate parameters.
    pub fn wants_weight_decay(&self, name: &str) -> bool {
        self.role(name) == Some(Role::Weight)
    }

    /// A state for `rows` sequences that have seen nothing.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new_state(&self, rows: usize) -> Result<ModelState> {
        let layer = |b: &Arc<Block>| LayerState::zeros(b.state_spec(), rows, &self.device);
        let layers = self.blocks.iter().map(layer).collect::<Result<_>>()?;
        Ok(ModelState { layers, seen: vec![0; rows] })
    }

    /// Runs the model. With a state, continues from it and updates it; the state's rows are the sequences. After an
    /// error the state is not fit for use.
    ///
    /// # Errors
    /// Wrong shapes, ids outside the vocabulary, boundaries or a state that do not fit.
    pub fn forward(
        &self,
        input: &Input,
        state: Option<&mut ModelState>,
        options: &ForwardOptions,
    ) -> Result<Output> {
        in_pool(|| match options.rows_alike {
            true => rows_alike(|| self.run(input, state, options)),
            false => self.run(input, state, options),
        })
    }

    fn run(
        &self,
        input: &Input,
        mut state: Option<&mut ModelState>,
        options: &ForwardOptions,
    ) -> Result<Output> {
        let [batch, len] = input.dims()?;
        if input.mask.is_some() && input.seqs.is_some() {
            return Err(Error::argument("mask", "and cu_seqlens exclude each other"));
        }
        let padding = input.mask.as_ref().map(Padding::from_mask).transpose()?;
        let packed = padding.as_ref().map(Padding::seqs).or(input.seqs.as_ref());
        let sequences = match &padding {
            Some(p) => p.seqs().clone(),
            None => PackedSeqs::resolve("model", input.seqs.as_ref(), batch, len)?,
        };
        let seen = self.check_state(state.as_deref(), sequences.len())?;

        let mut x = self.embed(&input.tokens)?;
        if let Some(p) = &padding {
            x = p.pack(&x)?;
        }
        let pass = PassCtx { seqs: packed, mode: options.mode, seen: &seen, dtype: self.dtype };
        let mut hidden_states = Vec::new();
        let mut stream = Stream::new(x);
        let mut carried = Carried::new();
        for (i, block) in self.blocks.iter().enumerate() {
            if options.hidden_states {
                hidden_states.push(stream.sum()?);
            }
            let layer_state = state.as_deref_mut().map(|s| &mut s.layers[i]);
            stream = run_block(block, stream, &pass, layer_state, &mut carried, options.checkpoint_layers)?;
        }
        let x = stream.normed(&self.final_norm)?.to_dtype(self.dtype)?;
        if options.hidden_states {
            hidden_states.push(x.clone());
        }
        if let Some(p) = &padding {
            hidden_states = hidden_states.iter().map(|h| p.unpack(h)).collect::<Result<_>>()?;
        }
        if let Some(s) = state {
            s.seen.iter_mut().zip(sequences.ranges()).for_each(|(n, r)| *n += r.len());
        }
        let (labels, shift) = match (&input.labels, &input.targets) {
            (Some(_), Some(_)) => return Err(Error::argument("labels", "and targets exclude each other")),
            (None, targets) => (targets.as_ref(), false),
            (labels, None) => (labels.as_ref(), true),
        };
        let labels = labels.map(|l| self.check_labels(l, [batch, len], padding.as_ref()));
        let head = HeadInput {
            hidden: x,
            weight: self.lm_head.var(),
            sequences: &sequences,
            padding: padding.as_ref(),
            labels: labels.transpose()?,
            shift,
            logits: options.logits,
            l2warp: self.config.base().use_l2warp,
        };
        let (logits, mut loss, loss_tokens) = head::run(head)?;
        if let Some(loss) = &mut loss
            && let Some(extra) = self.config.typed().extra_loss(&carried)?
        {
            *loss = loss.add(&extra.to_dtype(loss.dtype())?)?;
        }
        Ok(Output { logits, loss, loss_tokens, hidden_states })
    }

    fn embed(&self, tokens: &Tokens) -> Result<Var> {
        match tokens {
            Tokens::Ids(ids) => {
                let x = self.embeddings.var().index_select(&self.checked(ids)?)?;
                match self.frozen_row() {
                    Some(pad) => without_gradient_at(x, ids, pad),
                    None => Ok(x),
                }
            }
            Tokens::Embeds(x) if x.dims().last() == Some(&self.config.base().hidden_size) => {
                Ok(x.to_dtype(self.dtype)?)
            }
            Tokens::Embeds(x) => {
                let why =
                    format!("have shape {:?}, expected [B, T, {}]", x.dims(), self.config.base().hidden_size);
                Err(Error::argument("inputs_embeds", why))
            }
        }
    }

    /// Token ids for a look-up. They are checked and stay on the host, since a GPU cannot complain, and sorted ids make its gradient cheap; ids
    /// that are on the device already (a recorded step's) are taken as they are, and one outside of the vocabulary gives NaN.
    fn checked(&self, ids: &Tensor) -> Result<Tensor> {
        if self.device == Device::Cpu || ids.device() != Device::Cpu {
            return Ok(ids.clone());
        }
        let wide = ids.to_dtype(DType::I64)?.contiguous()?;
        let vocab = self.config.base().vocab_size;
        let outside = |id: &&i64| usize::try_from(**id).map_or(true, |id| id >= vocab);
        if let Some(id) = wide.as_slice::<i64>()?.iter().find(outside) {
            return Err(Error::argument("input_ids", format!("hold {id}, outside 0..{vocab}")));
        }
        Ok(wide)
    }

    /// The padding token, where its embedding learns nothing as an input. As in Python, -1 is the last row.
    fn frozen_row(&self) -> Option<i64> {
        let base = self.config.base();
        let (pad, rows) = (base.pad_token_id?, base.vocab_size as i64);
        let row = if pad < 0 { pad.checked_add(rows)? } else { pad };
        ((0..rows).contains(&row) && self.config.family().freezes_padding()).then_some(row)
    }

    fn check_state(&self, state: Option<&ModelState>, rows: usize) -> Result<Vec<usize>> {
        let Some(s) = state else { return Ok(vec![0; rows]) };
        if s.rows() != rows {
            return Err(Error::state(format!(
                "the state has {} rows, but the input {rows} sequences",
                s.rows()
            )));
        }
        if s.layers.len() != self.blocks.len() {
            let why = format!("the state has {} layers, but the model {}", s.layers.len(), self.blocks.len());
            return Err(Error::state(why));
        }
        Ok(s.seen.clone())
    }

    fn check_labels(&self, labels: &Tensor, dims: [usize; 2], padding: Option<&Padding>) -> Result<Tensor> {
        if labels.dims() != dims || labels.dtype() != DType::I64 {
            let why = format!("are {} {:?}, expected i64 {dims:?}", labels.dtype(), labels.dims());
            return Err(Error::argument("labels", why));
        }
        match padding {
            Some(p) => p.pack_tensor(labels),
            None => Ok(labels.clone()),
        }
    }
}

/// The same values; what flows back to the places where `ids` is `id` is dropped.
fn without_gradient_at(x: Var, ids: &Tensor, id: i64) -> Result<Var> {
    if !x.is_tracked() {
        return Ok(x);
    }
    let column: Vec<usize> = ids.dims().iter().copied().chain([1]).collect();
    // Ids come from the host; where they do not, they are read once here.
    let ids = ids.to_device(&Device::Cpu)?;
    let from_on = |id: i64| ids.ge(id as f64)?.reshape(&column)?.to_device(&x.device());
    let (from, after) = (from_on(id)?, from_on(id + 1)?);
    let backward = move |_: &mut BackwardCtx<'_>, grads: Vec<Option<Tensor>>| {
        let drop = |g: Tensor| {
            let zero = Tensor::zeros(&[], g.dtype(), &g.device())?;
            let below = zero.where_(&from, &g)?;
            g.where_(&after, &below)
        };
        grads.into_iter().map(|g| g.map(drop).transpose()).collect()
    };
    Ok(Var::from_op1("padding", &[&x], x.tensor().clone(), || Box::new(backward)))
}
