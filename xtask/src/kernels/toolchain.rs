//! The pinned toolchain: found or installed, outside the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What compiles: the front end's driver (built from `tiles/`) and NVIDIA's assembler from PyPI wheels.
pub struct Toolchain {
    /// Folder of the installation (`FLASHLIN_TOOLCHAIN`).
    pub home: PathBuf,
    /// The front end's driver.
    pub frontend: PathBuf,
    /// Folder with `bin/tileiras`, `bin/cuobjdump` and what they load.
    pub cuda: PathBuf,
}

impl Toolchain {
    /// Installs what is missing and builds the driver. Needs Rust, python3 with venv, libclang and a C compiler.
    pub fn ready(tiles: &Path) -> Result<Toolchain> {
        let home = match std::env::var_os("FLASHLIN_TOOLCHAIN") {
            Some(dir) => PathBuf::from(dir),
            None => {
                let home = std::env::var_os("HOME").context("neither FLASHLIN_TOOLCHAIN nor HOME is set")?;
                Path::new(&home).join(".cache/flashlin/tileir-13.3")
            }
        };
        std::fs::create_dir_all(&home)?;
        let venv = home.join("venv");
        if !venv.join("bin/python").exists() {
            done(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        }
        let pins = tiles.join("requirements.txt");
        let stamp = home.join("installed.txt");
        if std::fs::read(&stamp).ok() != std::fs::read(&pins).ok() {
            done(
                Command::new(venv.join("bin/python"))
                    .args(["-m", "pip", "-q", "install", "--no-deps", "-r"])
                    .arg(&pins),
            )?;
            std::fs::copy(&pins, &stamp)?;
        }
        let cuda = cuda_home(&venv)?;
        let target = home.join("target");
        // The variable would win over CUDA_HOME in the build of cutile.
        done(
            Command::new("cargo")
                .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
                .arg(tiles.join("Cargo.toml"))
                .env("CUDA_HOME", &cuda)
                .env("CARGO_TARGET_DIR", &target)
                .env_remove("CUDA_TOOLKIT_PATH"),
        )
        .context("building the front end (it needs libclang: apt-get install libclang-dev)")?;
        Ok(Toolchain { frontend: target.join("release/flashlin-tiles"), home, cuda })
    }
}

fn cuda_home(venv: &Path) -> Result<PathBuf> {
    for entry in std::fs::read_dir(venv.join("lib"))? {
        let dir = entry?.path().join("site-packages/nvidia/cu13");
        if dir.join("bin/tileiras").exists() {
            return Ok(dir);
        }
    }
    bail!("no assembler under {}: delete the folder and run again", venv.display())
}

/// Runs a command to its end.
pub fn done(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
