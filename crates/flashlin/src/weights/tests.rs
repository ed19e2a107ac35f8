use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use flashlin_tensor::{DType, Device, Parameter, Philox, Tensor};

use super::*;
use crate::{Error, ErrorKind};

fn random(name: &str, dims: &[usize], dtype: DType) -> Tensor {
    Philox::named(1, name).randn(0.0, 1.0, dims, dtype, &Device::Cpu).unwrap()
}

fn model(dtype: DType) -> Vec<(String, Tensor)> {
    [("emb.weight", vec![7, 3]), ("a.weight", vec![3, 3]), ("a.bias", vec![3]), ("empty", vec![0, 3])]
        .into_iter()
        .map(|(name, dims)| (name.to_string(), random(name, &dims, dtype)))
        .collect()
}

fn params(dtype: DType) -> Vec<Arc<Parameter>> {
    model(dtype)
        .into_iter()
        .map(|(name, t)| {
            Arc::new(Parameter::new(name, Tensor::zeros(t.dims(), dtype, &Device::Cpu).unwrap()))
        })
        .collect()
}

fn bits(t: &Tensor) -> Vec<u8> {
    t.contiguous().unwrap().as_bytes().unwrap().to_vec()
}

fn names(dir: &Path) -> Vec<String> {
    let mut v: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    v.sort();
    v
}

fn load(dir: &Path, params: &[Arc<Parameter>], tied: &[(String, String)]) -> crate::Result<()> {
    load_into(params, tied, &WeightMap::open(dir)?, LoadOptions::default())
}

#[test]
fn saved_weights_load_bit_equal_whole_and_sharded() {
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        for max in [u64::MAX, 40, 1] {
            let dir = tempfile::tempdir().unwrap();
            let tensors = model(dtype);
            save(dir.path(), &tensors, None, max).unwrap();
            let ours = params(dtype);
            load(dir.path(), &ours, &[]).unwrap();
            for ((name, t), p) in tensors.iter().zip(&ours) {
                assert_eq!(bits(t), bits(&p.tensor()), "{name} {dtype} {max}");
            }
            let map = WeightMap::open(dir.path()).unwrap();
            assert_eq!(map.main_dtype(), dtype);
            assert_eq!(map.bytes() as usize, (21 + 9 + 3) * dtype.size());
        }
    }
}

#[test]
fn mixed_dtypes_views_and_the_reference_reader_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensors = vec![
        ("u8", Tensor::from_vec(vec![1u8, 2, 3], &[3]).unwrap()),
        ("scalar", Tensor::from_vec(vec![2.5f32], &[]).unwrap()),
        ("i64", Tensor::arange(5, 4).unwrap()),
        ("view", random("v", &[4, 6], DType::BF16).transpose(0, 1).unwrap()),
    ];
    let metadata = BTreeMap::from([("format".into(), "pt".into()), ("note".into(), "\"x\"\n".to_string())]);
    write_file(&path, &tensors, None, &metadata).unwrap();
    let map = WeightMap::open(&path).unwrap();
    assert_eq!(map.metadata(), &metadata);
    let raw = fs::read(&path).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&raw).unwrap();
    assert_eq!(reference.len(), 4);
    for (name, t) in &tensors {
        let (ours, theirs) = (map.get(name).unwrap(), reference.tensor(name).unwrap());
        assert_eq!(ours.dims(), t.dims(), "{name}");
        assert_eq!(theirs.shape(), t.dims(), "{name}");
        assert_eq!(bits(&ours), bits(t), "{name}");
        assert_eq!(theirs.data(), bits(t), "{name}");
    }
    assert_eq!(map.get("view").unwrap().dims(), [6, 4]);
}

