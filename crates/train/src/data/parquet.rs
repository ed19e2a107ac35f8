//! Parquet: the rows of one top-level string column.
//!
//! Only that column's pages are read, a few hundred rows at a time, so a file may be larger than memory.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::files::{Cursor, Piece, Reader, field_names, quoted};
use crate::{Error, Result};

/// Rows decoded at a time.
const ROWS: usize = 256;

pub(super) struct Parquet {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column: usize,
    /// Whether the column may hold nulls.
    optional: bool,
    /// Next row of the file to hand out, and where to stop.
    row: u64,
    end: u64,
    /// Next row group to open.
    group: usize,
    open: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows decoded but not handed out, last first; `None` is null.
    ready: Vec<Option<ByteArray>>,
}

impl Parquet {
    /// Reads rows `row..end` (`end` may lie beyond the last).
    pub fn open(path: &Path, field: Option<&str>, row: u64, end: u64) -> Result<Parquet> {
        let file = open(path)?;
        let (column, optional) = find_column(path, &file, field)?;
        let mut reader = Parquet {
            path: path.to_path_buf(),
            file,
            column,
            optional,
            row,
            end,
            group: 0,
            open: None,
            ready: Vec::new(),
        };
        reader.seek()?;
        Ok(reader)
    }

    /// Opens the row group that holds `self.row` and skips to it.
    fn seek(&mut self) -> Result<()> {
        let mut skip = self.row;
        while self.group < self.file.num_row_groups() {
            let rows = self.file.metadata().row_group(self.group).num_rows().max(0) as u64;
            if skip < rows {
                self.open_group()?;
                let reader = self.open.as_mut().expect("just opened");
                let done = guarded(&self.path, || reader.skip_records(skip as usize))?;
                if done as u64 != skip {
                    return Err(Error::file(&self.path, "a row group has fewer rows than its header says"));
                }
                return Ok(());
            }
            skip -= rows;
            self.group += 1;
        }
        Ok(())
    }

    fn open_group(&mut self) -> Result<()> {
        let (file, group, column) = (&self.file, self.group, self.column);
        check_extent(&self.path, file.metadata().row_group(group).column(column))?;
        self.group += 1;
        match guarded(&self.path, || file.get_row_group(group)?.get_column_reader(column))? {
            ColumnReader::ByteArrayColumnReader(reader) => self.open = Some(reader),
            _ => return Err(Error::file(&self.path, "the text column changes its type between row groups")),
        }
        Ok(())
    }

    /// Decodes the next rows; false at the end of the file.
    fn fill(&mut self) -> Result<bool> {
        loop {
            if let Some(reader) = &mut self.open {
                let (mut levels, mut values) = (Vec::new(), Vec::new());
                let def = self.optional.then_some(&mut levels);
                let (rows, ..) = guarded(&self.path, || reader.read_records(ROWS, def, None, &mut values))?;
                if rows > 0 {
                    let mut values = values.into_iter();
                    self.ready = match self.optional {
                        true => levels.iter().map(|&l| if l > 0 { values.next() } else { None }).collect(),
                        false => values.map(Some).collect(),
                    };
                    self.ready.reverse();
                    return Ok(true);
                }
                self.open = None;
            }
            if self.group >= self.file.num_row_groups() {
                return Ok(false);
            }
            self.open_group()?;
        }
    }
}

impl Reader for Parquet {
    fn next(&mut self) -> Result<Option<Piece>> {
        if self.row >= self.end || (self.ready.is_empty() && !self.fill()?) {
            return Ok(None);
        }
        let value = self.ready.pop().flatten();
        let text = match &value {
            None => String::new(),
            Some(bytes) => match std::str::from_utf8(bytes.data()) {
                Ok(text) => text.to_string(),
                Err(e) => {
                    let problem =
                        format!("row {}: invalid UTF-8 at byte {} of the text", self.row, e.valid_up_to());
                    return Err(Error::file(&self.path, problem));
                }
            },
        };
        self.row += 1;
        Ok(Some(Piece::document(text)))
    }

    fn cursor(&self) -> Cursor {
        Cursor { offset: self.row, line: 0 }
    }
}

/// Calls the parquet library, which panics on some damaged files: an error that names the file instead.
fn guarded<T>(path: &Path, call: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::file(path, format!("not a usable parquet file: {e}"))),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            Err(Error::file(path, format!("not a usable parquet file: {text}")))
        }
    }
}

/// A column chunk must lie inside the file.
fn check_extent(path: &Path, chunk: &ColumnChunkMetaData) -> Result<()> {
    let length = std::fs::metadata(path).map_err(Error::io(path, "opening"))?.len() as i64;
    let begin = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let size = chunk.compressed_size();
    let end = begin.checked_add(size);
    if begin < 0 || size < 0 || chunk.data_page_offset() < 0 || end.is_none_or(|end| end > length) {
        let problem = format!("a column of {size} bytes at {begin} is not inside the file's {length} bytes");
        return Err(Error::file(path, problem));
    }
    Ok(())
}

fn open(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).map_err(Error::io(path, "opening"))?;
    guarded(path, || SerializedFileReader::new(file))
}

/// Number of rows of a file.
pub(super) fn rows(path: &Path) -> Result<u64> {
    Ok(open(path)?.metadata().file_metadata().num_rows().max(0) as u64)
}

fn find_column(path: &Path, file: &SerializedFileReader<File>, field: Option<&str>) -> Result<(usize, bool)> {
    let schema = file.metadata().file_metadata().schema_descr();
    let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
    let asked = field_names(field);
    let Some(i) = asked.iter().find_map(|f| names.iter().position(|n| n == f)) else {
        let problem = format!("no column {} (the file has: {})", quoted(&asked), names.join(", "));
        return Err(Error::file(path, problem));
    };
    let column = schema.column(i);
    if column.physical_type() != Type::BYTE_ARRAY || column.max_rep_level() > 0 {
        return Err(Error::file(path, format!("column \"{}\" is not a column of strings", names[i])));
    }
    Ok((i, column.max_def_level() > 0))
}
