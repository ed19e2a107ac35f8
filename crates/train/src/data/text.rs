//! Plain text: a file as one document read in pieces, or a document a line or paragraph.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::files::{Cursor, Piece, Reader};
use super::lines::Lines;
use crate::{Error, Result};

/// Bytes of a file read at a time. Part of what decides the tokens (a token never spans two pieces): never change it lightly.
pub(super) const PIECE: usize = 1 << 16;

/// A whole file as one document, in pieces of at most [`PIECE`] bytes. Pieces end where word-splitting tokenizers split anyway:
/// after a line end or before a blank between two printable characters.
pub(super) struct WholeFile {
    path: PathBuf,
    file: File,
    begin: u64,
    at: u64,
    end: u64,
}

impl WholeFile {
    pub fn open(path: &Path, begin: u64, at: u64, end: u64) -> Result<WholeFile> {
        let mut file = File::open(path).map_err(Error::io(path, "opening"))?;
        file.seek(SeekFrom::Start(at)).map_err(Error::io(path, "seeking"))?;
        Ok(WholeFile { path: path.to_path_buf(), file, begin, at, end })
    }
}

impl Reader for WholeFile {
    fn next(&mut self) -> Result<Option<Piece>> {
        let left = self.end - self.at;
        if left == 0 {
            return Ok(None);
        }
        let mut raw = vec![0u8; (PIECE as u64).min(left) as usize];
        self.file.read_exact(&mut raw).map_err(Error::io(&self.path, "reading"))?;
        let last = raw.len() as u64 == left;
        let valid = match std::str::from_utf8(&raw) {
            Ok(text) => text.len(),
            // A character cut by the piece's end belongs to the next piece.
            Err(e) if e.error_len().is_none() && !last => e.valid_up_to(),
            Err(e) => {
                let offset = self.at + e.valid_up_to() as u64;
                return Err(Error::InvalidUtf8 { path: self.path.clone(), offset });
            }
        };
        let used = if last { valid } else { good_cut(&raw[..valid]) };
        raw.truncate(used);
        let text = String::from_utf8(raw).expect("a prefix of valid UTF-8, cut at a character");
        let begins = self.at == self.begin;
        self.at += used as u64;
        if !last {
            self.file.seek(SeekFrom::Start(self.at)).map_err(Error::io(&self.path, "seeking"))?;
        }
        Ok(Some(Piece { text, begins, ends: last }))
    }

    fn cursor(&self) -> Cursor {
        Cursor { offset: self.at, line: 0 }
    }
}

/// Where to end a piece that is not the last: the last position at which cutting does not change how words are split.
fn good_cut(text: &[u8]) -> usize {
    let solid = |b: u8| !b.is_ascii_whitespace();
    let line = (2..text.len()).rev().find(|&i| text[i - 1] == b'\n' && solid(text[i - 2]) && solid(text[i]));
    let word =
        || (1..text.len() - 1).rev().find(|&i| text[i] == b' ' && solid(text[i - 1]) && solid(text[i + 1]));
    line.or_else(word).unwrap_or(text.len())
}

/// A document a line. Empty lines are skipped by the caller, as empty documents are.
pub(super) struct LineDocs(pub Lines);

impl Reader for LineDocs {
    fn next(&mut self) -> Result<Option<Piece>> {
        Ok(self.0.next()?.map(|(text, _)| Piece::document(text.to_string())))
    }

    fn cursor(&self) -> Cursor {
        Cursor { offset: self.0.offset, line: self.0.line }
    }
}

/// A document a paragraph: lines up to the next line that is empty or blank.
pub(super) struct Paragraphs(pub Lines);

impl Reader for Paragraphs {
    fn next(&mut self) -> Result<Option<Piece>> {
        let mut text = String::new();
        while let Some((line, _)) = self.0.next()? {
            if line.trim().is_empty() {
                if text.is_empty() {
                    continue;
                }
                break;
            }
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(line);
        }
        Ok((!text.is_empty()).then(|| Piece::document(text)))
    }

    fn cursor(&self) -> Cursor {
        Cursor { offset: self.0.offset, line: self.0.line }
    }
}
