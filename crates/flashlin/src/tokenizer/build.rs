//! Tokenizers made here: plain bytes, and byte-level BPE trained on given text; saving them for Python.
//!
//! Both begin with the special tokens at ids 0 (padding), 1 (begin) and 2 (end), the ids that FLA's configurations assume, then
//! hold the 256 bytes, so that any text can be written. Nothing is added around a text by default.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper, models::TrainerWrapper};

use crate::{Error, files};

use super::{Result, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer, TokenizerError, bytes};

/// Begins a text.
pub(super) const BOS: &str = "<|bos|>";
/// Ends a text.
pub(super) const EOS: &str = "<|eos|>";
/// Fills up a batch.
pub(super) const PAD: &str = "<|pad|>";

/// Special tokens and single bytes: no tokenizer made here is smaller.
const SMALLEST: usize = 3 + 256;

fn specials() -> Vec<AddedToken> {
    [PAD, BOS, EOS].map(|t| AddedToken::from(t, true)).to_vec()
}

/// Around a model: no normaliser, the byte alphabet in and out; `words` splits text at word boundaries as GPT-2 does.
fn around(model: BPE, words: bool) -> Result<tokenizers::Tokenizer> {
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, false, words)));
    inner.with_decoder(Some(ByteLevel::new(false, false, words)));
    inner.add_special_tokens(specials()).map_err(TokenizerError::Inner)?;
    Ok(inner)
}

impl Tokenizer {
    /// One token a byte: byte `b` is id `b + 3`, after the special tokens. 259 ids.
    pub fn bytes() -> Result<Tokenizer> {
        let bytes = bytes::byte_chars();
        let vocab: [(String, u32); SMALLEST] = std::array::from_fn(|id| {
            let token = match id {
                0 => PAD.to_string(),
                1 => BOS.to_string(),
                2 => EOS.to_string(),
                _ => bytes[id - 3].to_string(),
            };
            (token, id as u32)
        });
        let model =
            BPE::builder().vocab_and_merges(vocab, Vec::new()).build().map_err(TokenizerError::Inner)?;
        Self::wrap(around(model, false)?, None, Vec::new())
    }

    /// Trains byte-level BPE with `vocab_size` ids (at least 259) on `texts` and nothing else. Text too small to give that many
    /// merges gives fewer ids; read [`Tokenizer::vocab_size`]. The result depends on the texts alone, not on threads.
    pub fn train_bpe<S: AsRef<str> + Send>(
        texts: impl Iterator<Item = S> + Send,
        vocab_size: usize,
    ) -> Result<Tokenizer> {
        if vocab_size < SMALLEST {
            let why = format!(
                "vocab_size {vocab_size} is too small: 3 special tokens and 256 bytes need {SMALLEST}"
            );
            return Err(TokenizerError::Train(why));
        }
        let mut inner = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .special_tokens(specials())
            .initial_alphabet(bytes::byte_chars().into_iter().collect())
            .show_progress(false)
            .build();
        inner.train(&mut TrainerWrapper::BpeTrainer(trainer), texts).map_err(TokenizerError::Inner)?;
        let ModelWrapper::BPE(model) = inner.get_model().clone() else {
            return Err(TokenizerError::Train("the trainer returned another kind of model".into()));
        };
        Self::wrap(around(model, true)?, None, Vec::new())
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and what else came with it into `dir` (which must exist); each file is
    /// replaced at once or stays as it was.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let kept = &self.shared.kept;
        let mut whole = self.inner().clone();
        whole.with_padding(kept.padding.clone());
        whole.with_truncation(kept.truncation.clone()).map_err(TokenizerError::Inner)?;
        let tokenizer = whole.to_string(true).map_err(TokenizerError::Inner)?;
        let config = serde_json::to_string_pretty(&self.config_json())
            .map_err(|e| TokenizerError::Inner(Box::new(e)))?
            + "\n";
        let own = [(TOKENIZER_FILE, tokenizer.as_bytes()), (TOKENIZER_CONFIG_FILE, config.as_bytes())];
        for (name, bytes) in own.into_iter().chain(kept.files.iter().map(|(name, b)| (*name, &b[..]))) {
            files::write_bytes(&dir.join(name), bytes).map_err(|e| match e {
                Error::Io { path, doing, source } => TokenizerError::Io { path, doing, source },
                other => TokenizerError::Inner(Box::new(other)),
            })?;
        }
        Ok(())
    }

    /// What `tokenizer_config.json` holds: the one that was loaded, or what `transformers` needs to open this tokenizer.
    pub fn config_json(&self) -> Value {
        if let Some(config) = &self.shared.config {
            return config.clone();
        }
        let name = |id: Option<u32>| id.and_then(|id| self.inner().id_to_token(id));
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": name(self.bos()),
            "eos_token": name(self.eos()),
            "pad_token": name(self.pad()),
            "clean_up_tokenization_spaces": false,
            "model_max_length": 1_000_000_000_000_000_000u64,
        })
    }
}
