//! The endless (or single) walk over a source's files: which piece of text comes next, and where that is.

use serde::{Deserialize, Serialize};

use super::files::{Cursor, FileSet, Piece, Reader};
use super::shuffle::permutation;
use crate::{Error, Result};

/// A position in a source: before a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Position {
    /// Times the source was read through before.
    pub epoch: u64,
    /// Place in this epoch's order of files.
    pub file: usize,
    /// Place in that file.
    pub cursor: Cursor,
}

pub(super) struct Shards {
    files: FileSet,
    /// Seed and stream of the file order; `None` keeps the order.
    order_seed: Option<(u64, u64)>,
    repeat: bool,
    /// This epoch's order of files.
    order: Vec<usize>,
    position: Position,
    reader: Option<Box<dyn Reader>>,
    /// Texts seen since the last beginning of an epoch; an epoch without any would repeat for ever.
    seen: u64,
}

impl Shards {
    pub fn new(files: FileSet, order_seed: Option<(u64, u64)>, repeat: bool) -> Shards {
        let mut shards = Shards {
            files,
            order_seed,
            repeat,
            order: Vec::new(),
            position: Position::default(),
            reader: None,
            seen: 0,
        };
        shards.begin_epoch(0);
        shards
    }

    pub fn files(&self) -> &FileSet {
        &self.files
    }

    fn begin_epoch(&mut self, epoch: u64) {
        self.order = match self.order_seed {
            Some((seed, stream)) => permutation(seed, stream, epoch, self.files.len()),
            None => (0..self.files.len()).collect(),
        };
        self.seen = 0;
        self.reader = None;
        self.position = Position { epoch, file: 0, cursor: self.files.begin(self.order[0]) };
    }

    /// Continues at a position that [`Shards::next`] gave.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        self.begin_epoch(position.epoch);
        if position.file > self.order.len() {
            return Err(Error::State(format!("file number {} of {}", position.file, self.order.len())));
        }
        self.position = position;
        self.seen = 1;
        Ok(())
    }

    /// The position of what `next` will look at.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The file that a position of this epoch is in.
    pub fn file_at(&self, position: Position) -> usize {
        self.order[position.file]
    }

    pub fn repeats(&self) -> bool {
        self.repeat
    }

    /// The next piece with text in it, and its position; `None` when the source is used up and does not repeat.
    pub fn next(&mut self) -> Result<Option<(Position, Piece)>> {
        loop {
            if self.position.file == self.order.len() {
                if self.seen == 0 {
                    return Err(Error::file(
                        self.files.path(0),
                        "no text in this source (all documents are empty)",
                    ));
                }
                if !self.repeat {
                    return Ok(None);
                }
                self.begin_epoch(self.position.epoch + 1);
            }
            let file = self.order[self.position.file];
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => self.reader.insert(self.files.reader(file, self.position.cursor)?),
            };
            match reader.next()? {
                Some(piece) => {
                    let at = self.position;
                    self.position.cursor = reader.cursor();
                    // A document's last piece may be empty only if the whole document is.
                    if !piece.text.is_empty() {
                        self.seen += 1;
                        return Ok(Some((at, piece)));
                    }
                }
                None => {
                    self.reader = None;
                    self.position.file += 1;
                    let next = self.order.get(self.position.file);
                    self.position.cursor = next.map(|&f| self.files.begin(f)).unwrap_or_default();
                }
            }
        }
    }
}
