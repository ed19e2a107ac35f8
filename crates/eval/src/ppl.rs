//! Perplexity: how well a model predicts text, in nats a token and in bits a byte of text (which compares across tokenizers).
//!
//! Policy: every token of a document is predicted from all tokens before it, however long the document is: long ones run in blocks
//! with the state carried from block to block, short ones are packed, and no document sees another. The first token has no
//! context and counts only behind a BOS. Sums are f64 in a fixed order.

use flashlin::{
    ForwardOptions, Input, Logits, Mode, Model, ModelState, PackedSeqs,
    tokenizer::{Tokenizer, TokenizerError},
};
use flashlin_ops::loss::{LossOptions, Reduction, cross_entropy};
use flashlin_tensor::{Tensor, no_grad};
use serde::Serialize;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PplError {
    /// The model refused.
    #[error(transparent)]
    Model(#[from] flashlin::Error),
    /// An array operation refused.
    #[error(transparent)]
    Tensor(#[from] flashlin_tensor::Error),
    /// The tokenizer refused, or does not fit the model.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A BOS was asked for that the tokenizer lacks.
    #[error("the tokenizer has no token that begins a text")]
    NoBos,
    /// Nothing was predicted.
    #[error(
        "the text has no token to predict: expected a document of at least two tokens (or of one behind a BOS)"
    )]
    Empty,
    /// The model computed NaN or infinity.
    #[error("the loss is not finite after {0} tokens: the weights may be damaged")]
    NotFinite(u64),
}

/// How to measure.
#[derive(Debug, Clone, Copy, Default)]
pub struct PplOptions {
    /// Tokens of one forward pass; None: 2048, fewer for a large vocabulary.
    pub block: Option<usize>,
    /// Put the tokenizer's BOS before each document; None: if `tokenizer.json` asks for it.
    pub bos: Option<bool>,
    /// Stop after this many predicted tokens (at a block's end).
    pub max_tokens: Option<u64>,
    /// Form of the recurrences.
    pub mode: Mode,
}

/// The result, summed over all documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Perplexity {
    /// Documents begun.
    pub documents: u64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Bytes of text that those tokens stand for.
    pub bytes: u64,
    /// Sum of their negative log-probabilities in nats.
    pub nats: f64,
}

impl Perplexity {
    /// Mean nats a token.
    pub fn loss(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// e to the mean nats a token.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Bits a byte of text.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes as f64
    }
}

/// Measures `model` on documents, in order. `progress` is called after each forward pass with the result so far.
///
/// # Errors
/// [`PplError`]; an error of the iterator is handed through.
pub fn perplexity<E: From<PplError>>(
    model: &Model,
    tokenizer: &Tokenizer,
    documents: impl Iterator<Item = Result<String, E>>,
    options: &PplOptions,
    mut progress: impl FnMut(&Perplexity),
) -> Result<Perplexity, E> {
    let mut run = Run::new(model, tokenizer, options)?;
    for document in documents {
        run.document(&document?, &mut progress)?;
        if run.done() {
            break;
        }
    }
    run.flush(&mut progress)?;
    match run.sum.tokens {
        0 => Err(PplError::Empty.into()),
        _ => Ok(run.sum),
    }
}

struct Run<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    options: PplOptions,
    bos: Option<u32>,
    block: usize,
    /// Short documents that wait to be packed, and their tokens.
    waiting: Vec<Vec<u32>>,
    waiting_tokens: usize,
    sum: Perplexity,
}

impl<'a> Run<'a> {
    fn new(model: &'a Model, tokenizer: &'a Tokenizer, options: &PplOptions) -> Result<Self, PplError> {
        let vocab = model.config().base().vocab_size;
        tokenizer.check_vocab(vocab)?;
        let asked = tokenizer.bos().is_some_and(|id| tokenizer.prefix().contains(&id));
        let bos = match (options.bos.unwrap_or(asked), tokenizer.bos()) {
            (true, None) => return Err(PplError::NoBos),
            (wanted, id) => id.filter(|_| wanted),
        };
        // Logits of one block: 64 MiB of f32 at most.
        let block = options.block.unwrap_or((1usize << 24).div_ceil(vocab).clamp(64, 2048)).max(1);
        let (waiting, waiting_tokens, sum) = (Vec::new(), 0, Perplexity::default());
        Ok(Run { model, tokenizer, options: *options, bos, block, waiting, waiting_tokens, sum })
    }

    fn done(&self) -> bool {
        self.options.max_tokens.is_some_and(|n| self.sum.tokens >= n)
    }

    fn document(&mut self, text: &str, progress: &mut dyn FnMut(&Perplexity)) -> Result<(), PplError> {
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        ids.extend(self.tokenizer.encode_plain(text)?);
        self.sum.documents += 1;
        // The last token is only predicted, never read.
        if ids.len() > self.block + 1 {
            return self.long(&ids, progress);
        }
        if ids.len() < 2 {
            return Ok(());
        }
        if self.waiting_tokens + ids.len() - 1 > self.block {
            self.flush(progress)?;
        }
        self.waiting_tokens += ids.len() - 1;
        self.waiting.push(ids);
        Ok(())
    }

