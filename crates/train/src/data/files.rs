//! The files of a source: finding them, their fingerprints, and opening one at a position.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::{Format, SourceConfig, TextUnit};
use super::jsonl::Jsonl;
use super::lines::{Lines, line_start};
use super::parquet::{self, Parquet};
use super::text::{LineDocs, Paragraphs, WholeFile};
use crate::{Error, Result};

/// Where the text of a record is when the configuration does not say.
const DEFAULT_FIELDS: [&str; 2] = ["text", "content"];

/// Folders inside folders are searched this deep (links may form a circle).
const MAX_DEPTH: usize = 32;

/// Text of a document, or of a part of it.
pub(super) struct Piece {
    pub text: String,
    /// A document begins with this piece.
    pub begins: bool,
    /// The document ends with this piece.
    pub ends: bool,
}

impl Piece {
    pub fn document(text: String) -> Piece {
        Piece { text, begins: true, ends: true }
    }
}

/// A position inside a file: between two pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// Byte (text, jsonl) or row (parquet).
    pub offset: u64,
    /// Line number where lines are counted, else 0.
    pub line: u64,
}

/// Reads one file piece by piece.
pub(super) trait Reader: Send {
    fn next(&mut self) -> Result<Option<Piece>>;
    /// The position of the piece that `next` would return.
    fn cursor(&self) -> Cursor;
}

/// A file as it was when the data was first opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Its name without folders: data may be moved between runs.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One file and the part of it to read.
struct Entry {
    path: PathBuf,
    stamp: FileStamp,
    begin: Cursor,
    end: u64,
}

/// The files of one source, in the order of configuration and names.
pub(super) struct FileSet {
    entries: Vec<Entry>,
    format: Format,
    unit: TextUnit,
    field: Option<String>,
}

impl FileSet {
    /// Finds and checks the files of a source; `key` is how the user writes it.
    pub fn open(config: &SourceConfig, key: &str) -> Result<FileSet> {
        config.validate(key)?;
        let mut found = Vec::new();
        for path in &config.paths {
            let meta = std::fs::metadata(path).map_err(Error::io(path, "opening"))?;
            match meta.is_dir() {
                true => search(path, config.format, MAX_DEPTH, &mut found)?,
                false => found.push((path.clone(), config.format.or_else(|| format_of(path)))),
            }
        }
        let format = one_format(&found, config, key)?;
        if config.unit != TextUnit::File && format != Format::Text {
            return Err(Error::config(format!("{key}.unit"), "only text files have a unit"));
        }
        if config.field.is_some() && format == Format::Text {
            return Err(Error::config(format!("{key}.field"), "text files have no fields"));
        }
        let entries =
            found.into_iter().map(|(path, _)| entry(path, format, config.range)).collect::<Result<_>>()?;
        Ok(FileSet { entries, format, unit: config.unit, field: config.field.clone() })
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn path(&self, file: usize) -> &Path {
        &self.entries[file].path
    }

    /// Where reading of a file begins.
    pub fn begin(&self, file: usize) -> Cursor {
        self.entries[file].begin
    }

    pub fn stamps(&self) -> Vec<FileStamp> {
        self.entries.iter().map(|e| e.stamp.clone()).collect()
    }

    /// Opens a file at a position. The file must still have the size it had.
    pub fn reader(&self, file: usize, at: Cursor) -> Result<Box<dyn Reader>> {
        let Entry { path, stamp, begin, end } = &self.entries[file];
        let bytes = std::fs::metadata(path).map_err(Error::io(path, "opening"))?.len();
        if bytes != stamp.bytes {
            let problem = format!("has {bytes} bytes now but had {} when the run opened it", stamp.bytes);
            return Err(Error::file(path, problem));
        }
        if at.offset < begin.offset || at.offset > *end {
            let problem = format!("{}: {} is outside {}..{end}", path.display(), at.offset, begin.offset);
            return Err(Error::State(problem));
        }
        let lines = || Lines::open(path, at.offset, at.line, *end);
        Ok(match (self.format, self.unit) {
            (Format::Text, TextUnit::File) => Box::new(WholeFile::open(path, begin.offset, at.offset, *end)?),
            (Format::Text, TextUnit::Line) => Box::new(LineDocs(lines()?)),
            (Format::Text, TextUnit::Paragraph) => Box::new(Paragraphs(lines()?)),
            (Format::Jsonl, _) => {
                Box::new(Jsonl { path: path.clone(), lines: lines()?, field: self.field.clone() })
            }
            (Format::Parquet, _) => Box::new(Parquet::open(path, self.field.as_deref(), at.offset, *end)?),
        })
    }
}

/// The names to look for: the one asked for, or the usual ones.
pub(super) fn field_names(field: Option<&str>) -> Vec<&str> {
    field.map_or(DEFAULT_FIELDS.to_vec(), |f| vec![f])
}

/// `"a" or "b"`.
pub(super) fn quoted(names: &[&str]) -> String {
    names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(" or ")
}

fn format_of(path: &Path) -> Option<Format> {
    Format::of_extension(path.extension()?.to_str()?)
}

/// Adds a folder's files of the wanted (or any known) format, by name, subfolders too. Hidden files are left out.
fn search(
    dir: &Path,
    wanted: Option<Format>,
    depth: usize,
    found: &mut Vec<(PathBuf, Option<Format>)>,
) -> Result<()> {
    if depth == 0 {
        return Err(Error::file(dir, format!("more than {MAX_DEPTH} folders deep")));
    }
    let mut paths = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>())
        .map_err(Error::io(dir, "listing"))?;
    paths.sort();
    for path in paths {
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
            continue;
        }
        let meta = std::fs::metadata(&path).map_err(Error::io(&path, "opening"))?;
        let format = format_of(&path);
        if meta.is_dir() {
            search(&path, wanted, depth - 1, found)?;
        } else if format.is_some() && (wanted.is_none() || wanted == format) {
            found.push((path, format));
        }
    }
    Ok(())
}

