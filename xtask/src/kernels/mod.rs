//! `cargo xtask kernels`: from the tiles' sources to one bundle an architecture.
//!
//! Policy: the assembler's output is not reproducible everywhere, so a cubin whose source and toolchain did not change is taken from the bundle as it is, with the
//! record of its check; only what changed is compiled. `--check` compares hashes alone: it needs neither toolchain nor GPU.

mod assemble;
mod jobs;
mod lint;
mod source;
mod toolchain;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flashlin_kernels::{Arch, Bundle, BundleWriter, Checked, Kernel};

use assemble::Built;
use jobs::Job;
use source::Sources;
use toolchain::Toolchain;

/// Arguments of `cargo xtask kernels`.
#[derive(clap::Args)]
pub struct Args {
    /// Only compare the bundles with the sources and the toolchain's pins
    #[arg(long)]
    check: bool,
    /// Architectures to compile for (default: those that have a bundle)
    #[arg(long, value_delimiter = ',')]
    arch: Vec<String>,
    /// Compile only kernels whose name contains this, print what became of them and write no bundle
    #[arg(long)]
    only: Option<String>,
    /// Lint complaints are no errors: for bundles that are measured, not shipped
    #[arg(long)]
    trial: bool,
    /// Note in the bundles which cubins hardware confirmed, from a file that `cargo xtask gpu --record` wrote; compiles nothing
    #[arg(long)]
    record: Option<PathBuf>,
    /// Where to write the bundles
    #[arg(long, default_value = "crates/kernels/bundle")]
    out: PathBuf,
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let out = root().join(&args.out);
    let sources = Sources::read(&root().join("tiles"))?;
    let mut archs = args.arch.iter().map(|a| a.parse()).collect::<Result<Vec<Arch>, _>>()?;
    if archs.is_empty() {
        archs = Arch::ALL.into_iter().filter(|a| bundle_path(&out, *a).exists()).collect();
    }
    if archs.is_empty() {
        bail!("there is no bundle in {} yet: name the architectures with --arch", out.display());
    }
    if args.check {
        return check(&out, &sources, &archs);
    }
    if let Some(file) = &args.record {
        return archs.iter().try_for_each(|arch| record(&bundle_path(&out, *arch), file));
    }
    let toolchain = Toolchain::ready(&root().join("tiles"))?;
    for arch in archs {
        build(&out, &sources, &toolchain, arch, args)?;
    }
    Ok(())
}

fn bundle_path(out: &Path, arch: Arch) -> PathBuf {
    out.join(format!("{arch}.bundle"))
}

/// What of a bundle no longer follows from the sources: empty where it is fresh.
pub fn stale(bundle: &Bundle, sources: &Sources) -> Result<Vec<String>> {
    let jobs = jobs::jobs(sources, bundle.arch())?;
    let mut out = Vec::new();
    if bundle.index().toolchain != sources.toolchain {
        out.push("the toolchain's pins changed".to_string());
    }
    for job in &jobs {
        match bundle.get(&job.name) {
            Err(_) => out.push(format!("{} is not in the bundle", job.name)),
            Ok(k) if k.source != job.source => {
                out.push(format!("{} was compiled from another source", k.name))
            }
            Ok(k) if k.toolchain != sources.toolchain => {
                out.push(format!("{} was compiled by another toolchain", k.name));
            }
            Ok(_) => {}
        }
    }
    let gone = bundle.kernels().iter().filter(|k| !jobs.iter().any(|j| j.name == k.name));
    out.extend(gone.map(|k| format!("{} is in the bundle and not in the table of jobs", k.name)));
    Ok(out)
}

