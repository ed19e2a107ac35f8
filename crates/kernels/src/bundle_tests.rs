//! Bundles survive a round trip, and no damage gets past the reader.

use proptest::prelude::*;

use super::*;
use crate::{ArgKind, BundleWriter, Checked, Place, kernel_name};

/// A kernel whose cubin is `cubin`.
fn kernel(kernel: &str, dtype: &str, generics: &[(&str, i64)], warps: u32) -> Kernel {
    let generics: Vec<(String, i64)> = generics.iter().map(|(n, v)| (n.to_string(), *v)).collect();
    Kernel {
        name: kernel_name(kernel, dtype, &generics, warps, 2),
        entry: format!("{kernel}_entry"),
        family: "decay".into(),
        kernel: kernel.into(),
        dtype: dtype.into(),
        generics,
        warps,
        occupancy: 2,
        abi: vec![
            crate::Arg { name: "q".into(), kind: ArgKind::Ptr },
            crate::Arg { name: "scale".into(), kind: ArgKind::F32 },
        ],
        grid: "tiles".into(),
        registers: 128,
        shared_bytes: 1 << 15,
        spills: 0,
        cubin: Place::default(),
        source: "s".into(),
        toolchain: "t".into(),
        checked: None,
    }
}

fn cubin(seed: u8) -> Vec<u8> {
    (0..3000u32).map(|i| (i / 7) as u8 ^ seed.wrapping_mul((i % 5) as u8)).collect()
}

/// One bundle for all tests: compressing at the highest level takes a while.
fn sample() -> Vec<u8> {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(write_sample).clone()
}

fn write_sample() -> Vec<u8> {
    let mut w = BundleWriter::new(Arch::Sm90, std::env::consts::ARCH, "t");
    w.add(kernel("gla_fused", "bf16", &[("K", 128), ("BV", 64)], 4), cubin(1)).unwrap();
    w.add(kernel("gla_fused", "bf16", &[("K", 128), ("BV", 32)], 4), cubin(2)).unwrap();
    w.add(kernel("gla_fused", "f16", &[("K", 128), ("BV", 64)], 4), cubin(3)).unwrap();
    w.add(kernel("cumsum", "f32", &[], 8), cubin(4)).unwrap();
    w.bytes().unwrap()
}

#[test]
fn what_is_written_is_read() {
    let bundle = Bundle::new("sample", sample()).unwrap();
    assert_eq!(bundle.arch(), Arch::Sm90);
    let names: Vec<_> = bundle.kernels().iter().map(|k| k.name.as_str()).collect();
    assert!(names.is_sorted() && names.len() == 4);
    let k = bundle.find("gla_fused", "bf16", &[("BV", 64)]).unwrap();
    assert_eq!(bundle.cubin(k).unwrap(), cubin(1));
    assert_eq!(k.name, "gla_fused@bf16_K128_BV64_w4_o2");
    assert_eq!(k.generic("K"), Some(128));
    assert!(k.need_generic("C").unwrap_err().to_string().contains("BV=64"));
    assert_eq!(bundle.variants("gla_fused", "bf16", &[("K", 128)]).len(), 2);
    assert!(
        bundle.variants("gla", "bf16", &[]).is_empty() && bundle.variants("gla_fused", "bf", &[]).is_empty()
    );
    for k in bundle.kernels() {
        assert_eq!(bundle.get(&k.name).unwrap(), k);
        assert!(bundle.variants(&k.kernel, &k.dtype, &[]).contains(&k));
    }
    assert_eq!(bundle.get("cumsum@f32_w8_o2").unwrap().abi[1].kind, ArgKind::F32);
    assert_eq!(bundle.cubin(bundle.find("cumsum", "f32", &[]).unwrap()).unwrap(), cubin(4));
}