#[test]
fn dtypes_are_converted_on_load_and_on_save() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &model(DType::F32), Some(DType::BF16), u64::MAX).unwrap();
    let wide = params(DType::F32);
    load(dir.path(), &wide, &[]).unwrap();
    for ((_, t), p) in model(DType::F32).iter().zip(&wide) {
        let rounded = t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(bits(&rounded), bits(&p.tensor()));
    }
    let half = params(DType::F16);
    load(dir.path(), &half, &[]).unwrap();
    assert_eq!(half[0].dtype(), DType::F16);

    let big = vec![("w", Tensor::full(1e6, &[2], DType::F32, &Device::Cpu).unwrap())];
    save(dir.path(), &big, None, u64::MAX).unwrap();
    let p = Arc::new(Parameter::new("w", Tensor::zeros(&[2], DType::F16, &Device::Cpu).unwrap()));
    let text = load(dir.path(), &[p], &[]).unwrap_err().to_string();
    assert!(text.contains("\"w\"") && text.contains("converted from f32 to f16"), "{text}");
}

#[test]
fn missing_unused_and_misshaped_keys_are_named_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = model(DType::F32);
    tensors[0].0 = "embedding.weight".into();
    tensors[2].1 = random("x", &[4], DType::F32);
    save(dir.path(), &tensors, None, u64::MAX).unwrap();
    let ours = params(DType::F32);
    let error = load(dir.path(), &ours, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Runtime);
    let text = error.to_string();
    for part in [
        "model.safetensors",
        "1 missing key: \"emb.weight\" [7, 3]",
        "1 unused key: \"embedding.weight\"",
        "\"a.bias\" is [4], expected [3]",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(ours.iter().all(|p| p.tensor().to_f64_vec().unwrap().iter().all(|&x| x == 0.0)));

    let many: Vec<_> = (0..20).map(|i| (format!("extra.{i:02}"), random("e", &[1], DType::F32))).collect();
    save(dir.path(), &many, None, u64::MAX).unwrap();
    let text = load(dir.path(), &[], &[]).unwrap_err().to_string();
    assert!(text.contains("20 unused keys") && text.contains("and 12 more"), "{text}");
}

#[test]
fn tied_keys_may_be_absent_equal_or_stand_in() {
    let tied = vec![("head.weight".to_string(), "emb.weight".to_string())];
    let dir = tempfile::tempdir().unwrap();
    let ours = params(DType::F32);
    let mut tensors = model(DType::F32);
    save(dir.path(), &tensors, None, u64::MAX).unwrap();
    load(dir.path(), &ours, &tied).unwrap();
    tensors.push(("head.weight".into(), tensors[0].1.clone()));
    save(dir.path(), &tensors, None, u64::MAX).unwrap();
    load(dir.path(), &ours, &tied).unwrap();
    // The same values in another dtype are equal as well; other values are not.
    tensors[4].1 = tensors[0].1.to_dtype(DType::F64).unwrap();
    save(dir.path(), &tensors, None, u64::MAX).unwrap();
    load(dir.path(), &ours, &tied).unwrap();
    tensors[4].1 = random("other", &[7, 3], DType::F32);
    save(dir.path(), &tensors, None, u64::MAX).unwrap();
    let text = load(dir.path(), &ours, &tied).unwrap_err().to_string();
    assert!(text.contains("\"head.weight\" differs from \"emb.weight\""), "{text}");
    let last = tensors.remove(4);
    tensors[0] = last;
    save(dir.path(), &tensors, None, u64::MAX).unwrap();
    load(dir.path(), &ours, &tied).unwrap();
    assert_eq!(bits(&ours[0].tensor()), bits(&tensors[0].1));
    // Untied, the alias is just an unused key.
    assert!(load(dir.path(), &ours, &[]).unwrap_err().to_string().contains("unused key: \"head.weight\""));
}

#[test]
fn nan_weights_are_refused_by_key_unless_asked_otherwise() {
    for (dtype, bad) in [
        (DType::F32, f64::NAN),
        (DType::BF16, f64::INFINITY),
        (DType::F16, f64::NEG_INFINITY),
        (DType::F64, f64::NAN),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = model(dtype);
        let mut values = vec![1.0; 9];
        values[4] = bad;
        tensors[1].1 = Tensor::from_vec(values, &[3, 3]).unwrap().to_dtype(dtype).unwrap();
        save(dir.path(), &tensors, None, u64::MAX).unwrap();
        let ours = params(dtype);
        let error = load(dir.path(), &ours, &[]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NotFinite { .. }), "{text}");
        assert!(text.contains("\"a.weight\"") && text.contains("flat index 4"), "{text}");
        let map = WeightMap::open(dir.path()).unwrap();
        load_into(&ours, &[], &map, LoadOptions { check_finite: false }).unwrap();
    }
}

