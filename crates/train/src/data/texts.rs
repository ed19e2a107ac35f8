//! The plain text of sources: for training a tokenizer and for baselines that read bytes.

use flashlin::tokenizer::Tokenizer;

use super::config::SourceConfig;
use super::files::FileSet;
use super::shards::Shards;
use crate::{Error, Result};

/// The texts of a source in order, once: documents, or pieces of at most 64 KiB of a file that is one document. Ends after the
/// first error.
pub fn texts(source: &SourceConfig) -> Result<impl Iterator<Item = Result<String>> + Send + use<>> {
    let mut shards = Shards::new(FileSet::open(source, "source")?, None, false);
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let next = shards.next().map(|next| next.map(|(_, piece)| piece.text)).transpose();
        failed = matches!(next, Some(Err(_)));
        next
    }))
}

/// All text of a source as one string: the exact bytes of the files' ranges where a file is one document, else the documents with
/// an empty line between them.
pub fn read_text(source: &SourceConfig) -> Result<String> {
    let mut shards = Shards::new(FileSet::open(source, "source")?, None, false);
    let mut all = String::new();
    let mut first = true;
    while let Some((_, piece)) = shards.next()? {
        if piece.begins && !first {
            all.push_str("\n\n");
        }
        first = false;
        all.push_str(&piece.text);
    }
    Ok(all)
}

/// Trains byte-level BPE on the texts of `sources`, in order, and on nothing else; at most `max_bytes` of them if given.
pub fn train_tokenizer(
    sources: &[SourceConfig],
    vocab_size: usize,
    max_bytes: Option<u64>,
) -> Result<Tokenizer> {
    let mut error: Option<Error> = None;
    let mut left = max_bytes.unwrap_or(u64::MAX);
    let mut iterators = Vec::new();
    for source in sources {
        iterators.push(texts(source)?);
    }
    let pieces = iterators.into_iter().flatten().map_while(|text| match text {
        Ok(text) if left > 0 => {
            left = left.saturating_sub(text.len() as u64);
            Some(text)
        }
        Ok(_) => None,
        Err(e) => {
            error = Some(e);
            None
        }
    });
    let trained = Tokenizer::train_bpe(pieces, vocab_size);
    match error {
        Some(e) => Err(e),
        None => Ok(trained?),
    }
}