#[test]
fn a_failed_look_up_names_what_is_there() {
    let bundle = Bundle::new("sample", sample()).unwrap();
    let text = bundle.find("gla_fused", "f32", &[("K", 128)]).unwrap_err().to_string();
    assert!(text.contains("f32 with K=128") && text.contains("gla_fused@f16_K128_BV64_w4_o2"), "{text}");
    let text = bundle.find("wkv", "bf16", &[]).unwrap_err().to_string();
    assert!(text.contains("cumsum, gla_fused"), "{text}");
}

#[test]
fn writing_is_reproducible_and_keeps_records() {
    assert_eq!(sample(), write_sample());
    let bundle = Bundle::new("sample", sample()).unwrap();
    let mut w = BundleWriter::of(&bundle).unwrap();
    let sha = bundle.get("cumsum@f32_w8_o2").unwrap().cubin.sha256.clone();
    let checked = Checked { gpu: "NVIDIA H200".into(), error: 2.5e-3, date: "2026-01-02".into() };
    assert!(w.record(&sha, &checked));
    assert!(!w.record("00", &checked));
    let again = Bundle::new("again", w.bytes().unwrap()).unwrap();
    assert_eq!(again.get("cumsum@f32_w8_o2").unwrap().checked, Some(checked));
    assert_eq!(BundleWriter::of(&bundle).unwrap().bytes().unwrap(), sample());
}

#[test]
fn the_writer_refuses_contradictions() {
    let mut w = BundleWriter::new(Arch::Sm90, "x86_64", "t");
    w.add(kernel("a", "f32", &[], 4), cubin(1)).unwrap();
    assert!(w.add(kernel("a", "f32", &[], 4), cubin(2)).unwrap_err().to_string().contains("twice"));
    let misnamed = Kernel { warps: 8, ..kernel("b", "f32", &[], 4) };
    assert!(w.add(misnamed, cubin(2)).unwrap_err().to_string().contains("b@f32_w8_o2"));
    assert!(w.add(kernel("c", "f32", &[], 4), Vec::new()).is_err());
}

#[test]
fn another_format_or_host_is_named() {
    let mut bytes = sample();
    bytes[8] = 9;
    assert!(matches!(Bundle::new("x", bytes), Err(Error::Format { found: 9, .. })));
    let mut w = BundleWriter::new(Arch::Sm80, "z80", "t");
    w.add(kernel("a", "f32", &[], 4), cubin(1)).unwrap();
    let bundle = Bundle::new("x", w.bytes().unwrap()).unwrap();
    let text = bundle.cubin(&bundle.kernels()[0]).unwrap_err().to_string();
    assert!(text.contains("z80") && text.contains(std::env::consts::ARCH), "{text}");
    assert!(bundle.cubin_of_any_host(&bundle.kernels()[0]).is_ok());
}

/// Opens damaged bytes and loads every cubin: what comes out is right or an error.
fn survives(bytes: Vec<u8>) {
    let Ok(bundle) = Bundle::new("damaged", bytes) else { return };
    let whole = Bundle::new("sample", sample()).unwrap();
    for k in bundle.kernels() {
        if let Ok(code) = bundle.cubin(k) {
            assert_eq!(code, whole.cubin(whole.get(&k.name).unwrap()).unwrap());
        }
    }
}

proptest! {
    #[test]
    fn damage_is_an_error_or_harmless(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = sample();
        let i = at.index(bytes.len());
        bytes[i] ^= 1 << bit;
        survives(bytes);
    }

    #[test]
    fn a_truncated_bundle_is_an_error(at in any::<prop::sample::Index>()) {
        let mut bytes = sample();
        bytes.truncate(at.index(bytes.len()));
        prop_assert!(Bundle::new("cut", bytes).is_err());
    }

    #[test]
    fn noise_is_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..300), headed in any::<bool>()) {
        if headed && bytes.len() >= 12 {
            bytes[..8].copy_from_slice(MAGIC);
            bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        }
        prop_assert!(Bundle::new("noise", bytes).is_err());
    }
}
