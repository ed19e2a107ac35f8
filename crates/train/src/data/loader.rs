//! Batches: segments of all sources, mixed by weight and laid one after the other.

use flashlin::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::config::DataConfig;
use super::files::{FileSet, FileStamp};
use super::segments::{Rules, Segments, Window, WindowPosition};
use super::shards::Shards;
use super::shuffle::MAX_LEN;
use crate::{Error, Result};

/// The label of a token that predicts nothing.
pub const IGNORE: i64 = -100;

/// One batch of `seq_len * batch_size` tokens (fewer only at the end of data that does not repeat).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, all segments one after the other: shape `[total]`.
    pub tokens: Vec<u32>,
    /// For each token the id of the token that follows it in its document, or [`IGNORE`]: shape `[total]`. Already shifted: the
    /// label of a segment's last token is known where the document goes on.
    pub labels: Vec<i64>,
    /// Boundaries of the segments: starts at 0, ends at total, rises strictly.
    pub cu_seqlens: Vec<usize>,
    /// Labels that are not [`IGNORE`].
    pub targets: u64,
    /// UTF-8 bytes of text that those labels stand for: the denominator of bits per byte.
    pub target_bytes: u64,
}

impl Batch {
    /// Number of rows and their length if all segments are equally long: the batch is then a dense [rows, len] matrix.
    pub fn dense(&self) -> Option<(usize, usize)> {
        let len = *self.cu_seqlens.get(1)?;
        let even = self.cu_seqlens.windows(2).all(|w| w[1] - w[0] == len);
        even.then(|| (self.cu_seqlens.len() - 1, len))
    }
}

/// A loader's position: small, made to be saved with a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataState {
    version: u32,
    /// The settings that decide what a position means.
    rules: StateRules,
    sources: Vec<SourceState>,
    /// A segment that is partly used: its source, and its tokens used.
    current: Option<(usize, usize)>,
    /// Batches handed out.
    pub batches: u64,
    /// Tokens handed out.
    pub tokens: u64,
}

/// What must not change between saving and continuing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StateRules {
    tokenizer: String,
    packing: super::config::Packing,
    segment_len: usize,
    shuffle: usize,
    seed: u64,
    bos: Option<u32>,
    eos: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SourceState {
    files: Vec<FileStamp>,
    window: WindowPosition,
    tokens: u64,
}

const VERSION: u32 = 1;

struct Source {
    window: Window,
    weight: f64,
    /// Tokens handed out.
    tokens: u64,
    done: bool,
}

/// Makes batches. Holds `shuffle` segments of each source in memory, whatever the size of the files.
pub struct Loader {
    config: DataConfig,
    tokenizer: Tokenizer,
    rules: StateRules,
    sources: Vec<Source>,
    current: Option<(usize, usize)>,
    batches: u64,
    tokens: u64,
}

impl Loader {
    /// Opens the data at its beginning. All files are looked at, none is read.
    pub fn new(config: &DataConfig, tokenizer: &Tokenizer) -> Result<Loader> {
        config.validate()?;
        if config.shuffle > MAX_LEN {
            return Err(Error::config("data.shuffle", format!("{} is more than {MAX_LEN}", config.shuffle)));
        }
        let wanted = |key: &str, asked: Option<bool>, by_default: bool, id: Option<u32>| match (asked, id) {
            (Some(true), None) => Err(Error::config(key, "the tokenizer has no such token")),
            (asked, id) => Ok(id.filter(|_| asked.unwrap_or(by_default))),
        };
        let asks_bos = tokenizer.bos().is_some_and(|bos| tokenizer.prefix().contains(&bos));
        let rules = Rules {
            packing: config.packing,
            len: config.segment_len(),
            bos: wanted("data.bos", config.bos, asks_bos, tokenizer.bos())?,
            eos: wanted("data.eos", config.eos, true, tokenizer.eos())?,
        };
        let shuffled = config.shuffle > 1;
        let mut sources = Vec::new();
        for (i, source) in config.sources.iter().enumerate() {
            let files = FileSet::open(source, &format!("data.sources[{i}]"))?;
            let stream = 2 * i as u64;
            let shards = Shards::new(files, shuffled.then_some((config.seed, stream)), config.repeat);
            let segments = Segments::new(shards, tokenizer.clone(), rules.clone());
            let window = Window::new(segments, config.shuffle, config.seed, stream + 1);
            sources.push(Source { window, weight: source.weight, tokens: 0, done: false });
        }
        let rules = StateRules {
            tokenizer: fingerprint(tokenizer)?,
            packing: config.packing,
            segment_len: rules.len,
            shuffle: config.shuffle,
            seed: config.seed,
            bos: rules.bos,
            eos: rules.eos,
        };
        let (config, tokenizer) = (config.clone(), tokenizer.clone());
        Ok(Loader { config, tokenizer, rules, sources, current: None, batches: 0, tokens: 0 })
    }

    /// Opens the data where `state` was taken: the next batches are those that an uninterrupted run would have got. Batch size and
    /// weights may differ from the saved run's, everything else that decides the tokens must not.
    pub fn resume(config: &DataConfig, tokenizer: &Tokenizer, state: &DataState) -> Result<Loader> {
        let mut loader = Loader::new(config, tokenizer)?;
        if state.version != VERSION {
            return Err(Error::State(format!("version {} (this program knows {VERSION})", state.version)));
        }
        state.rules.check(&loader.rules)?;
        if state.sources.len() != loader.sources.len() {
            let (was, is) = (state.sources.len(), loader.sources.len());
            return Err(Error::State(format!("saved with {was} sources, now there are {is}")));
        }
        for (source, saved) in loader.sources.iter_mut().zip(&state.sources) {
            check_files(&saved.files, &source.window)?;
            source.window.seek(saved.window)?;
            source.tokens = saved.tokens;
        }
        if let Some((source, used)) = state.current {
            let segment = match loader.sources.get_mut(source) {
                Some(source) => source.window.peek()?.map(|s| s.tokens.len()),
                None => None,
            };
            if segment.is_none_or(|len| used >= len) {
                return Err(Error::State(format!("token {used} of a segment of {segment:?} tokens")));
            }
        }
        loader.current = state.current;
        loader.batches = state.batches;
        loader.tokens = state.tokens;
        Ok(loader)
    }

