use std::{fs, io::Write, path::Path};

use super::*;
use crate::Error;

fn one_file(text: &str) -> impl FnOnce(&Path) -> crate::Result<()> + '_ {
    move |dir| {
        let path = dir.join("model.safetensors");
        fs::write(&path, text).map_err(Error::io(&path, "writing"))
    }
}

fn steps(folder: &RunFolder) -> Vec<u64> {
    folder.checkpoints().unwrap().iter().map(|c| c.step).collect()
}

#[test]
fn the_newest_are_kept_and_latest_follows() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::open(&dir.path().join("a/b")).unwrap();
    assert_eq!(folder.newest().unwrap(), None);
    for step in [5, 10, 15] {
        folder.save(step, 2, one_file(&step.to_string())).unwrap();
    }
    assert_eq!(steps(&folder), [10, 15]);
    assert_eq!(fs::read_to_string(folder.dir().join(LATEST).join("model.safetensors")).unwrap(), "15");
    // The same step again changes nothing, and 0 keeps all.
    folder.save(15, 0, |_| panic!("written twice")).unwrap();
    folder.save(20, 0, one_file("20")).unwrap();
    assert_eq!(steps(&folder), [10, 15, 20]);
    assert_eq!(folder.newest().unwrap().unwrap().step, 20);
}

#[test]
fn a_full_disk_leaves_earlier_checkpoints_and_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::open(dir.path()).unwrap();
    folder.save(1, 1, one_file("good")).unwrap();
    let failed = folder.save(2, 1, |dir| {
        let path = dir.join("model.safetensors");
        fs::write(&path, vec![0; 1 << 20]).map_err(Error::io(&path, "writing"))?;
        // The device that is always full.
        let full = Path::new("/dev/full");
        let written = fs::File::options().write(true).open(full).and_then(|mut f| f.write_all(&[0; 100]));
        written.map_err(Error::io(full, "writing"))
    });
    let text = failed.unwrap_err().to_string();
    assert!(text.contains("/dev/full") && text.contains("No space left"), "{text}");
    assert_eq!(steps(&folder), [1]);
    assert_eq!(fs::read_to_string(dir.path().join("latest/model.safetensors")).unwrap(), "good");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_folder_without_its_marker_is_ignored_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::open(dir.path()).unwrap();
    folder.save(1, 0, one_file("1")).unwrap();
    let second = dir.path().join("step-00000002");
    fs::create_dir(&second).unwrap();
    fs::write(second.join("model.safetensors"), "half").unwrap();
    assert_eq!(folder.newest().unwrap().unwrap().step, 1);
    folder.save(2, 0, one_file("whole")).unwrap();
    assert_eq!(fs::read_to_string(second.join("model.safetensors")).unwrap(), "whole");
    // A marked checkpoint that lost bytes is not passed over in silence.
    fs::write(second.join("model.safetensors"), "who").unwrap();
    let text = folder.newest().unwrap_err().to_string();
    assert!(text.contains("step-00000002/model.safetensors") && text.contains("3 bytes, had 5"), "{text}");
    fs::remove_file(second.join("model.safetensors")).unwrap();
    assert!(folder.newest().is_err());
}

#[test]
fn two_runs_in_one_folder_are_refused_and_a_dead_one_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let first = RunFolder::open(dir.path()).unwrap();
    let second = RunFolder::open(dir.path()).err().unwrap();
    assert_eq!(second.kind(), crate::ErrorKind::Usage);
    let text = second.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    drop(first);
    // What a killed run leaves: its lock file, a temporary folder, a temporary link.
    fs::create_dir(dir.path().join(".flashlin-tmp-abc")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", dir.path().join(".flashlin-tmp-latest")).unwrap();
    let again = RunFolder::open(dir.path()).unwrap();
    again.save(1, 0, one_file("1")).unwrap();
    assert!(!dir.path().join(".flashlin-tmp-abc").exists());
    assert_eq!(fs::read_to_string(dir.path().join("latest/model.safetensors")).unwrap(), "1");
}

#[test]
fn a_folder_that_cannot_be_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let text = RunFolder::open(&dir.path().join("file/run")).err().unwrap().to_string();
    assert!(text.contains("file/run"), "{text}");
}
