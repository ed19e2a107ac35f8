//! The output folder of a run: checkpoints by step, the newest under the name `latest`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use flashlin::files;
use serde::{Deserialize, Serialize};

use super::{TRAINING_DIR, lock::Lock};
use crate::{Error, Result};

/// A link to the newest checkpoint (on Unix).
pub const LATEST: &str = "latest";
/// Lists every file of a checkpoint with its size; a folder without it is no checkpoint.
const MARKER: &str = "complete.json";
const PREFIX: &str = "step-";

/// What [`MARKER`] holds.
#[derive(Debug, Serialize, Deserialize)]
struct Complete {
    files: BTreeMap<String, u64>,
}

/// A complete checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Optimizer steps it has seen.
    pub step: u64,
    /// Its folder.
    pub dir: PathBuf,
}

/// An output folder, locked for this run.
pub struct RunFolder {
    dir: PathBuf,
    _lock: Lock,
}

impl RunFolder {
    /// Creates the folder if it is not there, locks it, and removes what a killed run left half written.
    ///
    /// # Errors
    /// [`Error::Locked`] while another run uses it; [`Error::Io`] where it cannot be created or written.
    pub fn open(dir: &Path) -> Result<RunFolder> {
        files::create_dir(dir)?;
        let lock = Lock::take(dir)?;
        files::remove_leftovers(dir)?;
        Ok(RunFolder { dir: dir.to_path_buf(), _lock: lock })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All complete checkpoints, oldest first. A folder without its marker (copied halfway, say) is not one.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io(&self.dir, "listing the folder"))? {
            let entry = entry.map_err(Error::io(&self.dir, "listing the folder"))?;
            let name = entry.file_name();
            let step = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse().ok());
            if let Some(step) = step
                && entry.path().join(TRAINING_DIR).join(MARKER).exists()
            {
                found.push(Checkpoint { step, dir: entry.path() });
            }
        }
        found.sort_by_key(|c| c.step);
        Ok(found)
    }

    /// The newest complete checkpoint, its files checked against their sizes.
    ///
    /// # Errors
    /// [`Error::File`] naming a file that is missing or shorter than it was: nothing older is taken in its place silently.
    pub fn newest(&self) -> Result<Option<Checkpoint>> {
        let Some(newest) = self.checkpoints()?.pop() else { return Ok(None) };
        newest.check()?;
        Ok(Some(newest))
    }

    /// Writes the checkpoint of `step`: `fill` puts files into the folder it is given. Then points [`LATEST`] at it and prunes all
    /// but the `keep_latest` newest (0 keeps all). A checkpoint of this step that is there already stays as it is.
    ///
    /// # Errors
    /// Those of `fill` and of the file system; earlier checkpoints are intact then.
    pub fn save(
        &self,
        step: u64,
        keep_latest: usize,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Checkpoint> {
        let dir = self.dir.join(format!("{PREFIX}{step:08}"));
        let saved = Checkpoint { step, dir: dir.clone() };
        if !self.checkpoints()?.contains(&saved) {
            files::remove_dir_atomic(&dir)?;
            files::create_dir_atomic(&dir, |temp| {
                let training = temp.join(TRAINING_DIR);
                files::create_dir(&training)?;
                fill(temp)?;
                let complete = Complete { files: sizes(temp)? };
                Ok::<_, Error>(files::write_json(&training.join(MARKER), &complete)?)
            })?;
        }
        self.point_latest(&dir)?;
        self.prune(keep_latest)?;
        Ok(saved)
    }

    fn prune(&self, keep: usize) -> Result<()> {
        let all = self.checkpoints()?;
        let surplus = if keep == 0 { 0 } else { all.len().saturating_sub(keep) };
        all[..surplus].iter().try_for_each(|c| Ok(files::remove_dir_atomic(&c.dir)?))
    }

    /// Makes `latest` a link to a checkpoint, in one step. Readers may use it; resuming does not depend on it.
    #[cfg(unix)]
    fn point_latest(&self, target: &Path) -> Result<()> {
        let (link, temp) = (self.dir.join(LATEST), self.dir.join(format!("{}{LATEST}", files::TEMP_PREFIX)));
        let name = target.file_name().unwrap_or(target.as_os_str());
        if fs::read_link(&link).is_ok_and(|now| now == name) {
            return Ok(());
        }
        let made = std::os::unix::fs::symlink(name, &temp).and_then(|()| fs::rename(&temp, &link));
        made.map_err(Error::io(&link, "linking to the newest checkpoint"))?;
        Ok(files::sync_dir(&self.dir)?)
    }

    #[cfg(not(unix))]
    fn point_latest(&self, _target: &Path) -> Result<()> {
        Ok(())
    }
}

impl Checkpoint {
    /// The folder with what only training reads.
    pub fn training(&self) -> PathBuf {
        self.dir.join(TRAINING_DIR)
    }

    /// Checks that every file is there and as long as it was.
    fn check(&self) -> Result<()> {
        let marker = self.training().join(MARKER);
        let complete: Complete = files::read_json(&marker, "list of a checkpoint's files")?;
        for (name, bytes) in complete.files {
            let path = self.dir.join(name);
            let meta = fs::metadata(&path).map_err(Error::io(&path, "opening a file of the checkpoint"))?;
            if meta.len() != bytes {
                let now = meta.len();
                let problem =
                    format!("has {now} bytes, had {bytes} when the checkpoint was written: it is damaged");
                return Err(Error::file(&path, problem));
            }
        }
        Ok(())
    }
}

/// Files below `dir` with their sizes, two levels deep as checkpoints are.
fn sizes(dir: &Path) -> Result<BTreeMap<String, u64>> {
    let mut out = BTreeMap::new();
    for part in [dir.to_path_buf(), dir.join(TRAINING_DIR)] {
        for entry in fs::read_dir(&part).map_err(Error::io(&part, "listing the folder"))? {
            let path = entry.map_err(Error::io(&part, "listing the folder"))?.path();
            let meta = fs::metadata(&path).map_err(Error::io(&path, "opening"))?;
            if let (true, Ok(name)) = (meta.is_file(), path.strip_prefix(dir)) {
                out.insert(name.to_string_lossy().into_owned(), meta.len());
            }
        }
    }
    Ok(out)
}
