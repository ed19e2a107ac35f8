//! Files that are complete or not there.
//!
//! Policy: a file appears under its name only after its bytes are on the disk: it is written beside its target, synced,
//! renamed, and the folder is synced. A crash, a full disk or a SIGKILL at any point leaves the file that was there before. Every
//! error names the path.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use crate::{Error, Result, config::parse_json};

/// Names of temporary files and folders begin with this; what begins with it may be deleted when no run is active.
pub const TEMP_PREFIX: &str = ".flashlin-tmp-";

/// Writes a file so that it is either complete or unchanged. The writer is buffered.
///
/// # Errors
/// Those of `write` and of the file system, with the path. The old file, if there was one, is intact then.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let dir = parent(path);
    let temp = temp_builder(0o666)
        .tempfile_in(dir)
        .map_err(Error::io(path, "creating a temporary file beside it"))?;
    let mut out = BufWriter::with_capacity(1 << 20, temp.as_file());
    write(&mut out).and_then(|()| out.flush()).map_err(Error::io(path, "writing"))?;
    // A dropped BufWriter flushes again, which is nothing now.
    drop(out);
    temp.as_file().sync_all().map_err(Error::io(path, "writing to the disk"))?;
    temp.persist(path).map_err(|e| Error::io(path, "replacing the file")(e.error))?;
    sync_dir(dir)
}

/// [`write_atomic`] for bytes that are at hand.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |w| w.write_all(bytes))
}

/// Writes a value as indented JSON with a line feed at the end, atomically.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::file(path, e.to_string()))?;
    bytes.push(b'\n');
    write_bytes(path, &bytes)
}

/// Reads and parses a JSON file, with the numbers that Python writes and JSON lacks ([`parse_json`]).
///
/// # Errors
/// When it cannot be read, or is not JSON of the expected form (`what` names it in the message).
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path, what: &str) -> Result<T> {
    let bytes = fs::read(path).map_err(Error::io(path, "reading"))?;
    let bad = |problem: String| Error::file(path, format!("not a usable {what}: {problem}"));
    let text = std::str::from_utf8(&bytes).map_err(|e| bad(e.to_string()))?;
    parse_json(text).map_err(|e| bad(e.to_string()))
}

/// Creates a folder and its parents.
///
/// # Errors
/// When that fails, or a file is in the way.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io(path, "creating the folder"))
}

/// Makes a new folder appear complete or not at all: `fill` writes into a temporary folder beside the target, which is then
/// synced and renamed.
///
/// # Errors
/// When the target exists already, and those of `fill`; the temporary folder is removed then.
pub fn create_dir_atomic<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let dir = parent(path);
    if path.symlink_metadata().is_ok() {
        return Err(Error::file(path, "already exists, expected a new folder").into());
    }
    let temp = temp_builder(0o777)
        .tempdir_in(dir)
        .map_err(Error::io(path, "creating a temporary folder beside it"))?;
    fill(temp.path())?;
    sync_tree(temp.path())?;
    // Only a rename onto an empty folder or nothing succeeds, so a concurrent writer cannot be overwritten.
    fs::rename(temp.path(), path).map_err(Error::io(path, "moving the finished folder into place"))?;
    let _renamed_away = temp.keep();
    Ok(sync_dir(dir)?)
}

/// Removes a folder so that no half of it can be mistaken for the whole: it is renamed first, then deleted.
///
/// # Errors
/// When it cannot be renamed or deleted; a folder that is not there is no error.
pub fn remove_dir_atomic(path: &Path) -> Result<()> {
    let dir = parent(path);
    let temp = match temp_builder(0o777).tempdir_in(dir) {
        Ok(temp) => temp,
        Err(_) if !path.exists() => return Ok(()),
        Err(e) => return Err(Error::io(path, "creating a temporary folder beside it")(e)),
    };
    match fs::rename(path, temp.path().join("removed")) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(path, "removing the folder")(e)),
    }
    sync_dir(dir)?;
    temp.close().map_err(Error::io(path, "removing the folder"))
}

/// Removes what killed runs have left in a folder: temporary files and folders of this module. Returns how many.
///
/// # Errors
/// When the folder cannot be read or an entry not removed.
pub fn remove_leftovers(dir: &Path) -> Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "listing the folder"))? {
        let entry = entry.map_err(Error::io(dir, "listing the folder"))?;
        if !entry.file_name().to_string_lossy().starts_with(TEMP_PREFIX) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        let done = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        done.map_err(Error::io(&path, "removing"))?;
        removed += 1;
    }
    Ok(removed)
}

/// Makes renames and deletions in a folder durable.
///
/// # Errors
/// When the system cannot sync it.
pub fn sync_dir(dir: &Path) -> Result<()> {
    // Windows has no handle of this kind on a folder; renames are journalled there.
    if cfg!(unix) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(dir, "syncing the folder"))?;
    }
    Ok(())
}

fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "listing the folder"))? {
        let path: PathBuf = entry.map_err(Error::io(dir, "listing the folder"))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|f| f.sync_all()).map_err(Error::io(&path, "writing to the disk"))?;
        }
    }
    sync_dir(dir)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// `mode` is what a new file (0666) or folder (0777) asks for; the umask applies. tempfile's own default for files is 0600.
fn temp_builder(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMP_PREFIX);
    #[cfg(unix)]
    builder.permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut v: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        v.sort();
        v
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_bytes(&path, b"old").unwrap();
        let full = write_atomic(&path, |w| {
            w.write_all(&[b'x'; 3 << 20])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let text = full.unwrap_err().to_string();
        assert!(text.contains("a.txt: writing failed"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.txt"]);
        write_bytes(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[cfg(unix)]
    #[test]
    fn modes_are_those_of_ordinary_files() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        fs::write(dir.path().join("plain"), b"").unwrap();
        write_bytes(&dir.path().join("atomic"), b"").unwrap();
        assert_eq!(mode(&dir.path().join("atomic")), mode(&dir.path().join("plain")));
        fs::create_dir(dir.path().join("d")).unwrap();
        create_dir_atomic(&dir.path().join("e"), |_| Ok::<_, Error>(())).unwrap();
        assert_eq!(mode(&dir.path().join("e")), mode(&dir.path().join("d")));
    }

    #[test]
    fn folders_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("step-1");
        let failed = create_dir_atomic(&target, |d| {
            fs::write(d.join("half"), b"1").unwrap();
            Err(Error::argument("x", "is wrong"))
        });
        assert!(failed.is_err() && names(dir.path()).is_empty());
        create_dir_atomic(&target, |d| write_bytes(&d.join("whole"), b"1")).unwrap();
        assert_eq!(names(&target), ["whole"]);
        let again = create_dir_atomic(&target, |_| Ok::<_, Error>(())).unwrap_err().to_string();
        assert!(again.contains("step-1: already exists"), "{again}");
        remove_dir_atomic(&target).unwrap();
        remove_dir_atomic(&target).unwrap();
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(format!("{TEMP_PREFIX}d"))).unwrap();
        fs::write(dir.path().join(format!("{TEMP_PREFIX}d/f")), b"").unwrap();
        fs::write(dir.path().join(format!("{TEMP_PREFIX}f")), b"").unwrap();
        fs::write(dir.path().join("kept"), b"").unwrap();
        assert_eq!(remove_leftovers(dir.path()).unwrap(), 2);
        assert_eq!(names(dir.path()), ["kept"]);
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let below = dir.path().join("file/x.json");
        for text in [
            write_json(&below, &1).unwrap_err().to_string(),
            create_dir(&below).unwrap_err().to_string(),
            read_json::<u8>(&below, "number").unwrap_err().to_string(),
        ] {
            assert!(text.contains("file/x.json"), "{text}");
        }
        let bad = dir.path().join("bad.json");
        fs::write(&bad, b"{").unwrap();
        let text = read_json::<u8>(&bad, "number").unwrap_err().to_string();
        assert!(text.contains("bad.json: not a usable number"), "{text}");
    }

    /// By hand, as root: `mount -t tmpfs -o size=64k tmpfs DIR`, and again with `-o remount,ro`.
    #[test]
    #[ignore = "needs a file system of 64 KiB at $FLASHLIN_SMALL_FS"]
    fn full_and_read_only_disks_leave_what_was_there() {
        let dir = PathBuf::from(std::env::var("FLASHLIN_SMALL_FS").expect("FLASHLIN_SMALL_FS"));
        let path = dir.join("a.bin");
        let read_only = fs::write(dir.join("probe"), b"").is_err();
        if !read_only {
            fs::remove_file(dir.join("probe")).unwrap();
            write_bytes(&path, &[7; 20_000]).unwrap();
        }
        let before = names(&dir);
        let e = write_bytes(&path, &[8; 200_000]).unwrap_err();
        let expected = if read_only {
            "creating a temporary file beside it failed: Read-only"
        } else {
            "writing failed"
        };
        assert!(e.to_string().contains("a.bin") && e.to_string().contains(expected), "{e}");
        assert_eq!(e.kind(), crate::ErrorKind::Runtime);
        let e = create_dir_atomic(&dir.join("d"), |d| write_bytes(&d.join("x"), &[8; 200_000])).unwrap_err();
        assert!(e.to_string().contains(if read_only { "/d: " } else { "/x: writing" }), "{e}");
        assert_eq!(fs::read(&path).unwrap(), [7; 20_000]);
        assert_eq!(names(&dir), before);
    }
}
