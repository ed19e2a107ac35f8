//! Lines of a UTF-8 file from any offset, with the byte offset and number of each.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A line (a document) may not be longer: it has to fit in memory.
const MAX_LINE: u64 = 1 << 30;

pub(super) struct Lines {
    path: PathBuf,
    input: BufReader<File>,
    /// Offset of the next line.
    pub offset: u64,
    /// Number of the next line, from 1.
    pub line: u64,
    /// Offset at which reading stops.
    end: u64,
    raw: Vec<u8>,
}

impl Lines {
    /// Reads from `offset` (a line start; `line` is its number) up to `end`.
    pub fn open(path: &Path, offset: u64, line: u64, end: u64) -> Result<Lines> {
        let mut file = File::open(path).map_err(Error::io(path, "opening"))?;
        file.seek(SeekFrom::Start(offset)).map_err(Error::io(path, "seeking"))?;
        let input = BufReader::with_capacity(1 << 16, file);
        Ok(Lines { path: path.to_path_buf(), input, offset, line, end, raw: Vec::new() })
    }

    /// The next line without its line end (`\n` or `\r\n`) and its number; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(&str, u64)>> {
        let left = self.end.saturating_sub(self.offset);
        self.raw.clear();
        let read = (&mut self.input)
            .take(left.min(MAX_LINE + 1))
            .read_until(b'\n', &mut self.raw)
            .map_err(Error::io(&self.path, "reading"))?;
        if read == 0 {
            if left > 0 {
                return Err(Error::file(
                    &self.path,
                    format!("ends at byte {} but had {} bytes", self.offset, self.end),
                ));
            }
            return Ok(None);
        }
        let (start, number) = (self.offset, self.line);
        if read as u64 > MAX_LINE {
            let problem = format!("the line is longer than {MAX_LINE} bytes");
            return Err(Error::Record { path: self.path.clone(), line: number, problem });
        }
        self.offset += read as u64;
        self.line += 1;
        let text = match std::str::from_utf8(&self.raw) {
            Ok(text) => text,
            Err(e) => {
                return Err(Error::InvalidUtf8 {
                    path: self.path.clone(),
                    offset: start + e.valid_up_to() as u64,
                });
            }
        };
        let text = text.strip_suffix('\n').map_or(text, |t| t.strip_suffix('\r').unwrap_or(t));
        Ok(Some((text, number)))
    }
}

/// The first line start at or after `offset`, and its line number (from 1). `len` is the file's length.
pub(super) fn line_start(path: &Path, offset: u64, len: u64) -> Result<(u64, u64)> {
    if offset == 0 {
        return Ok((0, 1));
    }
    if offset >= len {
        return Ok((len, u64::MAX));
    }
    let mut input = BufReader::with_capacity(1 << 16, File::open(path).map_err(Error::io(path, "opening"))?);
    let (mut at, mut line) = (0u64, 1u64);
    loop {
        let buffer = input.fill_buf().map_err(Error::io(path, "reading"))?;
        if buffer.is_empty() {
            return Ok((len, u64::MAX));
        }
        for &b in buffer {
            at += 1;
            if b == b'\n' {
                line += 1;
                if at >= offset {
                    return Ok((at, line));
                }
            }
        }
        let n = buffer.len();
        input.consume(n);
    }
}