    /// The position before the next batch.
    pub fn state(&self) -> DataState {
        let sources = self.sources.iter().map(|s| SourceState {
            files: s.window.segments().shards().files().stamps(),
            window: s.window.position(),
            tokens: s.tokens,
        });
        DataState {
            version: VERSION,
            rules: self.rules.clone(),
            sources: sources.collect(),
            current: self.current,
            batches: self.batches,
            tokens: self.tokens,
        }
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &DataConfig {
        &self.config
    }

    /// Whole passes over each source, in the order of the configuration.
    pub fn epochs(&self) -> Vec<u64> {
        self.sources.iter().map(|s| s.window.position().start.piece.epoch).collect()
    }

    /// The source that is furthest behind its share of the tokens and has more; the first of equals.
    fn choose(&mut self) -> Result<Option<usize>> {
        loop {
            let share = |s: &Source| s.tokens as f64 / s.weight;
            let open = self.sources.iter().enumerate().filter(|(_, s)| !s.done);
            let Some((i, _)) = open.min_by(|(_, a), (_, b)| share(a).total_cmp(&share(b))) else {
                return Ok(None);
            };
            if self.sources[i].window.peek()?.is_some() {
                return Ok(Some(i));
            }
            self.sources[i].done = true;
        }
    }

    /// The next batch; `None` when all sources are used up. After an error the loader should not be used further.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let total = self.config.seq_len * self.config.batch_size;
        let mut batch = Batch {
            tokens: Vec::with_capacity(total),
            labels: Vec::with_capacity(total),
            cu_seqlens: vec![0],
            targets: 0,
            target_bytes: 0,
        };
        while batch.tokens.len() < total {
            let (index, used) = match self.current {
                Some(current) => current,
                None => match self.choose()? {
                    Some(index) => (index, 0),
                    None => break,
                },
            };
            let source = &mut self.sources[index];
            let Some(segment) = source.window.peek()? else {
                return Err(Error::State("a partly used segment is gone".into()));
            };
            let n = (segment.tokens.len() - used).min(total - batch.tokens.len());
            let end = used + n;
            batch.tokens.extend_from_slice(&segment.tokens[used..end]);
            let after = segment.tokens.get(end).copied().or(segment.next);
            let labels = segment.tokens[used + 1..end].iter().copied().map(Some).chain([after]);
            for label in labels {
                batch.labels.push(label.map_or(IGNORE, i64::from));
                if let Some(id) = label {
                    batch.targets += 1;
                    batch.target_bytes += self.tokenizer.token_len(id) as u64;
                }
            }
            batch.cu_seqlens.push(batch.tokens.len());
            source.tokens += n as u64;
            self.current = (end < segment.tokens.len()).then_some((index, end));
            if self.current.is_none() {
                source.window.advance();
            }
        }
        if batch.tokens.is_empty() {
            return Ok(None);
        }
        self.batches += 1;
        self.tokens += batch.tokens.len() as u64;
        Ok(Some(batch))
    }
}

impl StateRules {
    fn check(&self, now: &StateRules) -> Result<()> {
        let differs = |key: &str, was: &dyn std::fmt::Debug, is: &dyn std::fmt::Debug| {
            Err(Error::State(format!("{key} was {was:?} when it was saved and is {is:?} now")))
        };
        if self.tokenizer != now.tokenizer {
            return differs("the tokenizer's fingerprint", &self.tokenizer, &now.tokenizer);
        }
        if self.packing != now.packing {
            return differs("data.packing", &self.packing, &now.packing);
        }
        if self.segment_len != now.segment_len {
            return differs(
                "the segment length (data.context_len or data.seq_len)",
                &self.segment_len,
                &now.segment_len,
            );
        }
        if self.shuffle != now.shuffle {
            return differs("data.shuffle", &self.shuffle, &now.shuffle);
        }
        if self.seed != now.seed {
            return differs("data.seed", &self.seed, &now.seed);
        }
        if (self.bos, self.eos) != (now.bos, now.eos) {
            return differs("data.bos and data.eos", &(self.bos, self.eos), &(now.bos, now.eos));
        }
        Ok(())
    }
}

/// A file that was added, removed, renamed or changed its size makes every later position wrong.
fn check_files(saved: &[FileStamp], window: &Window) -> Result<()> {
    let files = window.segments().shards().files();
    let now = files.stamps();
    if saved.len() != now.len() {
        let folder = files.path(0).display();
        return Err(Error::State(format!(
            "the source of {folder} had {} files, now {}",
            saved.len(),
            now.len()
        )));
    }
    for (i, (was, is)) in saved.iter().zip(&now).enumerate() {
        let path = files.path(i).display();
        if was.name != is.name {
            return Err(Error::State(format!("{path} stands where {} was", was.name)));
        }
        if was.bytes != is.bytes {
            return Err(Error::State(format!("{path} had {} bytes and has {} now", was.bytes, is.bytes)));
        }
    }
    Ok(())
}

/// Short hash of a tokenizer's file.
fn fingerprint(tokenizer: &Tokenizer) -> Result<String> {
    let json = tokenizer.inner().to_string(false).map_err(flashlin::tokenizer::TokenizerError::Inner)?;
    Ok(Sha256::digest(json.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect())
}
