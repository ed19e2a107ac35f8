//! The entries of a zip archive as torch writes it: stored, not compressed.
//!
//! Policy: what the archive says is checked against its size before it is used; compressed, encrypted and split archives are refused, as torch makes
//! none. Nothing is copied and nothing unpacked, so a hostile archive cannot grow.

use std::{collections::BTreeMap, ops::Range};

/// Where each entry's bytes lie in the file, by name.
pub(super) type Entries = BTreeMap<String, Range<usize>>;

/// Most entries that are read: real checkpoints have some thousands.
const MOST: usize = 1 << 20;
/// Longest comment at the end of an archive.
const COMMENT: usize = 1 << 16;

/// A little-endian number of `n` bytes at `at`.
fn number(bytes: &[u8], at: usize, n: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(n)?)?;
    Some(bytes.iter().rev().fold(0, |x, b| x << 8 | u64::from(*b)))
}

fn place(bytes: &[u8], at: usize, n: usize) -> Option<usize> {
    usize::try_from(number(bytes, at, n)?).ok()
}

/// Reads the archive's directory.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn entries(file: &[u8]) -> Result<Entries, String> {
    let cut = || "ends before its directory does".to_string();
    let end = end_of_directory(file).ok_or("is no zip archive (torch's format since 1.6)")?;
    let (count, mut at) = directory(file, end).ok_or_else(cut)?;
    if count > MOST {
        return Err(format!("names {count} entries, more than {MOST}"));
    }
    let mut all = Entries::new();
    for _ in 0..count {
        if number(file, at, 4) != Some(0x0201_4b50) {
            return Err("has a damaged directory".into());
        }
        let field = |offset, n| place(file, at + offset, n).ok_or_else(cut);
        let (flags, method) = (field(8, 2)?, field(10, 2)?);
        let (name_len, extra_len, comment_len) = (field(28, 2)?, field(30, 2)?, field(32, 2)?);
        let name = file.get(at + 46..at + 46 + name_len).ok_or_else(cut)?;
        let name = std::str::from_utf8(name).map_err(|_| "has an entry whose name is not UTF-8")?.to_string();
        if method != 0 || flags & 1 != 0 {
            return Err(format!("holds `{name}` compressed or encrypted; torch stores entries as they are"));
        }
        let extra = file.get(at + 46 + name_len..at + 46 + name_len + extra_len).ok_or_else(cut)?;
        let [size, offset] = wide([field(24, 4)?, field(42, 4)?], extra).ok_or_else(cut)?;
        // The entry's own header repeats name and extra field, in lengths of its own.
        let header = |o: usize, n| offset.checked_add(o).and_then(|x| place(file, x, n)).ok_or_else(cut);
        if header(0, 4)? != 0x0403_4b50 {
            return Err(format!("has no entry where `{name}` should be"));
        }
        let start = offset + 30 + header(26, 2)? + header(28, 2)?;
        let range = start..start.checked_add(size).filter(|e| *e <= file.len()).ok_or_else(cut)?;
        if all.insert(name.clone(), range).is_some() {
            return Err(format!("holds `{name}` twice"));
        }
        at += 46 + name_len + extra_len + comment_len;
    }
    Ok(all)
}

/// Position of the record that ends the directory.
fn end_of_directory(file: &[u8]) -> Option<usize> {
    let last = file.len().checked_sub(22)?;
    (last.saturating_sub(COMMENT)..=last).rev().find(|&at| number(file, at, 4) == Some(0x0605_4b50))
}

/// Number of entries and position of the first.
fn directory(file: &[u8], end: usize) -> Option<(usize, usize)> {
    let small = (place(file, end + 10, 2)?, place(file, end + 16, 4)?);
    let locator = end.checked_sub(20).filter(|&at| number(file, at, 4) == Some(0x0706_4b50));
    let Some(locator) = locator else { return Some(small) };
    let wide = place(file, locator + 8, 8)?;
    if number(file, wide, 4)? != 0x0606_4b50 {
        return None;
    }
    Some((place(file, wide.checked_add(32)?, 8)?, place(file, wide.checked_add(48)?, 8)?))
}

/// Size and offset, from the 64-bit extra field where the small ones are full.
fn wide([size, offset]: [usize; 2], extra: &[u8]) -> Option<[usize; 2]> {
    const FULL: usize = 0xffff_ffff;
    if size != FULL && offset != FULL {
        return Some([size, offset]);
    }
    let mut at = 0;
    while let (Some(id), Some(len)) = (number(extra, at, 2), place(extra, at + 2, 2)) {
        if id == 1 {
            // Uncompressed size, compressed size, offset: those that are full in the directory.
            let mut next = at + 4;
            let mut take = |full: bool, small: usize| {
                if !full {
                    return Some(small);
                }
                next += 8;
                place(extra, next - 8, 8)
            };
            let first = take(size == FULL, size)?;
            take(size == FULL, size)?;
            return Some([first, take(offset == FULL, offset)?]);
        }
        at += 4 + len;
    }
    None
}