fn check(out: &Path, sources: &Sources, archs: &[Arch]) -> Result<()> {
    let mut wrong = Vec::new();
    for arch in archs {
        let bundle = Bundle::open(&bundle_path(out, *arch))?;
        let lint = bundle.kernels().iter().filter(|k| k.spills > 0 && lint::is_error(*arch));
        wrong.extend(lint.map(|k| format!("{arch}: {} spills registers", k.name)));
        wrong.extend(stale(&bundle, sources)?.into_iter().map(|w| format!("{arch}: {w}")));
        println!("{arch}: {} kernels, {} bytes", bundle.kernels().len(), bundle.file_bytes());
        let open: Vec<&str> =
            bundle.kernels().iter().filter(|k| k.checked.is_none()).map(|k| k.name.as_str()).collect();
        println!(
            "{arch}: not confirmed by hardware: {}",
            if open.is_empty() { "none".into() } else { open.join(", ") }
        );
    }
    if !wrong.is_empty() {
        bail!("run `cargo xtask kernels`:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// Lines of hash, GPU, error and date, separated by tabs.
fn record(bundle: &Path, file: &Path) -> Result<()> {
    let mut writer = BundleWriter::of(&Bundle::open(bundle)?)?;
    let mut found = 0;
    for line in std::fs::read_to_string(file).with_context(|| file.display().to_string())?.lines() {
        let [sha, gpu, error, date] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("{}: {line:?} is no record", file.display());
        };
        let checked = Checked { gpu: gpu.into(), error: error.parse()?, date: date.into() };
        found += usize::from(writer.record(sha, &checked));
    }
    std::fs::write(bundle, writer.bytes()?)?;
    println!("{}: {found} records", bundle.display());
    Ok(())
}

fn build(out: &Path, sources: &Sources, toolchain: &Toolchain, arch: Arch, args: &Args) -> Result<()> {
    let only = args.only.as_deref();
    let path = bundle_path(out, arch);
    let old = if path.exists() { Some(Bundle::open(&path)?) } else { None };
    let mut writer = BundleWriter::new(arch, std::env::consts::ARCH, sources.toolchain.as_str());
    let mut bad = Vec::new();
    for job in jobs::jobs(sources, arch)? {
        if only.is_some_and(|text| !job.name.contains(text)) {
            continue;
        }
        let kept = old.as_ref().filter(|_| only.is_none()).and_then(|b| unchanged(b, &job, sources));
        let (kernel, cubin) = match kept {
            Some(pair) => pair,
            None => {
                let built = toolchain.build(&job, arch).with_context(|| job.name.clone())?;
                println!("{arch} {} {}", job.name, built.facts);
                let complaints = lint::lint(&built.facts, job.no_tma);
                for why in &complaints {
                    println!(
                        "{arch} {}: {}: {why}",
                        job.name,
                        if lint::is_error(arch) { "error" } else { "warning" }
                    );
                }
                if !complaints.is_empty() && lint::is_error(arch) && !args.trial {
                    bad.push(job.name.clone());
                }
                entry(&job, sources, &built, old.as_ref())
            }
        };
        writer.add(kernel, cubin)?;
    }
    if !bad.is_empty() {
        bail!("{} kernels fail the lint: {}", bad.len(), bad.join(", "));
    }
    if only.is_none() {
        let bytes = writer.bytes()?;
        std::fs::create_dir_all(out)?;
        std::fs::write(&path, &bytes).with_context(|| path.display().to_string())?;
        println!("{}: {} bytes", path.display(), bytes.len());
    }
    Ok(())
}

/// The bundle's own cubin of a job whose source and toolchain are as they were.
fn unchanged(bundle: &Bundle, job: &Job, sources: &Sources) -> Option<(Kernel, Vec<u8>)> {
    let k = bundle.get(&job.name).ok()?;
    if k.source != job.source || k.toolchain != sources.toolchain || k.abi != job.abi || k.grid != job.grid {
        return None;
    }
    Some((k.clone(), bundle.cubin_of_any_host(k).ok()?))
}

fn entry(job: &Job, sources: &Sources, built: &Built, old: Option<&Bundle>) -> (Kernel, Vec<u8>) {
    let sha = assemble::sha256(&built.cubin);
    // A comment changed, the cubin did not: what was checked is still what ships.
    let checked = old.and_then(|b| b.get(&job.name).ok()).filter(|k| k.cubin.sha256 == sha);
    let kernel = Kernel {
        name: job.name.clone(),
        entry: format!("{}_entry", job.kernel),
        family: job.family.clone(),
        kernel: job.kernel.clone(),
        dtype: job.dtype.clone(),
        generics: job.generics.clone(),
        warps: job.warps,
        occupancy: job.occupancy,
        abi: job.abi.clone(),
        grid: job.grid.clone(),
        registers: built.facts.registers,
        shared_bytes: built.facts.shared,
        spills: built.facts.spills,
        cubin: Default::default(),
        source: job.source.clone(),
        toolchain: sources.toolchain.clone(),
        checked: checked.and_then(|k| k.checked.clone()),
    };
    (kernel, built.cubin.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if path.is_dir() {
                copy(&path, &to.join(entry.file_name()));
            } else {
                std::fs::copy(&path, to.join(entry.file_name())).unwrap();
            }
        }
    }

    /// The committed bundles follow from the committed sources; a source, a helper, a pin or the table that changes shows.
    #[test]
    fn committed_bundles_are_fresh_and_an_edit_shows() {
        let tiles = root().join("tiles");
        let bundle = Bundle::open(&root().join("crates/kernels/bundle/sm_90.bundle")).unwrap();
        assert_eq!(stale(&bundle, &Sources::read(&tiles).unwrap()).unwrap(), Vec::<String>::new());
        let names = |edit: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            copy(&tiles.join("src"), &dir.path().join("src"));
            for f in ["requirements.txt", "Cargo.lock", "jobs.toml"] {
                std::fs::copy(tiles.join(f), dir.path().join(f)).unwrap();
            }
            edit(dir.path());
            stale(&bundle, &Sources::read(dir.path()).unwrap()).unwrap()
        };
        let append = |file: &'static str, text: &'static str| {
            move |dir: &Path| {
                let path = dir.join(file);
                let old = std::fs::read_to_string(&path).unwrap();
                std::fs::write(&path, old + text).unwrap();
            }
        };
        let one = names(&append("src/delta/step.rs", "// x"));
        assert!(!one.is_empty() && one.iter().all(|w| w.contains("delta_step@")), "{one:?}");
        let helper = names(&append("src/tile/math.rs", "// x"));
        assert!(
            helper.iter().any(|w| w.contains("decay_fwd@"))
                && helper.iter().any(|w| w.contains("delta_bwd@"))
        );
        assert!(names(&append("requirements.txt", "x==1")).iter().any(|w| w.contains("pins")));
        let job = "\n[[job]]\nkernel = \"decay_cumsum\"\ngrid = \"chunks\"\ndtypes = [\"f32\"]\nhints = [[4, 7]]\n\
                   generics = { C = [64], MODE = [0], VL = [0] }\n";
        assert!(
            names(&append("jobs.toml", job))
                .iter()
                .any(|w| w.contains("w4_o7") && w.contains("not in the bundle"))
        );
    }
}
