//! What a token stands for, in bytes.
//!
//! GPT-2's byte-level BPE writes each byte as one printable character: bytes that are printable Latin-1 stand for themselves, the
//! other 68 are moved to U+0100 and up in order. SentencePiece-style vocabularies write a blank as U+2581 and lone bytes as
//! `<0x0A>`.

use tokenizers::DecoderWrapper;

/// The character that byte-level BPE writes for each byte.
pub(super) fn byte_chars() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let mut moved = 0;
    for b in 0..=255u8 {
        let printable = matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        chars[b as usize] = if printable {
            b as char
        } else {
            moved += 1;
            char::from_u32(0xFF + moved).expect("U+0100..U+0143 are characters")
        };
    }
    chars
}

/// The bytes of every token, packed.
pub(super) struct Pieces {
    /// True if the bytes of a sequence are exactly the concatenated bytes of its tokens.
    pub exact: bool,
    bytes: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
}

impl Pieces {
    pub fn new(inner: &tokenizers::Tokenizer, size: usize) -> Pieces {
        let exact = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let mut of_char = std::collections::HashMap::new();
        for (b, c) in byte_chars().into_iter().enumerate() {
            of_char.insert(c, b as u8);
        }
        let added = inner.get_added_tokens_decoder();
        let mut pieces = Pieces { exact, bytes: Vec::new(), ends: Vec::new(), special: Vec::new() };
        for id in 0..size as u32 {
            let special = added.get(&id).is_some_and(|t| t.special);
            pieces.special.push(special);
            match (inner.id_to_token(id), added.get(&id)) {
                (_, Some(token)) => pieces.bytes.extend_from_slice(token.content.as_bytes()),
                (Some(token), None) if exact => push_byte_level(&mut pieces.bytes, &token, &of_char),
                (Some(token), None) => push_sentencepiece(&mut pieces.bytes, &token),
                (None, None) => {}
            }
            pieces.ends.push(pieces.bytes.len() as u32);
        }
        pieces
    }

    /// The bytes of a token, special ones included; none for an unknown id.
    pub fn get(&self, id: u32) -> &[u8] {
        let Some(&end) = self.ends.get(id as usize) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        &self.bytes[start as usize..end as usize]
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Bytes of text that the token stands for.
    pub fn len(&self, id: u32) -> usize {
        if self.is_special(id) { 0 } else { self.get(id).len() }
    }
}

fn push_byte_level(out: &mut Vec<u8>, token: &str, of_char: &std::collections::HashMap<char, u8>) {
    let start = out.len();
    for c in token.chars() {
        match of_char.get(&c) {
            Some(&b) => out.push(b),
            // As the `tokenizers` decoder does: a token outside the byte alphabet is literal text, whole.
            None => {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

fn push_sentencepiece(out: &mut Vec<u8>, token: &str) {
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|t| t.len() == 2);
    match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
        Some(b) => out.push(b),
        None => out.extend_from_slice(token.replace('\u{2581}', " ").as_bytes()),
    }
}
