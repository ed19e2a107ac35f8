//! The tokenizer that training, evaluation and generation share: a thin wrapper of the `tokenizers` crate.
//!
//! Policy: a tokenizer is always a real `tokenizer.json` (the byte-level one too), so that Python's `tokenizers` and
//! `transformers` open what is saved here. Text is either *plain* (data: never turned into special tokens, whatever it
//! contains) or a *prompt* (special tokens written in it are recognised, as in Python). What a token stands for is known in bytes:
//! that makes streaming output exact and bits per byte honest.

mod build;
mod bytes;
mod stream;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

pub use stream::TextStream;

/// The tokenizer file of a checkpoint folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The file beside it that names the special tokens (and the Python class).
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// More token ids than any real vocabulary has: larger ones in a file are damage.
const MAX_IDS: usize = 1 << 24;

/// What can go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file could not be read or written.
    #[error("{}: {doing} failed: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a noun.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file that is not a tokenizer.
    #[error("{}: not a usable {expected}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What the parser said.
        problem: String,
    },
    /// Token ids the model has no embedding for.
    #[error(
        "the tokenizer (tokenizer.json) has {tokenizer} token ids, but vocab_size in config.json is {model}: the model cannot embed them all"
    )]
    Vocab {
        /// Ids the tokenizer can produce (its largest id + 1).
        tokenizer: usize,
        /// The model's vocabulary size.
        model: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is not in the tokenizer's vocabulary of {size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of ids.
        size: usize,
    },
    /// Settings of a tokenizer to train that cannot be met.
    #[error("tokenizer training: {0}")]
    Train(String),
    /// Encoding or decoding failed inside the `tokenizers` crate.
    #[error("tokenizer: {0}")]
    Inner(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl TokenizerError {
    /// True when the request was wrong (a missing file, impossible settings), false when carrying it out failed.
    pub fn is_usage(&self) -> bool {
        match self {
            TokenizerError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            TokenizerError::Train(_) | TokenizerError::Vocab { .. } => true,
            _ => false,
        }
    }
}

type Result<T> = std::result::Result<T, TokenizerError>;

/// A tokenizer with its special tokens; cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    /// Recognises special tokens in text.
    prompt: tokenizers::Tokenizer,
    /// The same, but special tokens in text stay text; made when first needed.
    plain: OnceLock<tokenizers::Tokenizer>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    size: usize,
    /// What each id stands for.
    pieces: bytes::Pieces,
    /// Ids that the tokenizer itself puts before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// The `tokenizer_config.json` that came with it, kept on save.
    config: Option<Value>,
    /// What else is kept on save.
    kept: Kept,
}

