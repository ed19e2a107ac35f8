//! Perplexity: how well a model predicts text, in nats a token, in bits a byte and in perplexity a word (which compare across
//! tokenizers), and by how much text it has seen.
//!
//! Policy: every token is predicted from all tokens of its text before it, however long that is: long texts run in pieces with the
//! state carried from piece to piece, short ones are packed, and no text sees another. What a text is, [`Cut`] says. Sums are f64 in
//! a fixed order: they depend on neither batch nor shard.

use flashlin::Model;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    items::{Collector, OnProgress},
    score::{Batching, Request, Score, Scorer},
    store::{Shard, Store},
    text::{Encoder, count_words, detokenize_wikitext},
};
use flashlin::{Mode, tokenizer::Tokenizer};

/// How documents become texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Each document is one text. Its first token has no context and counts only behind a BOS.
    #[default]
    Documents,
    /// As `lm_eval`'s `loglikelihood_rolling`: all tokens of a document count, the first behind BOS (else EOS), in windows in which
    /// the model reads at most this many tokens; None: one window.
    Rolling {
        /// Tokens that the model reads at once.
        window: Option<usize>,
    },
    /// All documents one after the other, cut into texts of this many tokens; what is left at the end does not count.
    Blocks {
        /// Tokens of a text, at least 2.
        tokens: usize,
    },
}

/// What is done to a document before it is tokenised. Words and bytes are those of the document as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detokenize {
    /// Nothing.
    #[default]
    No,
    /// [`detokenize_wikitext`].
    Wikitext,
}

/// How to measure.
#[derive(Debug, Clone, Copy, Default)]
pub struct PplOptions {
    /// How documents become texts.
    pub cut: Cut,
    /// What is done to a document first.
    pub detokenize: Detokenize,
    /// Put the tokenizer's BOS before each document; None: if `tokenizer.json` asks for it.
    pub bos: Option<bool>,
    /// Stop after this many predicted tokens.
    pub max_tokens: Option<u64>,
    /// Stop after this many documents.
    pub limit: Option<usize>,
    /// Also report by how many tokens of its text stand before a token, this many to a bucket.
    pub bucket: Option<usize>,
    /// How texts become passes; no result depends on it.
    pub batching: Batching,
    /// Form of the recurrences.
    pub mode: Mode,
}

/// A sum over tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Sum of their negative log-probabilities in nats.
    pub nats: f64,
}

impl Sum {
    /// Mean nats a token.
    pub fn loss(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// e to the mean nats a token.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    fn add(&mut self, other: &Sum) {
        self.tokens += other.tokens;
        self.nats += other.nats;
    }
}

/// What one text gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextRecord {
    /// All its tokens.
    #[serde(flatten)]
    pub sum: Sum,
    /// Bytes of text that count: those of the predicted tokens, or of the whole document where all of it counts.
    pub bytes: u64,
    /// Words of the document, where all of it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<u64>,
    /// Its tokens by their place, a bucket each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<Sum>,
}

/// The result, summed over all texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Perplexity {
    /// Texts, those with nothing to predict included.
    pub documents: u64,
    /// All their tokens.
    pub sum: Sum,
    /// Bytes of text that count.
    pub bytes: u64,
    /// Words, where whole documents count.
    pub words: Option<u64>,
    /// By place in the text.
    pub buckets: Vec<Sum>,
}

impl Perplexity {
    fn of(records: &[TextRecord]) -> Perplexity {
        let mut all = Perplexity::default();
        for r in records {
            all.documents += 1;
            all.sum.add(&r.sum);
            all.bytes += r.bytes;
            all.words = r.words.map(|w| w + all.words.unwrap_or(0)).or(all.words);
            if all.buckets.len() < r.buckets.len() {
                all.buckets.resize(r.buckets.len(), Sum::default());
            }
            all.buckets.iter_mut().zip(&r.buckets).for_each(|(a, b)| a.add(b));
        }
        all
    }

    /// Tokens that were predicted.
    pub fn tokens(&self) -> u64 {
        self.sum.tokens
    }

    /// Mean nats a token.
    pub fn loss(&self) -> f64 {
        self.sum.loss()
    }

    /// e to the mean nats a token.
    pub fn perplexity(&self) -> f64 {
        self.sum.perplexity()
    }