#[test]
fn a_save_supersedes_every_kind_of_earlier_save() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), b"{}").unwrap();
    let check = |values: &[(String, Tensor)], max: u64, files: usize| {
        save(dir.path(), values, None, max).unwrap();
        let map = WeightMap::open(dir.path()).unwrap();
        for (name, t) in values {
            assert_eq!(bits(&map.get(name).unwrap()), bits(t));
        }
        assert_eq!(names(dir.path()).len(), files + 1, "{:?}", names(dir.path()));
    };
    let (old, mut new) = (model(DType::F32), model(DType::F32));
    new[0].1 = random("new", &[7, 3], DType::F32);
    check(&old, u64::MAX, 1);
    check(&new, 48, 3);
    // The same number of shards again: the files in force are not overwritten.
    check(&old, 48, 3);
    assert!(names(dir.path()).iter().any(|n| n.starts_with("model-b-00001-of-")));
    check(&new, 48, 3);
    check(&old, 1, 4);
    check(&new, u64::MAX, 1);
    assert_eq!(names(dir.path()), ["config.json", "model.safetensors"]);
}

#[test]
fn a_failed_save_leaves_the_weights_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let old = model(DType::F32);
    save(dir.path(), &old, None, 48).unwrap();
    // A folder where the second new shard should go.
    fs::create_dir(dir.path().join("model-b-00002-of-00002.safetensors")).unwrap();
    let mut new = old.clone();
    new[0].1 = random("new", &[7, 3], DType::F32);
    let text = save(dir.path(), &new, None, 48).unwrap_err().to_string();
    assert!(text.contains("model-b-00002-of-00002.safetensors"), "{text}");
    let map = WeightMap::open(dir.path()).unwrap();
    assert_eq!(bits(&map.get("emb.weight").unwrap()), bits(&old[0].1));
    let double = vec![("a", old[0].1.clone()), ("a", old[1].1.clone())];
    assert!(
        save(dir.path(), &double, None, 48).unwrap_err().to_string().contains("two tensors have the key")
    );
}

