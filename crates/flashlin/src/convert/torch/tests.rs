//! Files as torch writes them, made by hand; damage of all kinds; instructions that must not run.

use std::path::Path;

use flashlin_tensor::{DType, Device, Philox, Tensor};
use proptest::prelude::*;

use super::{TorchFile, index};

/// A pickle's instructions, as `torch.save` emits them.
#[derive(Default)]
struct Program(Vec<u8>);

impl Program {
    fn op(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, s: &str) -> &mut Self {
        self.op(b"X").op(&(s.len() as u32).to_le_bytes()).op(s.as_bytes())
    }

    fn int(&mut self, n: usize) -> &mut Self {
        self.op(b"J").op(&(n as u32).to_le_bytes())
    }

    fn ints(&mut self, all: &[usize]) -> &mut Self {
        self.op(b"(");
        all.iter().for_each(|&n| {
            self.int(n);
        });
        self.op(b"t")
    }
}

/// One entry after another, stored, and the directory.
fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let at = file.len() as u32;
        let sizes = (data.len() as u32).to_le_bytes();
        let (len, zero) = ((name.len() as u16).to_le_bytes(), [0u8; 2]);
        file.extend([&b"PK\x03\x04"[..], &[0; 14], &sizes, &sizes, &len, &zero].concat());
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(data);
        directory.extend(
            [
                &b"PK\x01\x02"[..],
                &[0; 16],
                &sizes,
                &sizes,
                &len,
                &[0; 12],
                &at.to_le_bytes(),
                name.as_bytes(),
            ]
            .concat(),
        );
    }
    let (count, at) = ((entries.len() as u16).to_le_bytes(), (file.len() as u32).to_le_bytes());
    let size = (directory.len() as u32).to_le_bytes();
    file.extend(directory);
    file.extend([&b"PK\x05\x06"[..], &[0; 4], &count, &count, &size, &at, &[0; 2]].concat());
    file
}

/// The numbers of a tensor in its own type.
fn bytes(t: &Tensor) -> Vec<u8> {
    t.contiguous().unwrap().as_bytes().unwrap().to_vec()
}

fn program(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut p = Program::default();
    p.op(&[0x80, 2]).op(b"ccollections\nOrderedDict\n").op(b")R").op(b"q\x00").op(b"(");
    for (i, (name, t)) in tensors.iter().enumerate() {
        let kind = match t.dtype() {
            DType::F32 => "FloatStorage",
            DType::F64 => "DoubleStorage",
            DType::F16 => "HalfStorage",
            _ => "BFloat16Storage",
        };
        let mut strides = vec![1; t.rank()];
        (1..t.rank()).rev().for_each(|d| strides[d - 1] = strides[d] * t.dim(d));
        p.text(name).op(b"ctorch._utils\n_rebuild_tensor_v2\n").op(b"((");
        p.text("storage").op(format!("ctorch\n{kind}\n").as_bytes());
        p.text(&i.to_string()).text("cpu").int(t.numel()).op(b"tQ").int(0).ints(t.dims()).ints(&strides);
        p.op(&[0x89]).op(b"ccollections\nOrderedDict\n)R").op(b"tR");
    }
    // Versions of modules, as state_dict() keeps them.
    p.op(b"u").op(b"}").text("_metadata").op(b"}sb").op(b".");
    p.0
}

/// A file as `torch.save` writes a dict of tensors.
pub(in crate::convert) fn saved(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut entries = vec![("archive/data.pkl".to_string(), program(tensors))];
    entries.push(("archive/byteorder".into(), b"little".to_vec()));
    let data = tensors.iter().enumerate().map(|(i, (_, t))| (format!("archive/data/{i}"), bytes(t)));
    entries.extend(data);
    archive(&entries)
}

pub(in crate::convert) fn write(path: &Path, tensors: &[(String, Tensor)]) {
    std::fs::write(path, saved(tensors)).unwrap();
}

fn some() -> Vec<(String, Tensor)> {
    let random =
        |i, dims: &[usize], dtype| Philox::new(1, i).randn(0.0, 1.0, dims, dtype, &Device::Cpu).unwrap();
    vec![
        ("a.weight".into(), random(1, &[2, 3], DType::F32)),
        ("b".into(), random(2, &[4], DType::BF16)),
        ("c".into(), random(3, &[2, 1, 2], DType::F16)),
        ("d".into(), random(4, &[], DType::F64)),
        ("e".into(), random(5, &[0, 3], DType::F32)),
    ]
}

#[test]
fn tensors_come_back_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pth");
    write(&path, &some());
    let file = TorchFile::open(&path).unwrap();
    assert_eq!(file.names().count(), 5);
    for (name, want) in some() {
        let got = file.get(&name).unwrap();
        assert_eq!((got.dims(), got.dtype()), (want.dims(), want.dtype()));
        assert_eq!(bytes(&got), bytes(&want), "{name}");
    }
    assert!(file.get("f").is_err());
}

/// `index` of a pickle with one storage of four floats.
fn outcome(p: &Program) -> Result<usize, String> {
    let entries = [("x/data.pkl".to_string(), p.0.clone()), ("x/data/0".into(), vec![0; 16])];
    index(&archive(&entries)).map(|t| t.len())
}

