//! Small files that must survive a power cut: written whole, synced, then moved into place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A file that can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("{path} is locked: another agent runs on this state folder")]
    Taken {
        /// The file.
        path: String,
    },
    /// The file is not what was written.
    #[error("{path} is damaged: {source}")]
    Damaged {
        /// The file.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// Takes a lock for as long as the answer lives, or until the process ends, however it does.
///
/// # Errors
/// Another process has it, or the file system refused.
pub fn lock(path: &Path) -> Result<Flock<File>, DiskError> {
    let refused = |source| DiskError::Io {
        path: path.display().to_string(),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(refused)?;
    }
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(refused)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => DiskError::Taken {
            path: path.display().to_string(),
        },
        errno => refused(errno.into()),
    })
}

/// Reads a file as JSON; none if there is none.
///
/// # Errors
/// See [`DiskError`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DiskError> {
    let shown = || path.display().to_string();
    match fs::read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(source) => Err(DiskError::Damaged { path: shown(), source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DiskError::Io { path: shown(), source }),
    }
}

/// Writes a file as JSON, readable by its owner only. After this it is on the disk, or the old one still is.
///
/// # Errors
/// See [`DiskError`].
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), DiskError> {
    let text = serde_json::to_string_pretty(value).map_err(|source| DiskError::Io {
        path: path.display().to_string(),
        source: source.into(),
    })?;
    write_text(path, &text)
}

/// The same for any text.
///
/// # Errors
/// See [`DiskError`].
pub fn write_text(path: &Path, text: &str) -> Result<(), DiskError> {
    let refused = |source| DiskError::Io {
        path: path.display().to_string(),
        source,
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(refused)?;
    let new = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_had_once_and_free_after_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/lock");
        let held = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(DiskError::Taken { .. })));
        drop(held);
        assert!(lock(&path).is_ok());
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/ledger.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &vec![1, 2]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, "[1,").unwrap();
        assert!(matches!(read::<Vec<u32>>(&path), Err(DiskError::Damaged { .. })));
    }
}