/// What a tokenizer came with and nothing here uses.
#[derive(Default)]
struct Kept {
    padding: Option<tokenizers::PaddingParams>,
    truncation: Option<tokenizers::TruncationParams>,
    /// Files beside `tokenizer.json`, by name.
    files: Vec<(&'static str, Vec<u8>)>,
}

/// Files of other programs beside a tokenizer.
const COMPANIONS: [&str; 3] = ["chat_template.jinja", "special_tokens_map.json", "added_tokens.json"];

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids, bos {:?}, eos {:?})", self.vocab_size(), self.bos(), self.eos())
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json` and, if it is there, `tokenizer_config.json` from a checkpoint folder.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        let config_path = dir.join(TOKENIZER_CONFIG_FILE);
        let config = match std::fs::read(&config_path) {
            Ok(raw) => Some(parse_config(&config_path, &raw)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(TokenizerError::Io { path: config_path, doing: "reading", source }),
        };
        let mut companions = Vec::new();
        for name in COMPANIONS {
            let path = dir.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => companions.push((name, bytes)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(TokenizerError::Io { path, doing: "reading", source }),
            }
        }
        Self::load(&dir.join(TOKENIZER_FILE), config, companions)
    }

    /// Loads a `tokenizer.json`; `tokenizer_config.json` beside it is used if it is there. A folder is taken as a checkpoint.
    pub fn from_file(path: &Path) -> Result<Tokenizer> {
        if path.is_dir() {
            return Self::from_dir(path);
        }
        match path.parent().filter(|_| path.file_name().is_some_and(|n| n == TOKENIZER_FILE)) {
            Some(dir) => Self::from_dir(dir),
            None => Self::load(path, None, Vec::new()),
        }
    }

    fn load(path: &Path, config: Option<Value>, files: Vec<(&'static str, Vec<u8>)>) -> Result<Tokenizer> {
        let raw = std::fs::read(path).map_err(|source| TokenizerError::Io {
            path: path.to_path_buf(),
            doing: "reading",
            source,
        })?;
        let malformed = |problem: String| TokenizerError::Malformed {
            path: path.to_path_buf(),
            expected: "tokenizer.json (of the Hugging Face `tokenizers` library)",
            problem,
        };
        // The library panics on some syntax errors and on some wrong values, so these are checked before.
        let json = serde_json::from_slice::<Value>(&raw).map_err(|e| malformed(e.to_string()))?;
        check_template(&json["post_processor"]).map_err(malformed)?;
        let inner = tokenizers::Tokenizer::from_bytes(&raw).map_err(|e| malformed(e.to_string()))?;
        Self::wrap(inner, config, files).map_err(|e| malformed(e.to_string()))
    }

    fn wrap(
        mut inner: tokenizers::Tokenizer,
        config: Option<Value>,
        files: Vec<(&'static str, Vec<u8>)>,
    ) -> Result<Tokenizer> {
        let (padding, truncation) = (inner.get_padding().cloned(), inner.get_truncation().cloned());
        let kept = Kept { padding, truncation, files };
        // A stored padding or truncation would change texts behind the caller's back.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(TokenizerError::Inner)?;
        let size = inner.get_vocab(true).values().map(|&id| id as usize + 1).max().unwrap_or(0);
        if size == 0 {
            return Err(TokenizerError::Inner("the vocabulary is empty".into()));
        }
        if size > MAX_IDS {
            return Err(TokenizerError::Inner(
                format!("the largest token id is {} (at most {MAX_IDS} ids)", size - 1).into(),
            ));
        }
        let special = |key: &str, own: &str| {
            let named = config.as_ref().and_then(|c| c.get(key)).and_then(token_text);
            inner.token_to_id(named.unwrap_or(own))
        };
        let (bos, eos, pad) = (
            special("bos_token", build::BOS),
            special("eos_token", build::EOS),
            special("pad_token", build::PAD),
        );
        let pieces = bytes::Pieces::new(&inner, size);
        let (prefix, suffix) = affixes(&inner)?;
        let plain = OnceLock::new();
        let shared =
            Shared { prompt: inner, plain, bos, eos, pad, size, pieces, prefix, suffix, config, kept };
        Ok(Tokenizer { shared: Arc::new(shared) })
    }

    /// Number of token ids: the largest id + 1.
    pub fn vocab_size(&self) -> usize {
        self.shared.size
    }

    /// Id of the token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.shared.bos
    }

    /// Id of the token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.shared.eos
    }

    /// Id of the padding token.
    pub fn pad(&self) -> Option<u32> {
        self.shared.pad
    }

    /// Ids that `tokenizer.json` asks for before a text (often BOS, often nothing).
    pub fn prefix(&self) -> &[u32] {
        &self.shared.prefix
    }

    /// Ids that `tokenizer.json` asks for after a text.
    pub fn suffix(&self) -> &[u32] {
        &self.shared.suffix
    }

    /// The `tokenizers` object inside, for what this wrapper does not offer.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.shared.prompt
    }

    /// Ids of a piece of data. Nothing is added, and a special token spelled out in the text stays text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let plain = self.shared.plain.get_or_init(|| {
            let mut plain = self.shared.prompt.clone();
            plain.set_encode_special_tokens(true);
            plain
        });
        Ok(plain.encode_fast(text, false).map_err(TokenizerError::Inner)?.get_ids().to_vec())
    }

    /// Ids of a prompt: special tokens spelled out in it are recognised; `add_special` adds what `tokenizer.json` asks for
    /// around a text. The same ids as Python's `tokenizer(text, add_special_tokens=add_special)`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(self
            .shared
            .prompt
            .encode_fast(text, add_special)
            .map_err(TokenizerError::Inner)?
            .get_ids()
            .to_vec())
    }

    /// Text of ids; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves special tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.shared.size) {
            return Err(TokenizerError::UnknownId { id, size: self.shared.size });
        }
        self.shared.prompt.decode(ids, skip_special).map_err(TokenizerError::Inner)
    }

    /// Starts a decoder for tokens that arrive one at a time. `skip_special` leaves special tokens out.
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special)
    }

    /// The bytes that token `id` stands for, a special token's name included; none for an unknown id. Often not whole characters.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.shared.pieces.get(id)
    }

    /// True for tokens such as BOS and EOS, which are no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.shared.pieces.is_special(id)
    }

    /// The `tokenizer_config.json` that came with it.
    pub fn config(&self) -> Option<&Value> {
        self.shared.config.as_ref()
    }

    /// The chat template `name`, or the only or default one: of `chat_template.jinja`, else of `tokenizer_config.json`.
    pub fn chat_template(&self, name: Option<&str>) -> Option<String> {
        let own = self.shared.kept.files.iter().find(|(file, _)| *file == "chat_template.jinja");
        if let (Some((_, text)), None) = (own, name) {
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        match &self.config()?["chat_template"] {
            Value::String(only) if name.is_none_or(|n| n == "default") => Some(only.clone()),
            Value::Array(several) => {
                let wanted = name.unwrap_or("default");
                let found = several.iter().find(|t| t["name"] == wanted);
                Some(found?["template"].as_str()?.to_string())
            }
            _ => None,
        }
    }

    /// Number of UTF-8 bytes of text that token `id` stands for; 0 for special tokens and ids outside the vocabulary. Exact for
    /// byte-level and byte-fallback BPE; a SentencePiece-style dummy blank before a text counts as one byte.
    pub fn token_len(&self, id: u32) -> usize {
        self.shared.pieces.len(id)
    }

    /// The sum of [`Tokenizer::token_len`] over `ids`.
    pub fn byte_len(&self, ids: &[u32]) -> u64 {
        ids.iter().map(|&id| self.token_len(id) as u64).sum()
    }

    /// Refuses a model that has fewer embeddings than there are token ids.
    pub fn check_vocab(&self, model_vocab_size: usize) -> Result<()> {
        if self.shared.size > model_vocab_size {
            return Err(TokenizerError::Vocab { tokenizer: self.shared.size, model: model_vocab_size });
        }
        Ok(())
    }
}

/// A special token in `tokenizer_config.json` is a string or an object with `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn parse_config(path: &Path, raw: &[u8]) -> Result<Value> {
    let malformed = |problem: String| TokenizerError::Malformed {
        path: path.to_path_buf(),
        expected: "tokenizer_config.json",
        problem,
    };
    let value: Value = serde_json::from_slice(raw).map_err(|e| malformed(e.to_string()))?;
    if !value.is_object() {
        return Err(malformed("expected a JSON object".into()));
    }
    Ok(value)
}

/// A template may only speak of special tokens that it defines.
fn check_template(post_processor: &Value) -> std::result::Result<(), String> {
    for inner in post_processor["processors"].as_array().into_iter().flatten() {
        check_template(inner)?;
    }
    let pieces = ["single", "pair"].into_iter().filter_map(|key| post_processor[key].as_array()).flatten();
    for id in pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        if post_processor["special_tokens"].get(id).is_none() {
            return Err(format!(
                "post_processor: the template's token {id:?} is not among its special_tokens"
            ));
        }
    }
    Ok(())
}

/// What the post-processor puts around a text, seen by encoding one letter with and without it.
fn affixes(inner: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let with = inner.encode_fast("a", true).map_err(TokenizerError::Inner)?;
    let without = inner.encode_fast("a", false).map_err(TokenizerError::Inner)?;
    let (with, without) = (with.get_ids(), without.get_ids());
    let at = (0..=with.len().saturating_sub(without.len())).find(|&i| with[i..].starts_with(without));
    Ok(match at {
        Some(i) if !without.is_empty() => (with[..i].to_vec(), with[i + without.len()..].to_vec()),
        _ => (Vec::new(), Vec::new()),
    })
}
