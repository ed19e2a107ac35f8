//! Text from tokens that arrive one at a time.
//!
//! Policy: what has been handed out never changes, is valid UTF-8, and everything handed out together equals `decode` of all
//! tokens (for byte-fallback vocabularies: as long as the bytes are UTF-8; a wrong byte there changes how `decode` shows its
//! neighbours, which a stream cannot take back). A character whose bytes are spread over tokens is held back until complete.

use super::{Result, Tokenizer, TokenizerError};

/// Tokens held back at most: more than any character has bytes, so beyond it the bytes are wrong.
const MAX_HELD: usize = 16;

/// Decodes a stream of tokens. Call [`TextStream::finish`] after the last token.
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Byte-level: bytes of an unfinished character.
    pending: Vec<u8>,
    /// Other tokenizers: a window of recent ids, of which the first `done` have been handed out.
    ids: Vec<u32>,
    done: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> TextStream {
        TextStream { tokenizer, skip_special, pending: Vec::new(), ids: Vec::new(), done: 0 }
    }

    /// Takes the next token and returns the text that is now complete (often a word, sometimes nothing).
    pub fn push(&mut self, id: u32) -> Result<String> {
        let shared = &self.tokenizer.shared;
        if id as usize >= shared.size {
            return Err(TokenizerError::UnknownId { id, size: shared.size });
        }
        if self.skip_special && shared.pieces.is_special(id) {
            return Ok(String::new());
        }
        if shared.pieces.exact {
            self.pending.extend_from_slice(shared.pieces.get(id));
            return Ok(take_complete(&mut self.pending));
        }
        self.ids.push(id);
        self.window(false)
    }

    /// The text still held back; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> Result<String> {
        if self.tokenizer.shared.pieces.exact {
            return Ok(String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned());
        }
        self.window(true)
    }

    /// Some decoders look at neighbours (a blank before the first word, merged bytes), so text is the difference between the
    /// decoded window with and without the new tokens.
    fn window(&mut self, last: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.done], self.skip_special)?;
        let now = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let held = self.ids.len() - self.done;
        if (now.ends_with('\u{FFFD}') && !last && held < MAX_HELD) || held == 0 {
            return Ok(String::new());
        }
        let text = now.get(before.len()..).unwrap_or_default().to_string();
        // Keep what the next difference is taken against, and no more. The very first tokens stay while nothing precedes them.
        self.ids.drain(..self.done);
        self.done = self.ids.len();
        Ok(text)
    }
}

/// Removes the longest decodable prefix: complete characters, and U+FFFD for bytes that no later byte can complete.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let bad = chunk.invalid();
        // An invalid chunk at the very end may be the beginning of a character.
        if used + bad.len() == pending.len() && may_continue(bad) {
            break;
        }
        used += bad.len();
        if !bad.is_empty() {
            text.push('\u{FFFD}');
        }
    }
    pending.drain(..used);
    text
}

fn may_continue(bad: &[u8]) -> bool {
    matches!(std::str::from_utf8(bad), Err(e) if e.error_len().is_none())
}
