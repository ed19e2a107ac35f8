//! Tests of the whole way from files to batches. Helpers here, subjects in the files below.

mod batches;
mod input;
mod resume;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use flashlin::tokenizer::Tokenizer;

use super::*;

/// `n` cases of a property; `PROPTEST_CASES` asks for a longer run.
pub(super) fn cases(n: u32) -> proptest::test_runner::Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(n);
    proptest::test_runner::Config { cases, ..Default::default() }
}

pub(super) fn bytes() -> Tokenizer {
    Tokenizer::bytes().unwrap()
}

pub(super) fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

pub(super) fn jsonl<S: AsRef<str>>(documents: &[S]) -> String {
    documents.iter().map(|d| format!("{}\n", serde_json::json!({"id": 1, "text": d.as_ref()}))).collect()
}

/// A parquet file of `groups` row groups with an id column and a nullable text column.
pub(super) fn write_parquet(dir: &Path, name: &str, column: &str, groups: &[Vec<Option<&str>>]) -> PathBuf {
    let path = dir.join(name);
    let schema = format!("message m {{ required int32 id; optional binary {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties =
        Arc::new(WriterProperties::builder().set_compression(::parquet::basic::Compression::SNAPPY).build());
    let mut writer =
        SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), schema, properties).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut ids = group.next_column().unwrap().unwrap();
        let numbers: Vec<i32> = (0..rows.len() as i32).collect();
        ids.typed::<::parquet::data_type::Int32Type>().write_batch(&numbers, None, None).unwrap();
        ids.close().unwrap();
        let mut texts = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|t| ByteArray::from(*t)).collect();
        let levels: Vec<i16> = rows.iter().map(|t| t.is_some() as i16).collect();
        texts.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        texts.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    path
}

/// A small configuration over `sources`: 8 tokens a row, 2 rows, in order, once, no special tokens.
pub(super) fn config(sources: Vec<SourceConfig>) -> DataConfig {
    DataConfig {
        seq_len: 8,
        batch_size: 2,
        shuffle: 0,
        repeat: false,
        bos: Some(false),
        eos: Some(false),
        ..DataConfig::new(sources)
    }
}

pub(super) fn source(path: &Path) -> SourceConfig {
    SourceConfig::new([path])
}

pub(super) fn all(config: &DataConfig) -> Vec<Batch> {
    let mut loader = Loader::new(config, &bytes()).unwrap();
    std::iter::from_fn(|| loader.next_batch().unwrap()).collect()
}

/// The text of a batch's segments (byte tokenizer).
pub(super) fn segments(batch: &Batch) -> Vec<String> {
    let t = bytes();
    batch.cu_seqlens.windows(2).map(|w| t.decode(&batch.tokens[w[0]..w[1]], false).unwrap()).collect()
}

pub(super) fn error(config: &DataConfig) -> String {
    let run = || {
        let mut loader = Loader::new(config, &bytes())?;
        while loader.next_batch()?.is_some() {}
        Ok::<_, crate::Error>(())
    };
    run().unwrap_err().to_string()
}
