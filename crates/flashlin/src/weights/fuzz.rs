//! Random damage to valid files: never a panic, and nothing is accepted that the reference reader refuses. `PROPTEST_CASES=100000`
//! runs longer.

use std::path::Path;

use proptest::prelude::*;

use super::{WeightMap, header};

/// A valid file of a few small tensors.
fn valid() -> impl Strategy<Value = Vec<u8>> {
    let tensor = (0usize..5, prop::collection::vec(0usize..4, 0..4));
    prop::collection::vec(tensor, 0..5).prop_map(|tensors| {
        let dtypes = [("F64", 8), ("F32", 4), ("BF16", 2), ("U8", 1), ("F8_E4M3", 1)];
        let (mut at, mut entries) = (0, vec![r#""__metadata__":{"format":"pt"}"#.to_string()]);
        for (i, (dtype, dims)) in tensors.iter().enumerate() {
            let (name, size) = dtypes[*dtype];
            let end = at + dims.iter().product::<usize>() * size;
            entries
                .push(format!(r#""t{i}":{{"dtype":"{name}","shape":{dims:?},"data_offsets":[{at},{end}]}}"#));
            at = end;
        }
        let json = format!("{{{}}}", entries.join(","));
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.extend((0..at).map(|i| i as u8));
        file
    })
}

#[derive(Clone, Debug)]
enum Damage {
    /// Overwrite one byte.
    Byte(prop::sample::Index, u8),
    /// Cut the file.
    Cut(prop::sample::Index),
    /// Append bytes.
    Grow(Vec<u8>),
    /// Replace the n-th number in the header, keeping the length field honest.
    Number(prop::sample::Index, String),
    /// Replace one byte of the header by JSON syntax or letters.
    Syntax(prop::sample::Index, char),
}

fn damage() -> impl Strategy<Value = Damage> {
    let numbers = prop_oneof![
        (0u64..20).prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        prop::sample::select(vec!["-1", "1e9", "1.5", "18446744073709551616", "[]", "null", "\"8\""])
            .prop_map(String::from),
    ];
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(i, b)| Damage::Byte(i, b)),
        any::<prop::sample::Index>().prop_map(Damage::Cut),
        prop::collection::vec(any::<u8>(), 1..20).prop_map(Damage::Grow),
        (any::<prop::sample::Index>(), numbers).prop_map(|(i, n)| Damage::Number(i, n)),
        (any::<prop::sample::Index>(), prop::sample::select(r#"{}[]",:\tF832"#.chars().collect::<Vec<_>>()))
            .prop_map(|(i, c)| Damage::Syntax(i, c)),
    ]
}

fn header_end(file: &[u8]) -> usize {
    let n = file.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
    (n.min(file.len() as u64) as usize + 8).min(file.len())
}

fn apply(file: &mut Vec<u8>, damage: &Damage) {
    match damage {
        Damage::Byte(i, b) if !file.is_empty() => {
            let at = i.index(file.len());
            file[at] = *b;
        }
        Damage::Cut(i) => file.truncate(i.index(file.len() + 1)),
        Damage::Grow(bytes) => file.extend_from_slice(bytes),
        Damage::Syntax(i, c) if header_end(file) > 8 => {
            let at = 8 + i.index(header_end(file) - 8);
            file[at] = *c as u8;
        }
        Damage::Number(i, text) => {
            let end = header_end(file);
            let starts: Vec<usize> = (9..end)
                .filter(|&k| file[k].is_ascii_digit() && matches!(file[k - 1], b'[' | b',' | b' '))
                .collect();
            if starts.is_empty() {
                return;
            }
            let start = starts[i.index(starts.len())];
            let stop = (start..end).find(|&k| !file[k].is_ascii_digit()).unwrap_or(end);
            file.splice(start..stop, text.bytes());
            let length = (end - 8 + text.len() - (stop - start)) as u64;
            file[..8].copy_from_slice(&length.to_le_bytes());
        }
        _ => {}
    }
}

/// What must hold for any bytes.
fn check(file: &[u8]) {
    let Ok(header) = header::parse(Path::new("fuzz.safetensors"), file) else { return };
    let reference =
        safetensors::SafeTensors::deserialize(file).expect("accepted here, refused by the reference");
    assert_eq!(reference.len(), header.tensors.len());
    for (key, info) in &header.tensors {
        let theirs = reference.tensor(key).expect("the reference has the key");
        assert_eq!(theirs.shape(), info.dims);
        assert_eq!(theirs.data(), &file[info.start..info.end]);
    }
}

proptest! {
    #[test]
    fn damaged_headers_never_panic(file in valid(), damages in prop::collection::vec(damage(), 0..4)) {
        let mut file = file;
        header::parse(Path::new("fuzz.safetensors"), &file).expect("a valid file");
        damages.iter().for_each(|d| apply(&mut file, d));
        check(&file);
    }

    #[test]
    fn arbitrary_headers_never_panic(json in "[\\[\\]{}\",:a-z0-9_\\\\. -]{0,200}", data in 0usize..32) {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.resize(file.len() + data, 7);
        check(&file);
    }

    #[test]
    fn damaged_files_open_or_fail_cleanly(file in valid(), damages in prop::collection::vec(damage(), 0..3)) {
        let mut file = file;
        damages.iter().for_each(|d| apply(&mut file, d));
        let temp = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(temp.path(), &file).expect("writing it");
        if let Ok(map) = WeightMap::open(temp.path()) {
            for key in map.keys() {
                if let Ok(tensor) = map.get(key) {
                    let _ = super::check_finite(&tensor, || key.to_string());
                }
            }
        }
    }
}