fn view(offset: usize, dims: &[usize], strides: &[usize]) -> Program {
    let mut p = Program::default();
    p.op(&[0x80, 2]).op(b"}").text("w").op(b"ctorch._utils\n_rebuild_tensor_v2\n((").text("storage");
    p.op(b"ctorch\nFloatStorage\n").text("0").text("cpu").int(4).op(b"tQ");
    p.int(offset).ints(dims).ints(strides).op(&[0x89]).op(b"NtRs.");
    p
}

#[test]
fn views_must_lie_in_their_storage() {
    assert_eq!(outcome(&view(0, &[2, 2], &[1, 2])), Ok(1));
    assert_eq!(outcome(&view(1, &[3], &[1])), Ok(1));
    for (offset, dims, strides) in [
        (1, &[4][..], &[1][..]),
        (0, &[3, 2], &[2, 1]),
        (0, &[2, 2], &[1]),
        (0, &[1 << 30, 1 << 30, 1 << 30], &[0, 0, 0]),
        (0, &[1000], &[0]),
        (usize::MAX >> 33, &[4], &[1]),
    ] {
        let message = outcome(&view(offset, dims, strides)).unwrap_err();
        assert!(message.contains("beyond its numbers"), "{message}");
    }
}

#[test]
fn programs_that_do_more_are_refused() {
    let refused = |build: &dyn Fn(&mut Program), word: &str| {
        let mut p = Program::default();
        p.op(&[0x80, 2]);
        build(&mut p);
        let message = outcome(&p).unwrap_err();
        assert!(message.contains(word), "{message} lacks {word}");
    };
    refused(
        &|p| {
            p.op(b"cos\nsystem\n").op(b"(").text("true").op(b"tR.");
        },
        "os.system",
    );
    refused(
        &|p| {
            p.op(&[0x8c, 2]).op(b"os").op(&[0x8c, 6]).op(b"system").op(&[0x93]).op(b")R.");
        },
        "os.system",
    );
    refused(
        &|p| {
            p.op(b"cbuiltins\neval\n").text("1").op(&[0x85]).op(b"R.");
        },
        "builtins.eval",
    );
    // Instructions that make objects or import: i, o, and a class with arguments.
    refused(
        &|p| {
            p.op(b"(ios\nsystem\n.");
        },
        "0x69",
    );
    refused(
        &|p| {
            p.op(b"(o.");
        },
        "0x6f",
    );
    refused(
        &|p| {
            p.op(b"}").op(&[0x81]).op(b".");
        },
        "0x81",
    );
    refused(
        &|p| {
            p.op(b"].");
        },
        "no dict",
    );
    refused(
        &|p| {
            p.op(b"}").text("w").op(b"Ns.");
        },
        "None under `w`",
    );
}

#[test]
fn deep_and_shared_values_are_refused() {
    let message = |p: &Program| outcome(p).unwrap_err();
    let mut p = Program::default();
    p.op(&[0x80, 2]).op(b")");
    (0..100_000).for_each(|_| {
        p.op(&[0x85]);
    });
    assert!(message(p.op(b".")).contains("deep"));
    let mut p = Program::default();
    p.op(&[0x80, 2]).op(&b"]".repeat(100_000)).op(&b"a".repeat(99_999)).op(b".");
    assert!(message(&p).contains("deep"));
    let mut p = Program::default();
    assert!(message(p.op(&[0x80, 2]).op(b"}q\x00h\x00.")).contains("slot 0"));
    let mut p = Program::default();
    assert!(message(p.op(&[0x80, 2]).op(b"Nr\xff\xff\xff\xff.")).contains("slot"));
}

#[test]
fn other_files_are_named() {
    assert!(index(b"\x80\x02}.").unwrap_err().contains("zip"));
    assert!(index(&archive(&[("a".into(), vec![1])])).unwrap_err().contains("data.pkl"));
    let big = [("x/data.pkl".to_string(), b"\x80\x02}.".to_vec()), ("x/byteorder".into(), b"big".to_vec())];
    assert!(index(&archive(&big)).unwrap_err().contains("big-endian"));
}

#[derive(Clone, Debug)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<prop::sample::Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(i, b)| Damage::Byte(i, b)),
        place().prop_map(Damage::Cut),
        (place(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(i, b)| Damage::Insert(i, b)),
    ]
}

proptest! {
    /// Never a panic; what is accepted lies in the file.
    #[test]
    fn damaged_files_do_not_panic(all in prop::collection::vec(damage(), 1..4)) {
        let mut file = saved(&some());
        for d in all {
            match d {
                Damage::Byte(i, b) => { let at = i.index(file.len()); file[at] = b; }
                Damage::Cut(i) => { let at = i.index(file.len()); file.truncate(at.max(1)); }
                Damage::Insert(i, b) => { let at = i.index(file.len()); file.splice(at..at, b); }
            }
        }
        if let Ok(found) = index(&file) {
            for (record, dtype, start) in found.values() {
                let end = super::places(record).max().map_or(0, |p| p + 1) * dtype.size();
                prop_assert!(start + end <= file.len());
            }
        }
    }

    /// Random programs: never a panic.
    #[test]
    fn random_programs_do_not_panic(p in prop::collection::vec(prop::sample::select(&b".(NKMJXGct)]}q0rhjsuaebRQ\x80\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95\x00\x01\x02torch\n"[..]), 0..80)) {
        let _ = super::pickle::tensors(&p);
    }
}
