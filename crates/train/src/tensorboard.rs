//! TensorBoard event files: scalars only.
//!
//! The format is TensorFlow's record file (length, masked CRC-32C of the length, data, masked CRC-32C of the data) of `Event`
//! protocol buffers, of which a scalar needs five fields, written by hand here.
//!
//! Policy: every opening makes a new file (TensorBoard joins the files of a folder), so earlier files are never touched; a resumed
//! run says at which step it begins, and TensorBoard then drops what the interrupted run logged beyond it. A record is handed to
//! the system in one write before the call returns, without a buffer: a killed run loses nothing and leaves no half record.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// Writes scalars to one event file.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Makes a new event file in `dir` (made too if it is not there). `first_step` is the step a resumed run begins at, 0 for a new
    /// run.
    ///
    /// # Errors
    /// [`Error::Io`] naming the folder or file.
    pub fn create(dir: &Path, first_step: u64) -> Result<EventWriter> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir, "creating the folder"))?;
        let (path, file) = new_file(dir, now().as_secs())?;
        let mut writer = EventWriter { path, file };
        // The version that readers look for in the first record.
        writer.write(&event(0, &bytes_field(3, b"brain.Event:2")))?;
        if first_step > 0 {
            // Event.session_log { status: START }: readers forget later steps of earlier files.
            writer.write(&event(first_step, &bytes_field(7, &varint_field(1, 1))))?;
        }
        Ok(writer)
    }

    /// The file that is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Logs `tag = value` pairs of one step as one record; values that are not finite are written as they are.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = bytes_field(1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend(value.to_le_bytes());
            summary.extend(bytes_field(1, &entry));
        }
        self.write(&event(step, &bytes_field(5, &summary)))
    }

    /// Waits until everything is on the disk (otherwise the system decides when).
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path, "writing"))
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&record(data)).map_err(Error::io(&self.path, "writing"))
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Names sort by time; a number tells files of one second and process apart.
fn new_file(dir: &Path, seconds: u64) -> Result<(PathBuf, File)> {
    let mut number = 0;
    loop {
        let path =
            dir.join(format!("events.out.tfevents.{seconds:010}.flashlin.{}.{number}", std::process::id()));
        match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(Error::io(&path, "creating")(e)),
        }
    }
}

/// `Event { wall_time, step, <what> }`.
fn event(step: u64, what: &[u8]) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(now().as_secs_f64().to_le_bytes());
    if step > 0 {
        out.extend(varint_field(2, step));
    }
    out.extend_from_slice(what);
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn varint_field(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    out.extend(varint(value));
    out
}

fn bytes_field(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    out.extend(varint(value.len() as u64));
    out.extend_from_slice(value);
    out
}

/// The checksum of record files: CRC-32C, rotated and shifted so that a checksum of checksummed data stays meaningful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Field {
        Int(u64),
        Fixed64(u64),
        Fixed32(u32),
        Bytes(Vec<u8>),
    }

    fn take_varint(data: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let b = data[0];
            *data = &data[1..];
            value |= ((b & 0x7f) as u64) << shift;
            if b < 0x80 {
                return value;
            }
            shift += 7;
        }
    }

    /// Any protocol buffer message as (field number, value).
    fn fields(mut data: &[u8]) -> Vec<(u64, Field)> {
        let mut out = Vec::new();
        while !data.is_empty() {
            let key = take_varint(&mut data);
            let n = match key & 7 {
                0 => {
                    out.push((key >> 3, Field::Int(take_varint(&mut data))));
                    continue;
                }
                1 => 8,
                2 => take_varint(&mut data) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            let (value, rest) = data.split_at(n);
            data = rest;
            out.push((
                key >> 3,
                match key & 7 {
                    1 => Field::Fixed64(u64::from_le_bytes(value.try_into().unwrap())),
                    5 => Field::Fixed32(u32::from_le_bytes(value.try_into().unwrap())),
                    _ => Field::Bytes(value.to_vec()),
                },
            ));
        }
        out
    }

    /// The records of a file, checksums checked.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let mut data = &std::fs::read(path).unwrap()[..];
        let mut out = Vec::new();
        while !data.is_empty() {
            let n = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
            assert_eq!(data[8..12], masked_crc(&data[..8]).to_le_bytes());
            let content = &data[12..12 + n];
            assert_eq!(data[12 + n..16 + n], masked_crc(content).to_le_bytes());
            out.push(content.to_vec());
            data = &data[16 + n..];
        }
        out
    }

    #[test]
    fn checksum_of_known_data() {
        // RFC 3720, B.4: CRC-32C of 32 zero bytes.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let before = now().as_secs_f64();
        let mut writer = EventWriter::create(&dir.path().join("tb"), 0).unwrap();
        writer.scalars(300, &[("loss", 2.5), ("optimizer/lr", 1e-3)]).unwrap();
        writer.sync().unwrap();
        let records = records(writer.path());
        assert_eq!(records.len(), 2);
        assert_eq!(fields(&records[0])[1], (3, Field::Bytes(b"brain.Event:2".to_vec())));
        let event = fields(&records[1]);
        let Field::Fixed64(time) = event[0].1 else { panic!("{event:?}") };
        assert!((before..before + 60.0).contains(&f64::from_bits(time)));
        assert_eq!(event[1], (2, Field::Int(300)));
        let Field::Bytes(summary) = &event[2].1 else { panic!("{event:?}") };
        assert_eq!(event[2].0, 5);
        let values: Vec<_> = fields(summary)
            .into_iter()
            .map(|(number, value)| match value {
                Field::Bytes(value) => (number, fields(&value)),
                other => panic!("{other:?}"),
            })
            .collect();
        let value =
            |tag: &str, v: f32| (1, vec![(1, Field::Bytes(tag.into())), (2, Field::Fixed32(v.to_bits()))]);
        assert_eq!(values, [value("loss", 2.5), value("optimizer/lr", 1e-3)]);
    }

    #[test]
    fn a_resumed_run_makes_a_new_file_and_says_where_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = EventWriter::create(dir.path(), 0).unwrap();
        first.scalars(1, &[("a", 1.0)]).unwrap();
        let untouched = std::fs::read(first.path()).unwrap();
        let second = EventWriter::create(dir.path(), 200).unwrap();
        assert_ne!(first.path(), second.path());
        assert_eq!(std::fs::read(first.path()).unwrap(), untouched);
        let start = fields(&records(second.path())[1]);
        assert_eq!(start[1..], [(2, Field::Int(200)), (7, Field::Bytes(vec![8, 1]))]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = EventWriter::create(&dir.path().join("file/tb"), 0).err().unwrap();
        assert!(error.to_string().contains("file/tb"), "{error}");
    }

    /// Writes a file for a look with TensorBoard itself: `FLASHLIN_TB_DIR=/tmp/tb cargo test -p flashlin-train -- --ignored tensorboard`.
    #[test]
    #[ignore = "by hand"]
    fn for_tensorboard() {
        let dir = PathBuf::from(std::env::var_os("FLASHLIN_TB_DIR").expect("FLASHLIN_TB_DIR is a folder"));
        let mut writer = EventWriter::create(&dir, 0).unwrap();
        for step in 1..=10 {
            writer
                .scalars(step, &[("loss", 1.0 / step as f32), ("train/tokens", (step * 1_000_000) as f32)])
                .unwrap();
        }
        let mut writer = EventWriter::create(&dir, 6).unwrap();
        writer.scalars(6, &[("loss", 100.0)]).unwrap();
    }
}
