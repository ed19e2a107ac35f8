//! One run in one output folder.
//!
//! The lock is the system's (`flock` on Unix): it belongs to the open file and vanishes with the process, so nothing a killed run
//! leaves behind can block the next one.

use std::{
    fs::{File, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
};

use crate::{Error, Result};

/// Held while it lives.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the folder `dir`, which must exist.
    pub fn take(dir: &Path) -> Result<Lock> {
        let path = dir.join(".lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(Error::io(&path, "opening the lock file"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message; an unreadable file is still a locked one.
                let _ = file.read_to_string(&mut holder);
                return Err(Error::Locked { path: dir.to_path_buf(), holder: holder.trim().to_string() });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, "locking")(e)),
        }
        let note = format!("process {}\n", std::process::id());
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(note.as_bytes()));
        written.map_err(Error::io(&path, "writing"))?;
        Ok(Lock { _file: file })
    }
}
