//! The cache on disk, as Python's `huggingface_hub` lays it out: `blobs/<etag>`, `snapshots/<commit>/<file>` as links to blobs, and
//! `refs/<revision>` with the commit.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use hf_hub::{Cache, Repo, RepoType};

use super::is_commit;
use crate::{
    Error, Result, files,
    weights::{INDEX_FILE, WEIGHTS_FILE},
};

/// The files beside the weights that a model may have. Only the first must be there.
const SMALL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// One repository at one revision in the cache.
pub(super) struct RepoCache {
    root: PathBuf,
    pub repo: Repo,
    cache: Cache,
}

impl RepoCache {
    pub fn new(cache: &Path, id: &str, revision: &str) -> RepoCache {
        let repo = Repo::with_revision(id.to_string(), RepoType::Model, revision.to_string());
        let root = cache.join(repo.folder_name());
        RepoCache { root, repo, cache: Cache::new(cache.to_path_buf()) }
    }

    /// The commit that the revision stood for when it was last fetched.
    fn commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        let stored = fs::read_to_string(self.root.join("refs").join(revision)).ok();
        let commit = stored.map(|c| c.trim().to_string()).unwrap_or_else(|| revision.to_string());
        is_commit(&commit).then_some(commit)
    }

    /// The folder of a commit's files.
    pub fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).pointer_path(commit)
    }

    /// Where the content with an etag lies.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).blob_path(etag)
    }

    /// The whole snapshot of the revision, or what is missing.
    pub fn snapshot(&self) -> std::result::Result<PathBuf, String> {
        let revision = self.repo.revision();
        let Some(dir) = self.commit().map(|c| self.snapshot_dir(&c)).filter(|d| d.is_dir()) else {
            return Err(format!("has no snapshot of revision {revision} ({})", self.root.display()));
        };
        match missing(&dir) {
            None => Ok(dir),
            Some(file) => Err(format!("has an unfinished snapshot: {} is missing", dir.join(file).display())),
        }
    }

    /// Makes a file of a snapshot point to its content.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let pointer = self.snapshot_dir(commit).join(file);
        let dir = pointer.parent().unwrap_or(&self.root);
        files::create_dir(dir)?;
        if pointer.exists() {
            return Ok(());
        }
        if pointer.symlink_metadata().is_ok() {
            fs::remove_file(&pointer).map_err(Error::io(&pointer, "removing a broken link"))?;
        }
        #[cfg(unix)]
        {
            let up = "../".repeat(2 + Path::new(file).components().count() - 1);
            std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &pointer)
                .map_err(Error::io(&pointer, "creating the link"))
        }
        #[cfg(not(unix))]
        fs::hard_link(self.blob(etag), &pointer)
            .or_else(|_| fs::copy(self.blob(etag), &pointer).map(drop))
            .map_err(Error::io(&pointer, "creating the file"))
    }

    /// Records what the revision stands for: the last step, when the snapshot is whole.
    pub fn record(&self, commit: &str) -> Result<()> {
        let path = self.root.join("refs").join(self.repo.revision());
        if path.parent().is_none_or(Path::exists) && fs::read(&path).is_ok_and(|old| old == commit.as_bytes())
        {
            return Ok(());
        }
        files::create_dir(path.parent().unwrap_or(&self.root))?;
        files::write_bytes(&path, commit.as_bytes())
    }
}

/// The small files and the weights (or their index) among the files of a repository.
pub(super) fn wanted(files: &BTreeSet<&str>) -> std::result::Result<Vec<&'static str>, String> {
    if !files.contains("config.json") {
        return Err("has no config.json: it is not a model in the Transformers layout".into());
    }
    let weights = [WEIGHTS_FILE, INDEX_FILE].into_iter().find(|f| files.contains(f));
    let weights = weights.ok_or_else(|| {
        let bin = files.iter().any(|f| f.ends_with(".bin") || f.ends_with(".pth"));
        let hint = if bin { "; its pickled weights are not read" } else { "" };
        format!("has neither {WEIGHTS_FILE} nor {INDEX_FILE}{hint}")
    })?;
    Ok(SMALL_FILES.into_iter().filter(|f| files.contains(f)).chain([weights]).collect())
}

/// The shards that an index names, each a plain file name.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let value: serde_json::Value = files::read_json(index, "index of safetensors shards")?;
    let map = value.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| Error::file(index, "has no `weight_map`, expected an index of shards"))?;
    map.values()
        .map(|v| match v.as_str() {
            Some(name) if is_plain(name) => Ok(name.to_string()),
            _ => {
                Err(Error::file(index, format!("names the shard {v}, expected the name of a file beside it")))
            }
        })
        .collect()
}

fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(Component::Normal(_)))
        && parts.next().is_none()
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'\\' | b'?' | b'#' | b'%' | b':'))
}

/// A file that a snapshot lacks, if any.
fn missing(dir: &Path) -> Option<String> {
    let has = |file: &str| dir.join(file).exists();
    if !has("config.json") {
        return Some("config.json".into());
    }
    if has(WEIGHTS_FILE) {
        return None;
    }
    if !has(INDEX_FILE) {
        return Some(WEIGHTS_FILE.into());
    }
    // A damaged index is reported where it is loaded.
    shards(&dir.join(INDEX_FILE)).ok()?.into_iter().find(|shard| !has(shard))
}
