//! Tokens of a source, cut into segments; and windows of segments in a shuffled order.
//!
//! A position between two segments is a piece of text and a number of its tokens, so a saved position is made good by reading and
//! tokenising that piece again. Shuffling works on windows: read `shuffle` segments, hand them out in an order that depends on the
//! window's number alone, read the next. The state of a shuffled source is therefore the position where its window begins.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use flashlin::tokenizer::Tokenizer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::config::Packing;
use super::files::Piece;
use super::shards::{Position, Shards};
use super::shuffle::permutation;
use crate::{Error, Result};

/// Text read ahead and tokenised together (on all threads), in bytes.
const READ_AHEAD: usize = 1 << 19;

/// Tokens of a repeating source that are kept for its next epochs (64 MiB): small data is tokenised once.
const KEPT: usize = 1 << 24;

/// A stretch of tokens without a boundary.
pub(super) struct Segment {
    pub tokens: Vec<u32>,
    /// The token after the last one, if it is a label for it.
    pub next: Option<u32>,
}

/// A position in a source's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct TokenPosition {
    pub piece: Position,
    /// Tokens of that piece already used.
    pub token: usize,
}

/// How text becomes segments.
#[derive(Clone)]
pub(super) struct Rules {
    pub packing: Packing,
    /// Tokens of a segment at most.
    pub len: usize,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

struct Tokens {
    at: Position,
    ids: Arc<[u32]>,
    ends: bool,
}

pub(super) struct Segments {
    shards: Shards,
    tokenizer: Tokenizer,
    rules: Rules,
    /// Pieces that are tokenised; `used` tokens of the first are spent.
    ahead: VecDeque<Tokens>,
    used: usize,
    /// Tokens of pieces by file and offset, up to [`KEPT`] of them.
    kept: HashMap<(usize, u64), Arc<[u32]>>,
    kept_tokens: usize,
}

impl Segments {
    pub fn new(shards: Shards, tokenizer: Tokenizer, rules: Rules) -> Segments {
        let (ahead, kept) = (VecDeque::new(), HashMap::new());
        Segments { shards, tokenizer, rules, ahead, used: 0, kept, kept_tokens: 0 }
    }

    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Tokens in memory.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.ahead.iter().map(|t| t.ids.len()).sum()
    }

    pub fn position(&self) -> TokenPosition {
        match self.ahead.front() {
            Some(tokens) => TokenPosition { piece: tokens.at, token: self.used },
            None => TokenPosition { piece: self.shards.position(), token: 0 },
        }
    }

    pub fn seek(&mut self, position: TokenPosition) -> Result<()> {
        self.ahead.clear();
        self.used = 0;
        self.shards.seek(position.piece)?;
        if position.token > 0 {
            self.read()?;
            let there =
                self.ahead.front().is_some_and(|t| position.token < t.ids.len() && t.at == position.piece);
            if !there {
                let problem =
                    format!("token {} of the piece at {:?} is gone", position.token, position.piece);
                return Err(Error::State(problem));
            }
            self.used = position.token;
        }
        Ok(())
    }