    /// Bits a byte of text.
    pub fn bits_per_byte(&self) -> f64 {
        self.sum.nats / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// e to the mean nats a byte.
    pub fn byte_perplexity(&self) -> f64 {
        (self.sum.nats / self.bytes as f64).exp()
    }

    /// e to the mean nats a word, where whole documents count.
    pub fn word_perplexity(&self) -> Option<f64> {
        self.words.map(|w| (self.sum.nats / w as f64).exp())
    }
}

/// Measures `model` on documents, in order, and keeps nothing but the result.
///
/// # Errors
/// [`enum@Error`]; an error of the iterator is handed through.
pub fn perplexity<E: From<Error>>(
    model: &Model,
    tokenizer: &Tokenizer,
    documents: impl Iterator<Item = Result<String, E>>,
    options: &PplOptions,
) -> Result<Perplexity, E> {
    let mut store = Store::open(None, Shard::default(), Default::default())?;
    let result = measure(model, tokenizer, documents, options, &mut store, &mut |_| {})?;
    result.ok_or_else(|| Error::Empty.into())
}

/// Measures `model` on documents, in order; the texts are the store's items. None while other processes have some to do.
///
/// # Errors
/// [`enum@Error`]; an error of the iterator is handed through.
pub fn measure<E: From<Error>>(
    model: &Model,
    tokenizer: &Tokenizer,
    documents: impl Iterator<Item = Result<String, E>>,
    options: &PplOptions,
    store: &mut Store,
    on_progress: OnProgress<'_>,
) -> Result<Option<Perplexity>, E> {
    tokenizer.check_vocab(model.config().base().vocab_size).map_err(Error::from)?;
    if let Cut::Blocks { tokens: 0 | 1 } = options.cut {
        return Err(Error::option("block-size", "expected at least 2 tokens").into());
    }
    let scorer = Scorer::new(model, options.mode, options.batching);
    let mut run = Run {
        encoder: Encoder::new(tokenizer, options.bos)?,
        options: *options,
        left: options.max_tokens.unwrap_or(u64::MAX),
        next: 0,
        joined: Vec::new(),
        collector: Collector::new(scorer, store, None, record, on_progress),
    };
    for document in documents.take(options.limit.unwrap_or(usize::MAX)) {
        if run.left == 0 {
            break;
        }
        run.document(&document?)?;
    }
    run.collector.flush()?;
    let texts = run.next;
    let Some(records) = store.finish::<TextRecord>(texts)? else { return Ok(None) };
    match Perplexity::of(&records) {
        empty if empty.tokens() == 0 => Err(Error::Empty.into()),
        all => Ok(Some(all)),
    }
}

/// What is known of a text before it is scored.
struct Text {
    bytes: u64,
    words: Option<u64>,
    bucket: Option<usize>,
}

fn record(text: Text, scores: Vec<Score>) -> Result<TextRecord> {
    let mut record =
        TextRecord { sum: Sum::default(), bytes: text.bytes, words: text.words, buckets: Vec::new() };
    for (i, &logprob) in scores.iter().flat_map(|s| &s.tokens).enumerate() {
        let one = Sum { tokens: 1, nats: -f64::from(logprob) };
        record.sum.add(&one);
        if let Some(bucket) = text.bucket {
            if i.is_multiple_of(bucket) {
                record.buckets.push(Sum::default());
            }
            record.buckets.last_mut().into_iter().for_each(|b| b.add(&one));
        }
    }
    Ok(record)
}

struct Run<'a, 'p> {
    encoder: Encoder<'a>,
    options: PplOptions,
    /// Predicted tokens that are still wanted.
    left: u64,
    /// Id of the next text.
    next: usize,
    /// Tokens that wait for their block to fill.
    joined: Vec<u32>,
    collector: Collector<'a, 'p, Text, TextRecord>,
}

impl Run<'_, '_> {
    fn document(&mut self, document: &str) -> Result<()> {
        let text = match self.options.detokenize {
            Detokenize::No => None,
            Detokenize::Wikitext => Some(detokenize_wikitext(document)),
        };
        let text = text.as_deref().unwrap_or(document);
        match self.options.cut {
            Cut::Rolling { window } => {
                let requests = self.encoder.rolling(text, window)?;
                self.text(requests, Some(document))
            }
            Cut::Documents => {
                let ids = self.plain(text)?;
                self.text(whole(ids), None)
            }
            Cut::Blocks { tokens } => {
                let ids = self.plain(text)?;
                let mut all = std::mem::take(&mut self.joined);
                all.extend(ids);
                let blocks = all.chunks_exact(tokens);
                self.joined = blocks.remainder().to_vec();
                for block in blocks {
                    if self.left > 0 {
                        self.text(whole(block.to_vec()), None)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Data: a special token spelled out in it stays text.
    fn plain(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.encoder.bos().into_iter().collect();
        ids.extend(self.encoder.tokenizer().encode_plain(text)?);
        Ok(ids)
    }

    /// One text; `document` where all of it counts.
    fn text(&mut self, mut requests: Vec<Request>, document: Option<&str>) -> Result<()> {
        let id = self.next;
        self.next += 1;
        let mut cut = false;
        for r in &mut requests {
            let n = (r.continuation.len() as u64).min(self.left);
            cut |= n < r.continuation.len() as u64;
            r.continuation.truncate(n as usize);
            self.left -= n;
        }
        if !self.collector.wants(id) {
            return Ok(());
        }
        let document = document.filter(|_| !cut);
        let spelled = |r: &Request| self.encoder.tokenizer().byte_len(&r.continuation);
        let text = Text {
            bytes: document.map_or_else(|| requests.iter().map(spelled).sum(), |d| d.len() as u64),
            words: document.map(count_words),
            bucket: self.options.bucket,
        };
        requests.retain(|r| !r.continuation.is_empty());
        self.collector.push(id, text, requests)
    }
}

/// A text whose first token is given.
fn whole(mut ids: Vec<u32>) -> Vec<Request> {
    if ids.is_empty() {
        return Vec::new();
    }
    let continuation = ids.split_off(1);
    vec![Request { context: ids, continuation }]
}

#[cfg(test)]
#[path = "ppl_tests.rs"]
mod tests;