fn file_with(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn damaged_files_are_named_with_the_key_and_what_was_expected() {
    let entry = |key: &str, dtype: &str, shape: &str, range: &str| {
        format!(r#""{key}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range}}}"#)
    };
    let a = entry("a", "F32", "[2]", "[0,8]");
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "it has 0 bytes, expected at least 8"),
        (vec![1, 2, 3], "it has 3 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "header claims 18446744073709551615 bytes"),
        (file_with("{}", 0)[..9].to_vec(), "header claims 2 bytes, more than what the file holds (1)"),
        (file_with("[1]", 0), "header:"),
        (file_with("{\"a\":3}", 0), "key \"a\""),
        (file_with(&format!("{{{a}}}"), 4), "key \"a\": its data ends at byte 8, but the file has 4"),
        (file_with(&format!("{{{a}}}"), 9), "hold 8 bytes, but 9 bytes"),
        (file_with(&format!("{{{a},{a}}}"), 8), "the key \"a\" is there twice"),
        (file_with(&format!("{{{}}}", entry("a", "F31", "[2]", "[0,8]")), 8), "unknown dtype \"F31\""),
        (file_with(&format!("{{{}}}", entry("a", "F32", "[-2]", "[0,8]")), 8), "key \"a\""),
        (
            file_with(&format!("{{{}}}", entry("a", "F32", "[3]", "[0,8]")), 8),
            "8 bytes of data, but F32 [3] needs 12",
        ),
        (file_with(&format!("{{{}}}", entry("a", "F32", "[2]", "[8,0]")), 8), "before its start 8"),
        (file_with(&format!("{{{}}}", entry("a", "F4", "[1]", "[0,1]")), 1), "do not fill whole bytes"),
        (
            file_with(&format!("{{{}}}", entry("a", "U8", "[9223372036854775807,3]", "[0,8]")), 8),
            "[9223372036854775807, 3] overflows",
        ),
        (
            file_with(&format!("{{{}}}", entry("a", "U8", "[0,9223372036854775807,9]", "[0,0]")), 0),
            "overflows",
        ),
        (
            file_with(&format!("{{{a},{}}}", entry("b", "F32", "[2]", "[4,12]")), 12),
            "key \"b\" starts at 4 and overlaps \"a\", expected 8",
        ),
        (
            file_with(&format!("{{{a},{}}}", entry("b", "F32", "[2]", "[12,20]")), 20),
            "key \"b\" starts at 12 and leaves a gap after \"a\", expected 8",
        ),
        (
            file_with(&format!("{{{}}}", entry("a", "F32", &format!("[{}2]", "1,".repeat(40)), "[0,8]")), 8),
            "41 dimensions",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.safetensors");
    for (bytes, expected) in cases {
        fs::write(&path, &bytes).unwrap();
        let error = WeightMap::open(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("damaged.safetensors") && text.contains(expected), "{expected:?} in {text:?}");
        assert_eq!(error.kind(), ErrorKind::Runtime, "{text}");
        assert!(safetensors::SafeTensors::deserialize(&bytes).is_err() || bytes.len() > 8, "{text}");
    }
}

#[test]
fn foreign_dtypes_are_refused_when_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f8.safetensors");
    fs::write(&path, file_with(r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#, 2)).unwrap();
    let map = WeightMap::open(&path).unwrap();
    assert_eq!(map.dtype("a"), None);
    let text = map.get("a").unwrap_err().to_string();
    assert!(text.contains("F8_E4M3") && text.contains("supported: F64"), "{text}");
    assert!(map.get("b").unwrap_err().to_string().contains("has no key \"b\""));
}

#[test]
fn indexes_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = || {
        save(dir.path(), &model(DType::F32), None, 48).unwrap();
        fs::read_to_string(dir.path().join(INDEX_FILE)).unwrap()
    };
    let index = fresh();
    let shard = |i: usize| -> String {
        let v: serde_json::Value = serde_json::from_str(&index).unwrap();
        v["weight_map"][["emb.weight", "a.weight"][i]].as_str().unwrap().to_string()
    };
    let fails = |text: String, expected: &str| {
        fs::write(dir.path().join(INDEX_FILE), text).unwrap();
        let got = WeightMap::open(dir.path()).unwrap_err().to_string();
        assert!(got.contains(expected), "{expected:?} in {got:?}");
    };
    fails(index.replace(&shard(0), "gone.safetensors"), "names the shard \"gone.safetensors\"");
    for bad in ["../x.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "a\\\\b"] {
        fails(index.replace(&shard(0), bad), "expected the name of a file beside the index");
    }
    fails(index.replace("\"a.bias\"", "\"a.gone\""), "key \"a.bias\", which the index does not name");
    fails(index.replace("\"a.bias\"", "\"a.weight\""), "is there twice");
    fails("{".into(), "not a usable index");
    fails("{\"weight_map\": 3}".into(), "not a usable index");
    let extra = format!("\"weight_map\": {{\"z\": \"{}\",", shard(1));
    fails(index.replace("\"weight_map\": {", &extra), "puts key \"z\" into");
}

#[test]
fn folders_without_weights_and_strange_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let text = WeightMap::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("expected model.safetensors or model.safetensors.index.json"), "{text}");
    fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(WeightMap::open(dir.path()).unwrap_err().to_string().contains("pickled"));
    let missing = WeightMap::open(&dir.path().join("none.safetensors")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Usage);
    if cfg!(unix) {
        assert!(
            WeightMap::open(Path::new("/dev/zero")).unwrap_err().to_string().contains("not a regular file")
        );
    }
}