    /// Reads and tokenises some more pieces; false at the end.
    fn read(&mut self) -> Result<bool> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        let epoch = self.shards.position().epoch;
        // Not far into the next epoch: tiny data would be read a thousand times.
        while bytes < READ_AHEAD && self.shards.position().epoch <= epoch + 1 {
            let Some((at, piece)) = self.shards.next()? else { break };
            bytes += piece.text.len();
            pieces.push(((self.shards.file_at(at), at.cursor.offset), at, piece));
        }
        let (tokenizer, rules, kept) = (&self.tokenizer, &self.rules, &self.kept);
        let tokenised: Vec<Result<Arc<[u32]>>> = pieces
            .par_iter()
            .map(|(key, _, piece)| match kept.get(key) {
                Some(ids) => Ok(ids.clone()),
                None => tokenise(piece, tokenizer, rules),
            })
            .collect();
        let any = !tokenised.is_empty();
        for ((key, at, piece), ids) in pieces.into_iter().zip(tokenised) {
            let ids = ids?;
            if self.shards.repeats() && self.kept_tokens + ids.len() <= KEPT && !self.kept.contains_key(&key)
            {
                self.kept_tokens += ids.len();
                self.kept.insert(key, ids.clone());
            }
            self.ahead.push_back(Tokens { at, ids, ends: piece.ends });
        }
        Ok(any)
    }

    /// The next segment; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Segment>> {
        loop {
            let Some(segment) = self.cut()? else { return Ok(None) };
            // A lone token without a label teaches nothing.
            if segment.tokens.len() > 1 || segment.next.is_some() {
                return Ok(Some(segment));
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Segment>> {
        let mut tokens = Vec::with_capacity(self.rules.len);
        let whole_documents = self.rules.packing == Packing::Documents;
        loop {
            let Some(front) = self.ahead.front() else {
                if self.read()? {
                    continue;
                }
                return Ok((!tokens.is_empty()).then_some(Segment { tokens, next: None }));
            };
            let left = &front.ids[self.used..];
            if tokens.len() == self.rules.len
                && let Some(&next) = left.first()
            {
                return Ok(Some(Segment { tokens, next: Some(next) }));
            }
            let n = left.len().min(self.rules.len - tokens.len());
            tokens.extend_from_slice(&left[..n]);
            self.used += n;
            if self.used == front.ids.len() {
                let ended = front.ends;
                self.ahead.pop_front();
                self.used = 0;
                if ended && whole_documents && !tokens.is_empty() {
                    return Ok(Some(Segment { tokens, next: None }));
                }
            }
        }
    }
}

fn tokenise(piece: &Piece, tokenizer: &Tokenizer, rules: &Rules) -> Result<Arc<[u32]>> {
    let mut ids = tokenizer.encode_plain(&piece.text)?;
    if let Some(bos) = rules.bos.filter(|_| piece.begins) {
        ids.insert(0, bos);
    }
    ids.extend(rules.eos.filter(|_| piece.ends));
    Ok(ids.into())
}

/// Where a window begins, its number, and how many of its segments are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct WindowPosition {
    pub start: TokenPosition,
    pub number: u64,
    pub used: usize,
}

pub(super) struct Window {
    segments: Segments,
    /// Segments of a window; 1 keeps the order.
    size: usize,
    seed: u64,
    stream: u64,
    position: WindowPosition,
    /// This window's segments, in the order of use.
    ready: Vec<Segment>,
}

impl Window {
    pub fn new(segments: Segments, size: usize, seed: u64, stream: u64) -> Window {
        let position = WindowPosition { start: segments.position(), number: 0, used: 0 };
        Window { segments, size: size.max(1), seed, stream, position, ready: Vec::new() }
    }

    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Where the segment that `peek` shows is.
    pub fn position(&self) -> WindowPosition {
        if self.position.used == self.ready.len() && !self.ready.is_empty() {
            let number = self.position.number + 1;
            return WindowPosition { start: self.segments.position(), number, used: 0 };
        }
        self.position
    }

    pub fn seek(&mut self, position: WindowPosition) -> Result<()> {
        self.segments.seek(position.start)?;
        self.ready.clear();
        self.position = WindowPosition { used: 0, ..position };
        if position.used > 0 {
            self.fill()?;
            if position.used > self.ready.len() {
                let problem = format!("segment {} of a window of {}", position.used, self.ready.len());
                return Err(Error::State(problem));
            }
            self.position.used = position.used;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        let mut read = Vec::new();
        while read.len() < self.size {
            let Some(segment) = self.segments.next()? else { break };
            read.push(Some(segment));
        }
        let order = permutation(self.seed, self.stream, self.position.number, read.len());
        self.ready = order.into_iter().filter_map(|i| read[i].take()).collect();
        Ok(())
    }

    /// The next segment; `None` at the end.
    pub fn peek(&mut self) -> Result<Option<&Segment>> {
        if self.position.used == self.ready.len() {
            self.position = self.position();
            self.ready.clear();
            self.fill()?;
        }
        Ok(self.ready.get(self.position.used))
    }

    /// Goes past the segment that `peek` showed.
    pub fn advance(&mut self) {
        if self.position.used < self.ready.len() {
            self.position.used += 1;
        }
    }
}
