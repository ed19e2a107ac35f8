use std::path::PathBuf;

use flashlin_tensor::{DType, no_grad};

use super::*;

/// Where golden checkpoints are: `FLASHLIN_GOLDENS`, the team's folder beside the checkout, or the committed subset.
fn goldens() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let places = [
        std::env::var_os("FLASHLIN_GOLDENS").map(PathBuf::from),
        Some(root.join("../shared/goldens/models")),
        Some(root.join("goldens/models")),
    ];
    places.into_iter().flatten().find(|p| p.is_dir()).expect("no golden checkpoints: set FLASHLIN_GOLDENS")
}

fn directories(family: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(goldens()).unwrap().map(|e| e.unwrap().path());
    let of_family = |p: &PathBuf| {
        let name = p.file_name().unwrap().to_str().unwrap();
        name.rsplit_once('-').is_some_and(|(model, _)| model == family)
    };
    let mut found: Vec<_> = all.filter(of_family).collect();
    found.sort();
    assert!(!found.is_empty(), "no golden directory of {family} in {}", goldens().display());
    found
}

/// Families whose checkpoints are not committed, to keep the repository small: tested where the full set is at hand.
const ELSEWHERE: &[&str] = &[
    "linear_attn",
    "lightnet",
    "hgrn",
    "hgrn2",
    "gsa",
    "abc",
    "forgetting_transformer",
    "mla",
    "mamba",
    "samba",
    "rodimus",
    "mom",
    "gated_deltaproduct",
    "comba",
    "rwkv6",
    "rwkv7",
    "log_linear_mamba2",
    "mesa_net",
    "path_attn",
    "nsa",
];

fn passes(family: &str) {
    if ELSEWHERE.contains(&family) && !goldens().join(format!("{family}-0")).is_dir() {
        return eprintln!("skipped: no golden checkpoint of {family} in {}", goldens().display());
    }
    for dir in directories(family) {
        let report = verify_dir(&dir, &[Mode::Chunk, Mode::Recurrent], &Device::Cpu);
        for l in report.lines.iter().filter(|l| !l.pass) {
            eprintln!("{family} {} {}: {:?} > {:?} {:?}", l.mode, l.key, l.error, l.tolerance, l.note);
        }
        assert!(report.pass, "{}", dir.display());
        // The peer's loss and gradients of mom are no reference.
        let least = if family == "mom" { 10 } else { 20 };
        assert!(
            report.lines.len() >= least,
            "{}: only {} keys were compared",
            dir.display(),
            report.lines.len()
        );
    }
}

macro_rules! golden_tests {
    ($($family:ident),*) => {$(
        #[test]
        fn $family() {
            passes(stringify!($family));
        }
    )*};
}
golden_tests!(gla, retnet, delta_net, gated_deltanet, kda, mamba2, transformer);
golden_tests!(
    linear_attn,
    lightnet,
    hgrn,
    hgrn2,
    gsa,
    abc,
    forgetting_transformer,
    mla,
    mamba,
    samba,
    rodimus,
    mom,
    gated_deltaproduct,
    comba,
    rwkv6,
    rwkv7,
    log_linear_mamba2,
    mesa_net,
    path_attn,
    nsa
);

/// A parameter that is 5 % off must show, whichever it is.
#[test]
fn a_scaled_parameter_fails() {
    for family in ["gla", "retnet", "mamba2", "transformer"] {
        let dir = &directories(family)[0];
        let golden = Golden::load(dir).unwrap();
        let model = Model::load(dir, Some(DType::F32), &Device::Cpu).unwrap();
        for p in model.params() {
            let right = p.tensor();
            p.set(right.affine(1.05, 0.0).unwrap()).unwrap();
            let mut lines = Vec::new();
            no_grad(|| compute::forward_keys(&model, &golden, Mode::Chunk, &mut lines)).unwrap();
            compute::loss_and_gradients(&model, &golden, Mode::Chunk, &mut lines).unwrap();
            assert!(lines.iter().any(|l| !l.pass), "{family}: scaling {} went unnoticed", p.name());
            p.set(right).unwrap();
        }
    }
}

#[test]
fn what_is_missing_or_unknown_fails() {
    let dir = &directories("gla")[0];
    let model = Model::load(dir, Some(DType::F32), &Device::Cpu).unwrap();
    let check = |golden: &Golden| verify_model(&model, golden, &[Mode::Chunk]).unwrap();

    let mut golden = Golden::load(dir).unwrap();
    golden.tensors.remove("logits_varlen");
    let line = |lines: &[Line], key: &str| lines.iter().find(|l| l.key == key).unwrap().clone();
    assert!(!line(&check(&golden), "logits_varlen").pass);
    golden.peer_cannot.push("logits_varlen".into());
    assert!(line(&check(&golden), "logits_varlen").pass);

    let mut golden = Golden::load(dir).unwrap();
    golden.precision.insert("logits".into(), "fp8".into());
    let l = line(&check(&golden), "logits");
    assert!(!l.pass && l.note.unwrap().contains("fp8"));

    let mut golden = Golden::load(dir).unwrap();
    golden.grad_norm.as_mut().unwrap().insert("model.extra.weight".into(), 1.0);
    assert!(!line(&check(&golden), "grad_norm.model.extra.weight").pass);

    let mut golden = Golden::load(dir).unwrap();
    let wrong = golden.tensors["logits"].affine(f64::NAN, 0.0).unwrap();
    golden.tensors.insert("logits".into(), wrong);
    assert!(!line(&check(&golden), "logits").pass);

    let report = verify_dir(std::path::Path::new("/nonexistent"), &[Mode::Chunk], &Device::Cpu);
    assert!(!report.pass && report.lines[0].note.is_some());
}