fn one_format(found: &[(PathBuf, Option<Format>)], config: &SourceConfig, key: &str) -> Result<Format> {
    let known = ".txt, .text, .md (text), .jsonl, .ndjson (jsonl) or .parquet (parquet)";
    let Some((first, format)) = found.first() else {
        let dirs: Vec<String> = config.paths.iter().map(|p| p.display().to_string()).collect();
        return Err(Error::config(
            format!("{key}.paths"),
            format!("no files {known} in {}", dirs.join(", ")),
        ));
    };
    let Some(format) = format else {
        let problem = format!("cannot tell the format of {} (not {known}): set `format`", first.display());
        return Err(Error::config(format!("{key}.format"), problem));
    };
    match found.iter().find(|(_, f)| *f != Some(*format)) {
        None => Ok(*format),
        Some((other, _)) => {
            let (a, b) = (first.display(), other.display());
            Err(Error::config(
                format!("{key}.paths"),
                format!("{a} and {b} have different formats: use two sources"),
            ))
        }
    }
}

fn entry(path: PathBuf, format: Format, range: [f64; 2]) -> Result<Entry> {
    let bytes = std::fs::metadata(&path).map_err(Error::io(&path, "opening"))?.len();
    if bytes == 0 {
        return Err(Error::file(&path, "the file is empty"));
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let stamp = FileStamp { name, bytes };
    let (begin, end) = match format {
        Format::Parquet => {
            let rows = parquet::rows(&path)?;
            let cut = |share: f64| (rows as f64 * share).floor() as u64;
            (Cursor { offset: cut(range[0]), line: 0 }, cut(range[1]))
        }
        Format::Text | Format::Jsonl => {
            let cut = |share: f64| match share {
                1.0 => Ok((bytes, 0)),
                _ => line_start(&path, (bytes as f64 * share).floor() as u64, bytes),
            };
            let (offset, line) = cut(range[0])?;
            (Cursor { offset, line }, cut(range[1])?.0)
        }
    };
    Ok(Entry { path, stamp, begin, end })
}