    /// One document in blocks.
    fn long(&mut self, ids: &[u32], progress: &mut dyn FnMut(&Perplexity)) -> Result<(), PplError> {
        let mut state = self.model.new_state(1)?;
        for start in (0..ids.len() - 1).step_by(self.block) {
            let end = (start + self.block).min(ids.len() - 1);
            self.pass(&ids[start..end], &ids[start + 1..end + 1], None, Some(&mut state))?;
            progress(&self.sum);
            if self.done() {
                break;
            }
        }
        Ok(())
    }

    /// All waiting documents, packed.
    fn flush(&mut self, progress: &mut dyn FnMut(&Perplexity)) -> Result<(), PplError> {
        let documents = std::mem::take(&mut self.waiting);
        self.waiting_tokens = 0;
        if documents.is_empty() {
            return Ok(());
        }
        let lens: Vec<usize> = documents.iter().map(|d| d.len() - 1).collect();
        let inputs: Vec<u32> = documents.iter().flat_map(|d| &d[..d.len() - 1]).copied().collect();
        let targets: Vec<u32> = documents.iter().flat_map(|d| &d[1..]).copied().collect();
        self.pass(&inputs, &targets, Some(PackedSeqs::from_lens(&lens)), None)?;
        progress(&self.sum);
        Ok(())
    }

    /// Adds the log-probabilities of `targets`, each predicted at the input token in the same place.
    fn pass(
        &mut self,
        inputs: &[u32],
        targets: &[u32],
        seqs: Option<PackedSeqs>,
        state: Option<&mut ModelState>,
    ) -> Result<(), PplError> {
        let wide = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect::<Vec<i64>>();
        let dims = [1, inputs.len()];
        let input = Input { seqs, ..Input::ids(Tensor::from_vec(wide(inputs), &dims)?) };
        let options =
            ForwardOptions { mode: self.options.mode, logits: Logits::All, ..ForwardOptions::default() };
        let targets_tensor = Tensor::from_vec(wide(targets), &dims)?;
        let loss = no_grad(|| -> Result<f64, PplError> {
            let logits = self.model.forward(&input, state, &options)?.logits;
            let logits = logits.ok_or_else(|| flashlin::Error::argument("logits", "were not returned"))?;
            let sum = LossOptions { reduction: Reduction::Sum, ..LossOptions::default() };
            Ok(cross_entropy(&logits, &targets_tensor, &sum)?.loss.tensor().to_scalar()?)
        })?;
        self.sum.nats += loss;
        self.sum.tokens += targets.len() as u64;
        self.sum.bytes += self.tokenizer.byte_len(targets);
        if !loss.is_finite() {
            return Err(PplError::NotFinite(self.sum.tokens));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flashlin::{Config, DType, Device};
    use serde_json::json;

    use super::*;

    fn model(family: &str) -> Model {
        let map = json!({
            "model_type": family, "vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2,
            "intermediate_size": 48, "initializer_range": 0.2,
        });
        let config = Config::from_json(map.as_object().unwrap().clone()).unwrap();
        Model::new(&config, DType::F32, &Device::Cpu, 3).unwrap()
    }

    fn measure(model: &Model, documents: &[&str], options: PplOptions) -> Result<Perplexity, PplError> {
        let tokenizer = Tokenizer::bytes().unwrap();
        perplexity(model, &tokenizer, documents.iter().map(|d| Ok(d.to_string())), &options, |_| {})
    }

    /// The sum that the model itself reports for one document.
    fn direct(model: &Model, text: &str) -> f64 {
        let ids: Vec<i64> = text.bytes().map(|b| i64::from(b) + 3).collect();
        let ids = Tensor::from_slice(&ids, &[1, ids.len()]).unwrap();
        let input = Input::ids(ids.clone()).with_labels(ids);
        let loss = no_grad(|| model.forward(&input, None, &ForwardOptions::default())).unwrap().loss.unwrap();
        loss.tensor().to_scalar().unwrap() * (text.len() - 1) as f64
    }

    #[test]
    fn equals_the_models_own_loss_whatever_the_block() {
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(9);
        let (short, other) = ("a short one", "another, short too");
        for family in ["gla", "transformer"] {
            let model = model(family);
            let want = direct(&model, &text) + direct(&model, short) + direct(&model, other);
            for block in [7, 64, 128, 4096] {
                let options = PplOptions { block: Some(block), ..PplOptions::default() };
                let got = measure(&model, &[short, &text, "x", "", other], options).unwrap();
                let predicted = (text.len() + short.len() + other.len() - 3) as u64;
                assert_eq!((got.documents, got.tokens, got.bytes), (5, predicted, predicted));
                assert!((got.nats - want).abs() < 2e-5 * want, "{family} {block}: {} {want}", got.nats);
            }
        }
    }

    #[test]
    fn means_and_limits() {
        let model = model("gla");
        let text = "to be or not to be ".repeat(20);
        let bos = PplOptions { bos: Some(true), ..PplOptions::default() };
        let all = measure(&model, &[&text], bos).unwrap();
        assert_eq!((all.tokens, all.bytes), (text.len() as u64, text.len() as u64));
        assert!((all.perplexity().log2() - all.bits_per_byte()).abs() < 1e-12);
        let limit = PplOptions { block: Some(16), max_tokens: Some(30), ..PplOptions::default() };
        assert_eq!(measure(&model, &[&text], limit).unwrap().tokens, 32);
        assert!(matches!(measure(&model, &["", "a"], PplOptions::default()), Err(PplError::Empty)));
    }
}
